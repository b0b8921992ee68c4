"""The client against a real service: the encoding of images, and the parsing of responses."""

import asyncio
import inspect
import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from maskserve.client import AsyncClient, Client, InvalidImageError, Mask, ServiceError
from maskserve.client.async_client import DEFAULT_PARAMS
from maskserve.client.image_encoding import FILE_MODES, to_request_body
from models.bundle import open_bundle
from models.imaging.decode import decode_image
from models.inference.segmenter import Segmenter
from models.outputs import OUTPUT_FORMATS
from models.readers import read_sample
from service.request_parsing import SegmentParams
from service.server_process import ROOT
from tests.fixtures_bundles import synthetic_image
from tests.models.imaging.test_icc import GAMMA_18, P3, make_profile, matrix_profile, press_profile


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[Client]:
    with Client(service_url) as client:
        yield client


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(open_bundle(tiny_bundle))


def test_every_kind_of_image_can_be_sent(client: Client, segmenter: Segmenter, tmp_path: Path) -> None:
    image = synthetic_image(150, 210)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = segmenter.segment(image).labels
    for sent in (path, str(path), path.read_bytes(), image, image[:, ::-1][:, ::-1], Image.fromarray(image)):
        np.testing.assert_array_equal(client.segment(sent).labels, expected)


def test_the_fields_of_a_mask(client: Client, tiny_bundle: Path, tmp_path: Path) -> None:
    mask = client.segment(synthetic_image(40, 60))
    bundle = open_bundle(tiny_bundle)
    assert mask.labels.dtype == np.uint8 and mask.labels.shape == (40, 60)
    assert mask.model == f"tiny@{bundle.hash[:12]}"
    assert [entry["name"] for entry in mask.classes] == [entry.name for entry in bundle.spec.classes]
    np.testing.assert_array_equal(mask.palette, bundle.spec.palette())
    mask.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), mask.labels)


MODE_FORMATS = {"1": "PNG", "L": "PNG", "LA": "PNG", "P": "PNG", "RGB": "PNG", "RGBA": "PNG"}  # the others: TIFF


def encode_mode(mode: str, **options: Any) -> bytes:
    """An image file of a mode, with many values of each channel, transparency included."""
    rgba = np.dstack([synthetic_image(30, 50), np.linspace(0, 255, 1500).reshape(30, 50).astype(np.uint8)])
    image = Image.fromarray(rgba, "RGBA")
    if mode.startswith("I;16"):
        image = Image.fromarray(np.linspace(0, 65535, 1500).reshape(30, 50).astype(">u2" if mode == "I;16B" else "<u2"))
    elif mode == "I":
        image = Image.fromarray(np.linspace(0, 60_000, 1500).reshape(30, 50).astype(np.int32))
    elif mode == "F":
        image = Image.fromarray(np.linspace(-0.5, 1, 1500).reshape(30, 50).astype(np.float32))
    elif mode == "P":
        image = image.convert("RGB").quantize(200)
        options["transparency"] = bytes(range(200))
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, MODE_FORMATS.get(mode, "TIFF"), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B"]
)
def test_a_pillow_image_is_decoded_as_its_file(mode: str, local: bool) -> None:
    file = encode_mode(mode)
    image = Image.open(io.BytesIO(file))
    assert image.mode == mode
    expected = decode_image(file)
    assert len(np.unique(expected)) > (1 if mode == "1" else 50)
    np.testing.assert_array_equal(decode_image(to_request_body(image, local)), expected)
    np.testing.assert_array_equal(
        decode_image(to_request_body(image.crop((5, 5, 40, 20)), local)), expected[5:20, 5:40]
    )


@pytest.mark.parametrize(
    ("mode", "file_mode", "tolerance"),
    [("La", "LA", 1), ("RGBa", "RGBA", 1), ("RGBX", "RGB", 0), ("HSV", "RGB", 8), ("I;16L", "I;16", 0), ("I;16N", "I;16", 0)],
)  # fmt: skip
def test_a_mode_without_a_file_format_is_converted(mode: str, file_mode: str, tolerance: int) -> None:
    """`tolerance`: levels by which Pillow's conversion to the mode and back changes a color."""
    file = encode_mode(file_mode)
    image = Image.open(io.BytesIO(file))
    image = Image.frombytes(mode, image.size, image.tobytes()) if mode.startswith("I;16") else image.convert(mode)
    assert np.abs(decode_image(to_request_body(image, local=True)).astype(int) - decode_image(file)).max() <= tolerance


