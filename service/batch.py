"""Many images in one request: each has its own answer, and a bad one spoils no other."""

import asyncio
import io
import json
import zipfile
from collections.abc import Awaitable, Callable

from models.outputs import OUTPUT_FORMATS
from service.errors import MalformedRequestError, ResponseTooLargeError
from service.responses import Problem, to_problem

ZIP_MEDIA_TYPE = "application/zip"

# One is decoded while another is inferred. With more, a batch would push aside those who ask for one image.
BATCH_CONCURRENCY = 2

Outcome = bytes | Problem


async def segment_all(
    images: list[bytes | MalformedRequestError], label: Callable[[bytes], Awaitable[bytes]], max_bytes: int
) -> list[Outcome]:
    """The answer to each image in their order, or the problem that it met; of all answers some `most` bytes."""
    room, left = asyncio.Semaphore(BATCH_CONCURRENCY), max_bytes

    async def one(image: bytes | MalformedRequestError) -> Outcome:
        nonlocal left
        async with room:
            try:
                if left <= 0:
                    raise ResponseTooLargeError(
                        f"The answers before this one have {max_bytes:,} bytes already; send fewer images."
                    )
                if isinstance(image, MalformedRequestError):
                    raise image
                answer = await label(image)
                left -= len(answer)
                return answer
            except Exception as error:  # every kind has its problem, and what is none of ours is logged there
                return to_problem(error)[0]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(image)) for image in images]
    return [task.result() for task in tasks]


def pack(outcomes: list[Outcome], format: str) -> tuple[bytes, str]:
    """All of them as one body, and its media type."""
    if format == "json":
        return as_json(outcomes), OUTPUT_FORMATS[format].MEDIA_TYPE
    return as_zip(outcomes, OUTPUT_FORMATS[format].SUFFIX), ZIP_MEDIA_TYPE


def as_zip(outcomes: list[Outcome], suffix: str) -> bytes:
    """A zip with a file for each image, named by its place: `007.png`, or `007.problem.json`."""
    width, buffer = len(str(len(outcomes) - 1)), io.BytesIO()
    # Stored, for the masks are compressed already.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, bytes):
                archive.writestr(f"{place:0{width}}{suffix}", outcome)
            else:
                archive.writestr(f"{place:0{width}}.problem.json", outcome.model_dump_json(indent=2))
    return buffer.getvalue()


def as_json(outcomes: list[Outcome]) -> bytes:
    """A JSON array of {"index", "status", and "result" or "problem"}; the outcomes are JSON documents already."""
    entries = []
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, bytes):
            entries.append(b'{"index":%d,"status":200,"result":%s}' % (place, outcome))
        else:
            entry = {"index": place, "status": outcome.status, "problem": outcome.model_dump()}
            entries.append(json.dumps(entry).encode())
    return b"[" + b",".join(entries) + b"]"
