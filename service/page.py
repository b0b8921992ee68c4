"""The web page at /: the files of `service/page/` as they stand, under headers that let it load nothing from elsewhere."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

HEADERS = {
    # Scripts, styles and answers come from this service alone; `blob:` is the picture that the page itself has made.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
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
        body = path.read_bytes()
        return cls(body, KINDS[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:16]}"')


def files() -> dict[str, File]:
    """Each file of the page by its path in the service; the page itself is at /."""
    found = {f"/page/{path.name}": File.read(path) for path in FOLDER.iterdir() if path.suffix in KINDS}
    return {"/": found.pop("/page/index.html"), **found}


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
