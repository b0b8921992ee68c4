"""The service on BentoML, which starts the worker processes and provides probes and metrics.

    bentoml serve service.bento_service:Maskserve      with MASKSERVE_BUNDLE set to a bundle

`service/settings.py` has the other settings, `service/app.py` the app.
"""

import logging
import os
import socket
import sys
from contextlib import suppress
from typing import Any

import bentoml
from _bentoml_sdk import Service  # bentoml exports only the decorator, whose `service_class` needs the class
from bentoml._internal.utils import circus
from starlette.types import ASGIApp
from uvicorn.config import HTTP_PROTOCOLS

from models.errors import ConfigError
from service.access_log import EscapingFormatter
from service.app import create_app
from service.http_protocol import HTTPProtocol
from service.process_watch import stop_with_parent
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
    handler.setFormatter(EscapingFormatter("%(asctime)s %(levelname)s maskserve: %(message)s"))
    logger = logging.getLogger("maskserve")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)


# uvicorn's default parser, httptools, loses the body of a request that offers an upgrade to HTTP/2 (Java's client does), and
# accepts heads of any size; h11 accepts 64 KB.
HTTP_PROTOCOLS["auto"] = "service.http_protocol:HTTPProtocol"


class _Arbiter(circus.Arbiter):
    """BentoML's process manager, which refuses new connections once it stops.

    It holds the listening socket until the last worker has ended. Meanwhile the kernel would accept connections that no worker
    takes, and reset them at the end.
    """

    def stop(self) -> Any:
        for listener in self.sockets.values():
            with suppress(OSError):  # only Linux can do it
                listener.shutdown(socket.SHUT_RD)
        return super().stop()


circus.Arbiter = _Arbiter  # type: ignore[misc]


class _BentoService(Service[Any]):  # type: ignore[misc]  # bentoml is not typed
    """BentoML's service, which runs our app in each worker. BentoML's own page at / loads a tracker from an outside address."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        _log_to_standard_error()
        settings = read_settings()
        stop_with_parent(os.getppid(), settings.stop_seconds + 5)
        HTTPProtocol.settings = settings
        os.environ.setdefault("FORWARDED_ALLOW_IPS", ",".join(settings.trusted_proxies))  # read by uvicorn
        return create_app(settings, super().to_asgi(is_main=False))


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
