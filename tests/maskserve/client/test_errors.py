"""The errors of the client: their types and messages."""

import asyncio
import io
import pickle
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from PIL import Image

from maskserve import client as c
from maskserve.client import (
    AuthenticationError,
    BadRequestError,
    Client,
    ClientError,
    InvalidImageError,
    InvalidResponseError,
    NotFoundError,
    ServiceError,
    UnreachableError,
)
from maskserve.client.errors import ERRORS_BY_STATUS, PROBLEM_TYPE_PREFIX, error_from_problem, parse_retry_after
from service.auth import generate_api_key
from service.responses import ERRORS
from service.server_process import free_port
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.fake_server import DROPPED, http_response, run_fake_server

HTML = b"<html><head><title>502 Bad Gateway</title></head>\r\n<body><h1>nginx</h1></body></html>"


def png_of(mode: str) -> bytes:
    """A PNG that is not a mask."""
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[Client]:
    with Client(service_url) as client:
        yield client


@pytest.mark.parametrize(
    ("sent", "status", "kind", "message"),
    [
        (b"no image", 415, "unsupported-format", "JPEG"),
        (b"", 400, "empty-image", "0 bytes"),
        (b"\x89PNG\r\n\x1a\n", 422, "corrupt-image", "header"),
        (bytes(33 * 2**20), 413, "body-too-large", "34,603,008 bytes"),
    ],
    ids=["unsupported", "empty", "corrupt", "large"],
)
def test_bad_images(client: Client, sent: bytes, status: int, kind: str, message: str) -> None:
    with pytest.raises(InvalidImageError, match=message) as caught:
        client.segment(sent)
    error = caught.value
    assert (error.status, error.kind, error.retry_after) == (status, kind, None)
    assert str(error) == f"{error.title} ({status}): {error.detail} (request {error.request_id})"
    assert len(error.request_id) == 16


def test_bad_requests(client: Client) -> None:
    with pytest.raises(BadRequestError, match="alpha"):
        client.overlay(synthetic_image(4, 4), alpha=3)
    with pytest.raises(BadRequestError, match="unknown"):
        client.segment(synthetic_image(4, 4), classes=["unknown"])
    with pytest.raises(c.UnknownModelError, match=r"'a/b c'.*tiny"):
        client.model("a/b c")
    with pytest.raises(c.UnknownModelError, match="unknown"):
        client.segment(synthetic_image(4, 4), model="unknown")
    with Client(f"{client.url}/elsewhere") as other, pytest.raises(NotFoundError, match="/elsewhere/v1/segment"):
        other.segment(synthetic_image(4, 4))


def test_keys(strict_url: str, api_key: str) -> None:
    with Client(strict_url, api_key=api_key) as client:
        assert client.models()[0]["name"] == "small" and api_key not in repr(client)
    for other, message in ((None, "X-API-Key"), (generate_api_key()[0], "key")):
        with Client(strict_url, api_key=other) as client, pytest.raises(AuthenticationError, match=message):
            client.models()


@pytest.mark.parametrize("wrong", ["", "two words", "a key\n", "schlüssel"])
def test_an_invalid_key_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="Pass it as `maskserve key` printed it") as caught:
        Client("http://127.0.0.1:3000", api_key=wrong)
    assert not wrong or wrong not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    ["", "127.0.0.1:3000", "localhost:3000", "ftp://a.org", "http://", "http://a:b", "bundle/", "http://a b:1",
     "http://300.1.1.1"],
)  # fmt: skip
def test_an_invalid_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"expected one such as http://127\.0\.0\.1:3000"):
        Client(wrong)


@pytest.mark.parametrize("port", ["99999", "65536", "0", "-1"])
def test_an_impossible_port_is_refused(port: str) -> None:
    """The system would take it modulo 65536, and another service might answer."""
    with pytest.raises(ValueError, match=f"is {port}; expected a number from 1 to 65535"):
        Client(f"http://127.0.0.1:{port}")
    assert Client("http://127.0.0.1:65535").url.endswith("65535")


@pytest.mark.parametrize(
    "url",
    ["http://user:secret@127.0.0.1:3000", "http://:secret@a.org", "http://a.org/?token=secret", "http://a.org?",
     "http://a.org/#secret", "http://a.org/#", "ftp://user:secret@a.org", "http://user:secret@a:b", "http://a:se/secret@b"],
)  # fmt: skip
def test_an_address_with_password_or_query_is_refused(url: str) -> None:
    """httpx would send the password in place of the key, and the query with every path. The message omits both."""
    for kind in (Client, c.AsyncClient):
        with pytest.raises(ValueError, match=r"expected one such as http://127\.0\.0\.1:3000") as caught:
            kind(url, api_key="key")
        assert "secret" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("method", ["is_ready", "models"])
def test_a_closed_client_raises(client: Client, method: str) -> None:
    with Client(client.url) as closed:
        assert closed.is_ready()
    with pytest.raises(ClientError, match=r"The client is closed. Create a new one"):
        getattr(closed, method)()

    async def call() -> None:
        async with c.AsyncClient(client.url) as closed:
            pass
        await getattr(closed, method)()

    with pytest.raises(ClientError, match=r"The client is closed. Create a new one"):
        asyncio.run(call())


def test_a_missing_file_raises(client: Client) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        client.segment("nowhere.jpg")


