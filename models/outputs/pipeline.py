"""From an image file's bytes to an encoded mask: decode, infer, encode. The HTTP service and `maskserve predict` both use it.
Of a signal (`signal_pipeline.py`), the file is a recording, and the mask its events; of a volume (`volume_pipeline.py`), a volume.

The steps are separate methods because each caller runs them on threads of its own: the engine has its own threads, and
decoding and encoding of other images continue meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from models.errors import InsufficientMemoryError
from models.imaging.decode import MAX_PIXELS, Labels
from models.imaging.decoder_pool import DEFAULT_TIMEOUT_SECONDS, DecoderPool
from models.inference.geometry import Image
from models.inference.segmenter import Prediction, Segmenter, never_stop
from models.outputs import OUTPUT_FORMATS, find_format, needs_confidence
from models.outputs.options import OutputOptions
from models.outputs.select import class_indices, filter_prediction
from models.readers import read_input
from models.readers.composite import choose_bands
from models.readers.kinds import check_kind
from models.readers.limits import MAX_VOXELS
from models.sample import Sample
from models.spec import BundleSpec


class EncodedMask(NamedTuple):
    """The result of a pipeline."""

    data: bytes | None  # the mask in the pipeline's format; None where the format is None
    labels: Labels  # uint8 H x W, filtered by the options; 255 is unlabeled


@dataclass(frozen=True)
class SegmentationPipeline:
    """One bundle, one output format and its options. Methods may be called from any thread.

    Raises: ConfigError if the bundle has no such format, no class of a name in `options.classes`, or no channel of one in
    `options.bands`.
    """

    segmenter: Segmenter
    spec: BundleSpec
    format: str | None  # a key of OUTPUT_FORMATS[axes]; None returns the filtered labels without encoding them
    options: OutputOptions
    max_pixels: int = MAX_PIXELS  # larger images are refused before they are decoded
    max_voxels: int = MAX_VOXELS  # and larger volumes

    def __post_init__(self) -> None:
        if self.format is not None:
            find_format(self.format, self.spec.input.axes)
        class_indices(self.options.classes, self.spec)
        self.check_channels()

    def check_channels(self) -> None:
        """Raises: ConfigError for a channel in the options that the network does not have."""
        choose_bands(self.spec.input.channels, self.options.bands)

    def decode(self, data: bytes) -> Sample:
        """Decode a file as the network takes it. Raises: ImageError, InsufficientMemoryError."""
        check_kind(data, self.spec.input.axes)
        return read_input(data, self.spec.input, self.max_pixels)

    def decode_in_child(
        self,
        data: bytes,
        decoders: DecoderPool,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        is_cancelled: Callable[[], bool] = never_stop,
    ) -> Sample:
        """As `decode`, in a child process. Raises: as `decode`; CorruptImageError for a file that takes too long."""
        check_kind(data, self.spec.input.axes)
        return self.run_decoder(data, decoders, timeout_seconds, is_cancelled)

    def run_decoder(
        self, data: bytes, decoders: DecoderPool, seconds: float, is_cancelled: Callable[[], bool]
    ) -> Sample:
        """The call of `decode_in_child`, which has checked the kind of file."""
        return decoders.decode(data, self.max_pixels, seconds, is_cancelled, self.spec.input)

    def infer(self, image: Image | Sample, should_stop: Callable[[], bool] = never_stop) -> Prediction:
        """Predict the labels, and the confidence if the format or the options need it.

        Raises: InsufficientMemoryError, and InferenceCancelledError once `should_stop` returns True.
        """
        with translate_memory_errors():
            confidence = needs_confidence(self.format, self.options)
            return self.segmenter.segment(image, confidence, should_stop)

    def estimate_cost(self, byte_count: int) -> float:
        """About how much work a file of so many bytes is, where an image is 1."""
        return 1.0

    def cost(self, image: Image | Sample) -> float:
        """How much work a decoded file is, where an image is 1."""
        return 1.0

    def encode(self, prediction: Prediction) -> EncodedMask:
        """Filter the labels by the options and encode them.

        Raises: ImageTooLargeError if the format cannot hold the image, InsufficientMemoryError.
        """
        with translate_memory_errors():
            kept = filter_prediction(prediction, self.spec, self.options)
            if self.format is None:
                return EncodedMask(None, kept.labels)
            output = OUTPUT_FORMATS[self.spec.input.axes][self.format]
            return EncodedMask(output.encode(kept, self.spec, self.options), kept.labels)

    def __call__(self, data: bytes) -> EncodedMask:
        """Run all steps on one image file. Raises: ImageError, InsufficientMemoryError."""
        return self.encode(self.infer(self.decode(data)))


@contextmanager
def translate_memory_errors() -> Iterator[None]:
    """Raises: InsufficientMemoryError in place of MemoryError."""
    try:
        yield
    except MemoryError as error:
        raise InsufficientMemoryError(
            "There is not enough memory to segment this file and encode its mask. Use a smaller one."
        ) from error
