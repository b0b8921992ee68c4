"""The service: BentoML holds the process, the probes and the metrics; the routes under /v1 are FastAPI's.

bentoml serve service.app:Maskserve      with MASKSERVE_BUNDLE naming a bundle; `service/settings.py` has the rest
"""

import sys
import time
from dataclasses import asdict
from typing import Annotated, Any, cast

import anyio.to_thread
import bentoml
from _bentoml_sdk import Service  # bentoml exports the decorator alone, and its `service_class` needs the class
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from models.errors import ConfigError
from models.image import decode
from models.outputs import OUTPUTS
from models.outputs.options import Options
from models.spec import Spec
from service import answers
from service.errors import BadRequest, NotReady
from service.gate import Gate, KnownPaths
from service.intake import FIELD, picture_bytes
from service.keeper import Keeper
from service.settings import read_settings

PREFIX = "/v1"
BENTOML_PATHS = ("/livez", "/readyz", "/healthz", "/metrics")

# No docs pages: FastAPI's come from an outside address.
api = FastAPI(title="maskserve", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
api.add_middleware(Gate, limit=lambda: keeper(api).settings.max_body_bytes)


class Wishes(BaseModel):
    """The query of /v1/segment."""

    model_config = ConfigDict(extra="forbid")

    format: str = Field("png", json_schema_extra={"enum": list(OUTPUTS)}, description="of the answer")
    alpha: float = Field(Options.alpha, ge=0, le=1, description="of the colours over the picture, for `overlay`")

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OUTPUTS:
            raise ValueError(f"choose from {', '.join(OUTPUTS)}")
        return name


class Model(BaseModel):
    """A bundle that is served."""

    name: str
    hash: str = Field(description="sha256 of the bundle's SHA256SUMS; X-Model carries its first 12 digits")
    spec: Spec
    engine: str
    device: str
    precision: str
    why: str = Field(description="what led to this engine, device and precision")


PICTURE: dict[str, Any] = {"type": "string", "format": "binary", "description": "the bytes of the picture"}
FORM: dict[str, Any] = {"type": "object", "properties": {FIELD: PICTURE}, "required": [FIELD]}


@api.post(
    "/segment",
    summary="Label every pixel of a picture",
    response_class=Response,
    responses={
        200: {
            "description": "Of exactly the upright picture's size. `png`: an indexed PNG, each pixel its label; `overlay`: "
            "the classes' colours over the picture; `confidence`: a grey PNG, 255 for a softmax probability of 1.",
            "content": {output.MEDIA_TYPE: {"schema": PICTURE} for output in OUTPUTS.values()},
        },
        **answers.documented(400, 413, 415, 422, 500, 503),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": FORM}, "*/*": {"schema": PICTURE}},
        }
    },
)
async def segment(request: Request, wishes: Annotated[Wishes, Query()]) -> Response:
    """Send the picture as the raw body, whatever its content type, or as the file `image` of a form."""
    settings, served = keeper(request.app).settings, keeper(request.app).served()
    output, options = OUTPUTS[wishes.format], Options(alpha=wishes.alpha)
    clock = _Clock()
    data = await picture_bytes(request, settings.max_body_bytes)
    clock.lap("read")
    async with keeper(request.app).room:
        clock.lap("wait")
        picture = await anyio.to_thread.run_sync(decode, data, settings.max_pixels)
        clock.lap("decode")
        prediction, waited, clock.laps["infer"] = await keeper(request.app).infer(
            served.segmenter, picture, output.CONFIDENCE
        )
        clock.laps["wait"] += waited
        clock.restart()
        body = await anyio.to_thread.run_sync(output.encode, prediction, served.bundle.spec, options)
        clock.lap("encode")
    return answers.mask(body, output.MEDIA_TYPE, served.bundle, clock.laps)


@api.get("/models", summary="What is served", responses=answers.documented(503))
async def list_models(request: Request) -> list[Model]:
    """Each bundle's name, hash, spec (classes, colours, input rule, metrics), and what runs it here."""
    served = keeper(request.app).served()
    bundle = served.bundle
    return [Model(name=bundle.spec.name, hash=bundle.hash, spec=bundle.spec, **asdict(served.choice))]


@api.exception_handler(RequestValidationError)
async def _bad_query(request: Request, error: Exception) -> Response:
    first = cast(RequestValidationError, error).errors()[0]
    name = str(first["loc"][-1])[:80]
    if first["type"] == "extra_forbidden":
        known = ", ".join(Wishes.model_fields)
        return answers.refusal(BadRequest(f"The query parameter {name!r} is not known; known are {known}."))
    reason = first["msg"].removeprefix("Value error, ")
    return answers.refusal(BadRequest(f"The query parameter {name!r} is {str(first['input'])[:80]!r}: {reason}."))


@api.exception_handler(HTTPException)
async def _http_error(request: Request, error: Exception) -> Response:
    refused = cast(HTTPException, error)
    if refused.status_code == 405:
        allowed = (refused.headers or {}).get("Allow", "")
        refused = HTTPException(405, f"{request.method} is not allowed here; send {allowed}.", refused.headers)
    return answers.refusal(refused)


def keeper(app: Starlette) -> Keeper:
    """The keeper of this process, which the service's start put here."""
    return cast(Keeper, app.state.keeper)


class _Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        self.laps[stage] = (time.perf_counter() - self._last) * 1e3
        self.restart()


class _BoundedService(Service[Any]):  # type: ignore[misc]  # bentoml is not typed
    """BentoML's service without its pages (the one at / loads a tracker from an outside address) and unknown paths."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        mounted = [PREFIX + route.path for route in api.routes if isinstance(route, Route)]
        return KnownPaths(super().to_asgi(is_main), [*BENTOML_PATHS, *mounted])


@bentoml.service(
    name="maskserve",
    service_class=_BoundedService,
    workers=1,
    # BentoML's timeout (60 s) would answer 504 in its own words while the inference went on. Nor may it be endless:
    # a timer of that length stays behind for every request.
    traffic={"timeout": 600},
)
@bentoml.asgi_app(api, path=PREFIX)
class Maskserve:
    """Pictures in, label masks out: POST /v1/segment."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_settings() -> None:
        """Once, before any worker: a worker that dies of its settings would be started again for ever."""
        try:
            read_settings()
        except ConfigError as error:
            sys.exit(f"maskserve: {error}")

    def __init__(self) -> None:
        self.keeper = api.state.keeper = Keeper(read_settings())
        self.keeper.start()

    def __is_ready__(self) -> bool:
        """Asked by /readyz; the exception carries the reason, where a plain False would say nothing."""
        try:
            self.keeper.served()
        except NotReady as error:
            headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
            raise HTTPException(503, str(error), headers) from error
        return True

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Let running inferences end."""
        self.keeper.stop()
