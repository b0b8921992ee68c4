"""The pipeline of each kind of model. The HTTP service and `maskserve predict` make theirs here."""

from models.inference.segmenter import Segmenter
from models.outputs.options import OutputOptions
from models.outputs.pipeline import SegmentationPipeline
from models.outputs.signal_pipeline import SignalPipeline
from models.outputs.volume_pipeline import VolumePipeline
from models.readers.limits import MAX_VOXELS
from models.spec import BundleSpec

PIPELINES: dict[str, type[SegmentationPipeline]] = {
    "HW": SegmentationPipeline,
    "T": SignalPipeline,
    "DHW": VolumePipeline,
}  # by axes


def make_pipeline(
    segmenter: Segmenter,
    spec: BundleSpec,
    format: str | None,
    options: OutputOptions,
    max_pixels: int,
    max_voxels: int = MAX_VOXELS,
) -> SegmentationPipeline:
    """The pipeline of a bundle, by the axes of its samples. Raises: ConfigError, as `SegmentationPipeline`."""
    return PIPELINES[spec.input.axes](segmenter, spec, format, options, max_pixels, max_voxels)
