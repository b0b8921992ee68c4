"""Every file of a data set read once, in parallel, and what was seen kept by file: the second time costs a `stat`."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from models.cpu_quota import usable_cores
from models.imaging.decode import MAX_PIXELS
from training.data.dataset import SegmentationDataset
from training.data.scan.sample_stats import PixelBudget, SampleStats, compute_sample_stats
from training.data.scan.scan_cache import ScanCache

__all__ = ["SampleStats", "scan", "scan_splits"]

CHUNK_SIZE = 8  # pairs that a thread takes at a time


def scan(
    samples: SegmentationDataset, progress: Callable[[int, int], None] | None = None, use_cache: bool = True
) -> list[SampleStats]:
    """The facts of each pair, in order. `progress` is called with the number of pairs done and of all.

    Unless not `cached`, a pair whose two files are as they were is not read again (`cache.py`).
    """
    cache = ScanCache(samples.pairs, samples.mask_reader) if use_cache else None
    found: list[SampleStats | None] = cache.load() if cache else [None] * len(samples)
    missing = [index for index, facts in enumerate(found) if facts is None]
    done = len(samples) - len(missing)
    if progress and done:
        progress(done, len(samples))
    try:
        for index, facts in zip(missing, _iterate_stats(samples, missing), strict=True):
            found[index] = facts
            done += 1
            if progress:
                progress(done, len(samples))
    finally:  # also at Ctrl-C: what was read need not be read again
        if cache and missing:
            cache.save(found)
    return [facts for facts in found if facts is not None]


def scan_splits(
    opened: dict[str, SegmentationDataset], progress: Callable[[int, int], None] | None = None, use_cache: bool = True
) -> dict[str, list[SampleStats]]:
    """As `scan`, of several splits; `progress` counts the pairs of all."""
    total, before, found = sum(map(len, opened.values())), 0, dict[str, list[SampleStats]]()
    for split, samples in opened.items():
        told = (lambda done, _, before=before: progress(before + done, total)) if progress else None
        found[split] = scan(samples, told, use_cache)
        before += len(samples)
    return found


def _iterate_stats(samples: SegmentationDataset, indices: list[int]) -> Iterator[SampleStats]:
    """The facts of some pairs, in order. Decoding and hashing release the interpreter's lock, so threads use every core."""
    room, stopped = PixelBudget(MAX_PIXELS), threading.Event()

    def examine_some(start: int) -> list[SampleStats]:
        chosen = indices[start : start + CHUNK_SIZE]
        return (
            []
            if stopped.is_set()
            else [compute_sample_stats(samples, index, room) for index in chosen if not stopped.is_set()]
        )

    if not indices:
        return
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for facts in pool.map(examine_some, range(0, len(indices), CHUNK_SIZE)):
            yield from facts
    finally:  # also at Ctrl-C, which must not wait for the rest
        stopped.set()
        pool.shutdown(cancel_futures=True)
