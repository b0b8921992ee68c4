"""What is recorded of a request: its id, its line in the log, its metrics."""

import asyncio
import json
import logging

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from models.errors import escape_control_characters
from service.access_log import EscapingFormatter, add_log_fields, request_id
from service.errors import OverloadedError
from service.middleware import AccessLogMiddleware, ErrorMiddleware


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/busy":
        raise OverloadedError("The service is busy.", 3)
    await asyncio.sleep(0.001)
    add_log_fields(model="tiny@abc", stages={"infer": 1.5})
    await PlainTextResponse(request_id())(scope, receive, send)


def send_requests(
    paths: list[str], headers: dict[str, str] | None = None, log: bool = True
) -> tuple[list[httpx.Response], list]:
    """Send requests concurrently. Returns: the responses, and the calls of `count`."""
    counted: list[tuple[str, int, float]] = []

    async def send() -> list[httpx.Response]:
        logged = AccessLogMiddleware(ErrorMiddleware(app), log, lambda *call: counted.append(call))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(logged), base_url="http://log") as client:
            return await asyncio.gather(*(client.get(path, headers=headers) for path in paths))

    return asyncio.run(send()), counted


def test_concurrent_requests_have_different_ids() -> None:
    responses, _ = send_requests(["/a"] * 20)
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == 20
    assert [response.text for response in responses] == ids


@pytest.mark.parametrize(
    ("caller_id", "is_used"),
    [("trace-1:2/3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ('"};{"', False), ("", False)],
)
def test_id_of_the_caller_is_used_if_it_is_safe_in_a_log(caller_id: str, is_used: bool) -> None:
    (response,), _ = send_requests(["/a"], {"X-Request-ID": caller_id})
    assert (response.headers["x-request-id"] == caller_id) == is_used


def test_each_request_writes_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    (success, busy), counted = send_requests(["/a", "/busy"])
    lines = {line["path"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert lines["/a"]["status"] == 200 and lines["/busy"]["status"] == 429
    assert lines["/a"]["request_id"] == success.headers["x-request-id"] == success.text
    assert lines["/a"]["model"] == "tiny@abc" and lines["/a"]["stages"] == {"infer": 1.5}
    assert lines["/a"]["bytes"] == len(success.content) and lines["/a"]["ms"] >= 1
    assert "model" not in lines["/busy"]
    assert busy.json()["request_id"] == busy.headers["x-request-id"] == lines["/busy"]["request_id"]
    assert busy.headers["retry-after"] == "3"
    assert sorted((path, status) for path, status, _ in counted) == [("/a", 200), ("/busy", 429)]


def test_probes_write_no_line_and_the_log_can_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    send_requests(["/readyz", "/metrics", "/static/main.js"])
    _, counted = send_requests(["/a"], log=False)
    assert capsys.readouterr().out == ""
    assert len(counted) == 1


def test_path_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    send_requests(['/a%0A{"status":200}'])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["path"] == '/a\n{"status":200}'


def test_control_characters_are_escaped_in_the_log() -> None:
    record = logging.LogRecord("maskserve", logging.ERROR, "", 0, "a \x1b]0;x\x07 \x9b31m \u202e \r b", (), None)
    assert EscapingFormatter("%(message)s").format(record) == r"a \x1b]0;x\x07 \x9b31m \u202e \r b"
    assert escape_control_characters("tab\t, line\n, ü, 道") == "tab\t, line\n, ü, 道"


def test_error_after_the_response_has_begun_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("some")(scope, receive, send)
        raise RuntimeError("too late")

    async def send() -> httpx.Response:
        logged = AccessLogMiddleware(ErrorMiddleware(fail), False, lambda *call: None)
        transport = httpx.ASGITransport(logged, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://log") as client:
            return await client.get("/")

    response = asyncio.run(send())
    assert "too late" in caplog.text and response.headers["x-request-id"] in caplog.text
