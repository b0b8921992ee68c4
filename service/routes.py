"""The routes under /v1, thin: what a request asks for, and what is answered."""

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, TypeVar, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from models.outputs import OUTPUT_FORMATS
from models.spec import BundleSpec
from service import batch, params, request_parsing, responses
from service.access_log import add_log_fields
from service.metrics import get_metrics
from service.middleware import ErrorMiddleware
from service.model_registry import LoadedModel
from service.params import SegmentParams
from service.segmentation import SegmentationService, StageTimer

Result = TypeVar("Result")

# With FastAPI's own class the page at /docs would take its scripts from an outside address.
api: FastAPI = FastAPIOffline(
    title="maskserve",
    version="1",
    description="Images in, one label a pixel out. Every error is `application/problem+json` (RFC 9457), with a request id.",
    redoc_url=None,
    swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    static_url="/docs/assets",
    redirect_slashes=False,
)
api.add_middleware(ErrorMiddleware)


class ModelInfo(BaseModel):
    """A bundle that is served."""

    name: str
    hash: str = Field(description="sha256 of the bundle's SHA256SUMS; X-Model carries its first 12 digits")
    spec: BundleSpec = Field(description="classes with their colours, input rule, metrics, provenance")
    palette: list[tuple[int, int, int]] = Field(description="256 colours by label, RGB, as in the masks")
    engine: str
    device: str
    precision: str
    reason: str = Field(description="what led to this engine, device and precision")
    threads: int = Field(description="cores for one inference; 0: as many as the engine finds good")


BINARY_SCHEMA: dict[str, Any] = {"type": "string", "format": "binary"}
IMAGE_SCHEMA = {**BINARY_SCHEMA, "description": "the bytes of a JPEG, PNG, WebP, TIFF, BMP or AVIF"}
MAX_RESPONSE_BODIES = 4  # a batch's answer may be so many times as large as a body
COMMON_ERROR_STATUSES = (400, 401, 408, 413, 429, 500, 503, 504)
_PARAMETERS = params.openapi_parameters()


