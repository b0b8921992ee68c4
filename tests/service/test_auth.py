"""API keys: valid and invalid ones. Which paths need a key is tested in test_limits.py."""

import pytest
from starlette.datastructures import Headers

from service.auth import check_api_key, generate_api_key, hash_api_key, is_key_hash
from service.errors import UnauthorizedError

FIRST, SECOND = "first-key", "second-key"
HASHES = [hash_api_key(FIRST), hash_api_key(SECOND)]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {FIRST}"},
        {"authorization": f"bearer  {SECOND} "},
        {"X-API-Key": FIRST},
    ],
)
def test_valid_key(headers: dict[str, str]) -> None:
    check_api_key(Headers(headers), HASHES)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "has no API key"),
        ({"Authorization": "Bearer"}, "has no API key"),
        ({"Authorization": f"Basic {FIRST}"}, "has no API key"),
        ({"Authorization": f"Bearer {FIRST}x"}, "not valid"),
        ({"Authorization": f"Bearer {hash_api_key(FIRST)}"}, "not valid"),  # the hash is not a key
        ({"X-API-Key": "\x80\xff"}, "not valid"),
    ],
)
def test_missing_or_invalid_key(headers: dict[str, str], words: str) -> None:
    with pytest.raises(UnauthorizedError, match=words) as caught:
        check_api_key(Headers(headers), HASHES)
    assert FIRST not in str(caught.value)


def test_generated_key_and_its_hash() -> None:
    key, key_hash = generate_api_key()
    assert hash_api_key(key) == key_hash and is_key_hash(key_hash) and len(key) > 40
    assert generate_api_key()[0] != key
    assert not is_key_hash(key) and not is_key_hash(key_hash[:-1]) and not is_key_hash(key_hash + "\n")
