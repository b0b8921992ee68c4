"""A connection to one service: what is asked, how often, and what is no answer of it."""

import ipaddress
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from PIL import Image

from maskserve.client import retries
from maskserve.client.errors import ClientError, InvalidResponseError, UnreachableError, error_from_response
from maskserve.client.transports import Transport

CONNECT_TIMEOUT = 10.0  # seconds in which a connection must come about, or less by `timeout`

# A server closes what is idle; uvicorn, after five seconds. A request that meets that moment is lost, and asked again.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=4.0)


class Connection:
    """The address, the key, and the patience of a client."""

    def __init__(
        self, url: str, key: str | None, timeout: float, patience: float, wire: Callable[..., Transport]
    ) -> None:
        """As of AsyncClient. Raises: ValueError for an address or a key that cannot be one."""
        self.url = url.rstrip("/")
        self.is_local = _is_loopback(self.url)
        self._retry_timeout = patience
        self._has_responded = False  # whether the service has ever answered
        self.transport = wire(
            base_url=self.url, timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None), limits=LIMITS,
            headers=_auth_headers(key),
            trust_env=not self.is_local,  # a proxy is for other machines: what is asked of this one must not leave it
        )  # fmt: skip

    async def request(self, method: str, path: str, **rest: Any) -> httpx.Response:
        """A good answer, asked for as often as is of use. Raises: ServiceError, Unreachable."""
        headers = {"X-Request-ID": secrets.token_hex(8)}  # one for all attempts, and known where no answer comes
        request = self.transport.http_client.build_request(method, path, headers=headers, **rest)
        began, attempt = time.monotonic(), 0
        while True:
            outcome = await self._send_once(request)
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            pause = retries.retry_delay(outcome, attempt)
            if pause is None or time.monotonic() + pause > began + self._retry_window(outcome):
                raise self._build_error(outcome, attempt + 1)
            await self.transport.sleep(pause)
            attempt += 1

    async def get_status(self, path: str) -> int:
        """The status that a GET gets, 0 where no answer comes."""
        outcome = await self._send_once(self.transport.http_client.build_request("GET", path))
        return outcome.status_code if isinstance(outcome, httpx.Response) else 0

    @contextmanager
    def translate_errors(self, answer: httpx.Response) -> Iterator[None]:
        """Raises: BadAnswer in place of what goes wrong in reading an answer."""
        try:
            yield
        except ClientError:
            raise
        except (LookupError, ValueError, TypeError, SyntaxError, OSError, Image.DecompressionBombError) as error:
            kind = answer.headers.get("Content-Type", "nothing that has a type")
            raise InvalidResponseError(
                f"{answer.request.url} answered with {kind}, {len(answer.content):,} bytes, which is no answer of "
                f"maskserve ({error}); is the address right?"
            ) from error

    async def _send_once(self, request: httpx.Request) -> httpx.Response | httpx.RequestError:
        try:
            answer = await self.transport.send(request)
        except httpx.RequestError as error:
            return error
        except RuntimeError as error:
            if not self.transport.http_client.is_closed:
                raise
            raise ClientError("The client is closed; make another one to go on.") from error
        self._has_responded = True
        return answer

    def _retry_window(self, outcome: httpx.Response | httpx.RequestError) -> float:
        """Seconds from the first attempt within which there may be others."""
        return self._retry_timeout if self._has_responded else min(self._retry_timeout, retries.FIRST_CONTACT_TIMEOUT)

    def _build_error(self, outcome: httpx.Response | httpx.RequestError, attempts: int) -> ClientError:
        if isinstance(outcome, httpx.Response):
            return error_from_response(outcome)
        asked = f"{attempts} times" if attempts > 1 else "once"
        reason = str(outcome) or type(outcome).__name__
        advice = "Is the service running there?"
        if isinstance(outcome, httpx.TimeoutException):
            asked_as = outcome.request.headers["X-Request-ID"]
            reason = f"no answer in time ({type(outcome).__name__})"
            advice = f"Raise `timeout`, or send less; the service's log may have the request, {asked_as}."
        error = UnreachableError(f"{self.url} cannot be reached, asked {asked}: {reason}. {advice}")
        error.__cause__ = outcome
        return error


def _is_loopback(url: str) -> bool:
    """Whether an address is this machine's own. Raises: ValueError where it is none, or more than one; without its password."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        shown = url if "@" not in url else f"...@{url.rpartition('@')[2]}"
        raise ValueError(f"The address is {shown!r}; wanted is one such as http://127.0.0.1:3000.")
    if parsed.userinfo or "?" in url or "#" in url:  # it would stand before the key, or within every path
        raise ValueError(
            "The address holds a name, a password, a query or a fragment; wanted is one such as http://127.0.0.1:3000, "
            "and the key by itself."
        )
    try:
        return ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        return parsed.host == "localhost"


def _auth_headers(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            "The key is empty, or holds a space, a line's end or letters that no key has; give it as it was made."
        )
    return {"Authorization": f"Bearer {key}"}
