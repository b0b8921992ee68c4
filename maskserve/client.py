"""The HTTP client of a maskserve service. It stands on the service's /v1 routes alone, not on the other rooms.

from maskserve.client import Client

with Client("http://127.0.0.1:3000") as client:
    mask = client.segment("street.jpg")
    print(mask.labels.shape, [entry["name"] for entry in mask.classes])
    mask.save("street.mask.png")
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A path, the bytes of a picture file, RGB uint8 H x W x 3, or a Pillow image.
Picture = Path | str | bytes | NDArray[np.uint8] | Image.Image

# Modes that a PNG holds as they are. Others are sent as the RGB that the service would make of them.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_TIFF_MODES = ("I", "F")  # 32 bits a sample, which no PNG holds


class ClientError(Exception):
    """Root of what this client raises on purpose."""


class Unreachable(ClientError):
    """No answer came."""


class ServiceError(ClientError):
    """The service answered with an error."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(f"{title} ({status}): {detail}")
        self.status = status
        self.title = title
        self.detail = detail


@dataclass(frozen=True)
class Mask:
    """A label for each pixel of a picture."""

    labels: NDArray[np.uint8]  # H x W of the upright picture: the place of a class in `classes`, 255 is void
    classes: list[dict[str, Any]]  # {"name": ..., "rgb": [red, green, blue]} by label
    palette: NDArray[np.uint8]  # 256 x 3 RGB by label
    model: str  # name and short hash of the bundle that answered
    png: bytes = field(repr=False)  # the indexed PNG as it came

    def save(self, path: Path | str) -> None:
        """Write the indexed PNG; each of its pixels is the label."""
        Path(path).write_bytes(self.png)


class Client:
    """A connection to one service, to be used as a context manager or closed; safe to share between threads."""

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        """`url` of the service, such as http://127.0.0.1:3000; `timeout` of each connect, read or write, in seconds."""
        self.url = url.rstrip("/")
        # A proxy of the environment is for other machines: what is asked of this one must not leave it.
        local = httpx.URL(self.url).host in ("127.0.0.1", "::1", "localhost")
        self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=not local)
        self._classes: dict[str, list[dict[str, Any]]] = {}  # by model

    def segment(self, picture: Picture) -> Mask:
        """Label every pixel of a picture. Files go as they are, arrays and Pillow images without loss.

        Raises: ServiceError, Unreachable; OSError for a path that cannot be read.
        """
        answer = self._post(picture, "png")
        model = answer.headers["X-Model"]
        image = Image.open(io.BytesIO(answer.content), formats=["PNG"])
        palette = np.asarray(image.getpalette(), np.uint8).reshape(-1, 3)
        palette = np.pad(palette, ((0, 256 - len(palette)), (0, 0)))
        return Mask(np.array(image), self._classes_of(model), palette, model, answer.content)

    def overlay(self, picture: Picture, alpha: float = 0.5) -> bytes:
        """A JPEG of the picture under its classes' colours; `alpha` of the colours, 0..1. Raises: as `segment`."""
        return self._post(picture, "overlay", alpha=alpha).content

    def models(self) -> list[dict[str, Any]]:
        """What is served: name, hash, spec, engine and precision of each bundle. Raises: ServiceError, Unreachable."""
        answer: list[dict[str, Any]] = self._send("GET", "/v1/models").json()
        return answer

    def ready(self) -> bool:
        """Whether the service is there and ready to answer."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, picture: Picture, format: str, **query: float) -> httpx.Response:
        return self._send("POST", "/v1/segment", params={"format": format, **query}, content=_bytes_of(picture))

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TimeoutException as error:
            raise Unreachable(
                f"{self.url} did not answer in time ({type(error).__name__}); raise `timeout`."
            ) from error
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url} cannot be reached: {error}. Is the service running there?") from error
        if not answer.is_success:
            raise _service_error(answer)
        return answer

    def _classes_of(self, model: str) -> list[dict[str, Any]]:
        if model not in self._classes:
            self._classes = {_tag(entry): entry["spec"]["classes"] for entry in self.models()}
        return self._classes.get(model, [])


def _tag(entry: dict[str, Any]) -> str:
    """The X-Model header of a served model."""
    return f"{quote(entry['name'])}@{entry['hash'][:12]}"


def _service_error(answer: httpx.Response) -> ServiceError:
    """The problem that the service, or a proxy before it, answered with."""
    try:
        problem = answer.json()
        return ServiceError(answer.status_code, problem["title"], problem["detail"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(answer.status_code, answer.reason_phrase, answer.text[:200].strip() or "no detail came")


def _bytes_of(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Path | str):
        return Path(picture).read_bytes()
    if isinstance(picture, Image.Image):
        return _encode(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"The array is {picture.dtype} of shape {picture.shape}; send uint8 of H x W x 3, RGB.")
    return _encode(Image.fromarray(picture))


def _encode(image: Image.Image) -> bytes:
    """The pixels as they stand: an orientation tag in `info` would make the service turn them."""
    image = image.copy() if image.mode in (*_PNG_MODES, *_TIFF_MODES) else image.convert("RGB")
    image.info = {key: value for key, value in image.info.items() if key == "transparency"}
    buffer = io.BytesIO()
    if image.mode in _TIFF_MODES:
        image.save(buffer, "TIFF")
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
