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

from models.outputs import OUTPUTS
from models.spec import Spec
from service import batch, params, request_parsing, responses
from service.access_log import note
from service.metrics import metrics
from service.middleware import Net
from service.model_registry import Served
from service.params import Wishes
from service.segmentation import Clock, Labeller

Result = TypeVar("Result")

# With FastAPI's own class the page at /docs would take its scripts from an outside address.
api: FastAPI = FastAPIOffline(
    title="maskserve",
    version="1",
    description="Pictures in, one label a pixel out. Every error is `application/problem+json` (RFC 9457), with a request id.",
    redoc_url=None,
    swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    static_url="/docs/assets",
    redirect_slashes=False,
)
api.add_middleware(Net)


class Model(BaseModel):
    """A bundle that is served."""

    name: str
    hash: str = Field(description="sha256 of the bundle's SHA256SUMS; X-Model carries its first 12 digits")
    spec: Spec = Field(description="classes with their colours, input rule, metrics, provenance")
    palette: list[tuple[int, int, int]] = Field(description="256 colours by label, RGB, as in the masks")
    engine: str
    device: str
    precision: str
    why: str = Field(description="what led to this engine, device and precision")
    threads: int = Field(description="cores for one inference; 0: as many as the engine finds good")


FILE: dict[str, Any] = {"type": "string", "format": "binary"}
PICTURE = {**FILE, "description": "the bytes of a JPEG, PNG, WebP, TIFF, BMP or AVIF"}
ANSWER_OF_BODIES = 4  # a batch's answer may be so many times as large as a body
REFUSED = (400, 401, 408, 413, 429, 500, 503, 504)
_WISHES = params.documented()


def _form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A form with a picture field, and the parameters beside it."""
    parameters = {entry["name"]: {**entry["schema"], "description": entry["description"]} for entry in _WISHES}
    return {"schema": {"type": "object", "properties": {name: schema, **parameters}, "required": [name]}}


def _asks(body: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": _WISHES, "requestBody": {"required": True, "content": body}}


@api.post(
    "/segment",
    tags=["pictures"],
    summary="Label every pixel of a picture",
    response_class=Response,
    responses={
        200: {
            "description": "Of exactly the upright picture's size. What was left out is void: label 255, transparent.\n"
            "- `png`: an indexed PNG, each pixel its label\n- `overlay`: the classes' colours over the picture, a JPEG\n"
            "- `confidence`: a grey PNG, 255 for a softmax probability of 1\n- `npy`: uint8 H x W for numpy.load\n"
            "- `json`: the classes that are there, with pixels, share, box and mask",
            "content": {output.MEDIA_TYPE: {} for output in OUTPUTS.values()},
        },
        **responses.documented(*REFUSED, 404, 415, 422),
    },
    openapi_extra=_asks({"multipart/form-data": _form(request_parsing.ONE, PICTURE), "image/*": {"schema": FILE}}),
)
async def segment(request: Request) -> Response:
    """Send the picture as the raw body, whatever its content type, or as the file `image` of a form.

    Parameters stand in the query or in the form. Transparent pictures are laid on white.
    """
    labeller, clock = labeller_of(request), Clock()
    by_query = _check_query(request)
    with labeller.line.upload():
        picture, form = await request_parsing.one_picture(request, labeller.settings.max_body_bytes)
    clock.lap("read")
    asked, served = _asked(request, by_query, form)
    options = asked.options(served.bundle.spec)
    with labeller.line.place():
        deadline = asyncio.get_running_loop().time() + labeller.settings.timeout_seconds
        body = await _unless_gone(request, labeller.label(picture, asked.format, options, served, clock, deadline))
    _note(served, asked.format, clock)
    return responses.picture(body, OUTPUTS[asked.format].MEDIA_TYPE, served.bundle, clock.laps)


@api.post(
    "/segment/batch",
    tags=["pictures"],
    summary="Label many pictures",
    response_class=Response,
    responses={
        200: {
            "description": "One entry for each picture, in their order; a bad one gets its problem and spoils no other.\n"
            "- for `format=json`: an array of {index, status, result or problem}\n"
            "- else a zip: `0.png` or whatever the format is, or `0.problem.json`",
            "content": {batch.ZIP: {}, "application/json": {}},
        },
        **responses.documented(*REFUSED, 404),
    },
    openapi_extra=_asks({"multipart/form-data": _form(request_parsing.MANY, {"type": "array", "items": PICTURE})}),
)
async def segment_batch(request: Request) -> Response:
    """Send each picture as a file `images` of one form; parameters as for /segment, and for all of them."""
    labeller, clock = labeller_of(request), Clock()
    settings = labeller.settings
    by_query = _check_query(request)
    with labeller.line.upload():
        sent = await request_parsing.many_pictures(request, settings.max_body_bytes, settings.max_images)
    clock.lap("read")
    asked, served = _asked(request, by_query, sent.parameters)
    options = asked.options(served.bundle.spec)
    deadline = asyncio.get_running_loop().time() + settings.timeout_seconds

    async def label(picture: bytes) -> bytes:
        laps = Clock()
        body = await labeller.label(picture, asked.format, options, served, laps, deadline, patient=True)
        metrics().labelled(served.bundle.spec.name, asked.format, laps.laps)
        return body

    with labeller.line.place(min(batch.AT_ONCE, len(sent.pictures))):
        most = ANSWER_OF_BODIES * settings.max_body_bytes
        outcomes = await _unless_gone(request, batch.each(sent.pictures, label, most))
        clock.lap("work")
        note(model=responses.model_tag(served.bundle), format=asked.format, pictures=len(outcomes))
        body, kind = await labeller.by_hand(lambda: batch.packed(outcomes, asked.format))
        clock.lap("pack")
    return responses.picture(body, kind, served.bundle, clock.laps)


@api.get("/models", tags=["models"], summary="What is served", responses=responses.documented(401, 500, 503))
async def list_models(request: Request) -> list[Model]:
    """Each bundle's name, hash, spec (classes, colours, input rule, metrics), and what runs it here."""
    labeller = labeller_of(request)
    labeller.shelf.check()
    return [_model(served, labeller) for served in labeller.shelf.all()]


