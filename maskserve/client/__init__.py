"""The HTTP client of a maskserve service. It stands on the service's /v1 routes alone, not on the other rooms.

from maskserve.client import Client

with Client("http://127.0.0.1:3000") as client:
    mask = client.segment("street.jpg")
    print(mask.labels.shape, mask.shares())
    mask.save("street.mask.png")

`AsyncClient` has the same methods, to be awaited. docs/client.md tells the rest.
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

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ClientError",
    "ImageLike",
    "InvalidImageError",
    "InvalidResponseError",
    "Mask",
    "NotFoundError",
    "RequestTimeoutError",
    "ServiceError",
    "ServiceUnavailableError",
    "TooManyRequestsError",
    "UnknownModelError",
    "UnreachableError",
]
