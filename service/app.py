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
from service.access_log import AccessLogMiddleware
from service.auth import ApiKeyMiddleware
from service.errors import NotReadyError
from service.metrics import get_metrics
from service.middleware import BodyLimitMiddleware, ErrorMiddleware, RequestCheckMiddleware, unknown_path_error
from service.segmentation import SegmentationService
from service.settings import Settings, read_settings
from service.web_page import WebPageMiddleware

API_PREFIX = "/v1"
MODELS_PREFIX = f"{API_PREFIX}/models/"
PROBE_PATHS = ("/livez", "/readyz", "/healthz")
KNOWN_PATHS = (*PROBE_PATHS, "/metrics", *(API_PREFIX + path for path in routes.route_paths()))
SEGMENT_PATHS = (f"{API_PREFIX}/segment", f"{API_PREFIX}/segment/batch")
DOCUMENTED_ROUTES = ("/metrics", *SEGMENT_PATHS, f"{API_PREFIX}/models", f"{MODELS_PREFIX}NAME", f"{API_PREFIX}/docs")

# The page that explains the interface shows nothing of what is served.
PUBLIC_PATHS = (
    *PROBE_PATHS,
    *(path for path in KNOWN_PATHS if path.startswith((f"{API_PREFIX}/docs", f"{API_PREFIX}/openapi"))),
)

# How long a worker among others keeps its door shut while it opens its bundles.
STARTUP_WAIT_SECONDS = 60.0

# Of what BentoML puts before the routes, this is left: its figures, and tracing for those who configure it. Its time-out
# answers in its own words while the work goes on, and leaves a timer behind for each request; its access log knows no
# request id; its context makes a temporary folder for each request.
BENTOML_MIDDLEWARE = ("RunnerTrafficMetricsMiddleware", "OpenTelemetryMiddleware")


class _WrappedService(Service[Any]):  # type: ignore[misc]  # bentoml is not typed
    """BentoML's service behind our gate, without its pages: the one at / loads a tracker from an outside address."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        bento: Starlette = super().to_asgi(is_main)
        kept = {getattr(each.cls, "__name__", ""): each for each in bento.user_middleware}
        bento.user_middleware = [
            kept[name] for name in BENTOML_MIDDLEWARE
        ]  # a BentoML that calls them otherwise fails here
        return wrap_with_middleware(bento, read_settings())


def wrap_with_middleware(bento: ASGIApp, settings: Settings) -> ASGIApp:
    """Put before an app, from the outside in: log, CORS, errors as problems, page, keys, known paths, the line, bodies' limits."""
    app: ASGIApp = BodyLimitMiddleware(bento, settings.max_body_bytes, settings.body_seconds)
    app = RequestCheckMiddleware(app, _check_admission)
    app = RequestCheckMiddleware(app, _check_path)
    app = ApiKeyMiddleware(app, settings.api_keys, PUBLIC_PATHS)
    if settings.page:
        app = WebPageMiddleware(app)
    app = ErrorMiddleware(app)
    if settings.cors_origins:
        app = CORSMiddleware(
            app, allow_origins=settings.cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",),
            expose_headers=("X-Model", "X-Request-ID", "Server-Timing", "Retry-After"),
        )  # fmt: skip
    recorded = AccessLogMiddleware(app, settings.access_log, _count_request)

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
    if not path.startswith(MODELS_PREFIX) and path not in KNOWN_PATHS:
        raise unknown_path_error(path, sorted(DOCUMENTED_ROUTES))
    allowed = "POST" if path in SEGMENT_PATHS else "GET"
    if method != allowed:
        raise HTTPException(405, f"{method[:20]} is not allowed here; send {allowed}.", {"Allow": allowed})
    if path.startswith(MODELS_PREFIX):
        routes.api.state.labeller.shelf.get(path.removeprefix(MODELS_PREFIX))


def _check_admission(method: str, path: str) -> None:
    """Before BentoML and FastAPI: twenty times the load that can be served must not be lost in refusing it. Raises: Busy."""
    if method == "POST" and path in SEGMENT_PATHS:
        routes.api.state.labeller.line.admit()


def _count_request(path: str, status: int, seconds: float) -> None:
    route = (
        MODELS_PREFIX + "NAME" if path.startswith(MODELS_PREFIX) else path if path in (*KNOWN_PATHS, "/") else "other"
    )
    get_metrics().count_request(route, status, seconds)


def _worker_count() -> int:
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


@bentoml.service(name="maskserve", service_class=_WrappedService, workers=_worker_count())
@bentoml.asgi_app(routes.api, path=API_PREFIX)
class Maskserve:
    """Images in, label masks out: POST /v1/segment."""

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
        self.segmentation = routes.api.state.labeller = SegmentationService(read_settings())
        self.segmentation.start()
        if self.segmentation.settings.workers > 1:
            self._wait_until_loaded()

    def _wait_until_loaded(self) -> None:
        """Accept no connection before there is something to serve: the other workers take them.

        A worker that is alone says "not ready" meanwhile, so that a probe can tell a slow start from a dead process; one
        that comes back after a crash would say it to callers whom the others could have answered.
        """
        end = time.monotonic() + STARTUP_WAIT_SECONDS
        while time.monotonic() < end:
            try:
                self.segmentation.registry.check_ready()
                return
            except NotReadyError as error:
                if error.retry_after is None:
                    return
            time.sleep(0.02)

    def __is_ready__(self) -> bool:
        """Asked by /readyz; the exception carries the reason, where a plain False would say nothing."""
        try:
            self.segmentation.registry.check_ready()
        except NotReadyError as error:
            headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
            raise HTTPException(503, str(error), headers) from error
        return True

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Let running inferences end."""
        self.segmentation.stop()
