"""Reader of the formats of photographs, by the decoder of photographs: gray of any depth as one channel, others as RGB."""

from models.errors import UnsupportedFormatError
from models.imaging.decode import decode_samples
from models.imaging.detect_format import detect_format
from models.readers.limits import ReadLimits
from models.sample import Sample
from models.spec import RGB_CHANNELS

GRAY_CHANNELS = ("gray",)


def sniff(data: bytes) -> bool:
    """Whether the bytes begin like one of these formats."""
    try:
        detect_format(data)
    except UnsupportedFormatError:
        return False
    return True


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Gray as it is stored, uint8, uint16 or float32 H x W x 1; color as upright sRGB, uint8 H x W x 3."""
    values = decode_samples(data, limits.max_pixels)
    limits.check(values.shape[0], values.shape[1], values.shape[2], values.itemsize)
    return Sample(values, channels=GRAY_CHANNELS if values.shape[2] == 1 else RGB_CHANNELS)
