"""The classes' colours laid over the picture, as a JPEG for people to look at."""

import io

import numpy as np
from PIL import Image

from models.errors import ImageTooLarge
from models.image import RGB, Labels
from models.outputs.options import Options
from models.segmenter import Prediction
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
    buffer = io.BytesIO()
    Image.fromarray(blended).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def blend(picture: RGB, labels: Labels, palette: list[tuple[int, int, int]], alpha: float) -> RGB:
    """RGB uint8 H x W x 3: the picture with each labelled pixel tinted by its class; void stays as it is."""
    colours = np.asarray(palette, np.float32)[labels]
    weight = np.where(labels == VOID, 0.0, alpha)[:, :, None].astype(np.float32)
    return (picture * (1 - weight) + colours * weight + 0.5).astype(np.uint8)
