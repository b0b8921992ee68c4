"""The pipeline of decode, infer and encode that the service and `maskserve predict` share."""

import numpy as np
import pytest

from models.errors import ConfigError, InferenceCancelledError, InsufficientMemoryError
from models.imaging.decode import decode_image
from models.inference.segmenter import Segmenter
from models.outputs import OUTPUT_FORMATS
from models.outputs.options import OutputOptions
from models.outputs.pipeline import SegmentationPipeline
from models.outputs.select import filter_prediction
from models.spec import InputRule
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.models.inference.test_segmenter import color_engine
from tests.models.outputs.test_outputs import SPEC

SEGMENTER = Segmenter(color_engine, InputRule(rule="native"))
DATA = encode_image(synthetic_image(40, 60))


@pytest.mark.parametrize("format", OUTPUT_FORMATS["HW"])
def test_the_pipeline_decodes_infers_and_encodes(format: str) -> None:
    options = OutputOptions(classes=("class 1", "class 2"), min_confidence=0.9, min_area=3, confidence=True)
    result = SegmentationPipeline(SEGMENTER, SPEC, format, options)(DATA)
    prediction = SEGMENTER.segment(decode_image(DATA), confidence=True)
    kept = filter_prediction(prediction, SPEC, options)
    assert result.data == OUTPUT_FORMATS["HW"][format].encode(kept, SPEC, options)
    assert set(np.unique(result.labels)) == {1, 2, 255}


def test_without_a_format_only_the_labels_are_returned() -> None:
    result = SegmentationPipeline(SEGMENTER, SPEC, None, OutputOptions())(DATA)
    assert result.data is None
    np.testing.assert_array_equal(result.labels, SEGMENTER.segment(decode_image(DATA)).labels)


@pytest.mark.parametrize(("format", "expected"), [("png", False), ("confidence", True)])
def test_the_confidence_is_computed_only_if_needed(format: str, expected: bool) -> None:
    pipeline = SegmentationPipeline(SEGMENTER, SPEC, format, OutputOptions())
    assert (pipeline.infer(synthetic_image(8, 8)).confidence is not None) == expected


def test_errors_of_the_pipeline() -> None:
    with pytest.raises(ConfigError, match="did you mean class 3"):
        SegmentationPipeline(SEGMENTER, SPEC, "png", OutputOptions(classes=("clas 3",)))
    pipeline = SegmentationPipeline(SEGMENTER, SPEC, "png", OutputOptions())
    with pytest.raises(InferenceCancelledError):
        pipeline.infer(synthetic_image(8, 8), lambda: True)


def test_memory_errors_while_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(OUTPUT_FORMATS["HW"]["png"], "encode", fail)
    with pytest.raises(InsufficientMemoryError, match="not enough memory"):
        SegmentationPipeline(SEGMENTER, SPEC, "png", OutputOptions())(DATA)
