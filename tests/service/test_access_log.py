"""What is noted of a request: its id, its line in the log, its figures."""

import asyncio
import json

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.access_log import AccessLogMiddleware, add_log_fields, request_id
from service.errors import OverloadedError
from service.middleware import ErrorMiddleware


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/busy":
        raise OverloadedError("The service is busy.", 3)
    await asyncio.sleep(0.001)
    add_log_fields(model="tiny@abc", stages={"infer": 1.5})
    await PlainTextResponse(request_id())(scope, receive, send)


def send_requests(
    paths: list[str], headers: dict[str, str] | None = None, log: bool = True
) -> tuple[list[httpx.Response], list]:
    """The answers to requests that are sent together, and what was counted."""
    counted: list[tuple[str, int, float]] = []

    async def send() -> list[httpx.Response]:
        recorded = AccessLogMiddleware(ErrorMiddleware(app), log, lambda *figures: counted.append(figures))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(recorded), base_url="http://record") as client:
            return await asyncio.gather(*(client.get(path, headers=headers) for path in paths))

    return asyncio.run(send()), counted


def test_each_request_has_its_own_id_also_among_others() -> None:
    answers, _ = send_requests(["/a"] * 20)
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 20
    assert [answer.text for answer in answers] == ids


@pytest.mark.parametrize(
    ("given", "taken"),
    [("trace-1:2/3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ('"};{"', False), ("", False)],
)
def test_a_callers_id_is_taken_if_it_can_stand_in_a_log(given: str, taken: bool) -> None:
    (answer,), _ = send_requests(["/a"], {"X-Request-ID": given})
    assert (answer.headers["x-request-id"] == given) == taken


def test_a_line_of_json_for_each_request(capsys: pytest.CaptureFixture[str]) -> None:
    (fine, busy), counted = send_requests(["/a", "/busy"])
    lines = {line["path"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert lines["/a"]["status"] == 200 and lines["/busy"]["status"] == 429
    assert lines["/a"]["request_id"] == fine.headers["x-request-id"] == fine.text
    assert lines["/a"]["model"] == "tiny@abc" and lines["/a"]["stages"] == {"infer": 1.5}
    assert lines["/a"]["bytes"] == len(fine.content) and lines["/a"]["ms"] >= 1
    assert "model" not in lines["/busy"]
    assert busy.json()["request_id"] == busy.headers["x-request-id"] == lines["/busy"]["request_id"]
    assert busy.headers["retry-after"] == "3"
    assert sorted((path, status) for path, status, _ in counted) == [("/a", 200), ("/busy", 429)]


def test_probes_leave_no_line_and_a_log_can_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    send_requests(["/readyz", "/metrics"])
    _, counted = send_requests(["/a"], log=False)
    assert capsys.readouterr().out == ""
    assert len(counted) == 1


def test_a_line_cannot_be_forged_by_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    send_requests(['/a%0A{"status":200}'])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["path"] == '/a\n{"status":200}'
