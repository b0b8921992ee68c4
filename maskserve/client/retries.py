"""Decides which requests are retried, and when. A request for a mask changes nothing, so that it is safe to send it twice.

Retried are 429, 503, and a connection that was refused, or lost before the whole response arrived. Not retried is a read or
write timeout: the service may still be processing the image, and a second request would add to the load that made it late.
A 503 of the service without Retry-After means that it will never be ready, and is final too.
"""

import random

import httpx

from maskserve.client.errors import error_from_response

# Without Retry-After: seconds of the first wait, which doubles each time, and of the longest.
BASE_DELAY, MAX_DELAY = 0.1, 5.0

# Fraction by which a wait may exceed Retry-After, so that clients that were rejected together do not return together.
JITTER = 0.25

# Seconds in which a connection is retried to an address that has not responded to this client yet: enough for a service that
# restarts behind a proxy, and short enough for a mistyped port.
FIRST_CONTACT_TIMEOUT = 3.0

RETRYABLE_ERRORS = (
    httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.WriteError, httpx.CloseError,
    httpx.RemoteProtocolError,
)  # fmt: skip


def retry_delay(outcome: httpx.Response | httpx.RequestError, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None for an outcome that is final. `attempt` counts from 0."""
    backoff: float = min(MAX_DELAY, BASE_DELAY * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
    if isinstance(outcome, httpx.RequestError):
        return backoff if isinstance(outcome, RETRYABLE_ERRORS) else None
    if outcome.status_code not in (429, 503):
        return None
    error = error_from_response(outcome)
    if error.retry_after is None:
        return None if error.kind == "not-ready" else backoff
    return max(backoff, error.retry_after * random.uniform(1, 1 + JITTER))