def test_no_service_is_running() -> None:
    with Client(f"http://127.0.0.1:{free_port()}", retry_timeout=0) as client:
        assert not client.is_ready()
        with pytest.raises(
            UnreachableError, match=r"cannot be reached \(1 attempt\): .* Is the service running"
        ) as caught:
            client.models()
        assert isinstance(caught.value.__cause__, httpx.ConnectError)


def test_an_unknown_host() -> None:
    client = Client("http://no-such-host.invalid", retry_timeout=0)
    with client, pytest.raises(UnreachableError, match=r"No host is known by the name 'no-such-host\.invalid'"):
        client.models()


@pytest.mark.parametrize(
    "response",
    [DROPPED, http_response(200, b"[", missing=1), b"SSH-2.0-OpenSSH_9.9\r\n"],
    ids=["dropped", "truncated", "ssh"],
)
def test_an_incomplete_response_raises(response: bytes) -> None:
    with run_fake_server(response) as server, Client(server.url, retry_timeout=0) as client:
        with pytest.raises(UnreachableError, match="cannot be reached"):
            client.models()
        assert not client.is_ready()


def test_the_error_of_a_proxy() -> None:
    with run_fake_server(http_response(502, HTML, Content_Type="text/html")) as server, Client(server.url) as client:
        with pytest.raises(ServiceError) as caught:
            client.models()
        sent = server.requests[0].headers["x-request-id"]
    assert str(caught.value) == (
        f"Reason (502): {server.url}/v1/models was answered by a proxy or another server, not by maskserve: "
        f"502 Bad Gateway nginx (request {sent})"
    )
    assert (type(caught.value), caught.value.kind) == (ServiceError, "")


@pytest.mark.parametrize(("status", "kind"), ERRORS_BY_STATUS.items())
def test_the_error_of_a_proxy_has_the_type_of_its_status(status: int, kind: type[ServiceError]) -> None:
    for body in (b"", b'{"detail": "other"}', b'["problem"]'):
        with (
            run_fake_server(http_response(status, body)) as server,
            Client(server.url, retry_timeout=0) as client,
            pytest.raises(kind),
        ):
            client.models()


@pytest.mark.parametrize("status", [404, 405, 501])
def test_another_server_at_the_address(status: int) -> None:
    with (
        run_fake_server(http_response(status, HTML)) as server,
        Client(server.url) as client,
        pytest.raises(ServiceError) as caught,
    ):
        client.segment(b"image")
    assert f"{server.url}/v1/segment is not a path of maskserve; is another server" in str(caught.value)


def test_a_redirect_is_an_error() -> None:
    redirect = http_response(308, b"", Location="https://other.example/")
    with run_fake_server(redirect) as server, Client(server.url, api_key="secret") as client:
        with pytest.raises(ServiceError, match=r"redirects to https://other\.example/; use that address"):
            client.segment(b"image")
        assert len(server.requests) == 1


@pytest.mark.parametrize("model", ["", "a@0"])
@pytest.mark.parametrize("content", [HTML, b"", b"{}", b"[1]", b"null", *map(png_of, ("L", "RGB"))])
def test_a_response_that_is_not_a_mask_raises(content: bytes, model: str) -> None:
    """With an X-Model, a proxy has changed the response."""
    response = http_response(200, content, **({"X_Model": model} if model else {}))
    with run_fake_server(response) as server, Client(server.url) as client:
        for call in (
            client.segment,
            partial(client.segment, confidence=True),
            lambda sent: client.segment_batch([sent]),
        ):
            with pytest.raises(InvalidResponseError, match=r"not a response of maskserve .* Check the address"):
                call(b"image")


@pytest.mark.parametrize("content", [HTML, b"", b"[1]", b"null", b"\xff"])
def test_a_response_that_is_not_json_raises(content: bytes) -> None:
    with run_fake_server(http_response(200, content, X_Model="a@0")) as server, Client(server.url) as client:
        for call in (lambda: client.segment_json(b"image"), lambda: client.model("small"), client.models):
            with pytest.raises(InvalidResponseError, match="not a response of maskserve"):
                call()


@pytest.mark.parametrize(("status", "kind"), sorted({row[:2] for row in ERRORS.values()}))
def test_every_error_of_the_service_has_its_type(status: int, kind: str) -> None:
    problem = {"type": PROBLEM_TYPE_PREFIX + kind, "title": "T", "status": status, "detail": "D", "request_id": "R"}
    error = error_from_problem(problem)
    assert type(error) is not ServiceError and (error.kind, error.status) == (kind, status)


def test_wrong_host_is_no_wrong_key() -> None:
    problem = {
        "type": f"{PROBLEM_TYPE_PREFIX}forbidden-host",
        "title": "T",
        "status": 403,
        "detail": "D",
        "request_id": "R",
    }
    assert type(error_from_problem(problem)) is NotFoundError


def test_errors_can_be_pickled() -> None:
    error = c.TooManyRequestsError(429, "busy", "Too many requests", "Retry later.", "0a", 3.0)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is c.TooManyRequestsError and str(copy) == str(error) and copy.retry_after == 3.0


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "²", "Wed, 99 Nov 2026"])
def test_an_invalid_retry_after_is_ignored(value: str) -> None:
    assert parse_retry_after(httpx.Response(429, headers={"Retry-After": value.encode()})) is None


def test_a_retry_after_in_the_past_is_zero() -> None:
    assert parse_retry_after(httpx.Response(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})) == 0
