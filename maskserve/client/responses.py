"""Parses the service's responses."""

import base64
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from maskserve.client.errors import ServiceError, error_from_problem
from maskserve.client.image_encoding import ImageLike
from maskserve.client.mask import Mask

_SERVER_TIMING = re.compile(r"([\w-]+);dur=(\d+(?:\.\d+)?)(?![\d.])")

# The first bytes of each output format.
SIGNATURES = {
    "png": b"\x89PNG\r\n\x1a\n", "confidence": b"\x89PNG\r\n\x1a\n", "overlay": b"\xff\xd8\xff", "npy": b"\x93NUMPY",
    "json": b"{", "events": b"{", "npz": b"PK\3\4", "csv": b"onset,", "nifti": b"\x1f\x8b", "tiff": b"II",
}  # fmt: skip


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


def masks_from_batch_zip(
    content: bytes, items: Sequence[Any], read: Callable[..., Mask], **fields: Any
) -> list[Mask | ServiceError]:
    """The labels or the error of each recording or volume, from the zip file of a batch.

    `read`: `SignalMask.from_npz` or `VolumeMask.from_npz`. `fields`: of Mask.
    """
    masks: list[Mask | ServiceError] = []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("expected a zip file without compression")
        for entry, item in zip(json.loads(archive.read("manifest.json")), items, strict=True):
            data = archive.read(entry["file"])
            if entry["status"] == 200:
                masks.append(read(data, image=item, **fields))
            else:
                masks.append(error_from_problem(json.loads(data)))
    return masks


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


def check_format(content: bytes, format: str) -> bytes:
    """The response, if it begins as the output format does. Raises: ValueError."""
    signature = SIGNATURES.get(format, b"")
    if not content.startswith(signature):
        raise ValueError(f"expected the format {format}, got bytes that begin with {content[:8]!r}")
    return content


def read_result(result: Any) -> dict[str, Any]:
    """The service's `json` output, if it has a size and classes. Raises: TypeError, LookupError."""
    if "shape" in result:
        if not all(isinstance(length, int) for length in result["shape"]):
            raise TypeError("expected lengths in voxels")
    elif not isinstance(result["height"], int) or not isinstance(result["width"], int):
        raise TypeError("expected height and width in pixels")
    if not all(isinstance(entry, dict) for entry in result["classes"]):
        raise TypeError("expected a list of classes")
    return dict(result)


def read_model_entry(entry: Any) -> dict[str, Any]:
    """An entry of /v1/models, if it has a name, a hash and classes. Raises: TypeError, LookupError."""
    names = [entry["name"], entry["hash"], *(class_["name"] for class_ in entry["spec"]["classes"])]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("expected a name, a hash and the names of classes")
    return dict(entry)


def entry_model_tag(entry: dict[str, Any]) -> str:
    """The same for an entry of /v1/models."""
    return f"{quote(entry['name'])}@{entry['hash'][:12]}"
