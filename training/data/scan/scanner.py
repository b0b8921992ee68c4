"""Scans a data set: reads every file once, in parallel, and caches the result by file, so that a second scan only stats files."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from models.cgroup_limits import usable_cores
from models.imaging.decode import MAX_PIXELS
from training.data.dataset import SegmentationDataset
from training.data.scan.sample_stats import PixelBudget, SampleStats, compute_sample_stats
from training.data.scan.scan_cache import ScanCache
from training.data.scan.signal_stats import scan_signals
from training.data.scan.volume_stats import scan_volumes

__all__ = ["SampleStats", "scan_split", "scan_splits"]

CHUNK_SIZE = 8  # pairs per thread task


def scan_split(
    dataset: SegmentationDataset, progress: Callable[[int, int], None] | None = None, use_cache: bool = True
) -> list[SampleStats]:
    """The statistics of each pair, in order. `progress` is called with the number of pairs done and their total.

    With `use_cache`, pairs whose two files are unchanged are not read again (`scan_cache.py`).
    """
    cache = ScanCache(dataset.pairs, dataset.mask_reader) if use_cache else None
    found: list[SampleStats | None] = cache.load() if cache else [None] * len(dataset)
    missing = [index for index, stats in enumerate(found) if stats is None]
    done = len(dataset) - len(missing)
    if progress and done:
        progress(done, len(dataset))
    try:
        for index, stats in zip(missing, _iterate_stats(dataset, missing), strict=True):
            found[index] = stats
            done += 1
            if progress:
                progress(done, len(dataset))
    finally:  # also on Ctrl-C, so that the next scan continues here
        if cache and missing:
            cache.save(found)
    return [stats for stats in found if stats is not None]


def scan_splits(
    opened: dict[str, SegmentationDataset], progress: Callable[[int, int], None] | None = None, use_cache: bool = True
) -> dict[str, list[Any]]:
    """The statistics of several splits, of the kind of their axes; `progress` counts the pairs of all splits."""
    total, before, found = sum(map(len, opened.values())), 0, dict[str, list[Any]]()
    for split, dataset in opened.items():
        split_progress = (lambda done, _, before=before: progress(before + done, total)) if progress else None
        if dataset.axes == "T":
            found[split] = scan_signals(dataset, split_progress)
        elif dataset.axes == "DHW":
            found[split] = scan_volumes(dataset, split_progress)
        else:
            found[split] = scan_split(dataset, split_progress, use_cache)
        before += len(dataset)
    return found


def _iterate_stats(dataset: SegmentationDataset, indices: list[int]) -> Iterator[SampleStats]:
    """The statistics of some pairs, in order. Decoding and hashing release the GIL, so threads use every core."""
    budget, stopped = PixelBudget(MAX_PIXELS), threading.Event()

    def scan_chunk(start: int) -> list[SampleStats]:
        chunk = indices[start : start + CHUNK_SIZE]
        return [compute_sample_stats(dataset, index, budget) for index in chunk if not stopped.is_set()]

    if not indices:
        return
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for stats in pool.map(scan_chunk, range(0, len(indices), CHUNK_SIZE)):
            yield from stats
    finally:  # also on Ctrl-C, which must not wait for the rest
        stopped.set()
        pool.shutdown(cancel_futures=True)
