"""From a volume's file to its encoded labels: the pipeline of models of volumes, with the steps of `pipeline.py`."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from models.errors import EngineError, InsufficientMemoryError, UnsupportedFormatError
from models.imaging.decoder_pool import DecoderPool
from models.inference.geometry import Image
from models.inference.segmenter import never_stop
from models.inference.volumes import VolumePrediction, segment_volume
from models.outputs import OUTPUT_FORMATS, needs_confidence
from models.outputs.pipeline import EncodedMask, SegmentationPipeline, translate_memory_errors
from models.outputs.select import filter_labels
from models.readers import read_input
from models.readers.kinds import check_kind
from models.readers.orientation import grid_of
from models.readers.volume_spacing import resampled_size
from models.sample import Sample

VOXELS_PER_UNIT = 64**3  # of the network's grid: about as many as an image of 640 x 480 has pixels


@dataclass(frozen=True)
class VolumePipeline(SegmentationPipeline):
    """As SegmentationPipeline, for a model of volumes. Its predictions are `VolumePrediction`s, its labels uint8 i x j x k."""

    def check_channels(self) -> None:
        """The channels belong to the volume: they are checked once it is read."""

    def decode(self, data: bytes) -> Sample:
        """Read a volume in canonical orientation, as the network takes it. Raises: ImageError, InsufficientMemoryError."""
        check_kind(data, "DHW")
        with _translate_missing_package():
            return read_input(data, self.spec.input, self.max_pixels, max_voxels=self.max_voxels)

    def run_decoder(
        self, data: bytes, decoders: DecoderPool, seconds: float, is_cancelled: Callable[[], bool]
    ) -> Sample:
        """As there."""
        with _translate_missing_package():
            return decoders.read_volume(data, self.spec.input, self.max_voxels, seconds, is_cancelled)

    def estimate_cost(self, byte_count: int) -> float:
        """From the bytes of the file: compressed, a voxel has about one."""
        return max(1.0, byte_count / VOXELS_PER_UNIT)

    def cost(self, image: Image | Sample) -> float:
        """From the voxels at the network's spacing. Raises: ImageTooLargeError for a spacing that cannot be resampled."""
        assert isinstance(image, Sample)
        size = resampled_size(image.size, image.spacing, self.spec.input.spacing)
        return max(1.0, math.prod(size) / VOXELS_PER_UNIT)

    def infer(self, image: Image | Sample, should_stop: Callable[[], bool] = never_stop) -> VolumePrediction:  # type: ignore[override]
        """Segment the volume.

        Raises: ImageTooLargeError for a volume that would become too large, InsufficientMemoryError, InferenceCancelledError.
        """
        assert isinstance(image, Sample)
        with translate_memory_errors():
            confidence = needs_confidence(self.format, self.options, "DHW")
            found = segment_volume(self.segmenter, image, confidence, should_stop)
            positioned = image.frame is not None and image.frame.grid is not None
            return VolumePrediction(
                found.labels, found.confidence, grid_of(image), positioned, positioned or image.spacing is not None
            )

    def encode(self, prediction: VolumePrediction) -> EncodedMask:  # type: ignore[override]
        """Filter the labels by the options and encode them. Raises: InsufficientMemoryError."""
        with translate_memory_errors():
            labels = filter_labels(prediction.labels, prediction.confidence, self.spec, self.options)
            kept = replace(prediction, labels=labels)
            data = None
            if self.format is not None:
                data = OUTPUT_FORMATS["DHW"][self.format].encode(kept, self.spec, self.options)
            return EncodedMask(data, kept.file_labels)


@contextmanager
def _translate_missing_package() -> Iterator[None]:
    """Raises: UnsupportedFormatError for a file whose reader needs a package that is not installed (pydicom)."""
    try:
        yield
    except InsufficientMemoryError:
        raise
    except EngineError as error:
        raise UnsupportedFormatError(f"{error}. Or send the volume as NIfTI.") from error
