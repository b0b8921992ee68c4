"""What the service's answers say."""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx

from maskserve.client.errors import ServiceError, error_of_problem
from maskserve.client.image_encoding import Picture
from maskserve.client.mask import Mask

_STAGE = re.compile(r"([\w-]+);dur=([\d.]+)")


def form(confidence: bool, many: bool = False) -> dict[str, Any]:
    """The cheapest form of an answer that a mask can be read from: the PNG alone, unless there is more than one to it."""
    return {"format": "json", "masks": "png", "confidence": confidence} if confidence or many else {"format": "png"}


def sure_mask(content: bytes, **rest: Any) -> Mask:
    """Of a JSON with the mask and the confidence as PNGs."""
    return _mask(json.loads(content), **rest)


def batch(content: bytes, pictures: Sequence[Picture], **rest: Any) -> list[Mask | ServiceError]:
    """Of the JSON of a batch: a mask or an error for each picture."""
    return [
        _mask(entry["result"], picture=picture, **rest) if "result" in entry else error_of_problem(entry["problem"])
        for entry, picture in zip(json.loads(content), pictures, strict=True)
    ]


def _mask(result: dict[str, Any], **rest: Any) -> Mask:
    sure = base64.b64decode(result["confidence"]) if "confidence" in result else None
    return Mask.read(base64.b64decode(result["png"]), sure, **rest)


def told(answer: httpx.Response) -> dict[str, Any]:
    """The request's id, and milliseconds by stage as the header Server-Timing has them."""
    stages = _STAGE.findall(answer.headers.get("Server-Timing", ""))
    return {
        "request_id": answer.headers.get("X-Request-ID", ""),
        "timing": {name: float(took) for name, took in stages},
    }


def tag_of(answer: httpx.Response) -> str:
    """The model that answered. Raises: KeyError where none is named."""
    tag: str = answer.headers["X-Model"]
    return tag


def tag(entry: dict[str, Any]) -> str:
    """The same of an entry of /v1/models."""
    return f"{quote(entry['name'])}@{entry['hash'][:12]}"