def test_every_mode_of_pillow_is_supported() -> None:
    assert set(FILE_MODES) == set(Image.MODES)


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FILE_MODES, "HSV")
    with pytest.raises(ValueError, match=r"mode HSV, which is not supported. Convert it to RGB"):
        to_request_body(Image.new("HSV", (4, 4)), local=True)


PROFILES = {"CMYK": press_profile(), "L": make_profile(b"GRAY", {b"kTRC": GAMMA_18})}  # the others: Display P3


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "YCbCr"])
def test_a_pillow_image_keeps_its_color_profile(mode: str, local: bool) -> None:
    file = encode_mode(mode, icc_profile=PROFILES.get(mode, matrix_profile(P3)))
    expected = decode_image(file)
    assert (expected != decode_image(encode_mode(mode))).any()  # the profile changes the pixels
    np.testing.assert_array_equal(decode_image(to_request_body(Image.open(io.BytesIO(file)), local)), expected)


def test_the_orientation_of_a_pillow_image_is_not_sent(client: Client, segmenter: Segmenter) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(synthetic_image(30, 50)).save(buffer, format, exif=exif)
        image = Image.open(buffer)
        expected = segmenter.segment(np.array(image)).labels
        np.testing.assert_array_equal(client.segment(image).labels, expected)
        assert client.segment(buffer.getvalue()).labels.shape == (50, 30)  # a file is rotated upright


def test_overlay_models_and_is_ready(client: Client) -> None:
    assert decode_image(client.overlay(synthetic_image(40, 60), alpha=0.3)).shape == (40, 60, 3)
    assert client.models()[0]["name"] == "tiny"
    assert client.is_ready()


def test_the_confidence_is_in_the_mask(client: Client, segmenter: Segmenter) -> None:
    image = synthetic_image(90, 70)
    prediction = segmenter.segment(image, confidence=True)
    mask = client.segment(image, confidence=True)
    assert prediction.confidence is not None and mask.confidence is not None
    np.testing.assert_array_equal(mask.labels, prediction.labels)
    assert mask.confidence.dtype == np.float32
    np.testing.assert_allclose(mask.confidence, prediction.confidence, atol=1 / 255)
    assert client.segment(image).confidence is None


def test_excluded_pixels_are_unlabeled(client: Client) -> None:
    image = synthetic_image(90, 70)
    mask = client.segment(image)
    name = next(iter(mask.class_fractions()))
    kept = client.segment(image, classes=[name]).labels
    label = [entry["name"] for entry in mask.classes].index(name)
    np.testing.assert_array_equal(kept, np.where(mask.labels == label, label, 255))
    assert (client.segment(image, min_area=90 * 70 + 1).labels == 255).all()
    assert (client.segment(image, min_confidence=1).labels == 255).all()


def test_fractions_and_timing(client: Client) -> None:
    mask = client.segment(synthetic_image(90, 70))
    fractions = mask.class_fractions()
    assert sum(fractions.values()) == pytest.approx(1)
    assert list(fractions.values()) == sorted(fractions.values(), reverse=True)
    for label, entry in enumerate(mask.classes):
        assert fractions.get(entry["name"], 0) == np.mean(mask.labels == label)
    assert f"70 x 90 by {mask.model}: {next(iter(fractions))}" in repr(mask)
    assert list(mask.timing) == ["read", "queue", "decode", "infer", "encode"] and mask.timing["infer"] > 0
    assert len(mask.request_id) == 16


def test_a_batch_has_a_mask_or_an_error_for_each(client: Client) -> None:
    sent = [synthetic_image(40, 60), b"no image", synthetic_image(50, 30)]
    first, bad, last = client.segment_batch(sent, confidence=True)
    assert isinstance(bad, InvalidImageError) and bad.kind == "unsupported-format"
    for mask, image in ((first, sent[0]), (last, sent[2])):
        expected = client.segment(image, confidence=True)
        assert isinstance(mask, Mask) and mask.confidence is not None and mask.image is image
        np.testing.assert_array_equal(mask.labels, expected.labels)
        np.testing.assert_array_equal(mask.confidence, expected.confidence)
        assert (mask.classes, mask.model) == (expected.classes, expected.model)


@pytest.mark.parametrize("format", OUTPUT_FORMATS["HW"])
def test_segment_bytes_returns_the_response(client: Client, service_url: str, format: str) -> None:
    image = Path(__file__).parents[3] / "docs" / "demo.png"
    params: dict[str, Any] = {
        "format": format,
        "classes": "class 0,class 1",
        "alpha": 0,
        "masks": "polygons",
        "simplify": 2,
    }
    expected = httpx.post(f"{service_url}/v1/segment", params=params, content=image.read_bytes(), timeout=60)
    options = {name: params[name] for name in ("alpha", "masks", "simplify")}
    assert client.segment_bytes(image, format, classes=("class 0", "class 1"), **options) == expected.content


