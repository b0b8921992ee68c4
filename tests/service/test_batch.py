"""Many images in one request."""

import asyncio
import io
import json
import zipfile
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from service.batch import segment_all
from tests.fixtures_bundles import synthetic_image
from tests.service.test_app import JPEG, PNG, check_problem

BROKEN = JPEG[: len(JPEG) // 2]
IMAGES = [JPEG, BROKEN, PNG, b"no image"]


@pytest.fixture(scope="module")
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url, timeout=60.0) as client:
        yield client


def post_batch(http: httpx.Client, images: list[bytes], **query: str) -> httpx.Response:
    files = [("images", (f"../{index}.txt", data)) for index, data in enumerate(images)]
    return http.post("/v1/segment/batch", files=files, params=query)


def test_zip_holds_the_responses_to_single_requests(http: httpx.Client) -> None:
    response = post_batch(http, IMAGES)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.namelist() == ["0.png", "1.problem.json", "2.png", "3.problem.json"]
    for name, data in zip(archive.namelist(), IMAGES, strict=True):
        single = http.post("/v1/segment", content=data)
        if name.endswith(".png"):
            assert archive.read(name) == single.content
        else:
            problem, expected = json.loads(archive.read(name)), single.json()
            assert problem.pop("request_id") == response.headers["x-request-id"]
            expected.pop("request_id")
            assert problem == expected


def test_json_is_an_array_with_an_entry_per_image(http: httpx.Client) -> None:
    response = post_batch(http, IMAGES, format="json", masks="none")
    assert response.headers["content-type"] == "application/json"
    entries = response.json()
    assert [(entry["index"], entry["status"]) for entry in entries] == [(0, 200), (1, 422), (2, 200), (3, 415)]
    assert entries[2]["result"] == http.post("/v1/segment?format=json&masks=none", content=PNG).json()
    assert "truncated" in entries[1]["problem"]["detail"]


def test_names_in_a_zip_sort_in_order(http: httpx.Client) -> None:
    images = [encode_square_png(side) for side in range(1, 13)]
    archive = zipfile.ZipFile(io.BytesIO(post_batch(http, images, format="npy").content))
    assert archive.namelist() == [f"{index:02}.npy" for index in range(12)]
    for side, name in enumerate(sorted(archive.namelist()), 1):
        assert np.load(io.BytesIO(archive.read(name))).shape == (side, side)


def encode_square_png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(synthetic_image(side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def test_invalid_batches(http: httpx.Client) -> None:
    check_problem(http.post("/v1/segment/batch", content=JPEG), 400, "form", "`images`")
    check_problem(http.post("/v1/segment/batch", files={"image": JPEG}), 400, "'image'", "`images`")
    check_problem(post_batch(http, [JPEG] * 65), 400, "Too many files", "64")
    check_problem(post_batch(http, [JPEG], format="gif"), 400, "'gif'")
    check_problem(post_batch(http, [JPEG], model="other"), 404, "'other'")


def test_size_of_all_masks_is_limited() -> None:
    async def segment(image: bytes) -> bytes:
        return image

    outcomes = asyncio.run(segment_all([b"x" * 40] * 5, segment, max_bytes=100))
    assert [outcome if isinstance(outcome, bytes) else outcome.status for outcome in outcomes[:3]] == [b"x" * 40] * 3
    assert [outcome.status for outcome in outcomes[3:] if not isinstance(outcome, bytes)] == [413, 413]


def test_text_instead_of_an_image_is_an_error_of_that_image(http: httpx.Client) -> None:
    files = [("images", JPEG), ("images", (None, "http://127.0.0.1:1/a.jpg"))]
    entries = http.post("/v1/segment/batch?format=json&masks=none", files=files).json()
    assert sorted(entry["status"] for entry in entries) == [200, 400]
