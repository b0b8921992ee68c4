"""Starts a job for a request with `Prefer: respond-async`: 202 with the address of its result."""

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.access_log import add_log_fields, request_id, write_job_log
from service.auth import hash_api_key, request_key
from service.forwarding import PREFIX_KEY
from service.jobs import Job
from service.responses import drop_frames, job_accepted_response, to_problem
from service.segmentation import SegmentationService


async def start_job(
    request: Request,
    segmentation: SegmentationService,
    cost: float,
    segment: Callable[[], Awaitable[tuple[Response, dict[str, Any]]]],
) -> Response:
    """Start `segment`, which returns the response and the fields of the log. The job holds a place in the queue until it ends.

    Raises: OverloadedError if queue or store are full.
    """
    assert segmentation.jobs is not None  # `is_job` was true
    store, run_in_thread = segmentation.jobs.store, segmentation.run_in_thread
    owner, id = job_owner(request), request_id()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(segmentation.admission.acquire("queue", cost=cost))
        job: Job = await run_in_thread(lambda: store.create(owner, id))
        place = stack.pop_all()

    async def work() -> None:
        start, status, fields = time.perf_counter(), 200, dict[str, Any]()
        async with place:
            try:
                response, fields = await segment()
                names = ("X-Model", "Server-Timing")
                headers = {name: response.headers[name] for name in names}
                media_type, result = response.headers["content-type"], bytes(response.body)
                await run_in_thread(lambda: store.finish(job, result, media_type, headers))
            except OSError:  # the job was deleted, or the disk is full
                raise
            except Exception as error:
                problem, headers = to_problem(error)
                status = problem.status
                drop_frames(error)
                await run_in_thread(lambda: store.fail(job, problem.model_dump(), headers))
        if segmentation.settings.access_log:
            write_job_log(job.id, status, time.perf_counter() - start, **fields)

    segmentation.jobs.start(job, work)
    add_log_fields(job=job.id)
    return job_accepted_response(job, request.scope.get(PREFIX_KEY, ""))


def job_owner(request: Request) -> str:
    """Whose job it is: the hash of the request's key; empty if the service needs none."""
    needs_keys = bool(request.app.state.segmentation.settings.api_keys)
    return hash_api_key(request_key(request.headers)) if needs_keys else ""
