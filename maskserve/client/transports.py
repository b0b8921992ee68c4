"""The two ways to send a request and to wait: for `await`, and for a plain call.

All else of the client is written once, as coroutines. Those of a plain call await nothing but a `Blocking` wire, which never
lets go: such a coroutine runs from its first step to its end in one go.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import httpx

T = TypeVar("T")


class Transport(Protocol):
    """A connection pool, a clock, and a place for work that would hold up others."""

    @property
    def http_client(self) -> httpx.Client | httpx.AsyncClient:
        """What builds requests."""

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The whole answer. Raises: httpx.RequestError."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def run_blocking(self, do: Callable[[], T]) -> T:
        """Read a file, encode or decode."""

    async def close(self) -> None:
        """Close the connections."""


class AsyncTransport:
    """For an event loop: work is done in a thread."""

    def __init__(self, **settings: Any) -> None:
        self.http_client = httpx.AsyncClient(**settings)

    async def send(self, request: httpx.Request) -> httpx.Response:  # noqa: D102
        return await self.http_client.send(request)

    async def sleep(self, seconds: float) -> None:  # noqa: D102
        await asyncio.sleep(seconds)

    async def run_blocking(self, do: Callable[[], T]) -> T:  # noqa: D102
        return await asyncio.to_thread(do)

    async def close(self) -> None:  # noqa: D102
        await self.http_client.aclose()


class SyncTransport:
    """For a plain call: nothing here lets go."""

    def __init__(self, **settings: Any) -> None:
        self.http_client = httpx.Client(**settings)

    async def send(self, request: httpx.Request) -> httpx.Response:  # noqa: D102
        return self.http_client.send(request)

    async def sleep(self, seconds: float) -> None:  # noqa: D102
        time.sleep(seconds)

    async def run_blocking(self, do: Callable[[], T]) -> T:  # noqa: D102
        return do()

    async def close(self) -> None:  # noqa: D102
        self.http_client.close()


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that awaits a Blocking wire alone."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("A wire that blocks has let go.")
