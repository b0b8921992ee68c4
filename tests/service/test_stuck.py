"""A worker whose images do not end: it is not ready, rejects requests, and ends itself, so that it is replaced."""

import asyncio
from pathlib import Path

import pytest

from service import app
from service.admission import AdmissionController
from service.errors import NotReadyError
from service.segmentation import SegmentationService
from service.settings import Settings
from tests.service.in_process import start_app
from tests.service.test_app import JPEG, check_problem


def make_controller(max_hold_seconds: float) -> AdmissionController:
    return AdmissionController(2, 2, 5, 5, queue_timeout_seconds=10, max_hold_seconds=max_hold_seconds)


@pytest.mark.parametrize("stage", ["image", "decoder", "inference"])
def test_stuck_if_all_slots_are_held_for_too_long(stage: str) -> None:
    async def hold() -> None:
        admission = make_controller(max_hold_seconds=0.05)
        async with admission.acquire(stage):  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
            assert admission.stuck_seconds == 0  # one is free
            async with admission.acquire(stage):  # type: ignore[arg-type]
                admission.check_capacity()
                await asyncio.sleep(0.1)
                assert 0 < admission.stuck_seconds < 5
                with pytest.raises(NotReadyError, match="replaced"):
                    admission.check_capacity()
            assert admission.stuck_seconds == 0

    asyncio.run(hold())


def test_busy_is_not_stuck() -> None:
    """Every slot is always held, but by another image each time."""

    async def work() -> None:
        admission = make_controller(max_hold_seconds=0.1)

        async def use() -> None:
            async with admission.acquire("image", 10):
                await asyncio.sleep(0.02)
                assert admission.stuck_seconds == 0

        await asyncio.gather(*(use() for _ in range(20)))

    asyncio.run(work())


def test_worker_with_stuck_images_is_not_ready_and_ends(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(app, "STUCK_CHECK_SECONDS", 0.01)
    monkeypatch.setattr("os._exit", ended.append)
    with start_app(small_bundle, queue_seconds=0.1) as http:
        stuck = 0.0
        monkeypatch.setattr(AdmissionController, "stuck_seconds", property(lambda self: stuck))
        assert http.get("/readyz").status_code == 200
        stuck = 0.05
        response = http.get("/readyz")
        assert response.status_code == 503 and "do not end" in response.text and response.headers["retry-after"] == "1"
        check_problem(http.post("/v1/segment", content=JPEG), 503, "replaced")
        assert ended == []  # images that wait may still be rejected in time
        stuck = 0.2
        assert http.post("/v1/segment", content=JPEG).status_code == 503
        for _ in range(100):
            if ended:
                break
            http.get("/livez")
    assert ended == [1]


def test_setting_is_added_to_the_timeout(small_bundle: Path) -> None:
    for seconds, expected in ((30, 90), (0, float("inf"))):
        service = SegmentationService(
            Settings(bundle=small_bundle, timeout_seconds=60, stuck_seconds=seconds, sandbox=False)
        )
        assert service.admission._max_hold_seconds == expected
