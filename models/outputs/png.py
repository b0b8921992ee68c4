"""The mask as an indexed PNG: each pixel is its label, and the palette shows the classes' colours."""

import io

from PIL import Image

from models.image import Labels
from models.outputs.options import Options
from models.segmenter import Prediction
from models.spec import ClassInfo, Spec, palette

MEDIA_TYPE = "image/png"
SUFFIX = ".png"
CONFIDENCE = False


def encode(prediction: Prediction, spec: Spec, options: Options) -> bytes:
    """Encode uint8 labels H x W as an 8-bit palette PNG of the same size."""
    buffer = io.BytesIO()
    # Labels are flat: higher levels cost time and save little.
    indexed(prediction.labels, spec.classes).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def indexed(labels: Labels, classes: list[ClassInfo]) -> Image.Image:
    """Uint8 labels H x W as a palette picture."""
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in palette(classes) for channel in colour])
    return image
