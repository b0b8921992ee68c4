"""Memory is given back when no request has come for a while, once, and never while one is processed."""

import asyncio
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import service.app
from service.idle import release_memory_when_idle
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.service.in_process import start_app
from tests.service.test_admission import make_admission

IDLE_SECONDS = 0.05


def test_released_once_after_each_use_and_not_while_a_slot_is_held() -> None:
    async def work() -> list[int]:
        admission, released, counts = make_admission(), [0], []

        def release() -> None:
            released[0] += 1

        watch = asyncio.create_task(release_memory_when_idle(admission, release, IDLE_SECONDS))
        await asyncio.sleep(6 * IDLE_SECONDS)
        counts.append(released[0])  # after the warm-up
        for stage in ("upload", "queue", "inference"):
            async with admission.acquire(stage):  # type: ignore[arg-type]
                await asyncio.sleep(6 * IDLE_SECONDS)
                counts.append(released[0])
            await asyncio.sleep(6 * IDLE_SECONDS)
            counts.append(released[0])
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        return counts

    assert asyncio.run(work()) == [1, 1, 2, 2, 3, 3, 4]


def test_the_service_does_so_and_its_masks_stay_the_same(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []

    async def watch(admission, release, idle_seconds=IDLE_SECONDS):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        def counted() -> None:
            release()
            released.append("")

        await release_memory_when_idle(admission, counted, IDLE_SECONDS)

    monkeypatch.setattr(service.app, "release_memory_when_idle", watch)
    image = encode_image(synthetic_image(90, 120), "PNG")
    with start_app(small_bundle) as client:
        before = client.post("/v1/segment", content=image).content
        count = len(released)
        for _ in range(200):
            if len(released) > count:
                break
            client.portal.call(asyncio.sleep, IDLE_SECONDS)  # type: ignore[union-attr]
        assert len(released) > count
        after = client.post("/v1/segment", content=image).content
    assert before == after and np.frombuffer(before, np.uint8).size > 50
