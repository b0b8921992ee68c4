"""A real service on a folder of bundles: which one answers, and that one that comes is taken up."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.server_process import background_server
from tests.service.test_app import JPEG, check_problem
from tests.service.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for name in ("one", "two"):
        write_tiny_bundle(folder / name, name)
    return folder


@pytest.fixture(scope="module")
def http(model_folder: Path) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKSERVE_RELOAD_SECONDS", "0.2")
        patch.setenv("MASKSERVE_WORKERS", " 2 ")
        with background_server(model_folder) as url, httpx.Client(base_url=url, timeout=60.0) as client:
            yield client


def test_the_model_is_named_in_query_or_form(http: httpx.Client) -> None:
    assert [model["name"] for model in http.get("/v1/models").json()] == ["one", "two"]
    for answer in (
        http.post("/v1/segment?model=two", content=JPEG),
        http.post("/v1/segment", files={"image": JPEG}, data={"model": "two"}),
        http.post("/v1/segment/batch", files={"images": JPEG}, data={"model": "two"}),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-model"].startswith("two@")
        assert answer.headers["x-model"] == f"two@{http.get('/v1/models/two').json()['hash'][:12]}"


def test_that_very_bundle_can_be_asked_for(http: httpx.Client) -> None:
    tag = http.post("/v1/segment?model=two", content=JPEG).headers["x-model"]
    assert http.post(f"/v1/segment?model={tag}", content=JPEG).headers["x-model"] == tag
    other = f"two@{'0' * 12}"
    check_problem(
        http.post(f"/v1/segment?model={other}", content=JPEG), 404, "'two' of hash 000000000000 is not served"
    )
    check_problem(http.post("/v1/segment?model=two@", content=JPEG), 404, "no model 'two@'")
    check_problem(http.post(f"/v1/segment?model=three{tag[3:]}", content=JPEG), 404, "no model 'three@")


def test_without_a_name_none_is_guessed(http: httpx.Client) -> None:
    check_problem(http.post("/v1/segment", content=JPEG), 400, "one, two")
    check_problem(http.post("/v1/segment?model=", content=JPEG), 404, "one, two")
    check_problem(http.post("/v1/segment?model=three", content=JPEG), 404, "'three'")
    check_problem(http.get("/v1/models/"), 404, "one, two")


def test_a_bundle_that_comes_is_served_and_one_that_goes_is_not(http: httpx.Client, model_folder: Path) -> None:
    write_tiny_bundle(model_folder / "three", "three")
    _wait_for_status(http, "three", 200)
    shutil.rmtree(model_folder / "three")
    _wait_for_status(http, "three", 404)
    assert http.post("/v1/segment?model=one", content=JPEG).status_code == 200


def _wait_for_status(http: httpx.Client, model: str, status: int) -> None:
    """Each worker looks by itself: the answer is asked for often enough to come from both."""
    deadline = time.monotonic() + 180
    in_a_row = 0
    while in_a_row < 20 and time.monotonic() < deadline:
        with httpx.Client(base_url=http.base_url) as fresh:
            in_a_row = in_a_row + 1 if fresh.get(f"/v1/models/{model}").status_code == status else 0
        time.sleep(0.02)
    assert in_a_row == 20
