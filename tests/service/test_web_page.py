"""The files of the web page as the service sends them; tests/page/ runs it in a browser."""

import asyncio
import hashlib
import re
from base64 import b64encode

import httpx
import pytest
from starlette.routing import Router
from starlette.types import ASGIApp

from service.settings import read_settings
from service.web_page import EXPLAIN_SCRIPT, MEDIA_TYPES, STATIC_FOLDER, load_static_files, page_routes

APP = Router(page_routes())
MAX_BYTES = 60_000  # of the files that the page loads for a model of photographs
MAX_OTHER_BYTES = 35_000  # of those that it loads for a model of signals or volumes beside them
IMPORTED = re.compile(
    r'(?:from|startWorker\(|worker =) ?"(?:\./)?([\w-]+\.js)"'
)  # when the file is loaded, not by import()


def send_request(path: str, method: str = "GET", app: ASGIApp = APP, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page") as client:
            return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return asyncio.run(send())


def test_only_the_files_of_the_page_are_served() -> None:
    for path in STATIC_FOLDER.iterdir():
        if path.suffix == ".css" or path.name == EXPLAIN_SCRIPT:
            continue  # inlined into the page, or sent only with MASKSERVE_EXPLAIN=on
        response = send_request("/" if path.name == "index.html" else f"/static/{path.name}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(MEDIA_TYPES[path.suffix])
    for path in (
        "/static/",
        "/static/page.css",
        "/static/index.html",
        "/static/../settings.py",
        "/static/%2e%2e/settings.py",
        "/index.html",
    ):
        assert send_request(path).status_code == 404


def test_files_load_nothing_from_other_hosts() -> None:
    policy = send_request("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy and "http" not in policy
    for name, file in load_static_files().items():
        addresses = set(re.findall(rb"https?://[^\s\"']+", file.body))
        assert addresses <= {b"http://www.w3.org/2000/svg"}, name
        assert (
            send_request(name).headers["content-security-policy"] == policy
        )  # the policy of a worker is that of its own file
    page = load_static_files()["/"].body.decode()
    assert not re.search(r"\son\w+=|\sstyle=|<script(?![^>]*src=)", page)  # the policy would block them silently
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    assert style.split() == (STATIC_FOLDER / "page.css").read_text().split()
    assert f"'sha256-{b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
    assert "<!--" not in page and "<h1><svg" in page


def test_files_that_the_page_refers_to_exist() -> None:
    known = load_static_files()
    for name in re.findall(r'(?:src|href)="(static/[^"]+)"', known["/"].body.decode()):
        assert f"/{name}" in known
    for path, file in known.items():
        if path.endswith(".js"):
            for name in re.findall(r'(?:from|new URL\()\s*"\.?/?([\w-]+\.js)"', file.body.decode()):
                assert f"/static/{name}" in known, (path, name)


def test_only_comments_and_indentation_are_removed() -> None:
    """Both are removed by line, which would change a string that spans lines."""
    for path in STATIC_FOLDER.glob("*.js"):
        lines = path.read_text().splitlines()
        assert all(line.count("`") % 2 == 0 for line in lines), path.name
        kept = [line.strip() for line in lines if line.strip() and not line.strip().startswith("//")]
        assert load_static_files(explain=True)[f"/static/{path.name}"].body.decode().splitlines() == kept


def loaded_files(start: str) -> set[str]:
    """A file of the page, and all that it loads at once."""
    files = load_static_files()
    loaded, waiting = set[str](), [start]
    while waiting:
        path = waiting.pop()
        loaded.add(path)
        text = files[path].body.decode()
        found = {f"/static/{name}" for name in IMPORTED.findall(text)} | set(re.findall(r'="/?(static/[^"]+)"', text))
        waiting += {f"/{name.lstrip('/')}" for name in found} - loaded
    return loaded


def test_page_is_small() -> None:
    files = load_static_files()
    image = loaded_files("/")
    assert "/static/worker.js" in image and not {name for name in image if "signal" in name or "volume" in name}
    assert sum(len(files[name].body) for name in image) < MAX_BYTES
    for kind in ("signal", "volume"):
        others = loaded_files(f"/static/{kind}_viewer.js")
        assert f"/static/{kind}_worker.js" in others
        assert sum(len(files[name].body) for name in others - image) < MAX_OTHER_BYTES


def test_cached_file_is_not_sent_again() -> None:
    tag = send_request("/").headers["etag"]
    again = send_request("/", if_none_match=tag)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert send_request("/", if_none_match='"another"').status_code == 200


@pytest.mark.parametrize(("value", "expected"), [("off", False), ("0", False), ("on", True), ("", True)])
def test_setting(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("MASKSERVE_PAGE", value)
    monkeypatch.setenv("MASKSERVE_BUNDLE", ".")
    assert read_settings().page is expected
