"""What a reader may use for one file."""

import math
from dataclasses import dataclass

from models.errors import CorruptImageError, ImageTooLargeError, UnsupportedFormatError
from models.imaging.cpu_budget import allow_pixels
from models.imaging.header_limits import check_size
from models.spec import MAX_CHANNELS

BYTES_PER_PIXEL = 8  # of the pixel limit: so many bytes of samples; a child process has 26 (decoder_pool.py)
MAX_VOXELS = 1 << 28  # 512 x 512 x 1024
MIN_BYTES = 64 << 20  # of samples, under every limit of pixels


@dataclass(frozen=True)
class ReadLimits:
    """Limits that are checked by the header, before samples are read."""

    max_pixels: int
    max_voxels: int = MAX_VOXELS  # of a volume

    def check(self, height: int, width: int, channels: int, sample_bytes: int) -> None:
        """Check the size of samples, and allow a decoder process the CPU time for them.

        Raises: ImageTooLargeError, CorruptImageError, UnsupportedFormatError.
        """
        if height < 1 or width < 1 or channels < 1:
            raise CorruptImageError(
                f"The image has no samples: {width} x {height} of {channels} channels. Save it again."
            )
        if channels > MAX_CHANNELS:
            raise UnsupportedFormatError(
                f"The image has {channels:,} channels; the limit is {MAX_CHANNELS}. The axes are height, width, channels: "
                "transpose an array of channels, height, width."
            )
        check_size(width, height, self.max_pixels)
        total, limit = (
            math.prod((height, width, channels, sample_bytes)),
            max(BYTES_PER_PIXEL * self.max_pixels, MIN_BYTES),
        )
        if total > limit:
            raise ImageTooLargeError(
                f"The image has {total:,} bytes of samples; the limit is {limit:,}. Use a smaller one, or fewer channels."
            )
        allow_pixels(height * width * channels)

    def check_signal(self, length: int, channels: int, sample_bytes: int) -> None:
        """As `check`, for a signal: its samples of all channels count as pixels."""
        if channels > MAX_CHANNELS:
            raise UnsupportedFormatError(
                f"The signal has {channels:,} channels; the limit is {MAX_CHANNELS}. The axes are time, channels: transpose "
                "an array of channels, time."
            )
        if length * channels > self.max_pixels:
            raise ImageTooLargeError(
                f"The signal has {length * channels:,} samples in {channels} channels; the limit is {self.max_pixels:,}. "
                "Send a shorter part, or fewer channels."
            )
        if length * channels * sample_bytes > max(BYTES_PER_PIXEL * self.max_pixels, MIN_BYTES):
            raise ImageTooLargeError("The signal has more bytes than the limit. Send a shorter part.")
        allow_pixels(length * channels)
