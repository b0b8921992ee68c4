"""What the service's answers say."""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx

from maskserve.client.errors import ServiceError, error_from_problem
from maskserve.client.image_encoding import ImageLike
from maskserve.client.mask import Mask

_SERVER_TIMING = re.compile(r"([\w-]+);dur=([\d.]+)")


def response_params(confidence: bool, many: bool = False) -> dict[str, Any]:
    """The cheapest form of an answer that a mask can be read from: the PNG alone, unless there is more than one to it."""
    return {"format": "json", "masks": "png", "confidence": confidence} if confidence or many else {"format": "png"}


def mask_from_json(content: bytes, **rest: Any) -> Mask:
    """Of a JSON with the mask and the confidence as PNGs."""
    return _mask_from_result(json.loads(content), **rest)


def masks_from_batch(content: bytes, images: Sequence[ImageLike], **rest: Any) -> list[Mask | ServiceError]:
    """Of the JSON of a batch: a mask or an error for each image."""
    return [
        _mask_from_result(entry["result"], image=image, **rest)
        if "result" in entry
        else error_from_problem(entry["problem"])
        for entry, image in zip(json.loads(content), images, strict=True)
    ]


def _mask_from_result(result: dict[str, Any], **rest: Any) -> Mask:
    sure = base64.b64decode(result["confidence"]) if "confidence" in result else None
    return Mask.from_png(base64.b64decode(result["png"]), sure, **rest)


def response_metadata(answer: httpx.Response) -> dict[str, Any]:
    """The request's id, and milliseconds by stage as the header Server-Timing has them."""
    stages = _SERVER_TIMING.findall(answer.headers.get("Server-Timing", ""))
    return {
        "request_id": answer.headers.get("X-Request-ID", ""),
        "timing": {name: float(took) for name, took in stages},
    }


def response_model_tag(answer: httpx.Response) -> str:
    """The model that answered. Raises: KeyError where none is named."""
    tag: str = answer.headers["X-Model"]
    return tag


def entry_model_tag(entry: dict[str, Any]) -> str:
    """The same of an entry of /v1/models."""
    return f"{quote(entry['name'])}@{entry['hash'][:12]}"
