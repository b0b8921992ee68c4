"""Many images in one request: each gets its own result, and an invalid image does not affect the others."""

import asyncio
import io
import json
import zipfile
from collections.abc import Awaitable, Callable

from models.outputs import OUTPUT_FORMATS
from service.errors import MalformedRequestError, ResponseTooLargeError
from service.responses import Problem, to_problem

ZIP_MEDIA_TYPE = "application/zip"

# One image is decoded while another is in inference. With more, a batch would delay requests for single images.
BATCH_CONCURRENCY = 2

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
                return to_problem(error)[0]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(segment_one(image)) for image in images]
    return [task.result() for task in tasks]


def pack(outcomes: list[Outcome], format: str) -> tuple[bytes, str]:
    """Pack all outcomes into one body. Returns: the body and its media type."""
    if format == "json":
        return as_json(outcomes), OUTPUT_FORMATS[format].MEDIA_TYPE
    return as_zip(outcomes, OUTPUT_FORMATS[format].SUFFIX), ZIP_MEDIA_TYPE


def as_zip(outcomes: list[Outcome], suffix: str) -> bytes:
    """A zip with a file per image, named by its index: `007.png`, or `007.problem.json`."""
    digits, buffer = len(str(len(outcomes) - 1)), io.BytesIO()
    # Stored without compression: the masks are compressed already.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, bytes):
                archive.writestr(f"{index:0{digits}}{suffix}", outcome)
            else:
                archive.writestr(f"{index:0{digits}}.problem.json", outcome.model_dump_json(indent=2))
    return buffer.getvalue()


def as_json(outcomes: list[Outcome]) -> bytes:
    """A JSON array of {"index", "status", and "result" or "problem"}; the masks are JSON documents already."""
    entries = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, bytes):
            entries.append(b'{"index":%d,"status":200,"result":%s}' % (index, outcome))
        else:
            entry = {"index": index, "status": outcome.status, "problem": outcome.model_dump()}
            entries.append(json.dumps(entry).encode())
    return b"[" + b",".join(entries) + b"]"
