"""Keys: what opens the service, what does not, and what is open to all."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.auth import Keys, hash_of, is_hash, new_key
from service.middleware import Net

FIRST, SECOND = "first-key", "second-key"


async def fine(request: Request) -> Response:
    return PlainTextResponse("fine")


APP = Starlette(routes=[Route(path, fine, methods=["GET", "OPTIONS"]) for path in ("/livez", "/v1/models")])


def ask(
    headers: dict[str, str] | None = None, path: str = "/v1/models", method: str = "GET", keys: bool = True
) -> httpx.Response:
    hashes = [hash_of(FIRST), hash_of(SECOND)] if keys else []

    async def send() -> httpx.Response:
        app = Net(Keys(APP, hashes, ["/livez"]))
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
    assert ask(headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "A key is needed"),
        ({"Authorization": "Bearer"}, "A key is needed"),
        ({"Authorization": f"Basic {FIRST}"}, "A key is needed"),
        ({"Authorization": f"Bearer {FIRST}x"}, "does not open"),
        ({"Authorization": f"Bearer {hash_of(FIRST)}"}, "does not open"),  # the hash is no key
        ({"X-API-Key": "\x80\xff"}, "does not open"),
    ],
)
def test_anything_else_does_not(headers: dict[str, str], words: str) -> None:
    answer = ask({name: value.encode("latin-1") for name, value in headers.items()})  # type: ignore[misc]
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="maskserve"')
    assert words in answer.json()["detail"]
    assert FIRST not in answer.text


def test_probes_options_and_a_service_without_keys_are_open() -> None:
    assert ask(path="/livez").status_code == 200
    assert ask(method="OPTIONS").status_code == 200
    assert ask(keys=False).status_code == 200


def test_a_new_key_and_its_hash() -> None:
    key, hashed = new_key()
    assert hash_of(key) == hashed and is_hash(hashed) and len(key) > 40
    assert new_key()[0] != key
    assert not is_hash(key) and not is_hash(hashed[:-1]) and not is_hash(hashed + "\n")
