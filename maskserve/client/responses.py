"""Parses the service's responses."""

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
    """The parameters of the cheapest response that holds a mask: the PNG, or JSON if there is more than one part."""
    return {"format": "json", "masks": "png", "confidence": confidence} if confidence or many else {"format": "png"}


def mask_from_json(content: bytes, **fields: Any) -> Mask:
    """The mask of a JSON response, which holds the mask and the confidence as PNGs. `fields`: of Mask."""
    return _mask_from_result(json.loads(content), **fields)


def masks_from_batch(content: bytes, images: Sequence[ImageLike], **fields: Any) -> list[Mask | ServiceError]:
    """The mask or the error of each image, from the JSON response of a batch. `fields`: of Mask."""
    return [
        _mask_from_result(entry["result"], image=image, **fields)
        if "result" in entry
        else error_from_problem(entry["problem"])
        for entry, image in zip(json.loads(content), images, strict=True)
    ]


def _mask_from_result(result: dict[str, Any], **fields: Any) -> Mask:
    confidence = base64.b64decode(result["confidence"]) if "confidence" in result else None
    return Mask.from_png(base64.b64decode(result["png"]), confidence, **fields)


def response_metadata(response: httpx.Response) -> dict[str, Any]:
    """The request's id, and milliseconds by stage from the header Server-Timing."""
    stages = _SERVER_TIMING.findall(response.headers.get("Server-Timing", ""))
    return {
        "request_id": response.headers.get("X-Request-ID", ""),
        "timing": {name: float(milliseconds) for name, milliseconds in stages},
    }


def response_model_tag(response: httpx.Response) -> str:
    """The model of a response, NAME@HASH, from the header X-Model. Raises: KeyError if that is missing."""
    tag: str = response.headers["X-Model"]
    return tag


def entry_model_tag(entry: dict[str, Any]) -> str:
    """The same for an entry of /v1/models."""
    return f"{quote(entry['name'])}@{entry['hash'][:12]}"
