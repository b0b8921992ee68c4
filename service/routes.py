"""The routes under /v1."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict
from types import ModuleType
from typing import Any, TypeVar, cast

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from models.bundle import Bundle
from models.errors import BundleError, CorruptImageError, UnsupportedFormatError, quoted
from models.outputs import OUTPUT_FORMATS
from models.outputs.options import OutputOptions
from models.outputs.pipeline import SegmentationPipeline
from models.outputs.pipelines import make_pipeline
from models.spec import BundleSpec
from service import batch, openapi, responses
from service.access_log import add_log_fields
from service.api_docs import add_docs_routes
from service.body_hints import explain_body
from service.errors import MalformedRequestError, UnknownPathError
from service.explain import ExplainParams, ExplainPipeline
from service.job_requests import job_owner, start_job
from service.jobs import JOB_KEY
from service.metrics import get_metrics
from service.model_registry import LoadedModel
from service.request_parsing import (
    Parameters,
    SegmentParams,
    parse_batch_request,
    parse_image_request,
    parse_parameters,
)
from service.segmentation import SegmentationService, StageTimer

Result = TypeVar("Result")

PROBES_FOLDER = "probes/"  # of a bundle
MAX_RESPONSE_BODIES = 4  # size limit of a batch's response, as a multiple of the limit of a body


class ModelInfo(BaseModel):
    """A bundle that is served."""

    name: str
    hash: str = Field(description="sha256 of the bundle's SHA256SUMS; X-Model carries its first 12 digits")
    spec: BundleSpec = Field(description="classes with their colors, input rule, metrics, provenance")
    palette: list[tuple[int, int, int]] = Field(description="256 colors by label, RGB, as in the masks")
    engine: str
    device: str
    precision: str
    reason: str = Field(description="why this engine, device and precision were chosen")
    examples: list[str] = Field(description="names of its example images, at /v1/examples/MODEL/NAME")
    explain: bool = Field(description="whether /v1/explain exists")
    threads: int = Field(description="cores for one inference; 0: the engine chooses")


def create_api(segmentation: SegmentationService) -> FastAPI:
    """The routes under /v1, with their documentation at /v1/docs.

    FastAPI's own middleware is left out: errors and limits are handled in `service/middleware.py`.
    """
    api = FastAPI(
        title="maskserve", version="1", description=openapi.DESCRIPTION, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    api.state.segmentation = segmentation
    api.post("/segment", **openapi.SEGMENT_ROUTE)(segment)
    api.post("/segment/batch", **openapi.BATCH_ROUTE)(segment_batch)
    if segmentation.settings.explain:
        api.post("/explain", **openapi.EXPLAIN_ROUTE)(explain)
    if segmentation.jobs is not None:
        api.get("/jobs/{job_id}", **openapi.JOB_ROUTE)(get_job)
        api.delete("/jobs/{job_id}", **openapi.DELETE_JOB_ROUTE)(delete_job)
    api.get("/models", **openapi.MODELS_ROUTE)(list_models)
    api.get("/models/{name:path}", **openapi.MODEL_ROUTE)(get_model)
    api.get("/examples/{name:path}/{file}", **openapi.EXAMPLE_ROUTE)(get_example)
    add_docs_routes(api, keys_needed=bool(segmentation.settings.api_keys))
    api.middleware_stack = AsyncExitStackMiddleware(api.router)
    return api


async def segment(request: Request) -> Response:
    """Send the image, recording or volume as the raw body, with any content type, or as the file `image` of a form.

    Parameters are given in the query or in the form. Transparent images are composited on white. A WFDB record is sent as a zip
    file of its header and signal files, a DICOM series as a zip file of its images.
    """
    segmentation, timer = _segmentation(request), StageTimer()
    settings, admission = segmentation.settings, segmentation.admission
    is_job = segmentation.is_job(request.headers)
    image, params, model = await _receive(
        request, lambda: parse_image_request(request, settings.max_body_bytes), is_job
    )
    timer.lap("read")
    pipeline = _make_pipeline(segmentation, params, model)
    name, output = _output_format(pipeline)
    cost = pipeline.estimate_cost(len(image))

    async def segment_image() -> tuple[Response, dict[str, Any]]:
        """The response, and the fields of the log."""
        seconds = settings.job_timeout_seconds if is_job else settings.timeout_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            mask = await segmentation.segment(image, pipeline, timer, deadline, is_job=is_job)
        except (UnsupportedFormatError, CorruptImageError) as error:
            explained = explain_body(error, request.headers.get("content-type", ""), image)
            raise explained from (None if explained is error else error)
        get_metrics().count_image(pipeline.spec.name, name, timer.milliseconds)
        stages = {stage: round(spent, 2) for stage, spent in timer.milliseconds.items()}
        fields = {"model": responses.model_tag(model.bundle), "format": name, "stages": stages}
        return responses.prediction_response(mask, output.MEDIA_TYPE, model.bundle, timer.milliseconds), fields

    if is_job:
        return await start_job(request, segmentation, cost, segment_image)
    async with admission.acquire("queue", cost=cost):
        response, fields = await _cancel_on_disconnect(request, segment_image())
    add_log_fields(**fields)
    return response


async def get_job(request: Request, job_id: str) -> Response:
    """The state of a job while it runs (202); then the response of its request, its error included."""
    segmentation = _segmentation(request)
    assert segmentation.jobs is not None  # else there is no such route
    store, owner = segmentation.jobs.store, job_owner(request)
    job, result = await segmentation.run_in_thread(lambda: store.read(request.scope[JOB_KEY], owner))
    return responses.job_response(job, result)


async def delete_job(request: Request, job_id: str) -> Response:
    """Delete a job and its result; a job that runs is stopped."""
    segmentation = _segmentation(request)
    assert segmentation.jobs is not None  # else there is no such route
    store, owner = segmentation.jobs.store, job_owner(request)
    job, _ = await segmentation.run_in_thread(lambda: store.read(request.scope[JOB_KEY], owner))
    await segmentation.run_in_thread(lambda: store.delete(job))
    return Response(status_code=204)


async def explain(request: Request) -> Response:
    """Send the image as for /segment; the parameters are given in the query."""
    segmentation, timer = _segmentation(request), StageTimer()
    settings, admission = segmentation.settings, segmentation.admission
    params = parse_parameters(ExplainParams, request.query_params.multi_items())
    model = segmentation.registry.get(params.model)
    async with admission.acquire("upload"):
        image, form = await parse_image_request(request, settings.max_body_bytes)
    if form:
        raise MalformedRequestError(f"The form has the field {quoted(form[0][0][:80])}. Give parameters in the query.")
    timer.lap("read")
    pipeline = ExplainPipeline(
        model.segmenter,
        model.bundle.spec,
        None,
        OutputOptions(),
        settings.max_pixels,
        view=params.view,
        point=params.point(),
    )
    async with admission.acquire("queue"):
        deadline = asyncio.get_running_loop().time() + settings.timeout_seconds
        content = await _cancel_on_disconnect(request, segmentation.segment(image, pipeline, timer, deadline))
    add_log_fields(model=responses.model_tag(model.bundle), view=params.view)
    return responses.prediction_response(content, "application/json", model.bundle, timer.milliseconds)


async def segment_batch(request: Request) -> Response:
    """Send each image as a file `images` of one form, with parameters as for /segment, which apply to all of them."""
    segmentation, timer = _segmentation(request), StageTimer()
    settings, admission = segmentation.settings, segmentation.admission
    received, params, model = await _receive(
        request, lambda: parse_batch_request(request, settings.max_body_bytes, settings.max_images)
    )
    timer.lap("read")
    pipeline = _make_pipeline(segmentation, params, model)
    name, output = _output_format(pipeline)
    deadline = asyncio.get_running_loop().time() + settings.timeout_seconds

    async def segment_one(image: bytes) -> bytes:
        stages = StageTimer()
        mask = await segmentation.segment(image, pipeline, stages, deadline, ignore_queue_timeout=True)
        get_metrics().count_image(pipeline.spec.name, name, stages.milliseconds)
        return mask

    sizes = [len(image) for image in received.images if isinstance(image, bytes)]
    cost = pipeline.estimate_cost(max(sizes, default=0))
    async with admission.acquire("queue", count=min(batch.BATCH_CONCURRENCY, len(received.images)), cost=cost):
        max_bytes = MAX_RESPONSE_BODIES * settings.max_body_bytes
        outcomes = await _cancel_on_disconnect(request, batch.segment_all(received.images, segment_one, max_bytes))
        timer.lap("work")
        add_log_fields(model=responses.model_tag(model.bundle), format=name, images=len(outcomes))
        body, media_type = await segmentation.run_in_thread(lambda: batch.pack(outcomes, received.names, output))
        timer.lap("pack")
    return responses.prediction_response(body, media_type, model.bundle, timer.milliseconds)


async def list_models(request: Request) -> list[ModelInfo]:
    """The name, hash and spec (classes, colors, input rule, metrics) of each bundle, and the engine that runs it."""
    segmentation = _segmentation(request)
    segmentation.registry.check_ready()
    return [_model_info(model, segmentation) for model in segmentation.registry.loaded_models()]


async def get_model(request: Request, name: str) -> ModelInfo:
    """As in /models."""
    segmentation = _segmentation(request)
    return _model_info(segmentation.registry.get(name), segmentation)


async def get_example(request: Request, name: str, file: str) -> Response:
    """An image of the bundle, whose labels it verifies before it is served."""
    segmentation = _segmentation(request)
    bundle = segmentation.registry.get(name).bundle
    if file in _example_names(bundle):
        with suppress(BundleError, OSError):  # its folder was removed or is being replaced
            image = await segmentation.run_in_thread(lambda: bundle.verify_file(f"{PROBES_FOLDER}{file}").read_bytes())
            return Response(image, media_type=_example_type(file), headers={"Cache-Control": "private, max-age=3600"})
    raise UnknownPathError(
        f"{quoted(name[:80])} has no example {quoted(file[:80])}. /v1/models lists the examples of each model."
    )


def _example_names(bundle: Bundle) -> list[str]:
    images = (name for name in bundle.checksums if name.startswith(PROBES_FOLDER) and ".labels." not in name)
    return sorted(name.removeprefix(PROBES_FOLDER) for name in images)


def _example_type(file: str) -> str:
    return "image/png" if file.endswith(".png") else "application/octet-stream"


def _segmentation(request: Request) -> SegmentationService:
    return cast(SegmentationService, request.app.state.segmentation)


async def _receive(
    request: Request, parse: Callable[[], Awaitable[tuple[Result, Parameters]]], is_job: bool = False
) -> tuple[Result, SegmentParams, LoadedModel]:
    """Receive the body of a request. Errors in the query are raised before.

    Returns: what `parse` returns, the parameters of query and form, and the model.
    Raises: MalformedRequestError, ModelNotServedError, NotReadyError, OverloadedError.
    """
    segmentation, query = _segmentation(request), request.query_params.multi_items()
    params = SegmentParams.parse(query)
    if params.model is None:  # the form may name it
        segmentation.registry.check_ready()
    else:
        segmentation.registry.get(params.model)
    async with segmentation.admission.acquire("upload", is_job=is_job):
        images, form = await parse()
    if form:
        params = SegmentParams.parse(query, form)
    return images, params, segmentation.registry.get(params.model)


def _make_pipeline(
    segmentation: SegmentationService, params: SegmentParams, model: LoadedModel
) -> SegmentationPipeline:
    """Raises: ConfigError for a class, a channel or a format that the model does not have, MalformedRequestError."""
    spec = model.bundle.spec
    return make_pipeline(
        model.segmenter, spec, params.output_format(spec.input.axes), params.output_options(),
        segmentation.settings.max_pixels, segmentation.settings.max_voxels,
    )  # fmt: skip


def _output_format(pipeline: SegmentationPipeline) -> tuple[str, ModuleType]:
    """The name and the module of a pipeline's output format."""
    assert pipeline.format is not None  # `_make_pipeline` sets it
    return pipeline.format, OUTPUT_FORMATS[pipeline.spec.input.axes][pipeline.format]


def _model_info(model: LoadedModel, segmentation: SegmentationService) -> ModelInfo:
    spec = model.bundle.spec
    return ModelInfo(
        name=spec.name, hash=model.bundle.hash, spec=spec, palette=spec.palette(), threads=segmentation.threads,
        examples=_example_names(model.bundle), explain=segmentation.settings.explain,
        **asdict(model.choice),
    )  # fmt: skip


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, and cancel it if the caller disconnects. Raises: ClientDisconnect."""
    task, disconnected = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        disconnected.cancel()
        task.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may have failed just then


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
