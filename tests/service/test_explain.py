"""POST /v1/explain: the views of the page's panel, only with MASKSERVE_EXPLAIN=on."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.service.in_process import start_app

IMAGE = encode_image(synthetic_image(48, 64), "PNG")


@pytest.fixture(scope="module")
def client(small_bundle: Path):  # type: ignore[no-untyped-def]  # noqa: ANN201
    with start_app(small_bundle, explain=True) as client:
        yield client


def test_certainty_and_occlusion(client: TestClient) -> None:
    response = client.post("/v1/explain", content=IMAGE)
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    content = response.json()
    assert set(content["images"]) == {"prediction", "confidence", "entropy", "margin", "spread"}
    assert 0 < content["numbers"]["confidence"] <= 1
    image = Image.open(io.BytesIO(base64.b64decode(content["images"]["entropy"])))
    assert image.size == (64, 48) and image.mode == "RGB"
    occlusion = client.post("/v1/explain?view=occlusion&at=10,20", content=IMAGE).json()
    assert occlusion["numbers"]["class"].startswith("class") and "occlusion" in occlusion["images"]
    assert client.get("/v1/models").json()[0]["explain"] is True
    assert client.get("/static/explain.js").status_code == 200


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("view=kernels", 400, "certainty, occlusion"),
        ("at=1;2", 400, "X,Y"),
        ("at=64,0", 400, "64 x 48 pixels"),
        ("format=png", 400, "Unknown parameter"),
        ("model=other", 404, "other"),
    ],
)
def test_bad_input(query: str, status: int, words: str, client: TestClient) -> None:
    response = client.post(f"/v1/explain?{query}", content=IMAGE)
    assert response.status_code == status and words in response.json()["detail"]
    assert client.post("/v1/explain", content=b"no image").status_code == 415
    assert client.get("/v1/explain").status_code == 405


def test_it_is_off_by_default(small_bundle: Path) -> None:
    with start_app(small_bundle) as client:
        assert client.post("/v1/explain", content=IMAGE).status_code == 404
        assert client.get("/v1/models").json()[0]["explain"] is False
        assert client.get("/static/explain.js").status_code == 404


def test_it_waits_in_the_same_queue(small_bundle: Path) -> None:
    with start_app(small_bundle, explain=True, timeout_seconds=0.01) as client:
        assert client.post("/v1/explain?view=occlusion", content=IMAGE).status_code in (503, 504)
