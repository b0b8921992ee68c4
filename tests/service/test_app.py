"""The real service, as a separate process, on a tiny bundle with random weights."""

import io
import os
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from models.bundle import open_bundle
from models.errors import InsufficientMemoryError
from models.imaging.decode import decode_image
from models.inference.segmenter import Prediction, Segmenter
from models.outputs import OUTPUT_FORMATS, confidence, needs_confidence, overlay
from models.outputs.options import OutputOptions
from models.outputs.select import filter_prediction
from service import responses
from tests.fixtures_bundles import synthetic_image
from tests.models.imaging.test_hostile import EXPECTED_OUTCOMES, HOSTILE_FOLDER

PROBLEM_JSON = "application/problem+json"
LIMIT = 32 * 2**20  # bytes: the default of MASKSERVE_MAX_BODY_BYTES


def encode_image(image: np.ndarray, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def exif_rotated_jpeg() -> bytes:
    """A JPEG of 120 x 160 pixels that EXIF orientation 6 rotates to 160 x 120."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode_image(synthetic_image(120, 160), exif=exif)


def decompression_bomb() -> bytes:
    """A PNG whose header claims 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
    )


JPEG = encode_image(synthetic_image(240, 320))
PNG = encode_image(synthetic_image(97, 131, seed=1), "PNG")


@pytest.fixture(scope="module")
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url, timeout=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(open_bundle(tiny_bundle))


