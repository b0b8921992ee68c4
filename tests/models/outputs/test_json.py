"""The format json, read by independent decoders."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from models.errors import ImageTooLargeError
from models.imaging.decode import Labels
from models.inference.segmenter import Prediction
from models.outputs import OUTPUT_FORMATS, runs
from models.outputs import json as json_format
from models.outputs.options import MASK_ENCODINGS, OutputOptions
from models.outputs.rle import coco_rle_counts, pack_counts
from models.outputs.select import filter_prediction, remove_small_regions
from models.spec import IGNORE_INDEX
from tests.models.outputs.test_outputs import SPEC, make_prediction
from training.data.formats.rasterize import COMPRESSED_RLE, decode_compressed_rle, region_runs

label_masks = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 4, IGNORE_INDEX])
)


def encode_and_parse(given: Prediction, options: OutputOptions) -> dict[str, Any]:
    content = json.loads(
        OUTPUT_FORMATS["HW"]["json"].encode(filter_prediction(given, SPEC, options), SPEC, options),
        parse_constant=pytest.fail,
    )
    assert isinstance(content, dict)
    return content


def prediction_of(labels: Labels, probabilities: np.ndarray | None = None) -> Prediction:
    return Prediction(np.zeros((*labels.shape, 3), np.uint8), labels, probabilities)


def decode_counts(counts: str, size: tuple[int, int]) -> np.ndarray:
    """Decode COCO's compressed counts with the reader of COCO data sets: bool H x W."""
    columns = np.zeros(size[0] * size[1], np.bool_)
    for start, stop in region_runs(counts.encode(), COMPRESSED_RLE, size).tolist():
        columns[start:stop] = True
    return columns.reshape(size[1], size[0]).T


@given(label_masks)
@settings(deadline=None, max_examples=40)
def test_run_lengths_decode_to_the_masks(labels: Labels) -> None:
    counts = coco_rle_counts(labels)
    assert set(counts) == set(np.unique(labels).tolist())
    for label, text in counts.items():
        np.testing.assert_array_equal(decode_counts(text, labels.shape), labels == label)


@pytest.mark.parametrize(
    ("rows", "counts"),
    [  # as pycocotools 2.0.11 writes them
        ([[1]], "01"),
        ([[0, 1]], "11"),
        ([[1, 0]], "011"),
        ([[0, 1, 0], [1, 1, 0]], "132"),
        ([[1, 0, 1, 0, 1]], "011000"),
        ([[1, 1, 1, 0, 1, 0]], "031N0"),
        ([[0] * 100 + [1] * 40 + [0] * 3 + [1, 0]], "T3X13iNN"),
    ],
)
def test_run_lengths_of_small_masks(rows: list[list[int]], counts: str) -> None:
    assert len(decode_compressed_rle(counts.encode())) >= 2
    assert coco_rle_counts(np.array(rows, np.uint8))[1] == counts


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9))
@settings(deadline=None, max_examples=40)
def test_counts_of_any_size(counts: list[int]) -> None:
    assert decode_compressed_rle(pack_counts(np.array(counts, np.int64)).encode()).tolist() == counts


