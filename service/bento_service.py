"""The service on BentoML, which starts the worker processes and provides probes and metrics.

    bentoml serve service.bento_service:Maskserve      with MASKSERVE_BUNDLE set to a bundle

`service/settings.py` has the other settings, `service/app.py` the app.
"""

import logging
import sys
from typing import Any

import bentoml
from _bentoml_sdk import Service  # bentoml exports only the decorator, whose `service_class` needs the class
from starlette.types import ASGIApp
from uvicorn.config import HTTP_PROTOCOLS

from models.errors import ConfigError
from service.app import create_app
from service.settings import read_settings


def _worker_count() -> int:
    """The number of processes that BentoML starts. Invalid settings are reported by `check_settings`."""
    try:
        return read_settings().workers
    except ConfigError:
        return 1


def _log_to_standard_error() -> None:
    """Log bundles that are rejected or replaced, and bugs, whatever BentoML's log level is."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s maskserve: %(message)s"))
    logger = logging.getLogger("maskserve")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)


# uvicorn's default parser, httptools, loses the body of a request that offers an upgrade to HTTP/2 (Java's client does), and
# accepts heads of any size; h11 accepts 64 KB.
HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]


class _BentoService(Service[Any]):  # type: ignore[misc]  # bentoml is not typed
    """BentoML's service, which runs our app in each worker. BentoML's own page at / loads a tracker from an outside address."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        _log_to_standard_error()
        return create_app(read_settings(), super().to_asgi(is_main=False))


@bentoml.service(name="maskserve", service_class=_BentoService, workers=_worker_count())
class Maskserve:
    """Image in, label mask out: POST /v1/segment."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_settings() -> None:
        """Runs once, before any worker: BentoML would restart a worker that exits because of its settings forever."""
        try:
            read_settings()
        except ConfigError as error:
            sys.exit(f"maskserve: {error}")