def _form_schema(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A form with an image field, and the parameters beside it."""
    parameters = {entry["name"]: {**entry["schema"], "description": entry["description"]} for entry in _PARAMETERS}
    return {"schema": {"type": "object", "properties": {name: schema, **parameters}, "required": [name]}}


def _request_schema(body: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": _PARAMETERS, "requestBody": {"required": True, "content": body}}


@api.post(
    "/segment",
    tags=["images"],
    summary="Label every pixel of an image",
    response_class=Response,
    responses={
        200: {
            "description": "Of exactly the upright image's size. What was left out is void: label 255, transparent.\n"
            "- `png`: an indexed PNG, each pixel its label\n- `overlay`: the classes' colours over the image, a JPEG\n"
            "- `confidence`: a grey PNG, 255 for a softmax probability of 1\n- `npy`: uint8 H x W for numpy.load\n"
            "- `json`: the classes that are there, with pixels, share, box and mask",
            "content": {output.MEDIA_TYPE: {} for output in OUTPUT_FORMATS.values()},
        },
        **responses.error_responses(*COMMON_ERROR_STATUSES, 404, 415, 422),
    },
    openapi_extra=_request_schema(
        {
            "multipart/form-data": _form_schema(request_parsing.IMAGE_FIELD, IMAGE_SCHEMA),
            "image/*": {"schema": BINARY_SCHEMA},
        }
    ),
)
async def segment(request: Request) -> Response:
    """Send the image as the raw body, whatever its content type, or as the file `image` of a form.

    Parameters stand in the query or in the form. Transparent images are laid on white.
    """
    labeller, clock = get_segmentation(request), StageTimer()
    by_query = _parse_query(request)
    with labeller.admission.upload_slot():
        image, form = await request_parsing.parse_image_request(request, labeller.settings.max_body_bytes)
    clock.lap("read")
    asked, served = _resolve_params(request, by_query, form)
    options = asked.output_options(served.bundle.spec)
    with labeller.admission.queue_slot():
        deadline = asyncio.get_running_loop().time() + labeller.settings.timeout_seconds
        body = await _cancel_on_disconnect(
            request, labeller.segment(image, asked.format, options, served, clock, deadline)
        )
    _record_image(served, asked.format, clock)
    return responses.prediction_response(
        body, OUTPUT_FORMATS[asked.format].MEDIA_TYPE, served.bundle, clock.milliseconds
    )


@api.post(
    "/segment/batch",
    tags=["images"],
    summary="Label many images",
    response_class=Response,
    responses={
        200: {
            "description": "One entry for each image, in their order; a bad one gets its problem and spoils no other.\n"
            "- for `format=json`: an array of {index, status, result or problem}\n"
            "- else a zip: `0.png` or whatever the format is, or `0.problem.json`",
            "content": {batch.ZIP_MEDIA_TYPE: {}, "application/json": {}},
        },
        **responses.error_responses(*COMMON_ERROR_STATUSES, 404),
    },
    openapi_extra=_request_schema(
        {"multipart/form-data": _form_schema(request_parsing.IMAGES_FIELD, {"type": "array", "items": IMAGE_SCHEMA})}
    ),
)
async def segment_batch(request: Request) -> Response:
    """Send each image as a file `images` of one form; parameters as for /segment, and for all of them."""
    labeller, clock = get_segmentation(request), StageTimer()
    settings = labeller.settings
    by_query = _parse_query(request)
    with labeller.admission.upload_slot():
        sent = await request_parsing.parse_batch_request(request, settings.max_body_bytes, settings.max_images)
    clock.lap("read")
    asked, served = _resolve_params(request, by_query, sent.parameters)
    options = asked.output_options(served.bundle.spec)
    deadline = asyncio.get_running_loop().time() + settings.timeout_seconds

    async def label(image: bytes) -> bytes:
        laps = StageTimer()
        body = await labeller.segment(image, asked.format, options, served, laps, deadline, ignore_queue_timeout=True)
        get_metrics().count_image(served.bundle.spec.name, asked.format, laps.milliseconds)
        return body

    with labeller.admission.queue_slot(min(batch.BATCH_CONCURRENCY, len(sent.images))):
        most = MAX_RESPONSE_BODIES * settings.max_body_bytes
        outcomes = await _cancel_on_disconnect(request, batch.segment_all(sent.images, label, most))
        clock.lap("work")
        add_log_fields(model=responses.model_tag(served.bundle), format=asked.format, images=len(outcomes))
        body, kind = await labeller.run_in_thread(lambda: batch.pack(outcomes, asked.format))
        clock.lap("pack")
    return responses.prediction_response(body, kind, served.bundle, clock.milliseconds)


@api.get("/models", tags=["models"], summary="What is served", responses=responses.error_responses(401, 500, 503))
async def list_models(request: Request) -> list[ModelInfo]:
    """Each bundle's name, hash, spec (classes, colours, input rule, metrics), and what runs it here."""
    labeller = get_segmentation(request)
    labeller.registry.check_ready()
    return [_model_info(served, labeller) for served in labeller.registry.loaded_models()]


@api.get(
    "/models/{name:path}",
    tags=["models"],
    summary="One of them",
    responses=responses.error_responses(401, 404, 500, 503),
)
async def get_model(request: Request, name: str) -> ModelInfo:
    """As in /models."""
    labeller = get_segmentation(request)
    return _model_info(labeller.registry.get(name), labeller)


def openapi_schema() -> dict[str, Any]:
    """The interface as OpenAPI: FastAPI's, with what is common to all routes, problems and keys."""
    if api.openapi_schema is None:
        schema = get_openapi(
            title=api.title, version=api.version, description=api.description, routes=api.routes,
            servers=[{"url": "/v1"}],
        )  # fmt: skip
        # FastAPI puts an error of its own beside each parameter; what is wrong with a parameter is a problem here.
        del schema["paths"]["/models/{name}"]["get"]["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            del schema["components"]["schemas"][name]
        schema["components"]["schemas"]["Problem"] = responses.Problem.model_json_schema()
        schema["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        schema["security"] = [{}, {"bearer": []}, {"header": []}]  # none is needed where the service has no keys
        api.openapi_schema = schema
    return api.openapi_schema


api.openapi = openapi_schema  # type: ignore[method-assign]  # FastAPI's own way to extend it


def get_segmentation(request: Request) -> SegmentationService:
    """The labeller of this process, which the service's start put here."""
    return cast(SegmentationService, request.app.state.labeller)


def route_paths() -> list[str]:
    """Every path that is here but those of single models, as they stand under /v1."""
    found = [route.path for route in api.routes if isinstance(route, Route) and "{" not in route.path]
    assets = next(route.path for route in api.routes if isinstance(route, Mount))
    return found + [f"{assets}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")]


def _parse_query(request: Request) -> SegmentParams:
    """What the query asks for; what is wrong already needs no body. Raises: BadRequest, UnknownModel, NotReady."""
    shelf, asked = get_segmentation(request).registry, SegmentParams.parse(request.query_params.multi_items())
    if asked.model is None:  # the form may name it
        shelf.check_ready()
    else:
        shelf.get(asked.model)
    return asked


def _resolve_params(
    request: Request, by_query: SegmentParams, form: list[tuple[str, str]]
) -> tuple[SegmentParams, LoadedModel]:
    """What query and form ask for together, and the bundle that it is asked of."""
    asked = SegmentParams.parse(request.query_params.multi_items(), form) if form else by_query
    return asked, get_segmentation(request).registry.get(asked.model)


def _record_image(served: LoadedModel, format: str, clock: StageTimer) -> None:
    get_metrics().count_image(served.bundle.spec.name, format, clock.milliseconds)
    stages = {stage: round(spent, 2) for stage, spent in clock.milliseconds.items()}
    add_log_fields(model=responses.model_tag(served.bundle), format=format, stages=stages)


def _model_info(served: LoadedModel, labeller: SegmentationService) -> ModelInfo:
    spec = served.bundle.spec
    return ModelInfo(
        name=spec.name, hash=served.bundle.hash, spec=spec, palette=spec.palette(), threads=labeller.threads,
        **asdict(served.choice),
    )  # fmt: skip


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, and leave off where the caller closes the connection before. Raises: ClientDisconnect."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may have failed just then


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@api.exception_handler(HTTPException)
async def _http_error(request: Request, error: Exception) -> Response:
    return responses.problem_response(error)
