"""Responses of a broken or malicious service: the run stops with a sentence, and no other decoder sees them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskserve.client import ClientError
from models.errors import ConfigError, RunError
from tests.maskserve.client.test_hostile_responses import DEEP, MODEL, MODELS, mask_response
from tests.maskserve.fake_server import http_response, run_fake_server
from tests.maskserve.predict_helpers import read_rows, run_predict, write_images


def png(mode: str = "P", size: tuple[int, int] = (4, 4), color: int = 0) -> bytes:
    buffer = io.BytesIO()
    image = Image.new(mode, size, color)
    if mode == "P":
        image.putpalette(bytes(768))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


BAD_MASKS = {
    "png": [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", png("L"), png("I;16"), png("1"), png(color=2), png()[:50]],
    "overlay": [png(), b"\xff\xd8\xff\xe0", b"\xff\xd8\xff"],
    "npy": [
        b"PK\x03\x04",
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }", b"\x80\x04."),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1), }", b"\x02"),
    ],
    "json": [DEEP, b'{"height": "a"}', b'{"height": 1, "width": 1, "classes": [{"label": 999}]}'],
    "parquet": [b'{"height": 1, "width": 1, "classes": [{"label": 0, "name": "a", "fraction": 1}]}'],
}


@pytest.mark.parametrize(
    ("format", "content"),
    [
        pytest.param(name, one, id=f"{name}{index}")
        for name, many in BAD_MASKS.items()
        for index, one in enumerate(many)
    ],
)
def test_a_response_that_is_not_the_requested_mask(
    format: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object) -> None:
        raise AssertionError("Pillow's EPS plugin was asked")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", forbidden)
    write_images(tmp_path / "in", 1)
    with (
        run_fake_server(MODELS, MODELS, mask_response(content)) as server,
        pytest.raises((RunError, ClientError), match=r"not a (mask|response of maskserve)"),
    ):
        run_predict(server.url, tmp_path / "in", out=tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"hash": "x"}, {"hash": 3}, {"spec": {}}, {"spec": {"classes": [{"name": "a"}]}}])
def test_an_invalid_model_stops_before_the_first_image(change: dict[str, object], tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    with (
        run_fake_server(http_response(200, json.dumps([MODEL | change]).encode())) as server,
        pytest.raises((RunError, ClientError), match=r"/v1/models returned"),
    ):
        run_predict(server.url, tmp_path / "in", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_service_of_another_version_is_used(tmp_path: Path) -> None:
    model = MODEL | {"new": 1, "spec": MODEL["spec"] | {"format_version": 99, "also new": []}}  # type: ignore[operator]
    models = http_response(200, json.dumps([model]).encode())
    write_images(tmp_path / "in", 1)
    with run_fake_server(models, models, mask_response(png(color=1))) as server:
        assert run_predict(server.url, tmp_path / "in", out=tmp_path / "out")[0]
    assert read_rows(tmp_path / "out")[0]["classes"] == [{"label": 1, "name": "b", "fraction": 1.0}]


def test_the_labels_of_npy_are_read_row_by_row(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[0, 1, 255]], np.uint8))
    write_images(tmp_path / "in", 1)
    with run_fake_server(MODELS, MODELS, mask_response(buffer.getvalue())) as server:
        run_predict(server.url, tmp_path / "in", out=tmp_path / "out", format="npy")
    (row,) = read_rows(tmp_path / "out")
    assert (row["height"], row["width"], [entry["label"] for entry in row["classes"]]) == (1, 3, [0, 1])


def test_a_slow_service(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    with run_fake_server(MODELS, MODELS, 0.3, http_response(200, b"ready")) as server:
        complete, printed = run_predict(server.url, tmp_path / "in", out=tmp_path / "out", timeout=0.2)
    assert not complete
    assert "did not respond to this image within 0.2 seconds: give it more time with --timeout SECONDS" in printed


def test_a_timeout_is_for_services(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--timeout limits the wait for a service"):
        run_predict("bundle", tmp_path, out=tmp_path / "out", timeout=3)
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="expected a number of seconds above 0"):
            run_predict("http://a.org", tmp_path, out=tmp_path / "out", timeout=seconds)
