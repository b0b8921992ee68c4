"""The page /v1/docs, by Swagger UI, and /v1/openapi.json. All addresses are relative: a proxy may serve both below any path.

FastAPI's own page would load its scripts from an outside address; those of the package fastapi_offline are the same files.
"""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service import openapi
from service.forwarding import PREFIX_KEY

ASSETS_FOLDER = Path(fastapi_offline.__file__).parent / "static"
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>maskserve API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="docs/assets/favicon.png">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="stylesheet" href="docs/assets/docs.css">
</head>
<body>
<div id="docs"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/assets/docs.js"></script>
</body>
</html>
"""
STYLE = """body { margin: 0 }
.swagger-ui .opblock-description-wrapper pre, .swagger-ui .renderedMarkdown pre { overflow: auto; white-space: pre }
.swagger-ui .renderedMarkdown code { padding: 0 4px }
"""
SCRIPT = """const dark = matchMedia("(prefers-color-scheme: dark)");
const applyTheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", applyTheme);
applyTheme();
SwaggerUIBundle({
  url: "openapi.json", dom_id: "#docs", deepLinking: true, displayRequestDuration: true, validatorUrl: null,
  defaultModelsExpandDepth: 0, presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout",
});
"""

HEADERS = {
    # Swagger UI sets styles on elements, which needs 'unsafe-inline', and its icons are data: addresses.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def add_docs_routes(api: FastAPI, keys_needed: bool) -> None:
    """Add the page, its files and the document. `keys_needed`: whether requests need an API key."""
    schema = openapi.openapi_schema(api, keys_needed)
    api.openapi = lambda: schema  # type: ignore[method-assign]  # FastAPI's own way to extend it

    async def document(request: Request) -> Response:
        prefix = request.scope.get(PREFIX_KEY, "")
        # Relative to this document. Tools that take it for relative to the host get the same, unless a proxy removes a path.
        return JSONResponse({**schema, "servers": [{"url": f"{prefix}/v1" if prefix else "../v1"}]})

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE, headers=HEADERS)

    async def style(request: Request) -> Response:
        return Response(STYLE, media_type="text/css")

    async def script(request: Request) -> Response:
        return Response(SCRIPT, media_type="text/javascript")

    async def asset(request: Request) -> Response:
        return FileResponse(ASSETS_FOLDER / request.url.path.rpartition("/")[2])

    api.router.routes += [
        Route("/openapi.json", document),
        Route("/docs", page),
        Route("/docs/assets/docs.css", style),
        Route("/docs/assets/docs.js", script),
        *(Route(f"/docs/assets/{name}", asset) for name in ASSETS),
    ]
