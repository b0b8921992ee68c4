import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from models.errors import DataError
from training.data.prefetch import PREFETCH, prefetch


def test_prefetch_is_in_order_and_bounded() -> None:
    begun, taken, most = [0], 0, 0
    lock = threading.Lock()

    def call(index: int) -> int:
        with lock:
            begun[0] += 1
        return index

    with ThreadPoolExecutor(2) as pool:
        for expected, value in enumerate(prefetch(pool, (partial(call, index) for index in range(50)))):
            assert value == expected
            taken += 1
            most = max(most, begun[0] - taken)
    assert taken == 50 and most <= PREFETCH


def test_prefetch_raises_an_error_at_its_place() -> None:
    def call(index: int) -> int:
        if index == 3:
            raise DataError("the fourth")
        return index

    with ThreadPoolExecutor(2) as pool:
        results = prefetch(pool, (partial(call, index) for index in range(9)))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match="the fourth"):
            next(results)
