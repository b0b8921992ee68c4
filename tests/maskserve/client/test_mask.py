"""What people see of a mask: the overlay that is made here, and what a notebook shows."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskserve.client import Client, Mask, Picture
from maskserve.client.image_encoding import MODES
from models.imaging.decode import decode
from models.outputs.overlay import blend
from tests.fixtures_bundles import drawing


def file(picture: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format, **options)
    return buffer.getvalue()


def turned(format: str = "JPEG", orientation: int = 6, picture: np.ndarray | None = None) -> bytes:
    """120 x 160 pixels that EXIF orientations from 5 on turn to 160 x 120."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(drawing(120, 160) if picture is None else picture, format, exif=exif)


def mask_of(picture: Picture | None, height: int, width: int) -> Mask:
    """Stripes of three classes and of void."""
    labels = np.repeat(np.array([0, 1, 2, 255], np.uint8), -(-width // 4))[None, :width].repeat(height, 0)
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    classes = [{"name": name, "rgb": rgb.tolist()} for name, rgb in zip("abc", palette[:3], strict=True)]
    return Mask(labels, classes, palette, "small@0", b"", picture=picture)


def shown(mask: Mask) -> Image.Image:
    return Image.open(io.BytesIO(mask._repr_png_()))


def grey16() -> np.ndarray:
    return drawing(120, 160)[..., 0].astype(np.uint16) * 257


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
@pytest.mark.parametrize(
    "sent",
    [file(drawing(120, 160)), file(drawing(120, 160), "JPEG"), turned(), turned("PNG"), turned("WEBP"), file(grey16()),
     turned("PNG", picture=grey16()), *(turned("TIFF", orientation) for orientation in range(1, 9))],
    ids=["png", "jpeg", "turned jpeg", "turned png", "turned webp", "16 bits", "turned 16 bits",
         *(f"tiff {orientation}" for orientation in range(1, 9))],
)  # fmt: skip
def test_the_overlay_is_the_services(sent: bytes, alpha: float) -> None:
    picture = decode(sent)
    mask = mask_of(sent, *picture.shape[:2])
    expected = blend(picture, mask.labels, [tuple(colour) for colour in mask.palette.tolist()], alpha)
    assert np.abs(np.asarray(mask.overlay(alpha)).astype(int) - expected).max() <= 1


def test_every_kind_of_picture_is_opened_again(tmp_path: Path) -> None:
    picture = drawing(120, 160)
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    expected = np.asarray(mask_of(picture, 120, 160).overlay())
    content = path.read_bytes()
    for sent in (path, str(path), content, bytearray(content), memoryview(content), Image.fromarray(picture)):
        assert shown(mask_of(sent, 120, 160)).mode == "RGB"  # alone, the colours are a palette's
        np.testing.assert_array_equal(np.asarray(mask_of(sent, 120, 160).overlay()), expected)


@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_of_a_pillow_image_is_shown(mode: str) -> None:
    image = Image.new(mode, (160, 120))
    assert mask_of(image, 120, 160).overlay(0).getcolors() is not None and shown(mask_of(image, 120, 160)).mode == "RGB"


def test_a_big_endian_image_is_shown_scaled() -> None:
    grey = grey16()
    sent = [Image.fromarray(grey.astype(order)) for order in ("<u2", ">u2")]
    assert [image.mode for image in sent] == ["I;16", "I;16B"]
    little, big = (np.asarray(mask_of(image, 120, 160).overlay(0)) for image in sent)
    np.testing.assert_array_equal(little, big)
    np.testing.assert_array_equal(big[..., 0], drawing(120, 160)[..., 0])


def test_transparent_is_white() -> None:
    clear = Image.new("RGBA", (160, 120), (9, 9, 9, 0))
    assert mask_of(clear, 120, 160).overlay(0).getcolors() == [(120 * 160, (255, 255, 255))]


def test_a_pillow_image_is_shown_as_its_pixels_stand() -> None:
    image = Image.open(io.BytesIO(turned()))  # it was sent like that, see test_client.py
    assert mask_of(image, 120, 160).overlay().size == (160, 120)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_large_picture_is_shown_reduced(format: str) -> None:
    picture = np.zeros((1500, 4000, 3), np.uint8)
    image = shown(mask_of(file(picture, format), 1500, 4000))
    assert image.size == (1024, 384)
    colours = [image.getpixel((x, 200)) for x in (128, 384, 640, 896)]
    assert colours == [(128, 0, 0), (0, 128, 0), (0, 0, 128), (0, 0, 0)] or colours == [
        (127, 0, 0), (0, 127, 0), (0, 0, 127), (0, 0, 0),
    ]  # fmt: skip


def test_a_large_picture_that_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sent = file(np.zeros((1500, 4000, 3), np.uint8), "JPEG", exif=exif)
    assert shown(mask_of(sent, 4000, 1500)).size == (384, 1024)


@pytest.mark.parametrize(
    "sent",
    [None, b"no picture", Path("nowhere.png"), file(drawing(40, 60)), drawing(40, 60), Image.new("F", (60, 40)),
     file(drawing(120, 160))[:900]],
    ids=["nothing", "text", "gone", "other size", "other array", "other image", "cut"],
)  # fmt: skip
def test_the_colours_alone_where_the_picture_cannot_be_had(sent: Picture | None) -> None:
    mask = mask_of(sent, 120, 160)
    image = shown(mask).convert("RGBA")
    assert image.size == (160, 120)
    assert [image.getpixel((x, 60)) for x in (20, 60, 100, 140)] == [
        (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="cannot be opened here any more"):
        mask.overlay()


def test_a_large_mask_alone_is_reduced_without_new_labels() -> None:
    image = shown(mask_of(None, 1500, 4000))
    assert image.mode == "P" and image.size == (1024, 384)
    assert {label for _, label in image.getcolors()} == {0, 1, 2, 255}


def test_what_was_sent_is_held_and_not_copied(service_url: str) -> None:
    picture = drawing(40, 60)
    with Client(service_url) as client:
        mask = client.segment(picture)
    assert mask.picture is picture
    assert shown(mask).size == (60, 40)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        mask_of(drawing(120, 160), 120, 160).overlay(alpha)
