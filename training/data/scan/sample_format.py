"""How an image file stores its samples, where that matters for reading it: more than 8 bits, floats, bands, nodata."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from models.imaging.decode import RGB

SAMPLES_PER_PIXEL, BITS_PER_SAMPLE, PLANAR_CONFIG, GDAL_NODATA = 277, 258, 284, 42113  # TIFF tags
DARK_LEVEL = 32  # of 255: an image below uses an eighth of its 16 bits at most
RGB_BANDS = 3


@dataclass(frozen=True)
class SampleFormat:
    """The samples of one image file."""

    kind: str = "uint8"  # uint8, uint16, or that of other samples: int32, float32
    low: float = 0.0  # the range of the samples, known for floats and for dark images of 16 bits
    high: float = 0.0
    bands: int = 0  # of a TIFF with more than three, or with separate planes; 0 for others
    planes: bool = False  # whether a TIFF stores one band after the other
    nodata: str = ""  # the value that GDAL notes as missing


EIGHT_BITS = SampleFormat()


def read_sample_format(image: Image.Image, rgb: RGB | None) -> SampleFormat:
    """The format of an opened image. `rgb`: its decoded pixels, uint8 H x W x 3, None if it cannot be decoded."""
    raw = str(image.tile[0].args) if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    kind = "uint8"
    if image.mode.startswith("F"):
        kind = "float32"
    elif image.mode == "I" and ";16" not in raw:
        kind = "int32"
    elif image.mode.startswith("I") or ";16" in raw:
        kind = "uint16"
    bands, planes, nodata = 0, False, ""
    if isinstance(image, TiffImageFile):
        samples = int(image.tag_v2.get(SAMPLES_PER_PIXEL, 1))
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (8,))
        planes = image.tag_v2.get(PLANAR_CONFIG) == 2 and samples > 1 and max(bits) > 8  # 8-bit planes are read whole
        bands = samples if planes or samples > RGB_BANDS else 0
        nodata = str(image.tag_v2.get(GDAL_NODATA, "")).strip("\0 ")
    low = high = 0.0
    if kind != "uint8" and (kind != "uint16" or (rgb is not None and rgb.max(initial=0) < DARK_LEVEL)):
        low, high = _sample_range(image)
    return SampleFormat(kind, low, high, bands, planes, nodata) if kind != "uint8" or bands or nodata else EIGHT_BITS


def _sample_range(image: Image.Image) -> tuple[float, float]:
    try:
        values = np.asarray(image, np.float64)
    except Exception:  # the decoder reports it
        return 0.0, 0.0
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    if image.mode == "RGB":  # Pillow keeps the upper 8 of 16 bits
        return float(finite.min() * 257), float(finite.max() * 257 + 256)
    return float(finite.min()), float(finite.max())
