"""The HTTP client of a maskserve service. It depends only on the service's /v1 API, not on `models`, `training` or `service`.

from maskserve.client import Client

with Client("http://127.0.0.1:3000") as client:
    mask = client.segment("street.jpg")
    print(mask.labels.shape, mask.class_fractions())
    mask.save("street.mask.png")

`AsyncClient` has the same methods as coroutines. See docs/client.md.
"""

from maskserve.client.async_client import AsyncClient
from maskserve.client.client import Client
from maskserve.client.errors import (
    AuthenticationError,
    BadRequestError,
    ClientError,
    InvalidImageError,
    InvalidResponseError,
    NotFoundError,
    RequestTimeoutError,
    ServiceError,
    ServiceUnavailableError,
    TooManyRequestsError,
    UnknownModelError,
    UnreachableError,
)
from maskserve.client.image_encoding import ImageLike
from maskserve.client.mask import Mask
from maskserve.client.recording_encoding import RecordingLike
from maskserve.client.signal_mask import Event, SignalMask
from maskserve.client.volume_encoding import VolumeLike
from maskserve.client.volume_mask import VolumeMask

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ClientError",
    "Event",
    "ImageLike",
    "InvalidImageError",
    "InvalidResponseError",
    "Mask",
    "NotFoundError",
    "RecordingLike",
    "RequestTimeoutError",
    "ServiceError",
    "ServiceUnavailableError",
    "SignalMask",
    "TooManyRequestsError",
    "UnknownModelError",
    "UnreachableError",
    "VolumeLike",
    "VolumeMask",
]
