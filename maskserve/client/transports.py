"""The two ways to send a request and to wait: asynchronous and blocking.

The rest of the client is written once, as coroutines. In the blocking client they await only a SyncTransport, whose
coroutines never suspend: one `send(None)` runs such a coroutine to its end.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import httpx

from maskserve.client.response_body import ResponseBody

T = TypeVar("T")


class Transport(Protocol):
    """An httpx client, a way to sleep, and a way to run code that would block an event loop."""

    @property
    def http_client(self) -> httpx.Client | httpx.AsyncClient:
        """Builds the requests."""

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the whole response. Raises: httpx.RequestError, InvalidResponseError."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """Call a function that reads a file, encodes or decodes."""

    async def close(self) -> None:
        """Close the connections."""


class AsyncTransport:
    """For an event loop: blocking code runs in a thread."""

    def __init__(self, **settings: Any) -> None:
        self.http_client = httpx.AsyncClient(**settings)

    async def send(self, request: httpx.Request) -> httpx.Response:  # noqa: D102
        response = await self.http_client.send(request, stream=True)
        try:
            body = ResponseBody(response)
            async for chunk in response.aiter_raw():
                if not body.add(chunk):
                    break
            return body.finish()
        finally:
            await response.aclose()

    async def sleep(self, seconds: float) -> None:  # noqa: D102
        await asyncio.sleep(seconds)

    async def run_blocking(self, function: Callable[[], T]) -> T:  # noqa: D102
        return await asyncio.to_thread(function)

    async def close(self) -> None:  # noqa: D102
        await self.http_client.aclose()


class SyncTransport:
    """For blocking calls: its coroutines never suspend."""

    def __init__(self, **settings: Any) -> None:
        self.http_client = httpx.Client(**settings)

    async def send(self, request: httpx.Request) -> httpx.Response:  # noqa: D102
        response = self.http_client.send(request, stream=True)
        try:
            body = ResponseBody(response)
            for chunk in response.iter_raw():
                if not body.add(chunk):
                    break
            return body.finish()
        finally:
            response.close()

    async def sleep(self, seconds: float) -> None:  # noqa: D102
        time.sleep(seconds)

    async def run_blocking(self, function: Callable[[], T]) -> T:  # noqa: D102
        return function()

    async def close(self) -> None:  # noqa: D102
        self.http_client.close()


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits only a SyncTransport, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("A coroutine of the blocking client has suspended.")
