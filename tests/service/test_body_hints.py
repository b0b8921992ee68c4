"""What the service says about bodies that are no images because of how they were sent."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from models.errors import UnsupportedFormatError
from service.body_hints import explain_body
from tests.service.in_process import start_app
from tests.service.test_app import JPEG, PNG, check_problem

URLENCODED = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def http(small_bundle: Path) -> Iterator[TestClient]:
    with start_app(small_bundle) as client:
        yield client


def altered_by_curl(data: bytes) -> bytes:
    """What `curl -d @FILE` sends."""
    return data.translate(None, b"\r\n\0")


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
def test_curl_d_alters_images(http: TestClient, data: bytes) -> None:
    response = http.post("/v1/segment", content=altered_by_curl(data), headers={"content-type": URLENCODED})
    check_problem(
        response, response.status_code, "-d, which alters bytes", "--data-binary @photo.jpg", "-F image=@photo.jpg"
    )
    assert response.status_code in (415, 422)
    response = http.post("/v1/segment", content=altered_by_curl(data))  # nothing tells that it was curl -d
    assert response.status_code in (415, 422) and "--data-binary" not in response.text
    response = http.post(
        "/v1/segment", content=data[: len(data) // 2], headers={"content-type": URLENCODED}
    )  # as --data-binary sends it
    assert response.status_code in (415, 422) and "--data-binary" not in response.text


@pytest.mark.parametrize("body", ["image=http://example.org/a.jpg", "image=%FF%D8&format=png", "a[]=1"])
def test_urlencoded_form(http: TestClient, body: str) -> None:
    response = http.post("/v1/segment", content=body, headers={"content-type": f"{URLENCODED}; charset=utf-8"})
    check_problem(response, 400, "x-www-form-urlencoded", "-F image=@photo.jpg")


def test_json_and_base64(http: TestClient) -> None:
    text = base64.b64encode(PNG).decode()
    for content in (json.dumps({"image": text}), json.dumps([text]), json.dumps(text), json.dumps({"a": 1}, indent=2)):
        response = http.post("/v1/segment", content=content, headers={"content-type": "application/json"})
        check_problem(response, 415, "JSON", "base64", "--data-binary")
    for content in (text, f"data:image/png;base64,{text}", base64.encodebytes(PNG).decode()):
        check_problem(http.post("/v1/segment", content=content), 415, "base64", "--data-binary")
    field = http.post("/v1/segment", files={"image": (None, text)})
    check_problem(field, 400, "base64 is not decoded", "as a file")


@pytest.mark.parametrize("body", [b"no image at all", b"{ not json", b"\x00" * 100, b"<svg/>", b"short"])
def test_other_bodies_keep_their_error(body: bytes) -> None:
    error = UnsupportedFormatError("These bytes are text.")
    assert explain_body(error, "image/jpeg", body) is error
