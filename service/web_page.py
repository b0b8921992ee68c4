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

STATIC_FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
STYLESHEET = (STATIC_FOLDER / "page.css").read_text(encoding="utf-8")

STATIC_HEADERS = {
    # Scripts and answers come from this service alone, and of styles this one; `blob:` is the image that the page has made.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    f"style-src 'sha256-{b64encode(hashlib.sha256(STYLESHEET.encode()).digest()).decode()}'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked for again each time, and answered with 304 by its ETag
}


@dataclass(frozen=True)
class StaticFile:
    """A file of the page, in memory."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def from_path(cls, path: Path) -> "StaticFile":
        """From the folder."""
        return cls.from_bytes(path.read_bytes(), MEDIA_TYPES[path.suffix])

    @classmethod
    def from_bytes(cls, body: bytes, kind: str) -> "StaticFile":
        """With the tag that its content has."""
        return cls(body, kind, f'"{hashlib.sha256(body).hexdigest()[:16]}"')


def load_static_files() -> dict[str, StaticFile]:
    """Each file of the page by its path in the service; the page itself is at /."""
    found = {
        f"/static/{path.name}": StaticFile.from_path(path)
        for path in STATIC_FOLDER.iterdir()
        if path.suffix in MEDIA_TYPES
    }
    page, sign = found.pop("/static/index.html"), found["/static/icon.svg"].body.decode()
    body = page.body.decode().replace("<!-- style -->", f"<style>{STYLESHEET}</style>")
    body = body.replace("<!-- sign -->", sign.replace("<svg", "<svg aria-hidden=true", 1))
    return {"/": StaticFile.from_bytes(body.encode(), page.media_type), **found}


class WebPageMiddleware:
    """Answers for the page's own paths; the other requests go through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.files = load_static_files()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: HTTPException (405)."""
        file = self.files.get(scope["path"])
        if file is None:
            await self.app(scope, receive, send)
            return
        if scope["method"] != "GET":
            raise HTTPException(405, f"{scope['method'][:20]} is not allowed here; send GET.", {"Allow": "GET"})
        headers = {**STATIC_HEADERS, "ETag": file.etag}
        known = file.etag in Headers(scope=scope).get("if-none-match", "")
        answer = (
            Response(status_code=304, headers=headers) if known else Response(file.body, 200, headers, file.media_type)
        )
        await answer(scope, receive, send)
