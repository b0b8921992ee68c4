"""FastAPI as in its page "Request Files": `python -m benchmarks.servers.fastapi_tutorial PORT`.

A `def` route, which FastAPI runs in its thread pool, takes the file of a form and returns a PNG; uvicorn's defaults.
"""

import io
import sys
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Response
from PIL import Image

from benchmarks.servers.network import TutorialSegmenter

app = FastAPI()
segmenter = TutorialSegmenter()


@app.post("/segment")
def segment(image: Annotated[bytes, File()]) -> Response:
    mask = segmenter(Image.open(io.BytesIO(image)))
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return Response(buffer.getvalue(), media_type="image/png")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
