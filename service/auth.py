"""API keys: the service knows only their hashes, so that a leaked configuration opens nothing."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import UnauthorizedError


def generate_api_key() -> tuple[str, str]:
    """A new key of 256 random bits, and its hash.

    A key that nobody can guess needs no slow hash: those are for passwords that people choose.
    """
    key = f"msk_{secrets.token_urlsafe(32)}"
    return key, hash_api_key(key)


def hash_api_key(key: str) -> str:
    """The sha256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_key_hash(text: str) -> bool:
    """Whether a text is a sha256 in hexadecimal."""
    return re.fullmatch(r"[0-9a-fA-F]{64}", text, re.ASCII) is not None


def key_from_headers(headers: Headers) -> str:
    """The key that a request brings, as `Authorization: Bearer KEY` (RFC 6750) or `X-API-Key: KEY`; empty for none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return (token.strip() if scheme.lower() == "bearer" else "") or headers.get("x-api-key", "").strip()


class ApiKeyMiddleware:
    """Lets requests through that bring a key whose hash is known, and those for the paths that are open to all."""

    def __init__(self, app: ASGIApp, hashes: Collection[str], open_paths: Collection[str]) -> None:
        """`hashes`: of the keys, as 64 lower hexadecimal digits; where there is none, all is open."""
        self.app = app
        self.hashes = tuple(hashes)
        self.public_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: NoKey."""
        if self.hashes and scope["method"] != "OPTIONS" and scope["path"] not in self.public_paths:
            self._check_key(Headers(scope=scope))
        await self.app(scope, receive, send)

    def _check_key(self, headers: Headers) -> None:
        key = key_from_headers(headers)
        if not key:
            raise UnauthorizedError("A key is needed here: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
        sent = hash_api_key(key)
        # All are compared, and each in constant time: how long it takes tells nothing of which is near.
        if not sum(hmac.compare_digest(sent, known) for known in self.hashes):
            raise UnauthorizedError("This key does not open the service; ask whoever runs it for another.")