def decode_mask(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array(Image.open(io.BytesIO(response.content)))


def check_problem(response: httpx.Response, status: int, *words: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM_JSON), response.text
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "request_id"} and problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert all(word in problem["detail"] for word in words), problem["detail"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize("data", [JPEG, PNG, exif_rotated_jpeg()], ids=["jpeg", "png", "rotated"])
def test_every_way_to_send_an_image_equals_the_segmenter(http: httpx.Client, segmenter: Segmenter, data: bytes) -> None:
    expected = segmenter.segment(decode_image(data)).labels
    masks = [
        http.post("/v1/segment", content=data),
        http.post("/v1/segment", content=data, headers={"content-type": "text/plain"}),
        http.post("/v1/segment", content=data, headers={"content-type": "application/x-www-form-urlencoded"}),
        http.post("/v1/segment", content=iter([data[:100], data[100:]])),
        http.post("/v1/segment", files={"image": ("wrong.gif", data, "image/gif")}),
    ]
    for response in masks:
        np.testing.assert_array_equal(decode_mask(response), expected)


def test_mask_is_an_indexed_png_with_the_palette(http: httpx.Client, tiny_bundle: Path) -> None:
    response = http.post("/v1/segment", content=exif_rotated_jpeg())
    image = Image.open(io.BytesIO(response.content))
    bundle = open_bundle(tiny_bundle)
    assert (image.mode, image.size, response.headers["content-type"]) == ("P", (120, 160), "image/png")
    palette = np.asarray(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette, np.asarray(bundle.spec.palette())[: len(palette)])
    assert response.headers["x-model"] == f"tiny@{bundle.hash[:12]}"
    stages = [part.split(";dur=") for part in response.headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["read", "queue", "decode", "infer", "encode"]
    assert all(float(duration) >= 0 for _, duration in stages)


def test_one_pixel(http: httpx.Client) -> None:
    assert decode_mask(http.post("/v1/segment", content=encode_image(synthetic_image(1, 1), "PNG"))).shape == (1, 1)


def test_overlay(http: httpx.Client, segmenter: Segmenter, tiny_bundle: Path) -> None:
    response = http.post("/v1/segment", params={"format": "overlay", "alpha": 0.25}, content=JPEG)
    prediction: Prediction = segmenter.segment(decode_image(JPEG))
    assert response.headers["content-type"] == "image/jpeg"
    assert response.content == overlay.encode(prediction, open_bundle(tiny_bundle).spec, OutputOptions(alpha=0.25))


def test_confidence(http: httpx.Client, segmenter: Segmenter, tiny_bundle: Path) -> None:
    response = http.post("/v1/segment", params={"format": "confidence"}, content=JPEG)
    assert response.headers["content-type"] == "image/png"
    prediction = segmenter.segment(decode_image(JPEG), confidence=True)
    assert response.content == confidence.encode(prediction, open_bundle(tiny_bundle).spec, OutputOptions())
    grey = np.array(Image.open(io.BytesIO(response.content)))
    assert grey.shape == prediction.labels.shape and len(np.unique(grey)) > 20


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, ["0 bytes"]),
        (b"no image at all", 415, ["15 bytes", "JPEG"]),
        (os.urandom(5000), 415, ["5,000 bytes"]),
        (JPEG[: len(JPEG) // 2], 422, ["truncated"]),
        (PNG[: len(PNG) // 2], 422, ["truncated"]),
        (JPEG[:10], 422, ["header"]),
        (decompression_bomb(), 413, ["pixels", "limit"]),
    ],
    ids=["empty", "text", "noise", "half a jpeg", "half a png", "header alone", "bomb"],
)
def test_bad_images(http: httpx.Client, data: bytes, status: int, words: list[str]) -> None:
    check_problem(http.post("/v1/segment", content=data), status, *words)
    check_problem(http.post("/v1/segment", files={"image": data}), status, *words)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("fromat=png", ["Unknown parameter 'fromat'", "format, model, classes"]),
        ("format=gif", ["format", "'gif'", "png, overlay, confidence, npy, json"]),
        ("alpha=2", ["alpha", "'2'"]),
        ("alpha=nan", ["alpha", "'nan'"]),
        ("alpha=half", ["alpha", "'half'"]),
        ("min_confidence=-0.1", ["min_confidence"]),
        ("min_area=1.5", ["min_area"]),
        ("min_area=-1", ["min_area"]),
        ("simplify=inf", ["simplify"]),
        ("masks=coco", ["masks", "rle, polygons, png, none"]),
        ("confidence=perhaps", ["confidence"]),
        ("classes=class 1,road", ["'road'", "class 0, class 1"]),
        ("alpha=0.1&alpha=0.2", ["alpha", "twice"]),
        ("image=http://127.0.0.1/a.jpg", ["image"]),
    ],
)
def test_bad_parameters(http: httpx.Client, query: str, words: list[str]) -> None:
    check_problem(http.post(f"/v1/segment?{query}", content=JPEG), 400, *words)


def test_unknown_model(http: httpx.Client) -> None:
    check_problem(http.post("/v1/segment?model=other", content=JPEG), 404, "'other'", "tiny")
    check_problem(http.get("/v1/models/other"), 404, "'other'", "tiny")
    assert http.post("/v1/segment?model=tiny", content=JPEG).status_code == 200


def test_parameters_in_the_form(http: httpx.Client) -> None:
    form = {"data": {"format": "overlay", "alpha": "0.25"}, "files": {"image": JPEG}}
    response = http.post("/v1/segment", **form)  # type: ignore[arg-type]
    assert response.content == http.post("/v1/segment?format=overlay&alpha=0.25", content=JPEG).content
    check_problem(http.post("/v1/segment?alpha=0.1", **form), 400, "alpha", "twice")  # type: ignore[arg-type]
    form["data"] = {"alpha": "7"}
    check_problem(http.post("/v1/segment", **form), 400, "alpha", "'7'")  # type: ignore[arg-type]


def test_every_format_and_option_equals_the_outputs(
    http: httpx.Client, segmenter: Segmenter, tiny_bundle: Path
) -> None:
    spec, with_confidence = open_bundle(tiny_bundle).spec, segmenter.segment(decode_image(JPEG), confidence=True)
    queries = {
        "format=npy": ("npy", OutputOptions()),
        "classes=class 1,class 2": ("png", OutputOptions(classes=("class 1", "class 2"))),
        "min_confidence=0.5&min_area=40": ("png", OutputOptions(min_confidence=0.5, min_area=40)),
        "format=json": ("json", OutputOptions()),
        "format=json&masks=polygons&simplify=2": ("json", OutputOptions(masks="polygons", simplify=2)),
        "format=json&masks=png&confidence=true": ("json", OutputOptions(masks="png", confidence=True)),
    }
    for query, (format, options) in queries.items():
        response = http.post(f"/v1/segment?{query}", content=JPEG)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == OUTPUT_FORMATS["HW"][format].MEDIA_TYPE
        prediction = with_confidence if needs_confidence(format, options) else replace(with_confidence, confidence=None)
        expected = OUTPUT_FORMATS["HW"][format].encode(filter_prediction(prediction, spec, options), spec, options)
        assert response.content == expected, query


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"files": {"photo": JPEG}}, ["'photo'", "`image`"]),
        ({"files": {"image": JPEG}, "data": {"colour": "red"}}, ["'colour'", "image, format"]),
        ({"files": {"image": JPEG, "alpha": JPEG}}, ["'alpha'", "file"]),
        ({"files": {"image": (None, "http://127.0.0.1:1/a.jpg")}}, ["text", "file name"]),
        ({"files": [("image", JPEG), ("image", JPEG)]}, ["several fields"]),
        ({"files": [("image", JPEG)] * 3}, ["Too many files"]),
        ({"files": [("image", JPEG)] * 1001}, ["Too many files"]),
        ({"files": [("image", (None, "x"))] * 1001}, ["Too many fields"]),
        ({"content": JPEG, "headers": {"content-type": "multipart/form-data"}}, ["boundary"]),
        ({"content": JPEG, "headers": {"content-type": "multipart/form-data; boundary=x"}}, ["form is malformed"]),
        (
            {"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            ["no complete field"],
        ),
        ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=x"}}, ["no complete field"]),
    ],
    ids=range(12),
)
def test_bad_forms(http: httpx.Client, request_: dict[str, object], words: list[str]) -> None:
    check_problem(http.post("/v1/segment", **request_), 400, *words)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x" * 300, "../../etc/passwd", "a\\b.gif", "", "наука.jpg"])
