"""A service on a folder of bundles: choice of the model, and bundles that are added and removed."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.service.in_process import start_app
from tests.service.test_app import JPEG, check_problem
from tests.service.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        write_tiny_bundle(folder / name, name)
    return folder


@pytest.fixture(scope="module")
def http(model_folder: Path) -> Iterator[TestClient]:
    with start_app(model_folder, reload_seconds=0.2, workers=2) as client:  # BentoML would start the second worker
        yield client


def test_model_is_named_in_query_or_form(http: TestClient) -> None:
    assert [model["name"] for model in http.get("/v1/models").json()] == ["one", "two"]
    for response in (
        http.post("/v1/segment?model=two", content=JPEG),
        http.post("/v1/segment", files={"image": JPEG}, data={"model": "two"}),
        http.post("/v1/segment/batch", files={"images": JPEG}, data={"model": "two"}),
    ):
        assert response.status_code == 200, response.text
        assert response.headers["x-model"] == f"two@{http.get('/v1/models/two').json()['hash'][:12]}"


def test_model_is_named_with_its_hash(http: TestClient) -> None:
    tag = http.post("/v1/segment?model=two", content=JPEG).headers["x-model"]
    assert http.post(f"/v1/segment?model={tag}", content=JPEG).headers["x-model"] == tag
    other = f"two@{'0' * 12}"
    check_problem(
        http.post(f"/v1/segment?model={other}", content=JPEG), 404, "'two' with hash 000000000000 is no longer served"
    )
    check_problem(http.post("/v1/segment?model=two@", content=JPEG), 404, "no model 'two@'")
    check_problem(http.post(f"/v1/segment?model=three{tag[3:]}", content=JPEG), 404, "no model 'three@")


def test_model_must_be_named(http: TestClient) -> None:
    check_problem(http.post("/v1/segment", content=JPEG), 400, "one, two")
    check_problem(http.post("/v1/segment?model=", content=JPEG), 404, "one, two")
    check_problem(http.post("/v1/segment?model=three", content=JPEG), 404, "'three'")
    check_problem(http.get("/v1/models/"), 404, "one, two")


def test_bundle_is_added_and_removed(http: TestClient, model_folder: Path) -> None:
    write_tiny_bundle(model_folder / "three", "three")
    _wait_for_status(http, "three", 200)
    shutil.rmtree(model_folder / "three")
    _wait_for_status(http, "three", 404)
    assert http.post("/v1/segment?model=one", content=JPEG).status_code == 200


def _wait_for_status(http: TestClient, model: str, status: int) -> None:
    deadline = time.monotonic() + 60
    while http.get(f"/v1/models/{model}").status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)