@given(label_masks, st.sampled_from([1, 7, 1 << 20]))
@settings(deadline=None, max_examples=40)
def test_class_statistics(labels: Labels, strip_pixels: int) -> None:
    probabilities = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_format, "STRIP_PIXELS", strip_pixels)
        content = encode_and_parse(prediction_of(labels, probabilities), OutputOptions(masks="none"))
    assert (content["height"], content["width"]) == labels.shape
    assert [entry["label"] for entry in content["classes"]] == sorted({*labels.flat} - {IGNORE_INDEX})
    for entry in content["classes"]:
        mask = labels == entry["label"]
        assert entry["name"] == f"class {entry['label']}"
        assert tuple(entry["rgb"]) == SPEC.classes[entry["label"]].rgb
        assert (entry["pixels"], entry["fraction"]) == (mask.sum(), mask.mean())
        y, x = np.nonzero(mask)
        assert entry["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        assert entry["mean_confidence"] == pytest.approx(probabilities[mask].mean(), abs=1e-6)
    unlabeled = labels == IGNORE_INDEX
    assert content["unlabeled"] == {"pixels": unlabeled.sum(), "fraction": unlabeled.mean()}


@pytest.mark.parametrize("masks", MASK_ENCODINGS)
@pytest.mark.parametrize("confidence", [False, True])
def test_only_the_requested_mask_encoding_is_included(masks: str, confidence: bool) -> None:
    given = make_prediction()
    content = encode_and_parse(given, OutputOptions(masks=masks, confidence=confidence))
    whole = {"height", "width", "classes", "unlabeled"}
    assert set(content) == whole | ({"png"} if masks == "png" else set()) | ({"confidence"} if confidence else set())
    each = {"label", "name", "rgb", "pixels", "fraction", "bbox", "mean_confidence"}
    assert {key for entry in content["classes"] for key in entry} == each | ({masks} & {"rle", "polygons"})
    for name in {"png", "confidence"} & set(content):
        assert base64.b64decode(content[name], validate=True) == OUTPUT_FORMATS["HW"][name].encode(
            given, SPEC, OutputOptions()
        )


def test_rle_has_the_form_of_coco() -> None:
    given = make_prediction()
    for entry in encode_and_parse(given, OutputOptions())["classes"]:
        assert entry["rle"]["size"] == [37, 53]
        np.testing.assert_array_equal(decode_counts(entry["rle"]["counts"], (37, 53)), given.labels == entry["label"])


def test_polygons_are_a_geojson_geometry() -> None:
    labels = np.full((5, 6), IGNORE_INDEX, np.uint8)
    labels[1:4, 2:5] = 3
    labels[2, 3] = 1
    first, second = encode_and_parse(prediction_of(labels), OutputOptions(masks="polygons"))["classes"]
    assert first["polygons"] == {"type": "MultiPolygon", "coordinates": [[[[3, 2], [4, 2], [4, 3], [3, 3], [3, 2]]]]}
    assert second["polygons"]["coordinates"] == [
        [[[2, 1], [5, 1], [5, 4], [2, 4], [2, 1]], [[3, 2], [3, 3], [4, 3], [4, 2], [3, 2]]]
    ]
    simpler = encode_and_parse(prediction_of(labels), OutputOptions(masks="polygons", simplify=50))["classes"]
    assert [entry["polygons"]["coordinates"] for entry in simpler] == [[], []]
    assert [entry["pixels"] for entry in simpler] == [1, 8]


def test_no_mean_confidence_without_confidence() -> None:
    given = Prediction(make_prediction().image, make_prediction().labels)
    assert all("mean_confidence" not in entry for entry in encode_and_parse(given, OutputOptions())["classes"])
    with pytest.raises(ValueError, match="confidence=True"):
        OUTPUT_FORMATS["HW"]["json"].encode(given, SPEC, OutputOptions(confidence=True))


def test_nan_confidence_is_valid_json() -> None:
    probabilities = np.array([[np.nan, 0.5], [0.25, np.inf]], np.float32)
    content = encode_and_parse(
        prediction_of(np.array([[0, 1], [1, 2]], np.uint8), probabilities), OutputOptions(confidence=True)
    )
    assert [entry["mean_confidence"] for entry in content["classes"]] == [None, 0.375, None]
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(content["confidence"]))))
    assert grey[0, 1] == 128 and grey[1, 0] == 64


@pytest.mark.parametrize("masks", MASK_ENCODINGS)
def test_labels_without_class_count_as_unlabeled(masks: str) -> None:
    content = encode_and_parse(
        prediction_of(np.array([[0, 6, 254, IGNORE_INDEX]], np.uint8)), OutputOptions(masks=masks)
    )
    assert [entry["label"] for entry in content["classes"]] == [0]
    assert content["unlabeled"] == {"pixels": 3, "fraction": 0.75}
    nothing = encode_and_parse(prediction_of(np.full((2, 3), IGNORE_INDEX, np.uint8)), OutputOptions(masks=masks))
    assert nothing["classes"] == [] and nothing["unlabeled"]["fraction"] == 1


@pytest.mark.parametrize("options", [OutputOptions(), OutputOptions(masks="polygons")], ids=["rle", "polygons"])
def test_masks_of_too_many_runs_are_refused_but_not_their_statistics(
    options: OutputOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of pixels has a run for each; a mask in their format would take gigabytes."""
    monkeypatch.setattr(runs, "MAX_RUNS", 50)
    monkeypatch.setattr(json_format, "STRIP_PIXELS", 40)
    given = prediction_of(np.tile(np.array([[0], [1]], np.uint8), (100, 1)))
    with pytest.raises(ImageTooLargeError, match=r"200 runs .* Use the format png"):
        encode_and_parse(given, options)
    content = encode_and_parse(given, OutputOptions(masks="none"))
    assert [entry["pixels"] for entry in content["classes"]] == [100, 100]
    with pytest.raises(ImageTooLargeError, match="200 runs"):
        remove_small_regions(given.labels, 2)
