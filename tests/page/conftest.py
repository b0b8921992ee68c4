"""A real Chromium on a real service. Every page must have no error, no console message and no request to another host."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright import sync_api as playwright

from service.auth import generate_api_key
from service.server_process import background_server
from tests.page.page_driver import PageDriver
from tests.service.tiny_bundle import write_tiny_bundle

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

OpenPage = Callable[..., PageDriver]


@pytest.fixture(scope="package")
def browser() -> Iterator[playwright.Browser]:
    """Package scope, because no other test may run an event loop while it is open."""
    if CHROMIUM is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("REQUIRE_BROWSER is set, and there is no chromium on the PATH")
        pytest.skip("there is no chromium on the PATH")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # as root, Chromium does not start with a sandbox
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, *FAKE_CAMERA])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("page") / "small")


@pytest.fixture(scope="session")
def two_models_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service with a bundle of 4 classes and one of 200."""
    folder = tmp_path_factory.mktemp("several")
    write_tiny_bundle(folder / "few", "few")
    write_tiny_bundle(folder / "many", "many", classes=200)
    with start_service(folder, MASKSERVE_DEFAULT_MODEL="few") as url:
        yield url


@pytest.fixture(scope="session")
def url(two_models_url: str) -> str:
    """The same, for tests of the default model only."""
    return two_models_url


@pytest.fixture(scope="session")
def protected_service(bundle: Path) -> Iterator[tuple[str, str]]:
    """The URL of a service that requires a key and accepts one upload at a time; and the key."""
    key, hashed = generate_api_key()
    with start_service(bundle, MASKSERVE_API_KEYS=hashed, MASKSERVE_MAX_UPLOADS="1") as url:
        yield url, key


@pytest.fixture(scope="session")
def below_a_path(bundle: Path) -> Iterator[str]:
    """The URL of a service below the path of a proxy that keeps it, with explanations."""
    with start_service(bundle, MASKSERVE_ROOT_PATH="/tools/x", MASKSERVE_EXPLAIN="on") as url:
        yield f"{url}/tools/x"


@contextmanager
def start_service(folder: Path, **settings: str) -> Iterator[str]:
    """A service with these settings, which services that start later do not get."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            url = stack.enter_context(background_server(folder))
        yield url


@pytest.fixture
def open_page(browser: playwright.Browser) -> Iterator[OpenPage]:
    """Opens the page in a new window: open_page(url, **options of a browser context)."""
    seen = []

    def opened(url: str, **options: object) -> PageDriver:
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 700}, **options})
        context.set_default_timeout(60_000)
        seen.append(PageDriver(context, url))
        return seen[-1]

    yield opened
    for sight in seen:
        sight.context.close()
    for sight in seen:
        assert sight.errors == []


@pytest.fixture
def start_slow_upload() -> Iterator[Callable[[str, str], socket.socket]]:
    """Starts an upload and does not finish it, so that the only upload slot is held."""
    opened = []

    def begin(url: str, key: str) -> socket.socket:
        host, port = url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        head = f"POST /v1/segment HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head.encode() + b"begun")
        opened.append(connection)
        return connection

    yield begin
    for connection in opened:
        connection.close()
