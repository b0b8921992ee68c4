"""The client against the real service, and against what is no service."""

import io
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from maskserve.client import Client, ServiceError, Unreachable
from models.bundle import open_bundle
from models.image import decode
from models.segmenter import Segmenter
from service.launch import ROOT, free_port
from tests.bundles import drawing


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[Client]:
    with Client(service_url) as client:
        yield client


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(open_bundle(tiny_bundle))


def test_every_kind_of_picture(client: Client, segmenter: Segmenter, tmp_path: Path) -> None:
    picture = drawing(150, 210)
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    expected = segmenter.segment(picture).labels
    for sent in (path, str(path), path.read_bytes(), picture, picture[:, ::-1][:, ::-1], Image.fromarray(picture)):
        np.testing.assert_array_equal(client.segment(sent).labels, expected)


def test_what_a_mask_holds(client: Client, tiny_bundle: Path, tmp_path: Path) -> None:
    mask = client.segment(drawing(40, 60))
    bundle = open_bundle(tiny_bundle)
    assert mask.labels.dtype == np.uint8 and mask.labels.shape == (40, 60)
    assert mask.model == f"tiny@{bundle.hash[:12]}"
    assert [entry["name"] for entry in mask.classes] == [entry.name for entry in bundle.spec.classes]
    np.testing.assert_array_equal(mask.palette, bundle.spec.palette())
    mask.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), mask.labels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_a_pillow_image(client: Client, mode: str) -> None:
    image = Image.fromarray(drawing(30, 50))
    image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    assert client.segment(image).labels.shape == (30, 50)


def test_a_pillow_image_is_sent_as_its_pixels_stand(client: Client, segmenter: Segmenter) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(drawing(30, 50)).save(buffer, format, exif=exif)
        image = Image.open(buffer)
        expected = segmenter.segment(np.array(image)).labels
        np.testing.assert_array_equal(client.segment(image).labels, expected)
        assert client.segment(buffer.getvalue()).labels.shape == (50, 30)  # a file is turned upright


def test_overlay_models_ready(client: Client) -> None:
    assert decode(client.overlay(drawing(40, 60), alpha=0.3)).shape == (40, 60, 3)
    assert client.models()[0]["name"] == "tiny"
    assert client.ready()


def test_errors_of_the_service_are_typed(client: Client) -> None:
    with pytest.raises(ServiceError, match=r"415.*JPEG") as caught:
        client.segment(b"no picture")
    assert (caught.value.status, caught.value.title) == (415, "This is no picture")
    with pytest.raises(ServiceError, match="alpha"):
        client.overlay(drawing(4, 4), alpha=3)
    with pytest.raises(ServiceError) as caught:
        client.segment(bytes(33 * 2**20))
    assert caught.value.status == 413


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused_here(client: Client, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="send uint8 of H x W x 3, RGB"):
        client.segment(array)


def test_nothing_is_there() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        assert not client.ready()
        with pytest.raises(Unreachable, match="cannot be reached"):
            client.models()


def test_a_stranger_answers() -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(502, "Bad Gateway")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client, pytest.raises(ServiceError) as caught:
            client.models()
        server.shutdown()
        thread.join()
    assert caught.value.status == 502 and "Bad Gateway" in str(caught.value)


def test_the_client_stands_alone() -> None:
    check = (
        "import sys, maskserve.client; sys.exit(bool({'models', 'service', 'training', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False, cwd=ROOT).returncode == 0
