"""LitServe as in its documentation, a LitAPI of four methods: `python -m benchmarks.servers.litserve_tutorial PORT`.

LitServe is not a requirement, and `pip install litserve` would change installed packages. Install it into a separate
folder on PYTHONPATH: `uv pip install --no-deps --target FOLDER litserve uvloop httptools`.
The image is the file of a form: base64 in JSON, as in its examples, would take longer.
"""

import io
import sys

import litserve as ls
from fastapi import Request, Response
from PIL import Image

from benchmarks.servers.network import TutorialSegmenter


class SegmentationAPI(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.segmenter = TutorialSegmenter()

    def decode_request(self, request: Request) -> Image.Image:  # with this annotation LitServe passes the request
        return Image.open(io.BytesIO(request["image"].file.read()))

    def predict(self, image: Image.Image) -> Image.Image:
        return self.segmenter(image)

    def encode_response(self, mask: Image.Image) -> Response:
        buffer = io.BytesIO()
        mask.save(buffer, format="PNG")
        return Response(buffer.getvalue(), media_type="image/png")


if __name__ == "__main__":
    server = ls.LitServer(SegmentationAPI(api_path="/segment"), accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
