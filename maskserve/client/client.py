"""The blocking client: AsyncClient on a blocking transport."""

from collections.abc import Callable, Coroutine
from functools import wraps
from types import FunctionType, TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from maskserve.client.async_client import DEFAULT_RETRY_TIMEOUT, AsyncClient
from maskserve.client.transports import SyncTransport, run_sync

P = ParamSpec("P")
T = TypeVar("T")


def _sync_method(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """The blocking version of a method of AsyncClient, with the same signature and documentation."""
    # Python names the function in its errors for wrong arguments: a copy is called Client.segment, not AsyncClient.segment.
    function = cast(FunctionType, method)
    renamed = FunctionType(
        function.__code__, function.__globals__, argdefs=function.__defaults__, closure=function.__closure__
    )
    renamed.__kwdefaults__ = function.__kwdefaults__
    renamed.__qualname__ = f"Client.{function.__name__}"

    @wraps(method)
    def sync_method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, run_sync(renamed(client._client, *args, **kwargs)))

    sync_method.__qualname__ = renamed.__qualname__
    return sync_method


class Client:
    """A client of one service. Use it as a context manager, or close it. Threads may share one."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retry_timeout: float = DEFAULT_RETRY_TIMEOUT,
        background: bool = False,
    ) -> None:
        """Create the client; no request is sent yet.

        Args:
            url: the service's URL, such as http://127.0.0.1:3000.
            api_key: a key made by `maskserve key`, if the service requires one.
            timeout: seconds for each connect (10 at most), write and read; a read waits for the whole inference.
            retry_timeout: seconds from the first attempt in which a request may be sent again after 429, 503 or a lost
                connection; 0 disables retries. An address that has not responded yet is tried for 3 seconds at most.
            background: whether images are segmented as jobs of the service, whose results are asked for until they are there: for
                work that takes longer than the service's time-out or `timeout`, such as large volumes. A batch is no job.

        Raises: ValueError for an invalid URL or key.
        """
        self._client = AsyncClient(
            url, api_key=api_key, timeout=timeout, retry_timeout=retry_timeout, background=background,
            transport=SyncTransport,
        )  # fmt: skip
        self.url = self._client.url

    segment = _sync_method(AsyncClient.segment)
    segment_signal = _sync_method(AsyncClient.segment_signal)
    segment_volume = _sync_method(AsyncClient.segment_volume)
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
