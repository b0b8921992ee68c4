"""The service: BentoML holds the processes, the probes and the metrics; the routes under /v1 are FastAPI's.

bentoml serve service.app:Maskserve      with MASKSERVE_BUNDLE naming a bundle; `service/settings.py` has the rest
"""

import logging
import sys
import time
from typing import Any

import bentoml
from _bentoml_sdk import Service  # bentoml exports the decorator alone, and its `service_class` needs the class
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from models.errors import ConfigError
from service import routes
from service.access_log import Recorded
from service.auth import Keys
from service.errors import NotReady
from service.metrics import metrics
from service.middleware import Bodies, Checked, Net, not_found
from service.segmentation import Labeller
from service.settings import Settings, read_settings
from service.web_page import Page

ROOT = "/v1"
MODELS = f"{ROOT}/models/"
PROBES = ("/livez", "/readyz", "/healthz")
PATHS = (*PROBES, "/metrics", *(ROOT + path for path in routes.paths()))
PICTURES = (f"{ROOT}/segment", f"{ROOT}/segment/batch")
SHOWN = ("/metrics", *PICTURES, f"{ROOT}/models", f"{MODELS}NAME", f"{ROOT}/docs")

# The page that explains the interface shows nothing of what is served.
OPEN_PATHS = (*PROBES, *(path for path in PATHS if path.startswith((f"{ROOT}/docs", f"{ROOT}/openapi"))))

# How long a worker among others keeps its door shut while it opens its bundles.
PATIENCE_SECONDS = 60.0

# Of what BentoML puts before the routes, this is left: its figures, and tracing for those who configure it. Its time-out
# answers in its own words while the work goes on, and leaves a timer behind for each request; its access log knows no
# request id; its context makes a temporary folder for each request.
KEPT = ("RunnerTrafficMetricsMiddleware", "OpenTelemetryMiddleware")


class _Gated(Service[Any]):  # type: ignore[misc]  # bentoml is not typed
    """BentoML's service behind our gate, without its pages: the one at / loads a tracker from an outside address."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        bento: Starlette = super().to_asgi(is_main)
        kept = {getattr(each.cls, "__name__", ""): each for each in bento.user_middleware}
        bento.user_middleware = [kept[name] for name in KEPT]  # a BentoML that calls them otherwise fails here
        return gated(bento, read_settings())


def gated(bento: ASGIApp, settings: Settings) -> ASGIApp:
    """Put before an app, from the outside in: log, CORS, errors as problems, page, keys, known paths, the line, bodies' limits."""
    app: ASGIApp = Bodies(bento, settings.max_body_bytes, settings.body_seconds)
    app = Checked(app, _check_line)
    app = Checked(app, _check_path)
    app = Keys(app, settings.api_keys, OPEN_PATHS)
    if settings.page:
        app = Page(app)
    app = Net(app)
    if settings.cors_origins:
        app = CORSMiddleware(
            app, allow_origins=settings.cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",),
            expose_headers=("X-Model", "X-Request-ID", "Server-Timing", "Retry-After"),
        )  # fmt: skip
    recorded = Recorded(app, settings.access_log, _count)

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":  # the server itself leaves the body out of an answer to HEAD
            await recorded({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await bento(scope, receive, send)

    return front


def _check_path(method: str, path: str) -> None:
    """Before BentoML makes each path a label of its figures. Raises: NotFound, HTTPException (405), UnknownModel, NotReady."""
    if not path.startswith(MODELS) and path not in PATHS:
        raise not_found(path, sorted(SHOWN))
    allowed = "POST" if path in PICTURES else "GET"
    if method != allowed:
        raise HTTPException(405, f"{method[:20]} is not allowed here; send {allowed}.", {"Allow": allowed})
    if path.startswith(MODELS):
        routes.api.state.labeller.shelf.get(path.removeprefix(MODELS))


def _check_line(method: str, path: str) -> None:
    """Before BentoML and FastAPI: twenty times the load that can be served must not be lost in refusing it. Raises: Busy."""
    if method == "POST" and path in PICTURES:
        routes.api.state.labeller.line.admit()


def _count(path: str, status: int, seconds: float) -> None:
    route = MODELS + "NAME" if path.startswith(MODELS) else path if path in (*PATHS, "/") else "other"
    metrics().answered(route, status, seconds)


def _workers() -> int:
    """How many processes BentoML is to start. Settings that are wrong are refused at the start, by name."""
    try:
        return read_settings().workers
    except ConfigError:
        return 1


def _log_to_standard_error() -> None:
    """Bundles that are refused or exchanged, and our own faults: whatever BentoML was told about its log."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s maskserve: %(message)s"))
    logger = logging.getLogger("maskserve")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)


# uvicorn's other reader, httptools, which it takes where it finds it, loses the body of a request that offers an upgrade to
# HTTP/2 (as Java's client does), and takes heads of any size; this one takes 64 KB.
HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]


@bentoml.service(name="maskserve", service_class=_Gated, workers=_workers())
@bentoml.asgi_app(routes.api, path=ROOT)
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
        _log_to_standard_error()
        self.labeller = routes.api.state.labeller = Labeller(read_settings())
        self.labeller.start()
        if self.labeller.settings.workers > 1:
            self._open_before_the_door()

    def _open_before_the_door(self) -> None:
        """Accept no connection before there is something to serve: the other workers take them.

        A worker that is alone says "not ready" meanwhile, so that a probe can tell a slow start from a dead process; one
        that comes back after a crash would say it to callers whom the others could have answered.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            try:
                self.labeller.shelf.check()
                return
            except NotReady as error:
                if error.retry_after is None:
                    return
            time.sleep(0.02)

    def __is_ready__(self) -> bool:
        """Asked by /readyz; the exception carries the reason, where a plain False would say nothing."""
        try:
            self.labeller.shelf.check()
        except NotReady as error:
            headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
            raise HTTPException(503, str(error), headers) from error
        return True

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Let running inferences end."""
        self.labeller.stop()
