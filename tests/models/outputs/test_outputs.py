"""The output formats of a prediction."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from models.errors import ImageTooLargeError
from models.imaging.decode import decode_image, read_mask
from models.inference.segmenter import Prediction
from models.outputs import OUTPUT_FORMATS, confidence, npy, overlay, png
from models.outputs.options import OutputOptions
from models.spec import IGNORE_INDEX, Architecture, BundleSpec, ClassInfo, InputRule, default_rgb
from tests.fixtures_bundles import synthetic_image

SPEC = BundleSpec(
    name="synthetic",
    classes=[ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(6)],
    input=InputRule(rule="native"),
    architecture=Architecture(name="fcn"),
)


def make_prediction(height: int = 37, width: int = 53) -> Prediction:
    """Rows of every class, and unlabeled pixels on the right."""
    labels = np.repeat((np.arange(height) % 6).astype(np.uint8)[:, None], width, axis=1)
    labels[:, width * 3 // 4 :] = IGNORE_INDEX
    probabilities = np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)
    return Prediction(synthetic_image(height, width), labels, probabilities)


@pytest.mark.parametrize("name", OUTPUT_FORMATS["HW"])
@pytest.mark.parametrize("size", [(37, 53), (1, 1), (1, 300), (64, 1), (4, 1), (1, 4), (2, 2)])
def test_every_image_has_the_size_of_the_prediction(name: str, size: tuple[int, int]) -> None:
    output = OUTPUT_FORMATS["HW"][name]
    encoded = output.encode(make_prediction(*size), SPEC, OutputOptions())
    assert isinstance(encoded, bytes)
    assert output.SUFFIX.startswith(".")
    if output.MEDIA_TYPE.startswith("image/"):
        image = Image.open(io.BytesIO(encoded))
        assert image.get_format_mimetype() == output.MEDIA_TYPE
        assert image.size == size[::-1]


@pytest.mark.parametrize("name", OUTPUT_FORMATS["HW"])
def test_encoding_is_repeatable_and_modifies_nothing(name: str) -> None:
    given, untouched = make_prediction(), make_prediction()
    assert OUTPUT_FORMATS["HW"][name].encode(given, SPEC, OutputOptions()) == OUTPUT_FORMATS["HW"][name].encode(
        given, SPEC, OutputOptions()
    )
    np.testing.assert_array_equal(given.image, untouched.image)
    np.testing.assert_array_equal(given.labels, untouched.labels)


@pytest.mark.parametrize("name", OUTPUT_FORMATS["HW"])
def test_read_only_predictions(name: str) -> None:
    given = make_prediction()
    given.image.flags.writeable = given.labels.flags.writeable = False
    assert OUTPUT_FORMATS["HW"][name].encode(given, SPEC, OutputOptions())


def test_png_holds_the_labels_and_the_palette() -> None:
    given = make_prediction()
    image = Image.open(io.BytesIO(png.encode(given, SPEC, OutputOptions())))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), given.labels)
    assert image.getpalette() == [channel for color in SPEC.palette() for channel in color]


def test_png_holds_any_label() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for some in (labels, labels[:1, :2], np.full((3, 3), IGNORE_INDEX, np.uint8), labels.T, labels[::2, ::-1]):
        image = Image.open(
            io.BytesIO(png.encode(Prediction(synthetic_image(*some.shape), some), SPEC, OutputOptions()))
        )
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), some)


def test_only_unlabeled_pixels_are_transparent_in_png() -> None:
    given = make_prediction()
    shown = np.asarray(Image.open(io.BytesIO(png.encode(given, SPEC, OutputOptions()))).convert("RGBA"))
    unlabeled = given.labels == IGNORE_INDEX
    assert (shown[unlabeled, 3] == 0).all() and (shown[~unlabeled, 3] == 255).all()
    np.testing.assert_array_equal(shown[~unlabeled, :3], np.array(SPEC.palette(), np.uint8)[given.labels[~unlabeled]])


def test_read_mask_reads_the_png(tmp_path: Path) -> None:
    given = make_prediction()
    (tmp_path / "mask.png").write_bytes(png.encode(given, SPEC, OutputOptions()))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), given.labels)


def test_other_decoders_accept_the_png() -> None:
    """OpenCV's libpng verifies the checksums of chunks, and applies the palette."""
    given = make_prediction(64, 48)
    mask = cv2.imdecode(np.frombuffer(png.encode(given, SPEC, OutputOptions()), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(mask, np.array(SPEC.palette(), np.uint8)[given.labels])
    grey = np.frombuffer(confidence.encode(given, SPEC, OutputOptions()), np.uint8)
    assert given.confidence is not None
    np.testing.assert_array_equal(cv2.imdecode(grey, cv2.IMREAD_UNCHANGED), np.rint(given.confidence * 255))


def test_masks_are_small() -> None:
    """The filter makes repeated rows almost free."""
    labels = np.repeat(np.arange(640, dtype=np.uint8)[None] // 80, 480, axis=0)
    assert len(png.encode(Prediction(synthetic_image(480, 640), labels), SPEC, OutputOptions())) < 4000


def test_npy_contains_the_labels_without_pickle() -> None:
    given = make_prediction()
    for labels in (given.labels, given.labels.T, given.labels[::2, ::-3]):
        encoded = npy.encode(Prediction(given.image, labels), SPEC, OutputOptions())
        loaded = np.load(io.BytesIO(encoded), allow_pickle=False)
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, labels)


def test_confidence_is_rounded_to_255_levels() -> None:
    given = make_prediction()
    grey = np.asarray(Image.open(io.BytesIO(confidence.encode(given, SPEC, OutputOptions()))))
    assert given.confidence is not None
    assert np.abs(grey - given.confidence * 255).max() <= 0.5 + 1e-4
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)
    with pytest.raises(ValueError, match="confidence=True"):
        confidence.encode(Prediction(given.image, given.labels), SPEC, OutputOptions())


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.3, 0.5, 1.0])
def test_blend_leaves_unlabeled_pixels(alpha: float) -> None:
    given = make_prediction()
    blended = overlay.blend(given.image, given.labels, SPEC.palette(), alpha)
    unlabeled = given.labels == IGNORE_INDEX
    np.testing.assert_array_equal(blended[unlabeled], given.image[unlabeled])
    colors = np.asarray(SPEC.palette())[given.labels]
    expected = given.image * (1 - alpha) + colors * alpha
    assert np.abs(blended[~unlabeled] - expected[~unlabeled]).max() <= 0.5 + 1e-4  # levels, computed in float32
    assert (blended.shape, blended.dtype) == (given.image.shape, np.uint8)


def test_overlay_shows_the_blend() -> None:
    image, labels = np.full((64, 96, 3), 200, np.uint8), np.full((64, 96), IGNORE_INDEX, np.uint8)
    labels[:, :48] = 1  # dark red
    shown = decode_image(overlay.encode(Prediction(image, labels), SPEC, OutputOptions(alpha=0.5))).astype(int)
    assert np.abs(shown[:, :40] - [164, 100, 100]).max() < 12
    assert np.abs(shown[:, 56:] - 200).max() < 12


def test_overlay_of_an_image_too_large_for_jpeg() -> None:
    for size in ((1, 65_501), (65_501, 1)):
        wide = Prediction(np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8))
        with pytest.raises(ImageTooLargeError, match=r"65,500 a side\. Use the format png"):
            overlay.encode(wide, SPEC, OutputOptions())
        assert np.asarray(Image.open(io.BytesIO(png.encode(wide, SPEC, OutputOptions())))).shape == size
    longest = Prediction(np.zeros((1, 65_500, 3), np.uint8), np.zeros((1, 65_500), np.uint8))
    assert decode_image(overlay.encode(longest, SPEC, OutputOptions())).shape == (1, 65_500, 3)
