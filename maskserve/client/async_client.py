"""The calls, written once: AsyncClient has them to be awaited, and Client by a plain call."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from maskserve.client import responses
from maskserve.client.connection import Connection
from maskserve.client.errors import ServiceError
from maskserve.client.image_encoding import ImageLike, to_request_body
from maskserve.client.mask import Mask
from maskserve.client.transports import AsyncTransport, Transport

DEFAULT_RETRY_TIMEOUT = 30.0  # seconds: three times what the service lets an image wait before it says 429

# What a parameter is where it is not sent.
DEFAULT_PARAMS = {
    "format": "png", "model": None, "classes": "", "min_confidence": 0, "min_area": 0, "alpha": 0.5, "masks": "rle",
    "simplify": 0, "confidence": False,
}  # fmt: skip


class AsyncClient:
    """A connection to one service, to be used as an async context manager or closed, in one event loop (asyncio)."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 60.0, retry_timeout: float = DEFAULT_RETRY_TIMEOUT,
        transport: Callable[..., Transport] = AsyncTransport,
    ) -> None:  # fmt: skip
        """As of Client; `wire` is how requests travel, and the client of plain calls has its own. Raises: ValueError."""
        self._connection = Connection(url, api_key, timeout, retry_timeout, transport)
        self._run_blocking = self._connection.transport.run_blocking
        self._classes_by_model: dict[str, list[dict[str, Any]]] = {}  # by model
        self.url = self._connection.url

    async def segment(
        self, image: ImageLike, *, model: str | None = None, classes: Sequence[str] = (), min_confidence: float = 0.0,
        min_area: int = 0, confidence: bool = False,
    ) -> Mask:  # fmt: skip
        """Label every pixel of an image. Files go as they are, arrays and Pillow images without loss.

        Args:
            image: a path, the bytes of an image file, RGB uint8 H x W x 3, or a Pillow image.
            model: name of the model; needed where several are served.
            classes: names of those to keep; none given keeps all. What is left out is void, 255.
            min_confidence: pixels that are less sure become void; 0..1.
            min_area: 4-connected regions of fewer pixels become void.
            confidence: whether the mask also holds the confidence, of the same inference.

        Raises: ClientError; OSError for a path that cannot be read; ValueError, TypeError for what is no image.
        """
        wishes = {"model": model, "classes": classes, "min_confidence": min_confidence, "min_area": min_area}
        answer, facts = await self._fetch_with_classes(
            partial(self._post_image, image, **wishes, **responses.response_params(confidence))
        )
        read = responses.mask_from_json if confidence else Mask.from_png
        with self._connection.translate_errors(answer):
            return await self._run_blocking(partial(read, answer.content, image=image, **facts))

    async def segment_batch(
        self, images: Sequence[ImageLike], *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, confidence: bool = False,
    ) -> list[Mask | ServiceError]:  # fmt: skip
        """Label many images by one request: as many as the service takes in one, 64 by default.

        Returns: for each image, in their order, its mask or the error that it met; they share their request id and timing.
        Raises: as `segment`, for what spoils them all.
        """
        wishes = {"model": model, "classes": classes, "min_confidence": min_confidence, "min_area": min_area}
        if not images:
            return []
        near = self._connection.is_local
        bodies = await self._run_blocking(lambda: [to_request_body(image, near) for image in images])
        ask = partial(
            self._connection.request, "POST", "/v1/segment/batch",
            params=_query_params(**wishes, **responses.response_params(confidence, many=True)),
            files=[("images", (str(place), body)) for place, body in enumerate(bodies)],
        )  # fmt: skip
        answer, facts = await self._fetch_with_classes(ask)
        with self._connection.translate_errors(answer):
            return await self._run_blocking(partial(responses.masks_from_batch, answer.content, images, **facts))

    async def overlay(self, image: ImageLike, alpha: float = 0.5) -> bytes:
        """A JPEG of the image under its classes' colours; `alpha` of the colours, 0..1. Raises: as `segment`."""
        return await self.segment_bytes(image, "overlay", alpha=alpha)

    async def segment_json(
        self, image: ImageLike, masks: str = "rle", *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, simplify: float = 0.0, confidence: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """What is in the image: the service's `json`, with pixels, share, box and mask of each class.

        `masks`: rle (COCO's), polygons (GeoJSON's, outlines moved by `simplify` pixels at most), png or none.
        Raises: as `segment`.
        """
        answer = await self._post_image(
            image, format="json", masks=masks, model=model, classes=classes, min_confidence=min_confidence,
            min_area=min_area, simplify=simplify, confidence=confidence,
        )  # fmt: skip
        with self._connection.translate_errors(answer):
            return dict(answer.json())

    async def segment_bytes(
        self, image: ImageLike, format: str = "png", *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, alpha: float = 0.5, masks: str = "rle", simplify: float = 0.0,
        confidence: bool = False,
    ) -> bytes:  # fmt: skip
        """The bytes of the answer in any format of the service: png, overlay, confidence, npy, json. Raises: as `segment`."""
        answer = await self._post_image(
            image, format=format, model=model, classes=classes, min_confidence=min_confidence, min_area=min_area,
            alpha=alpha, masks=masks, simplify=simplify, confidence=confidence,
        )  # fmt: skip
        return answer.content

    async def models(self) -> list[dict[str, Any]]:
        """What is served: name, hash, spec, palette, engine and precision of each bundle. Raises: ClientError."""
        answer = await self._connection.request("GET", "/v1/models")
        with self._connection.translate_errors(answer):
            return [dict(entry) for entry in answer.json()]

    async def model(self, name: str) -> dict[str, Any]:
        """One of them, by name. Raises: UnknownModel, ClientError."""
        answer = await self._connection.request("GET", f"/v1/models/{quote(name, safe='')}")
        with self._connection.translate_errors(answer):
            return dict(answer.json())

    async def is_ready(self) -> bool:
        """Whether the service is there and ready to answer; asked once."""
        return await self._connection.get_status("/readyz") == 200

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def _post_image(self, image: ImageLike, **wishes: Any) -> httpx.Response:
        """An image's answer. Raises: BadAnswer where no model is named: what a stranger says of an image is no mask."""
        body = image
        if not isinstance(image, bytes):
            body = await self._run_blocking(partial(to_request_body, image, self._connection.is_local))
        answer = await self._connection.request("POST", "/v1/segment", params=_query_params(**wishes), content=body)
        with self._connection.translate_errors(answer):
            responses.response_model_tag(answer)
        return answer

    async def _fetch_with_classes(
        self, ask: Callable[[], Awaitable[httpx.Response]]
    ) -> tuple[httpx.Response, dict[str, Any]]:
        """A mask's answer, of a model whose classes are known, and what the mask holds beside its pixels.

        Where the model was exchanged between the mask and the question for its classes, the mask is asked for again: of
        the model that is served now.
        """
        answer = await ask()
        if not await self._ensure_classes(answer):
            answer = await ask()
            await self._ensure_classes(answer)
        tag = responses.response_model_tag(answer)
        return answer, {
            "model": tag,
            "classes": self._classes_by_model.get(tag, []),
            **responses.response_metadata(answer),
        }

    async def _ensure_classes(self, answer: httpx.Response) -> bool:
        """Whether the classes of an answer's model are known; they are asked for once a model."""
        with self._connection.translate_errors(answer):
            tag = responses.response_model_tag(answer)
        if tag not in self._classes_by_model:
            entries = await self.models()
            with self._connection.translate_errors(answer):
                self._classes_by_model |= {
                    responses.entry_model_tag(entry): entry["spec"]["classes"] for entry in entries
                }
        return tag in self._classes_by_model


def _query_params(**wishes: Any) -> dict[str, Any]:
    """The parameters that are not what they are anyway."""
    if not isinstance(wishes.get("classes", ""), str):
        wishes["classes"] = ",".join(wishes["classes"])
    return {name: value for name, value in wishes.items() if value != DEFAULT_PARAMS[name]}
