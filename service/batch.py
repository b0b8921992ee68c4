"""Many pictures in one request: each has its own answer, and a bad one spoils no other."""

import asyncio
import io
import json
import zipfile
from collections.abc import Awaitable, Callable

from models.outputs import OUTPUTS
from service.errors import AnswerTooLarge, BadRequest
from service.responses import Problem, explained

ZIP = "application/zip"

# One is decoded while another is inferred. With more, a batch would push aside those who ask for one picture.
AT_ONCE = 2

Outcome = bytes | Problem


async def each(
    pictures: list[bytes | BadRequest], label: Callable[[bytes], Awaitable[bytes]], most: int
) -> list[Outcome]:
    """The answer to each picture in their order, or the problem that it met; of all answers some `most` bytes."""
    room, left = asyncio.Semaphore(AT_ONCE), most

    async def one(picture: bytes | BadRequest) -> Outcome:
        nonlocal left
        async with room:
            try:
                if left <= 0:
                    raise AnswerTooLarge(
                        f"The answers before this one have {most:,} bytes already; send fewer pictures."
                    )
                if isinstance(picture, BadRequest):
                    raise picture
                answer = await label(picture)
                left -= len(answer)
                return answer
            except Exception as error:  # every kind has its problem, and what is none of ours is logged there
                return explained(error)[0]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(picture)) for picture in pictures]
    return [task.result() for task in tasks]


def packed(outcomes: list[Outcome], format: str) -> tuple[bytes, str]:
    """All of them as one body, and its media type."""
    if format == "json":
        return as_json(outcomes), OUTPUTS[format].MEDIA_TYPE
    return as_zip(outcomes, OUTPUTS[format].SUFFIX), ZIP


def as_zip(outcomes: list[Outcome], suffix: str) -> bytes:
    """A zip with a file for each picture, named by its place: `007.png`, or `007.problem.json`."""
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
