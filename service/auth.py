"""API keys. The service stores only their hashes, so that a leaked configuration gives no access."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers

from service.errors import UnauthorizedError


def generate_api_key() -> tuple[str, str]:
    """Generate a key of 256 random bits. Returns: the key and its hash.

    A key that cannot be guessed needs no slow hash: those are for passwords that people choose.
    """
    key = f"msk_{secrets.token_urlsafe(32)}"
    return key, hash_api_key(key)


def hash_api_key(key: str) -> str:
    """The sha256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_key_hash(text: str) -> bool:
    """Whether a text is a sha256 in hexadecimal."""
    return re.fullmatch(r"[0-9a-fA-F]{64}", text, re.ASCII) is not None


def request_key(headers: Headers) -> str:
    """The key of a request; empty without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return (token.strip() if scheme.lower() == "bearer" else "") or headers.get("x-api-key", "").strip()


def check_api_key(headers: Headers, hashes: Collection[str]) -> None:
    """Check the key of a request: `Authorization: Bearer KEY` (RFC 6750) or `X-API-Key: KEY`.

    `hashes`: of the valid keys, as 64 lower-case hexadecimal digits.
    Raises: UnauthorizedError if there is no key, or none of these.
    """
    key = request_key(headers)
    if not key:
        raise UnauthorizedError(
            "The request has no API key. Send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`."
        )
    key_hash = hash_api_key(key)
    # Compare with all of them, each in constant time: the time must not reveal which hash is similar.
    if not sum(hmac.compare_digest(key_hash, known) for known in hashes):
        raise UnauthorizedError("The API key is not valid. Ask the operator of this service for a key.")