@api.get(
    "/models/{name:path}", tags=["models"], summary="One of them", responses=responses.documented(401, 404, 500, 503)
)
async def one_model(request: Request, name: str) -> Model:
    """As in /models."""
    labeller = labeller_of(request)
    return _model(labeller.shelf.get(name), labeller)


def described() -> dict[str, Any]:
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


api.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend it


def labeller_of(request: Request) -> Labeller:
    """The labeller of this process, which the service's start put here."""
    return cast(Labeller, request.app.state.labeller)


def paths() -> list[str]:
    """Every path that is here but those of single models, as they stand under /v1."""
    found = [route.path for route in api.routes if isinstance(route, Route) and "{" not in route.path]
    assets = next(route.path for route in api.routes if isinstance(route, Mount))
    return found + [f"{assets}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")]


def _check_query(request: Request) -> Wishes:
    """What the query asks for; what is wrong already needs no body. Raises: BadRequest, UnknownModel, NotReady."""
    shelf, asked = labeller_of(request).shelf, Wishes.read(request.query_params.multi_items())
    if asked.model is None:  # the form may name it
        shelf.check()
    else:
        shelf.get(asked.model)
    return asked


def _asked(request: Request, by_query: Wishes, form: list[tuple[str, str]]) -> tuple[Wishes, Served]:
    """What query and form ask for together, and the bundle that it is asked of."""
    asked = Wishes.read(request.query_params.multi_items(), form) if form else by_query
    return asked, labeller_of(request).shelf.get(asked.model)


def _note(served: Served, format: str, clock: Clock) -> None:
    metrics().labelled(served.bundle.spec.name, format, clock.laps)
    stages = {stage: round(spent, 2) for stage, spent in clock.laps.items()}
    note(model=responses.model_tag(served.bundle), format=format, stages=stages)


def _model(served: Served, labeller: Labeller) -> Model:
    spec = served.bundle.spec
    return Model(
        name=spec.name, hash=served.bundle.hash, spec=spec, palette=spec.palette(), threads=labeller.threads,
        **asdict(served.choice),
    )  # fmt: skip


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, and leave off where the caller closes the connection before. Raises: ClientDisconnect."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may have failed just then


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@api.exception_handler(HTTPException)
async def _http_error(request: Request, error: Exception) -> Response:
    return responses.refusal(error)
