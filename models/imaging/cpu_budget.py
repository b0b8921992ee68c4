"""The CPU time that an image may take in a decoder process, by its bytes and pixels.

The kernel ends the process (SIGPROF) at the end of the budget. Other load on the machine does not count.
"""

import signal

# The slowest valid image measured takes 2.4 s for 49 megapixels, 0.05 us each (RGBA of 16 bits, benchmarks/results/hostile.json).
# Noise of a megapixel takes 2 ms as deflated TIFF to 0.07 s as AVIF. A machine may be several times slower.
BASE_SECONDS = 3.0
SECONDS_PER_BYTE, SECONDS_PER_PIXEL = 0.4e-6, 0.3e-6
MAX_CPU_SECONDS = 15.0

_spendable = 0.0  # what may still be added to the budget; 0 outside of a decoder process


def start_budget(byte_count: int) -> None:
    """Start the budget of a file, before its pixels are known."""
    global _spendable
    seconds = min(MAX_CPU_SECONDS, BASE_SECONDS + SECONDS_PER_BYTE * byte_count)
    _spendable = MAX_CPU_SECONDS - seconds
    signal.setitimer(signal.ITIMER_PROF, seconds)


def allow_pixels(count: int) -> None:
    """Add the time for pixels or samples that are about to be decoded. Does nothing outside of a decoder process."""
    global _spendable
    more = min(_spendable, SECONDS_PER_PIXEL * count)
    if more > 0:
        _spendable -= more
        signal.setitimer(signal.ITIMER_PROF, signal.getitimer(signal.ITIMER_PROF)[0] + more)


def end_budget() -> None:
    """End the budget of a file."""
    global _spendable
    _spendable = 0.0
    signal.setitimer(signal.ITIMER_PROF, 0)
