"""Every file of a data set read once, in parallel, and what was seen kept by file: the second time costs a `stat`."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from models.cpu_quota import usable_cores
from models.imaging.decode import MAX_PIXELS
from training.data.dataset import Samples
from training.data.scan.sample_stats import Facts, Room, examine
from training.data.scan.scan_cache import Cache

__all__ = ["Facts", "scan", "scan_splits"]

CHUNK = 8  # pairs that a thread takes at a time


def scan(samples: Samples, progress: Callable[[int, int], None] | None = None, cached: bool = True) -> list[Facts]:
    """The facts of each pair, in order. `progress` is called with the number of pairs done and of all.

    Unless not `cached`, a pair whose two files are as they were is not read again (`cache.py`).
    """
    cache = Cache(samples.pairs, samples.draw) if cached else None
    found: list[Facts | None] = cache.known() if cache else [None] * len(samples)
    missing = [index for index, facts in enumerate(found) if facts is None]
    done = len(samples) - len(missing)
    if progress and done:
        progress(done, len(samples))
    try:
        for index, facts in zip(missing, _examined(samples, missing), strict=True):
            found[index] = facts
            done += 1
            if progress:
                progress(done, len(samples))
    finally:  # also at Ctrl-C: what was read need not be read again
        if cache and missing:
            cache.keep(found)
    return [facts for facts in found if facts is not None]


def scan_splits(
    opened: dict[str, Samples], progress: Callable[[int, int], None] | None = None, cached: bool = True
) -> dict[str, list[Facts]]:
    """As `scan`, of several splits; `progress` counts the pairs of all."""
    total, before, found = sum(map(len, opened.values())), 0, dict[str, list[Facts]]()
    for split, samples in opened.items():
        told = (lambda done, _, before=before: progress(before + done, total)) if progress else None
        found[split] = scan(samples, told, cached)
        before += len(samples)
    return found


def _examined(samples: Samples, indices: list[int]) -> Iterator[Facts]:
    """The facts of some pairs, in order. Decoding and hashing release the interpreter's lock, so threads use every core."""
    room, stopped = Room(MAX_PIXELS), threading.Event()

    def examine_some(start: int) -> list[Facts]:
        chosen = indices[start : start + CHUNK]
        return [] if stopped.is_set() else [examine(samples, index, room) for index in chosen if not stopped.is_set()]

    if not indices:
        return
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for facts in pool.map(examine_some, range(0, len(indices), CHUNK)):
            yield from facts
    finally:  # also at Ctrl-C, which must not wait for the rest
        stopped.set()
        pool.shutdown(cancel_futures=True)
