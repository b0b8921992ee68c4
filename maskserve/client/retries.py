"""Which answers are worth asking again for, and when. A request for a mask changes nothing, so that asking twice is safe.

Asked again is after 429, 503, and a connection that was refused, or lost before the whole answer. Not after a time-out in
reading or writing: the service may still be at work on the image, and a second request would add to the load that made
it late. A 503 of the service without Retry-After says that it will never be ready; that one is final too.
"""

import random

import httpx

from maskserve.client.errors import error_from_response

# The waits without a Retry-After: seconds of the first, each next one twice as long, and the longest.
BASE_DELAY, MAX_DELAY = 0.1, 5.0

# Of those whom the service told the same second, not all should come at it. It is never too early.
JITTER = 0.25

# For how many seconds a connection is tried at an address that has not answered this client yet: enough for a service that
# is being restarted behind a proxy, and whoever mistyped a port learns it soon.
FIRST_CONTACT_TIMEOUT = 3.0

RETRYABLE_ERRORS = (
    httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.WriteError, httpx.CloseError,
    httpx.RemoteProtocolError,
)  # fmt: skip


def retry_delay(outcome: httpx.Response | httpx.RequestError, attempt: int) -> float | None:
    """Seconds to wait before asking again; None where it would be of no use. `attempt` counts from 0."""
    doubled: float = min(MAX_DELAY, BASE_DELAY * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
    if isinstance(outcome, httpx.RequestError):
        return doubled if isinstance(outcome, RETRYABLE_ERRORS) else None
    if outcome.status_code not in (429, 503):
        return None
    error = error_from_response(outcome)
    if error.retry_after is None:
        return None if error.kind == "not-ready" else doubled
    return max(doubled, error.retry_after * random.uniform(1, 1 + JITTER))
