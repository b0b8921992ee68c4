"""Keys: what opens the service, what does not, and what is open to all."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.auth import ApiKeyMiddleware, generate_api_key, hash_api_key, is_key_hash
from service.middleware import ErrorMiddleware

FIRST, SECOND = "first-key", "second-key"


async def ok_endpoint(request: Request) -> Response:
    return PlainTextResponse("fine")


APP = Starlette(routes=[Route(path, ok_endpoint, methods=["GET", "OPTIONS"]) for path in ("/livez", "/v1/models")])


def send_request(
    headers: dict[str, str] | None = None, path: str = "/v1/models", method: str = "GET", keys: bool = True
) -> httpx.Response:
    hashes = [hash_api_key(FIRST), hash_api_key(SECOND)] if keys else []

    async def send() -> httpx.Response:
        app = ErrorMiddleware(ApiKeyMiddleware(APP, hashes, ["/livez"]))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://keys") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {FIRST}"},
        {"authorization": f"bearer  {FIRST} "},
        {"X-API-Key": FIRST},
    ],
)
def test_a_key_opens(headers: dict[str, str]) -> None:
    assert send_request(headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "A key is needed"),
        ({"Authorization": "Bearer"}, "A key is needed"),
        ({"Authorization": f"Basic {FIRST}"}, "A key is needed"),
        ({"Authorization": f"Bearer {FIRST}x"}, "does not open"),
        ({"Authorization": f"Bearer {hash_api_key(FIRST)}"}, "does not open"),  # the hash is no key
        ({"X-API-Key": "\x80\xff"}, "does not open"),
    ],
)
def test_anything_else_does_not(headers: dict[str, str], words: str) -> None:
    answer = send_request({name: value.encode("latin-1") for name, value in headers.items()})  # type: ignore[misc]
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="maskserve"')
    assert words in answer.json()["detail"]
    assert FIRST not in answer.text


def test_probes_options_and_a_service_without_keys_are_open() -> None:
    assert send_request(path="/livez").status_code == 200
    assert send_request(method="OPTIONS").status_code == 200
    assert send_request(keys=False).status_code == 200


def test_a_new_key_and_its_hash() -> None:
    key, hashed = generate_api_key()
    assert hash_api_key(key) == hashed and is_key_hash(hashed) and len(key) > 40
    assert generate_api_key()[0] != key
    assert not is_key_hash(key) and not is_key_hash(hashed[:-1]) and not is_key_hash(hashed + "\n")
