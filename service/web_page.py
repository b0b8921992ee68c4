"""The web page at /: the files of `service/static/`, with headers that allow it to load nothing from elsewhere.

The files are sent without indentation and comments. Style and icon are inlined into the page: as separate requests they delay
its first paint by 30 ms in Chromium on two cores.
"""

import hashlib
from base64 import b64encode
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATIC_FOLDER = Path(__file__).parent / "static"
EXPLAIN_SCRIPT = "explain.js"  # the page loads it only where /v1/explain exists
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


def read_compact(file: Path) -> str:
    """The text of a file without indentation, empty lines and lines of comment. No string of them spans lines."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


STYLESHEET = read_compact(STATIC_FOLDER / "page.css")

STATIC_HEADERS = {
    # Scripts and data come from this service only, and the only style is this one; `blob:` is the image that the page has made.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    f"style-src 'sha256-{b64encode(hashlib.sha256(STYLESHEET.encode()).digest()).decode()}'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # browsers ask each time, and get 304 by the ETag
}


@dataclass(frozen=True)
class StaticFile:
    """A file of the page, in memory."""

    body: bytes
    media_type: str

    @cached_property
    def etag(self) -> str:
        """The tag of its content."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'

    async def respond(self, request: Request) -> Response:
        """Send the file, or 304 if the browser has it."""
        headers = {**STATIC_HEADERS, "ETag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.body, 200, headers, self.media_type)


def load_static_files(explain: bool = False) -> dict[str, StaticFile]:
    """Each file of the page by its path in the service; the page itself is at /. `explain`: with the panel "Look inside"."""
    files = {
        f"/static/{path.name}": StaticFile(read_compact(path).encode(), MEDIA_TYPES[path.suffix])
        for path in STATIC_FOLDER.iterdir()
        if path.suffix in MEDIA_TYPES and (explain or path.name != EXPLAIN_SCRIPT)
    }
    page, icon = files.pop("/static/index.html"), files["/static/icon.svg"].body.decode()
    body = page.body.decode().replace("<!-- style -->", f"<style>{STYLESHEET}</style>")
    body = body.replace("<!-- sign -->", icon.replace("<svg", "<svg aria-hidden=true", 1))
    return {"/": StaticFile(body.encode(), page.media_type), **files}


def page_routes(explain: bool = False) -> list[Route]:
    """A route for each file of the page."""
    return [Route(path, file.respond) for path, file in load_static_files(explain).items()]
