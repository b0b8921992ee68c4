"""The service as one ASGI app: `create_app` assembles middleware and routes. `service/bento_service.py` runs it with BentoML."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import NotReadyError
from service.forwarding import RootPathMiddleware
from service.idle import release_memory_when_idle
from service.metrics import get_metrics
from service.middleware import (
    API_PREFIX,
    PROBE_PATHS,
    SEGMENT_PATH,
    AccessLogMiddleware,
    BodyLimitMiddleware,
    ErrorMiddleware,
    RequestCheckMiddleware,
    RouteTable,
)
from service.responses import retry_after_header
from service.routes import create_api
from service.segmentation import SegmentationService
from service.settings import Settings
from service.tracing import TracingMiddleware, is_tracing_configured
from service.web_page import page_routes

POST_PATHS = (SEGMENT_PATH, f"{SEGMENT_PATH}/batch")
EXPLAIN_PATH = f"{API_PREFIX}/explain"

STUCK_CHECK_SECONDS = 1.0

logger = logging.getLogger("maskserve")

# BentoML's middleware that is kept: its metrics, and tracing for those who configure it. The rest is left out: its timeout
# responds in its own format while the work continues, and leaves a timer per request; its access log has no request id; its
# context makes a temporary folder per request.
BENTOML_MIDDLEWARE = ("RunnerTrafficMetricsMiddleware", "OpenTelemetryMiddleware")


def create_app(settings: Settings, bento: Starlette | None = None) -> ASGIApp:
    """The service: bundles are loaded when its lifespan starts.

    `bento`: BentoML's app, which has /livez, /healthz and /metrics. None: without them, for tests in process.
    """
    segmentation = SegmentationService(settings)
    api, pages = create_api(segmentation), page_routes(settings.explain) if settings.page else []
    table = _make_route_table(api, pages)

    async def readyz(request: Request) -> Response:
        """Whether a bundle is served; otherwise the reason."""
        try:
            segmentation.registry.check_ready()
            segmentation.admission.check_progress()
        except NotReadyError as error:
            return PlainTextResponse(str(error), 503, retry_after_header(error.retry_after))
        return PlainTextResponse("\n")

    def count_request(path: str, status: int, seconds: float) -> None:
        get_metrics().count_request(table.label(path), status, seconds)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        """BentoML's own is left out: it makes a client of this service, and a temporary folder that a kill leaves behind."""
        await segmentation.start()
        watches = [
            asyncio.create_task(_exit_when_stuck(segmentation)),
            asyncio.create_task(release_memory_when_idle(segmentation.admission, segmentation.release_memory)),
            *([asyncio.create_task(segmentation.jobs.sweep_regularly())] if segmentation.jobs else []),
        ]
        try:
            yield
        finally:
            for watch in watches:
                watch.cancel()
            if segmentation.jobs is not None:
                await segmentation.jobs.stop()
            segmentation.stop()

    # A request passes these from top to bottom, its response from bottom to top.
    middleware = [
        Middleware(RootPathMiddleware, settings.root_path, settings.trusted_proxies),
        Middleware(AccessLogMiddleware, settings.access_log, count_request),
        Middleware(ErrorMiddleware),
        *_cors_middleware(settings.cors_origins),
        Middleware(ErrorMiddleware),
        Middleware(RequestCheckMiddleware, segmentation, table),
        Middleware(BodyLimitMiddleware, settings.max_body_bytes, settings.body_seconds),
        *_bentoml_middleware(bento),
        Middleware(ErrorMiddleware),  # a second time: BentoML's metrics count responses, not exceptions
    ]
    routes = [Route("/readyz", readyz), Mount(API_PREFIX, api), *pages, *(bento.routes if bento else [])]
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    handle: ASGIApp = router
    for layer in reversed(middleware):
        handle = layer.cls(handle, *layer.args, **layer.kwargs)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":  # the server itself omits the body of a response to HEAD
            await handle({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await router(scope, receive, send)

    return app


async def _exit_when_stuck(segmentation: SegmentationService) -> None:
    """End this process once its images are stuck: a thread in a decoder or an engine cannot be stopped. BentoML replaces it.

    /readyz responds 503 before, for as long as requests that wait already may still wait.
    """
    while segmentation.admission.stuck_seconds <= segmentation.settings.queue_seconds:
        await asyncio.sleep(STUCK_CHECK_SECONDS)
    logger.error("The images in work do not end: this worker ends and is replaced.")
    os._exit(1)


def _cors_middleware(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    exposed = ("X-Model", "X-Request-ID", "Server-Timing", "Retry-After", "Location")
    return [
        Middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=("GET", "POST", "DELETE"), allow_headers=("*",),
            expose_headers=exposed,
        )
    ]  # fmt: skip


def _bentoml_middleware(bento: Starlette | None) -> list[Middleware]:
    if bento is None:
        return []
    by_name = {getattr(each.cls, "__name__", ""): each for each in bento.user_middleware}
    metrics, tracing = (by_name[name] for name in BENTOML_MIDDLEWARE)  # fails here if a BentoML release renames them
    if not is_tracing_configured():
        return [metrics]
    return [metrics, Middleware(TracingMiddleware, tracing)]


def _make_route_table(api: FastAPI, pages: list[Route]) -> RouteTable:
    """The fixed paths. The documentation is public, because it shows nothing about the served models."""
    paths = [route.path for route in api.routes if isinstance(route, Route) and "{" not in route.path]
    docs = [API_PREFIX + path for path in paths if path.startswith(("/docs", "/openapi"))]
    public = [*PROBE_PATHS, *docs, *(page.path for page in pages)]
    methods = dict.fromkeys([*public, "/metrics", *(API_PREFIX + path for path in paths)], "GET")
    posts = [*POST_PATHS, *([EXPLAIN_PATH] if EXPLAIN_PATH in methods else [])]
    return RouteTable(methods | dict.fromkeys(posts, "POST"), frozenset(public))
