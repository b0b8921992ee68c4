"""A connection to one service: sends requests with retries, and turns failures into the client's errors."""

import ipaddress
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx

from maskserve.client import retries
from maskserve.client.errors import ClientError, InvalidResponseError, UnreachableError, error_from_response
from maskserve.client.response_body import ACCEPTED_ENCODING
from maskserve.client.transports import Transport

MAX_PORT = 65535
MAX_REASON_CHARS = 200  # of a library's error, which may contain the whole response
CONNECT_TIMEOUT = 10.0  # seconds to establish a connection, or `timeout` if that is less

FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 0.1, 5.0  # between two requests for the result of a job

# Connections are dropped before the server closes them: uvicorn does after five idle seconds, and a request sent at that
# moment would be lost and retried.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=4.0)


class Connection:
    """The address, the key and the retry limit of a client."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        timeout: float,
        retry_timeout: float,
        transport: Callable[..., Transport],
    ) -> None:
        """Same parameters as AsyncClient. Raises: ValueError for an invalid address or key."""
        self.url = url.rstrip("/")
        self.is_local = _is_loopback(_parse_url(self.url))
        self._retry_timeout = retry_timeout
        self._has_responded = False  # whether the service has responded to any request
        self.transport = transport(
            base_url=self.url, timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None), limits=LIMITS,
            headers={"Accept-Encoding": ACCEPTED_ENCODING, **_auth_headers(api_key)},
            trust_env=not self.is_local,  # no proxy for this machine: the images must not leave it
        )  # fmt: skip

    async def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> httpx.Response:
        """Send a request, with retries, and return the successful response.

        Raises: ServiceError, UnreachableError, InvalidResponseError.
        """
        # One id for all attempts, which is known if no response arrives.
        headers = {"X-Request-ID": secrets.token_hex(8), **(headers or {})}
        request = self.transport.http_client.build_request(method, path, headers=headers, **kwargs)
        start, attempt = time.monotonic(), 0
        while True:
            outcome = await self._send_once(request)
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            delay = retries.retry_delay(outcome, attempt)
            if delay is None or time.monotonic() + delay > start + self._retry_window(outcome):
                raise self._build_error(outcome, attempt + 1)
            await self.transport.sleep(delay)
            attempt += 1

    async def wait_for_job(self, accepted: httpx.Response) -> httpx.Response:
        """The response of a request that became a job, from that with 202; the job is then deleted. Raises: as `request`."""
        with self.translate_errors(accepted):
            path = f"/v1/jobs/{quote(accepted.json()['id'], safe='')}"
        delay = FIRST_POLL_SECONDS
        while True:
            await self.transport.sleep(delay)
            response = await self.request("GET", path)
            if response.status_code != httpx.codes.ACCEPTED:
                break
            delay = min(MAX_POLL_SECONDS, 1.5 * delay)
        with suppress(ClientError):  # it expires otherwise
            await self.request("DELETE", path)
        return response

    async def get_status(self, path: str) -> int:
        """The status of a GET, without retries; 0 if no valid response arrives."""
        try:
            outcome = await self._send_once(self.transport.http_client.build_request("GET", path))
        except InvalidResponseError:
            return 0
        return outcome.status_code if isinstance(outcome, httpx.Response) else 0

    @contextmanager
    def translate_errors(self, response: httpx.Response) -> Iterator[None]:
        """Turns errors of parsing `response` into one error. Raises: InvalidResponseError."""
        try:
            yield
        except (ClientError, MemoryError):
            raise
        except Exception as error:  # of JSON, NumPy and Pillow's plugins, which raise exceptions of any class
            content_type = response.headers.get("Content-Type", "no Content-Type")
            reason = str(error)[:MAX_REASON_CHARS] or type(error).__name__
            raise InvalidResponseError(
                f"{response.request.url} returned {len(response.content):,} bytes ({content_type}) that are not a response "
                f"of maskserve ({reason}). Check the address."
            ) from error

    async def _send_once(self, request: httpx.Request) -> httpx.Response | httpx.RequestError:
        try:
            response = await self.transport.send(request)
        except httpx.RequestError as error:
            return error
        except RuntimeError as error:
            if not self.transport.http_client.is_closed:
                raise
            raise ClientError("The client is closed. Create a new one.") from error
        self._has_responded = True
        return response

    def _retry_window(self, outcome: httpx.Response | httpx.RequestError) -> float:
        """Seconds from the first attempt in which a request may be sent again."""
        return self._retry_timeout if self._has_responded else min(self._retry_timeout, retries.FIRST_CONTACT_TIMEOUT)

    def _build_error(self, outcome: httpx.Response | httpx.RequestError, attempts: int) -> ClientError:
        if isinstance(outcome, httpx.Response):
            return error_from_response(outcome)
        tried = f"{attempts} attempts" if attempts > 1 else "1 attempt"
        reason = str(outcome).rstrip(".") or type(outcome).__name__
        advice = "Is the service running?"
        if _is_unknown_host(outcome):
            advice = f"No host is known by the name '{outcome.request.url.host}': check the address."
        if isinstance(outcome, httpx.TimeoutException):
            request_id = outcome.request.headers["X-Request-ID"]
            reason = f"no response in time ({type(outcome).__name__})"
            advice = (
                f"Increase `timeout`, or send a smaller image. The service's log may contain the request, {request_id}."
            )
        error = UnreachableError(f"{self.url} cannot be reached ({tried}): {reason}. {advice}")
        error.__cause__ = outcome
        return error


def _parse_url(url: str) -> httpx.URL:
    """Parse the address of a service. Raises: ValueError for an invalid one; the message omits its password."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not _is_host(parsed.host):
        shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(url))
        shown = f"...@{shown.rpartition('@')[2]}" if "@" in shown else shown
        raise ValueError(f"The address is '{shown}'; expected one such as http://127.0.0.1:3000.")
    if parsed.userinfo or "?" in url or "#" in url:  # httpx would send it in place of the key, or with every path
        raise ValueError(
            "The address contains a user name, a password, a query or a fragment; expected one such as "
            "http://127.0.0.1:3000. Pass the key as `api_key`."
        )
    if parsed.port is not None and not 1 <= parsed.port <= MAX_PORT:  # the system would take it modulo 65536
        raise ValueError(f"The port of {url} is {parsed.port}; expected a number from 1 to {MAX_PORT}.")
    return parsed


def _is_host(host: str) -> bool:
    """Whether a URL's host can be one: not empty, without spaces, and if it is made of numbers, an IPv4 address."""
    if not re.fullmatch(r"[\d.]+", host, re.ASCII):
        return bool(host) and not re.search(r"[\s%]", host)
    try:
        return bool(socket.inet_aton(host))
    except OSError:
        return False


def _is_unknown_host(error: BaseException | None) -> bool:
    """Whether an error was caused by a host name that cannot be resolved."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_loopback(url: httpx.URL) -> bool:
    """Whether a URL is of this machine."""
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return url.host == "localhost"


def _auth_headers(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError(
            "The key is empty, or contains a space, a line break or a character that no key has. "
            "Pass it as `maskserve key` printed it."
        )
    return {"Authorization": f"Bearer {api_key}"}
