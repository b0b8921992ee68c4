"""From a recording's bytes to its encoded events: the pipeline of models of signals, with the steps of `pipeline.py`."""

from collections.abc import Callable
from dataclasses import dataclass

from models.errors import ChannelsError
from models.imaging.decoder_pool import DecoderPool
from models.inference.geometry import Image
from models.inference.leads import RecordPrediction, segment_record
from models.inference.segmenter import never_stop
from models.outputs import OUTPUT_FORMATS
from models.outputs.pipeline import EncodedMask, SegmentationPipeline, translate_memory_errors
from models.outputs.select import filter_labels
from models.readers import read_sample
from models.readers.kinds import check_kind
from models.sample import Sample

SAMPLES_PER_UNIT = 60_000  # time steps x leads: 10 seconds of an electrocardiogram of 12 leads at 500 Hz


@dataclass(frozen=True)
class SignalPipeline(SegmentationPipeline):
    """As SegmentationPipeline, for a model of signals: decodes all leads of a recording, and segments those that it takes.

    Its predictions are `RecordPrediction`s, and their labels uint8 T, or T x leads.
    """

    def check_channels(self) -> None:
        """The leads belong to the recording: they are checked once it is read."""

    def decode(self, data: bytes) -> Sample:
        """Read a recording, all its leads. Raises: ImageError, InsufficientMemoryError; ChannelsError without a rate."""
        check_kind(data, "T")
        return check_has_rate(read_sample(data, self.max_pixels, "T", self.options.rate))

    def run_decoder(
        self, data: bytes, decoders: DecoderPool, seconds: float, is_cancelled: Callable[[], bool]
    ) -> Sample:
        """As there. Raises: ChannelsError without a rate."""
        sample = decoders.read_signal(data, self.options.rate, self.max_pixels, seconds, is_cancelled)
        return check_has_rate(sample)

    def estimate_cost(self, byte_count: int) -> float:
        """From the bytes of the file: most have two for each sample."""
        return max(1.0, byte_count / 2 / SAMPLES_PER_UNIT)

    def cost(self, image: Image | Sample) -> float:
        """From the time steps of all leads, at the network's rate if that is higher; at least 1, what any recording costs."""
        assert isinstance(image, Sample)
        rate = self.segmenter.rule.rate
        growth = max(1.0, rate / image.rate) if rate and image.rate else 1.0
        return max(1.0, image.values.size * growth / SAMPLES_PER_UNIT)

    def infer(self, image: Image | Sample, should_stop: Callable[[], bool] = never_stop) -> RecordPrediction:  # type: ignore[override]
        """Segment the recording, and set what the options leave out to 255.

        Raises: ChannelsError for leads or a rate that the network cannot take, ConfigError for a lead that the recording does
        not have, InsufficientMemoryError, InferenceCancelledError.
        """
        assert isinstance(image, Sample)
        format = None if self.format is None else OUTPUT_FORMATS["T"][self.format]
        with translate_memory_errors():
            return segment_record(
                self.segmenter, self.spec, image, self.options.leads, format is not None and format.NEEDS_CONFIDENCE,
                should_stop, lambda labels, confidence: filter_labels(labels, confidence, self.spec, self.options),
            )  # fmt: skip

    def encode(self, prediction: RecordPrediction) -> EncodedMask:  # type: ignore[override]
        """Encode the events or labels. Raises: InsufficientMemoryError."""
        with translate_memory_errors():
            if self.format is None:
                return EncodedMask(None, prediction.labels)
            output = OUTPUT_FORMATS["T"][self.format]
            return EncodedMask(output.encode(prediction, self.spec, self.options), prediction.labels)


def check_has_rate(sample: Sample) -> Sample:
    """The recording. Raises: ChannelsError if neither its file nor the caller says at which rate it was sampled."""
    if sample.rate is None:
        raise ChannelsError("The file does not say its sampling rate. Give it in Hz, as in rate=250.")
    return sample
