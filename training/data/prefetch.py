"""Calls functions in a pool of threads, a few ahead of the one whose result is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# While one image is segmented, this many threads read and count others, up to PREFETCH images ahead.
NUM_THREADS, PREFETCH = 2, 3

T = TypeVar("T")


def prefetch(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The result of each call, in order; the pool is at most PREFETCH calls ahead, so that memory stays bounded."""
    waiting = deque[Future[T]]()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > PREFETCH:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
