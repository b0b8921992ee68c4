"""How a mask is displayed: the local overlay, and the image for notebooks."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskserve.client import Client, ImageLike, Mask
from maskserve.client.image_encoding import FILE_MODES
from models.imaging.decode import decode_image
from models.outputs.overlay import blend
from tests.fixtures_bundles import synthetic_image


def encode_image(image: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def encode_rotated(format: str = "JPEG", orientation: int = 6, image: np.ndarray | None = None) -> bytes:
    """An image of 120 x 160 pixels; EXIF orientations from 5 on rotate it to 160 x 120."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode_image(synthetic_image(120, 160) if image is None else image, format, exif=exif)


def make_mask(image: ImageLike | None, height: int, width: int) -> Mask:
    """Stripes of three classes and of unlabeled pixels."""
    labels = np.repeat(np.array([0, 1, 2, 255], np.uint8), -(-width // 4))[None, :width].repeat(height, 0)
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    classes = [{"name": name, "rgb": rgb.tolist()} for name, rgb in zip("abc", palette[:3], strict=True)]
    return Mask(labels, classes, palette, "small@0", b"", image=image)


def notebook_image(mask: Mask) -> Image.Image:
    return Image.open(io.BytesIO(mask._repr_png_()))


def grey16() -> np.ndarray:
    return synthetic_image(120, 160)[..., 0].astype(np.uint16) * 257


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
@pytest.mark.parametrize(
    "sent",
    [
        encode_image(synthetic_image(120, 160)),
        encode_image(synthetic_image(120, 160), "JPEG"),
        encode_rotated(),
        encode_rotated("PNG"),
        encode_rotated("WEBP"),
        encode_image(grey16()),
        encode_rotated("PNG", image=grey16()),
        *(encode_rotated("TIFF", orientation) for orientation in range(1, 9)),
    ],
    ids=[
        "png",
        "jpeg",
        "rotated jpeg",
        "rotated png",
        "rotated webp",
        "16 bits",
        "rotated 16 bits",
        *(f"tiff {orientation}" for orientation in range(1, 9)),
    ],
)
def test_the_overlay_equals_the_services(sent: bytes, alpha: float) -> None:
    image = decode_image(sent)
    mask = make_mask(sent, *image.shape[:2])
    expected = blend(image, mask.labels, [tuple(color) for color in mask.palette.tolist()], alpha)
    assert np.abs(np.asarray(mask.overlay(alpha)).astype(int) - expected).max() <= 1


def test_every_kind_of_image_is_displayed(tmp_path: Path) -> None:
    image = synthetic_image(120, 160)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = np.asarray(make_mask(image, 120, 160).overlay())
    content = path.read_bytes()
    for sent in (path, str(path), content, bytearray(content), memoryview(content), Image.fromarray(image)):
        assert notebook_image(make_mask(sent, 120, 160)).mode == "RGB"  # without the image it would be P
        np.testing.assert_array_equal(np.asarray(make_mask(sent, 120, 160).overlay()), expected)


@pytest.mark.parametrize("mode", sorted(FILE_MODES))
def test_every_mode_of_a_pillow_image_is_displayed(mode: str) -> None:
    image = Image.new(mode, (160, 120))
    assert (
        make_mask(image, 120, 160).overlay(0).getcolors() is not None
        and notebook_image(make_mask(image, 120, 160)).mode == "RGB"
    )


def test_a_big_endian_image_is_displayed_scaled() -> None:
    grey = grey16()
    sent = [Image.fromarray(grey.astype(order)) for order in ("<u2", ">u2")]
    assert [image.mode for image in sent] == ["I;16", "I;16B"]
    little, big = (np.asarray(make_mask(image, 120, 160).overlay(0)) for image in sent)
    np.testing.assert_array_equal(little, big)
    np.testing.assert_array_equal(big[..., 0], synthetic_image(120, 160)[..., 0])


def test_transparency_is_displayed_as_white() -> None:
    clear = Image.new("RGBA", (160, 120), (9, 9, 9, 0))
    assert make_mask(clear, 120, 160).overlay(0).getcolors() == [(120 * 160, (255, 255, 255))]


def test_a_pillow_image_is_displayed_without_its_orientation() -> None:
    image = Image.open(io.BytesIO(encode_rotated()))  # as it was sent, see test_client.py
    assert make_mask(image, 120, 160).overlay().size == (160, 120)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_large_image_is_displayed_reduced(format: str) -> None:
    sent = np.zeros((1500, 4000, 3), np.uint8)
    image = notebook_image(make_mask(encode_image(sent, format), 1500, 4000))
    assert image.size == (1024, 384)
    colors = [image.getpixel((x, 200)) for x in (128, 384, 640, 896)]
    assert colors == [(128, 0, 0), (0, 128, 0), (0, 0, 128), (0, 0, 0)] or colors == [
        (127, 0, 0), (0, 127, 0), (0, 0, 127), (0, 0, 0),
    ]  # fmt: skip


def test_a_large_rotated_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sent = encode_image(np.zeros((1500, 4000, 3), np.uint8), "JPEG", exif=exif)
    assert notebook_image(make_mask(sent, 4000, 1500)).size == (384, 1024)


@pytest.mark.parametrize(
    "sent",
    [
        None,
        b"no image",
        Path("nowhere.png"),
        encode_image(synthetic_image(40, 60)),
        synthetic_image(40, 60),
        Image.new("F", (60, 40)),
        encode_image(synthetic_image(120, 160))[:900],
    ],
    ids=["none", "text", "missing", "other size", "other array", "other image", "truncated"],
)
def test_without_the_image_only_the_colors_are_displayed(sent: ImageLike | None) -> None:
    mask = make_mask(sent, 120, 160)
    image = notebook_image(mask).convert("RGBA")
    assert image.size == (160, 120)
    assert [image.getpixel((x, 60)) for x in (20, 60, 100, 140)] == [
        (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="cannot be opened any more"):
        mask.overlay()


def test_a_large_mask_is_reduced_without_new_labels() -> None:
    image = notebook_image(make_mask(None, 1500, 4000))
    assert image.mode == "P" and image.size == (1024, 384)
    assert {label for _, label in image.getcolors()} == {0, 1, 2, 255}


def test_the_sent_image_is_kept_and_not_copied(service_url: str) -> None:
    image = synthetic_image(40, 60)
    with Client(service_url) as client:
        mask = client.segment(image)
    assert mask.image is image
    assert notebook_image(mask).size == (60, 40)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_must_be_from_0_to_1(alpha: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        make_mask(synthetic_image(120, 160), 120, 160).overlay(alpha)
