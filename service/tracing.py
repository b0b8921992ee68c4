"""Tracing by OpenTelemetry, for those who configure it in BentoML (`BENTOML_CONFIG_OPTIONS`)."""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_HEADERS_KEY = "maskserve.headers"  # in a request's scope: its headers, while OpenTelemetry sees fewer of them


def is_tracing_configured() -> bool:
    """Whether BentoML exports traces."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    return bool(BentoMLContainer.tracing.exporter_type.get())


class TracingMiddleware:
    """OpenTelemetry's middleware, which gets only the headers in ASCII: at some others, such as 89 5C, it fails."""

    def __init__(self, app: ASGIApp, tracing: Middleware) -> None:
        """`tracing`: OpenTelemetry's middleware with its arguments."""

        async def with_all_headers(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "headers": scope[_HEADERS_KEY]}, receive, send)

        self.traced = tracing.cls(with_all_headers, *tracing.args, **tracing.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process the request."""
        headers = [pair for pair in scope["headers"] if pair[0].isascii() and pair[1].isascii()]
        await self.traced({**scope, "headers": headers, _HEADERS_KEY: scope["headers"]}, receive, send)
