"""The classes' colours laid over the picture, as a JPEG for people to look at."""

import cv2
import numpy as np

from models.errors import ImageTooLarge
from models.imaging.decode import RGB, Labels
from models.inference.segmenter import Prediction
from models.outputs.options import Options
from models.spec import VOID, Spec

MEDIA_TYPE = "image/jpeg"
SUFFIX = ".jpg"
CONFIDENCE = False

LONGEST = 65_500  # pixels a side: all that libjpeg writes


def encode(prediction: Prediction, spec: Spec, options: Options) -> bytes:
    """Blend the colours over the picture by `options.alpha`; a JPEG of the picture's size. Raises: ImageTooLarge."""
    height, width = prediction.labels.shape
    if max(height, width) > LONGEST:
        raise ImageTooLarge(
            f"The picture has {width} x {height} pixels, and an overlay has at most {LONGEST:,} a side; take the format png."
        )
    blended = blend(prediction.picture, prediction.labels, spec.palette(), options.alpha)
    # The same bytes as Pillow's, sooner.
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(blended, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return encoded.tobytes()


def blend(picture: RGB, labels: Labels, palette: list[tuple[int, int, int]], alpha: float) -> RGB:
    """RGB uint8 H x W x 3: the picture with each pixel tinted by its label's of 256 colours; void stays as it is."""
    colours = cv2.LUT(cv2.merge([labels] * 3), np.array([palette], np.uint8))
    blended = cv2.addWeighted(picture, 1 - alpha, colours, alpha, 0)
    return np.asarray(cv2.copyTo(picture, (labels == VOID).view(np.uint8), blended), np.uint8)