def test_segment_json(client: Client) -> None:
    image = synthetic_image(40, 60)
    for masks, key in (("rle", "rle"), ("polygons", "polygons")):
        assert all(key in entry for entry in client.segment_json(image, masks)["classes"])
    result = client.segment_json(image, "none", confidence=True)
    assert (result["height"], result["width"]) == (40, 60) and "confidence" in result
    fractions = {entry["name"]: entry["fraction"] for entry in result["classes"]}
    assert fractions == pytest.approx(client.segment(image).class_fractions())


def test_the_defaults_are_the_services() -> None:
    defaults = {name: field.default for name, field in SegmentParams.model_fields.items()}
    assert defaults == {**DEFAULT_PARAMS, "classes": (), "bands": (), "lead": ()}


def test_both_clients_have_the_same_methods() -> None:
    def signatures(client: type) -> dict[str, inspect.Signature]:
        methods = {name: value for name, value in vars(client).items() if inspect.isfunction(value) and name[0] != "_"}
        return {name: inspect.signature(method) for name, method in methods.items()}

    assert signatures(Client) == signatures(AsyncClient) and len(signatures(Client)) == 11


def test_errors_name_the_client_that_was_called(client: Client) -> None:
    with pytest.raises(TypeError, match=r"^Client\.segment\(\) got an unexpected keyword argument 'size'"):
        client.segment(b"image", size=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^AsyncClient\.segment\(\) missing"):
        AsyncClient(client.url).segment()  # type: ignore[call-arg]


def test_the_async_client_returns_the_same(client: Client, service_url: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(synthetic_image(40, 60)).save(path)

    async def segment() -> list[Mask]:
        async with AsyncClient(service_url) as async_client:
            assert await async_client.is_ready() and (await async_client.model("tiny"))["name"] == "tiny"
            return await asyncio.gather(*(async_client.segment(path, confidence=True) for _ in range(3)))

    expected = client.segment(path, confidence=True)
    for mask in asyncio.run(segment()):
        np.testing.assert_array_equal(mask.labels, expected.labels)
        np.testing.assert_array_equal(mask.confidence, expected.confidence)


def test_threads_share_a_client(client: Client) -> None:
    images = [synthetic_image(30 + number, 50, seed=number) for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        masks = list(pool.map(client.segment, images))
    for image, mask in zip(images, masks, strict=True):
        np.testing.assert_array_equal(mask.labels, client.segment(image).labels)


@pytest.mark.parametrize("local", [True, False])
def test_pixels_are_sent_losslessly(local: bool) -> None:
    small, large, long = synthetic_image(30, 50), synthetic_image(1700, 1700), np.zeros((1, 16384, 3), np.uint8)
    kinds = {}
    for name, image in (("small", small), ("large", large), ("long", long)):
        sent = to_request_body(image, local)
        np.testing.assert_array_equal(decode_image(sent), image)
        kinds[name] = Image.open(io.BytesIO(sent)).format
    # To this machine bytes cost nothing, but the service limits a body.
    assert kinds == (
        {"small": "BMP", "large": "WEBP", "long": "BMP"} if local else {"small": "WEBP", "large": "WEBP", "long": "PNG"}
    )


def test_an_array_of_other_channels_is_sent_in_its_type(client: Client, segmenter: Segmenter) -> None:
    values = np.arange(4 * 6 * 4, dtype=np.uint16).reshape(4, 6, 4)[:, ::-1]
    assert np.array_equal(read_sample(to_request_body(values, local=True)).values, values)
    with pytest.raises(ServiceError, match=r"has 4 channels of uint16 .* takes 3 channels of uint8") as caught:
        client.segment(values)
    assert caught.value.kind == "wrong-channels"
    image, file = synthetic_image(30, 50), io.BytesIO()
    np.save(file, image)
    np.testing.assert_array_equal(client.segment(file.getvalue()).labels, segmenter.segment(image).labels)


@pytest.mark.parametrize("array", [np.zeros((4, 4), object), np.zeros((1, 1, 4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused(client: Client, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="send uint8 of H x W x 3, RGB, or the numbers that the model takes"):
        client.segment(array)


@pytest.mark.parametrize("wrong", [None, 7, ["a.jpg"]])
def test_other_types_are_refused(client: Client, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"is a {type(wrong).__name__}; send a path, bytes"):
        client.segment(wrong)  # type: ignore[arg-type]


def test_the_client_imports_no_other_package() -> None:
    check = (
        "import sys, maskserve.client; sys.exit(bool({'models', 'service', 'training', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False, cwd=ROOT).returncode == 0
