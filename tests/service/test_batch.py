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

from service.batch import safe_stems, segment_all
from tests.fixtures_bundles import synthetic_image
from tests.service.test_app import JPEG, PNG, check_problem

BROKEN = JPEG[: len(JPEG) // 2]
IMAGES = [JPEG, BROKEN, PNG, b"no image"]


@pytest.fixture(scope="module")
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url, timeout=60.0) as client:
        yield client


def post_batch(http: httpx.Client, images: list[bytes], name: str = "../image {}.jpeg", **query: str) -> httpx.Response:
    files = [("images", (name.format(index), data)) for index, data in enumerate(images)]
    return http.post("/v1/segment/batch", files=files, params=query)


def test_zip_holds_the_responses_to_single_requests(http: httpx.Client) -> None:
    response = post_batch(http, IMAGES)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    names = ["image 0.png", "image 1.problem.json", "image 2.png", "image 3.problem.json"]
    assert archive.namelist() == [*names, "manifest.json"]
    assert json.loads(archive.read("manifest.json")) == [
        {"index": index, "image": f"../image {index}.jpeg", "file": name, "status": status}
        for index, (name, status) in enumerate(zip(names, (200, 422, 200, 415), strict=True))
    ]
    for name, data in zip(names, IMAGES, strict=True):
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
    assert [entry["image"] for entry in entries] == [f"../image {index}.jpeg" for index in range(4)]
    assert entries[2]["result"] == http.post("/v1/segment?format=json&masks=none", content=PNG).json()
    assert "truncated" in entries[1]["problem"]["detail"]


def test_images_with_one_name_stay_apart(http: httpx.Client) -> None:
    images = [encode_square_png(side) for side in range(1, 4)]
    archive = zipfile.ZipFile(io.BytesIO(post_batch(http, images, name="a.png", format="npy").content))
    assert archive.namelist() == ["a.npy", "a-2.npy", "a-3.npy", "manifest.json"]
    for side, name in enumerate(archive.namelist()[:3], 1):
        assert np.load(io.BytesIO(archive.read(name))).shape == (side, side)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photo.jpg", "PHOTO.png", "photo-2.jpg", "photo.tif"], ["photo", "PHOTO-2", "photo-2-2", "photo-3"]),
        (["../../etc/passwd", "C:\\Users\\a b.png", "/", "..", ""], ["passwd", "a b", "2", "3", "4"]),
        (["a\x1b[31m\r\n.png", "a:b*?.png", "a\u202eb.png", " .hidden. "], ["a__31m__", "a_b__", "a_b", "hidden"]),
        (["nul.png", "COM1", "con.a.b", "console"], ["_nul", "_COM1", "_con.a", "console"]),
        (["наука.jpg", "道路.webp", "u\u0308.png", "\u00fc.png"], ["наука", "道路", "ü", "ü-2"]),
        (["scan.2026.01.tif", "x" * 300, "a.verylongsuffix"], ["scan.2026.01", "x" * 60, "a.verylongsuffix"]),
    ],
    ids=range(6),
)
def test_safe_stems(names: list[str], expected: list[str]) -> None:
    assert safe_stems(names) == expected


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
