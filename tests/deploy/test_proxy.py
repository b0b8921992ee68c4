"""The recipe for nginx, run as it is but for the port and the certificate. Skipped without nginx."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.server_process import ROOT, free_port
from service.settings import Settings
from tests.service.conftest import small_bundle as small_bundle
from tests.service.in_process import serve_in_thread, start_app
from tests.service.test_app import JPEG, check_problem

RECIPE = ROOT / "deploy" / "proxy" / "nginx.conf"
FOLDERS = ("client_body_temp_path", "proxy_temp_path", "fastcgi_temp_path", "uwsgi_temp_path", "scgi_temp_path")


@pytest.fixture(scope="module")
def service(small_bundle: Path) -> Iterator[tuple[str, int]]:
    settings = Settings(bundle=small_bundle, allowed_hosts=("example.org",), access_log=False)
    with serve_in_thread(create_app(settings), settings) as address:
        yield address


@pytest.fixture(scope="module")
def proxy(service: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    recipe = re.sub(r"ssl_certificate.*", "", RECIPE.read_text())
    recipe = recipe.replace("listen 443 ssl", f"listen 127.0.0.1:{port}").replace(
        "127.0.0.1:3000", f"127.0.0.1:{service[1]}"
    )
    paths = "".join(f"{name} {folder}/{name}; " for name in FOLDERS)
    config = f"pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths}\n{recipe}\n}}"
    (folder / "nginx.conf").write_text(config)
    command = [nginx, "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off; master_process off;"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Host": "example.org"}) as client:
                _wait_until_ready(client, process)
                yield client
        finally:
            process.terminate()


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None and process.stderr is not None, process.stderr and process.stderr.read()
        try:
            if client.get("/tools/maskserve/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError("nginx or the service is not ready")


def test_requests_pass_the_proxy(proxy: httpx.Client) -> None:
    page = proxy.get("/tools/maskserve/")
    assert page.status_code == 200 and 'src="static/main.js"' in page.text
    for path in ("static/main.js", "v1/docs", "v1/docs/assets/swagger-ui.css", "v1/models"):
        assert proxy.get(f"/tools/maskserve/{path}").status_code == 200, path
    assert proxy.get("/tools/maskserve/v1/openapi.json").json()["servers"] == [{"url": "/tools/maskserve/v1"}]
    mask = proxy.post("/tools/maskserve/v1/segment", content=JPEG)
    assert (mask.status_code, mask.headers["content-type"]) == (200, "image/png")
    assert re.fullmatch("[0-9a-f]{32}", mask.headers["x-request-id"])  # nginx's


def test_refusals_pass_the_proxy(proxy: httpx.Client) -> None:
    """nginx makes a 502 of a refusal whose connection is reset while it sends the body."""
    for _ in range(5):
        check_problem(proxy.post("/tools/maskserve/v1/nothing", content=bytes(900_000)), 404)
    check_problem(proxy.post("/tools/maskserve/v1/segment?zz=1", content=bytes(900_000)), 400, "'zz'")


def test_service_refuses_the_name_if_the_setting_is_forgotten(small_bundle: Path) -> None:
    """What `maskserve serve` sets on a loopback address."""
    with start_app(small_bundle, allowed_hosts=("127.0.0.1",)) as http:
        check_problem(http.get("/v1/models", headers={"Host": "example.org"}), 403, "MASKSERVE_ALLOWED_HOSTS")