def test_file_name_and_type_are_ignored(http: httpx.Client, name: str) -> None:
    decode_mask(http.post("/v1/segment", files={"image": (name or "-", JPEG, "text/html")}))


def test_body_limit(http: httpx.Client) -> None:
    check_problem(http.post("/v1/segment", content=bytes(LIMIT + 1)), 413, "33,554,433", "33,554,432")
    chunks = (bytes(2**20) for _ in range(40))
    check_problem(http.post("/v1/segment", content=chunks), 413, "more than 33,554,432")
    check_problem(http.post("/v1/segment", content=bytes(LIMIT)), 415)
    check_problem(http.post("/v1/segment", files={"image": JPEG + bytes(3 * 2**20)}, params={"alpha": 7}), 400, "alpha")


def test_image_that_does_not_fit_into_memory_is_too_large() -> None:
    response = responses.problem_response(InsufficientMemoryError("There is not enough memory. Use a smaller image."))
    assert response.status_code == 413
    assert b"Use a smaller image" in bytes(response.body)


def test_offer_to_upgrade_to_http_2_is_ignored(http: httpx.Client) -> None:
    """Java's client sends it with every request."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    decode_mask(http.post("/v1/segment", content=JPEG, headers=offer))


def test_size_of_the_head_is_limited(http: httpx.Client) -> None:
    assert http.get("/livez", headers={"X-Long": "x" * 200_000}).status_code in (400, 431)


def test_rejected_sender_of_a_long_body_gets_the_response(http: httpx.Client) -> None:
    body = bytes(20 * 2**20)
    for path, status in (
        ("/v1/nope", 404),
        ("/v1/segment?zz=1", 400),
        ("/v1/segment?model=q", 404),
        ("/v1/models", 405),
    ):
        check_problem(http.post(path, content=body), status)


def test_caller_that_disconnects_is_counted_with_status_0(http: httpx.Client) -> None:
    before = http.get("/metrics").text.count('status="0"')
    port = httpx.URL(str(http.base_url)).port or 80
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nsome")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and http.get("/metrics").text.count('status="0"') == before:
        time.sleep(0.05)
    assert 'maskserve_requests_total{route="/v1/segment",status="0"}' in http.get("/metrics").text


def test_unknown_route_or_method(http: httpx.Client) -> None:
    for path in ("/v1/nothing", "/v1", "/v1/segment/", "/v1/redoc", "/static/", "/a/b", "/docs.json", "/schema.json"):
        check_problem(http.get(path), 404, "/v1/segment")
    check_problem(http.get("/v1/segment"), 405, "POST")
    for path in ("/v1/models", "/livez", "/metrics", "/v1/models/nobody", "/v1/docs"):
        refused = http.put(path)
        check_problem(refused, 405, "PUT", "GET")
        assert refused.headers["allow"] == "GET"
    assert http.head("/v1/models").status_code == 200 and http.head("/v1/models").content == b""
    metrics = http.get("/metrics").text
    assert '"/v1/segment"' in metrics and "/v1/nothing" not in metrics


def test_models_and_openapi(http: httpx.Client, tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    (model,) = http.get("/v1/models").json()
    assert (model["name"], model["hash"], model["engine"], model["precision"]) == (
        "tiny",
        bundle.hash,
        "openvino",
        "f32",
    )
    assert model["spec"] == bundle.spec.model_dump(mode="json")
    page = http.get("/v1/openapi.json").json()
    documented = page["paths"]["/segment"]["post"]["responses"]
    assert set(documented) == {
        "200",
        "202",
        "400",
        "401",
        "403",
        "404",
        "408",
        "413",
        "415",
        "422",
        "429",
        "500",
        "503",
        "504",
    }
    assert all(PROBLEM_JSON in documented[status]["content"] for status in documented if status > "202")
    assert page["servers"] == [{"url": "../v1"}] and "security" not in page  # no key is needed
    example = documented["200"]["content"]["application/json"]["examples"]["json"]["value"]
    result = http.post("/v1/segment?format=json", content=JPEG).json()
    assert example.keys() == result.keys() and example["classes"][0].keys() == result["classes"][0].keys()
    assert page["components"]["schemas"]["Problem"]["required"] == ["type", "title", "status", "detail", "request_id"]
    assert http.get("/v1/models/tiny").json() == model


def test_examples_are_the_probes_of_the_bundle(http: httpx.Client, tiny_bundle: Path) -> None:
    (model,) = http.get("/v1/models").json()
    assert model["examples"] == ["0.png"]
    image = http.get("/v1/examples/tiny/0.png")
    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
    assert image.content == (tiny_bundle / "probes" / "0.png").read_bytes()
    for name in ("0.labels.png", "1.png", "..%2fspec.json", "%2e%2e/spec.json", ""):
        check_problem(http.get(f"/v1/examples/tiny/{name}"), 404)
    check_problem(http.get("/v1/examples/nobody/0.png"), 404, "'nobody'")
    assert '"/v1/examples/NAME"' in http.get("/metrics").text


def test_documentation_has_relative_addresses(http: httpx.Client) -> None:
    """So that it works below another path; and all that it loads comes from this service."""
    page = http.get("/v1/docs")
    assert page.status_code == 200
    script = http.get("/v1/docs/assets/docs.js").text
    addresses = re.findall(r'(?:src|href|url)\s*[=:]\s*["\']([^"\']+)', page.text + script)
    assert len(addresses) == 6 and "openapi.json" in addresses, addresses
    for address in addresses:
        assert not address.startswith(("/", "http")), address
        assert http.get(f"/v1/{address}").status_code == 200, address
    assert re.findall(r"<script(?![^>]*src)|<style|style=", page.text) == []


def test_headers_for_browsers(http: httpx.Client) -> None:
    for path in (
        "/",
        "/v1/docs",
        "/v1/openapi.json",
        "/v1/docs/assets/docs.js",
        "/v1/models",
        "/readyz",
        "/metrics",
        "/no",
    ):
        headers = http.get(path).headers
        assert headers.get_list("x-content-type-options") == ["nosniff"], path
        (policy,) = headers.get_list("content-security-policy")
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy, path


@pytest.mark.parametrize("name", [b"User-Agent", b"traceparent", b"baggage", b"Accept", b"Host"])
def test_bytes_in_a_header_that_are_no_text(http: httpx.Client, name: bytes) -> None:
    host = b"" if name == b"Host" else b"Host: localhost\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port or 80)) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\n" + host + name + b": \x89\\\r\nConnection: close\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_metrics(http: httpx.Client) -> None:
    http.post("/v1/segment", content=JPEG)
    http.post("/v1/segment", content=b"no image")
    http.get("/v1/models/nobody")
    http.get("/somewhere")
    text = http.get("/metrics").text
    for line in (
        'maskserve_requests_total{route="/v1/segment",status="200"}',
        'maskserve_requests_total{route="/v1/segment",status="415"}',
        'maskserve_requests_total{route="/v1/models/NAME",status="404"}',
        'maskserve_requests_total{route="other",status="404"}',
        'maskserve_images_total{format="png",model="tiny"}',
        *(f'maskserve_stage_seconds_count{{model="tiny",stage="{stage}"}}' for stage in ("read", "queue", "infer")),
    ):
        assert line in text, line
    assert "nobody" not in text and "somewhere" not in text


def test_probes(http: httpx.Client) -> None:
    assert [http.get(path).status_code for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]


def test_hostile_images(http: httpx.Client) -> None:
    if not HOSTILE_FOLDER.is_dir():
        pytest.skip(f"there are no hostile images at {HOSTILE_FOLDER}")
    assert len(EXPECTED_OUTCOMES) > 40
    for name, outcome in EXPECTED_OUTCOMES.items():
        response = http.post("/v1/segment", content=(HOSTILE_FOLDER / "files" / name).read_bytes())
        if isinstance(outcome, tuple):
            assert decode_mask(response).shape == outcome, name
        else:
            status, kind, _ = responses.ERRORS[outcome]
            check_problem(response, status)
            assert response.json()["type"].endswith(f":{kind}"), name
