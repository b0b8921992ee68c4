"""The format `overlay`: the image with the classes' colors blended over it, as a JPEG for people."""

import cv2
import numpy as np

from models.errors import ImageTooLargeError
from models.imaging.decode import RGB, Labels
from models.inference.segmenter import Prediction
from models.outputs.options import OutputOptions
from models.readers.composite import to_rgb
from models.spec import IGNORE_INDEX, BundleSpec

MEDIA_TYPE = "image/jpeg"
SUFFIX = ".jpg"
NEEDS_CONFIDENCE = False

MAX_JPEG_SIDE = 65_500  # pixels, the limit of libjpeg


def encode(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Blend the colors over the image with `options.alpha`; a JPEG of the image's size. Raises: ImageTooLargeError."""
    height, width = prediction.labels.shape
    if max(height, width) > MAX_JPEG_SIDE:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels; an overlay is limited to {MAX_JPEG_SIDE:,} a side. Use the format png."
        )
    blended = blend(
        to_rgb(prediction.image, spec.input, options.bands), prediction.labels, spec.palette(), options.alpha
    )
    # The same bytes as Pillow's encoder, in less time.
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(blended, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return encoded.tobytes()


def blend(image: RGB, labels: Labels, palette: list[tuple[int, int, int]], alpha: float) -> RGB:
    """Blend the color of each pixel's label, from 256 colors, into the image, RGB uint8 H x W x 3. 255 is left as it is."""
    colors = cv2.LUT(cv2.merge([labels] * 3), np.array([palette], np.uint8))
    blended = cv2.addWeighted(image, 1 - alpha, colors, alpha, 0)
    return np.asarray(cv2.copyTo(image, (labels == IGNORE_INDEX).view(np.uint8), blended), np.uint8)
