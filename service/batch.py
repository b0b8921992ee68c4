"""Many images in one request: each gets its own result, and an invalid image does not affect the others."""

import asyncio
import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType

from service.errors import MalformedRequestError, ResponseTooLargeError
from service.responses import Problem, drop_frames, to_problem

JSON_MEDIA_TYPE, ZIP_MEDIA_TYPE = "application/json", "application/zip"

# One image is decoded while another is in inference. With more, a batch would delay requests for single images.
BATCH_CONCURRENCY = 2

MANIFEST_FILE = "manifest.json"
MAX_STEM_CHARS = 60  # four bytes each at most: file systems take 255
_DEVICE_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)

Outcome = bytes | Problem


async def segment_all(
    images: list[bytes | MalformedRequestError], segment: Callable[[bytes], Awaitable[bytes]], max_bytes: int
) -> list[Outcome]:
    """The encoded mask of each image, in their order, or its problem. The masks have about `max_bytes` in all."""
    slots, bytes_left = asyncio.Semaphore(BATCH_CONCURRENCY), max_bytes

    async def segment_one(image: bytes | MalformedRequestError) -> Outcome:
        nonlocal bytes_left
        async with slots:
            try:
                if bytes_left <= 0:
                    raise ResponseTooLargeError(
                        f"The masks of the images before this one have {max_bytes:,} bytes already. Send fewer images."
                    )
                if isinstance(image, MalformedRequestError):
                    raise image
                mask = await segment(image)
                bytes_left -= len(mask)
                return mask
            except Exception as error:  # every kind has a problem; unexpected errors are logged there
                problem = to_problem(error)[0]
                drop_frames(error)
                return problem

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(segment_one(image)) for image in images]
    return [task.result() for task in tasks]


def pack(outcomes: list[Outcome], names: Sequence[str], output: ModuleType) -> tuple[bytes, str]:
    """Pack all outcomes into one body: JSON documents into an array, others into a zip file.

    `names`: of the images, as they were sent; `output`: their format, of `OUTPUT_FORMATS`. Returns: the body and its media type.
    """
    if output.MEDIA_TYPE == JSON_MEDIA_TYPE:
        return as_json(outcomes, names), JSON_MEDIA_TYPE
    return as_zip(outcomes, names, output.SUFFIX), ZIP_MEDIA_TYPE


def as_zip(outcomes: list[Outcome], names: Sequence[str], suffix: str) -> bytes:
    """A zip with a file per image, named after it: `photo.png`, or `photo.problem.json`; and `manifest.json`, which lists them."""
    buffer, manifest = io.BytesIO(), []
    # Stored without compression: the masks are compressed already.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for index, (outcome, stem) in enumerate(zip(outcomes, safe_stems(names), strict=True)):
            if isinstance(outcome, bytes):
                file, status, content = stem + suffix, 200, outcome
            else:
                file, status = f"{stem}.problem.json", outcome.status
                content = outcome.model_dump_json(indent=2).encode()
            archive.writestr(file, content)
            manifest.append({"index": index, "image": names[index], "file": file, "status": status})
        archive.writestr(MANIFEST_FILE, json.dumps(manifest, indent=2))
    return buffer.getvalue()


def as_json(outcomes: list[Outcome], names: Sequence[str]) -> bytes:
    """A JSON array of {"index", "image", "status", and "result" or "problem"}; the masks are JSON documents already."""
    entries = []
    for index, outcome in enumerate(outcomes):
        start = b'{"index":%d,"image":%s,"status":' % (index, json.dumps(names[index]).encode())
        if isinstance(outcome, bytes):
            entries.append(b'%s200,"result":%s}' % (start, outcome))
        else:
            entries.append(b'%s%d,"problem":%s}' % (start, outcome.status, outcome.model_dump_json().encode()))
    return b"[" + b",".join(entries) + b"]"


def safe_stems(names: Sequence[str]) -> list[str]:
    """A file name without suffix for each image: its base name, which any system can unpack, and no two that differ only in case.

    A name comes from the caller's machine or from an attacker: it may hold folders, control characters or a device of Windows.
    """
    taken: set[str] = set()
    stems = []
    for index, name in enumerate(names):
        base = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
        base = re.sub(r"(\.nii)?\.\w{1,5}$", "", base)
        base = re.sub(r"[^\w .()+,=@~-]", "_", base)[:MAX_STEM_CHARS].strip(" .") or str(index)
        if _DEVICE_OF_WINDOWS.fullmatch(base.partition(".")[0]):
            base = f"_{base}"
        stem, number = base, 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{base}-{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems
