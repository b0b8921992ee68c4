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
from maskserve.client.image_encoding import Picture, body_of
from maskserve.client.mask import Mask
from maskserve.client.transports import Awaiting, Wire

PATIENCE = 30.0  # seconds: three times what the service lets a picture wait before it says 429

# What a parameter is where it is not sent.
DEFAULTS = {
    "format": "png", "model": None, "classes": "", "min_confidence": 0, "min_area": 0, "alpha": 0.5, "masks": "rle",
    "simplify": 0, "confidence": False,
}  # fmt: skip


class AsyncClient:
    """A connection to one service, to be used as an async context manager or closed, in one event loop (asyncio)."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = 60.0, patience: float = PATIENCE,
        wire: Callable[..., Wire] = Awaiting,
    ) -> None:  # fmt: skip
        """As of Client; `wire` is how requests travel, and the client of plain calls has its own. Raises: ValueError."""
        self._connection = Connection(url, key, timeout, patience, wire)
        self._work = self._connection.wire.work
        self._classes: dict[str, list[dict[str, Any]]] = {}  # by model
        self.url = self._connection.url

    async def segment(
        self, picture: Picture, *, model: str | None = None, classes: Sequence[str] = (), min_confidence: float = 0.0,
        min_area: int = 0, confidence: bool = False,
    ) -> Mask:  # fmt: skip
        """Label every pixel of a picture. Files go as they are, arrays and Pillow images without loss.

        Args:
            picture: a path, the bytes of a picture file, RGB uint8 H x W x 3, or a Pillow image.
            model: name of the model; needed where several are served.
            classes: names of those to keep; none given keeps all. What is left out is void, 255.
            min_confidence: pixels that are less sure become void; 0..1.
            min_area: 4-connected regions of fewer pixels become void.
            confidence: whether the mask also holds the confidence, of the same inference.

        Raises: ClientError; OSError for a path that cannot be read; ValueError, TypeError for what is no picture.
        """
        wishes = {"model": model, "classes": classes, "min_confidence": min_confidence, "min_area": min_area}
        answer, facts = await self._known(partial(self._post, picture, **wishes, **responses.form(confidence)))
        read = responses.sure_mask if confidence else Mask.read
        with self._connection.understood(answer):
            return await self._work(partial(read, answer.content, picture=picture, **facts))

    async def segment_batch(
        self, pictures: Sequence[Picture], *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, confidence: bool = False,
    ) -> list[Mask | ServiceError]:  # fmt: skip
        """Label many pictures by one request: as many as the service takes in one, 64 by default.

        Returns: for each picture, in their order, its mask or the error that it met; they share their request id and timing.
        Raises: as `segment`, for what spoils them all.
        """
        wishes = {"model": model, "classes": classes, "min_confidence": min_confidence, "min_area": min_area}
        if not pictures:
            return []
        near = self._connection.near
        bodies = await self._work(lambda: [body_of(picture, near) for picture in pictures])
        ask = partial(
            self._connection.ask, "POST", "/v1/segment/batch",
            params=_query(**wishes, **responses.form(confidence, many=True)),
            files=[("images", (str(place), body)) for place, body in enumerate(bodies)],
        )  # fmt: skip
        answer, facts = await self._known(ask)
        with self._connection.understood(answer):
            return await self._work(partial(responses.batch, answer.content, pictures, **facts))

    async def overlay(self, picture: Picture, alpha: float = 0.5) -> bytes:
        """A JPEG of the picture under its classes' colours; `alpha` of the colours, 0..1. Raises: as `segment`."""
        return await self.encoded(picture, "overlay", alpha=alpha)

    async def described(
        self, picture: Picture, masks: str = "rle", *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, simplify: float = 0.0, confidence: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """What is in the picture: the service's `json`, with pixels, share, box and mask of each class.

        `masks`: rle (COCO's), polygons (GeoJSON's, outlines moved by `simplify` pixels at most), png or none.
        Raises: as `segment`.
        """
        answer = await self._post(
            picture, format="json", masks=masks, model=model, classes=classes, min_confidence=min_confidence,
            min_area=min_area, simplify=simplify, confidence=confidence,
        )  # fmt: skip
        with self._connection.understood(answer):
            return dict(answer.json())

    async def encoded(
        self, picture: Picture, format: str = "png", *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, alpha: float = 0.5, masks: str = "rle", simplify: float = 0.0,
        confidence: bool = False,
    ) -> bytes:  # fmt: skip
        """The bytes of the answer in any format of the service: png, overlay, confidence, npy, json. Raises: as `segment`."""
        answer = await self._post(
            picture, format=format, model=model, classes=classes, min_confidence=min_confidence, min_area=min_area,
            alpha=alpha, masks=masks, simplify=simplify, confidence=confidence,
        )  # fmt: skip
        return answer.content

    async def models(self) -> list[dict[str, Any]]:
        """What is served: name, hash, spec, palette, engine and precision of each bundle. Raises: ClientError."""
        answer = await self._connection.ask("GET", "/v1/models")
        with self._connection.understood(answer):
            return [dict(entry) for entry in answer.json()]

    async def model(self, name: str) -> dict[str, Any]:
        """One of them, by name. Raises: UnknownModel, ClientError."""
        answer = await self._connection.ask("GET", f"/v1/models/{quote(name, safe='')}")
        with self._connection.understood(answer):
            return dict(answer.json())

    async def ready(self) -> bool:
        """Whether the service is there and ready to answer; asked once."""
        return await self._connection.once("/readyz") == 200

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.wire.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def _post(self, picture: Picture, **wishes: Any) -> httpx.Response:
        """A picture's answer. Raises: BadAnswer where no model is named: what a stranger says of a picture is no mask."""
        body = picture
        if not isinstance(picture, bytes):
            body = await self._work(partial(body_of, picture, self._connection.near))
        answer = await self._connection.ask("POST", "/v1/segment", params=_query(**wishes), content=body)
        with self._connection.understood(answer):
            responses.tag_of(answer)
        return answer

    async def _known(self, ask: Callable[[], Awaitable[httpx.Response]]) -> tuple[httpx.Response, dict[str, Any]]:
        """A mask's answer, of a model whose classes are known, and what the mask holds beside its pixels.

        Where the model was exchanged between the mask and the question for its classes, the mask is asked for again: of
        the model that is served now.
        """
        answer = await ask()
        if not await self._knows(answer):
            answer = await ask()
            await self._knows(answer)
        tag = responses.tag_of(answer)
        return answer, {"model": tag, "classes": self._classes.get(tag, []), **responses.told(answer)}

    async def _knows(self, answer: httpx.Response) -> bool:
        """Whether the classes of an answer's model are known; they are asked for once a model."""
        with self._connection.understood(answer):
            tag = responses.tag_of(answer)
        if tag not in self._classes:
            entries = await self.models()
            with self._connection.understood(answer):
                self._classes |= {responses.tag(entry): entry["spec"]["classes"] for entry in entries}
        return tag in self._classes


def _query(**wishes: Any) -> dict[str, Any]:
    """The parameters that are not what they are anyway."""
    if not isinstance(wishes.get("classes", ""), str):
        wishes["classes"] = ",".join(wishes["classes"])
    return {name: value for name, value in wishes.items() if value != DEFAULTS[name]}
