"""The client for plain calls: AsyncClient on a wire that blocks."""

from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from maskserve.client.async_client import DEFAULT_RETRY_TIMEOUT, AsyncClient
from maskserve.client.transports import SyncTransport, run_sync

P = ParamSpec("P")
T = TypeVar("T")


def _sync_method(
    call: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """The same call, with its signature and documentation, for a Client."""

    @wraps(call)
    def plain(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_sync(call(client._client, *args, **kwargs))

    return plain


class Client:
    """A connection to one service, to be used as a context manager or closed; safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retry_timeout: float = DEFAULT_RETRY_TIMEOUT,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: of the service, such as http://127.0.0.1:3000.
            key: as of `maskserve key`, where the service wants one.
            timeout: seconds for each connect (10 at most), write or read; a read waits for the whole inference.
            patience: seconds from the first attempt within which a request may be sent again after 429, 503 or a lost
                connection; 0 is never. An address that has not answered this client yet is tried for 3 seconds at most.

        Raises: ValueError for an address or a key that cannot be one.
        """
        self._client = AsyncClient(
            url, api_key=api_key, timeout=timeout, retry_timeout=retry_timeout, transport=SyncTransport
        )
        self.url = self._client.url

    segment = _sync_method(AsyncClient.segment)
    segment_batch = _sync_method(AsyncClient.segment_batch)
    overlay = _sync_method(AsyncClient.overlay)
    segment_json = _sync_method(AsyncClient.segment_json)
    segment_bytes = _sync_method(AsyncClient.segment_bytes)
    models = _sync_method(AsyncClient.models)
    model = _sync_method(AsyncClient.model)
    is_ready = _sync_method(AsyncClient.is_ready)
    close = _sync_method(AsyncClient.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"
