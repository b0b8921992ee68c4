"""The web page at /: the files of `service/static/`, under headers that let it load nothing from elsewhere.

They are sent as they stand, but for the style and the sign, which are set into the page: asked for by themselves they hold
up its first paint, by 30 ms in Chromium on two cores.
"""

import hashlib
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).parent / "static"
KINDS = {".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")

HEADERS = {
    # Scripts and answers come from this service alone, and of styles this one; `blob:` is the picture that the page has made.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    f"style-src 'sha256-{b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked for again each time, and answered with 304 by its ETag
}


@dataclass(frozen=True)
class File:
    """A file of the page, in memory."""

    body: bytes
    kind: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> "File":
        """From the folder."""
        return cls.of(path.read_bytes(), KINDS[path.suffix])

    @classmethod
    def of(cls, body: bytes, kind: str) -> "File":
        """With the tag that its content has."""
        return cls(body, kind, f'"{hashlib.sha256(body).hexdigest()[:16]}"')


def files() -> dict[str, File]:
    """Each file of the page by its path in the service; the page itself is at /."""
    found = {f"/static/{path.name}": File.read(path) for path in FOLDER.iterdir() if path.suffix in KINDS}
    page, sign = found.pop("/static/index.html"), found["/static/icon.svg"].body.decode()
    body = page.body.decode().replace("<!-- style -->", f"<style>{STYLE}</style>")
    body = body.replace("<!-- sign -->", sign.replace("<svg", "<svg aria-hidden=true", 1))
    return {"/": File.of(body.encode(), page.kind), **found}


class Page:
    """Answers for the page's own paths; the other requests go through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.files = files()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: HTTPException (405)."""
        file = self.files.get(scope["path"])
        if file is None:
            await self.app(scope, receive, send)
            return
        if scope["method"] != "GET":
            raise HTTPException(405, f"{scope['method'][:20]} is not allowed here; send GET.", {"Allow": "GET"})
        headers = {**HEADERS, "ETag": file.tag}
        known = file.tag in Headers(scope=scope).get("if-none-match", "")
        answer = Response(status_code=304, headers=headers) if known else Response(file.body, 200, headers, file.kind)
        await answer(scope, receive, send)
