"""libtiff writes what is wrong with an image to the process's stderr; here that is switched off.

Pillow switches off its warnings alone, and anyone's broken TIFF would be a line in the service's log. What went wrong
still reaches the caller, as an exception.
"""

import ctypes
import logging
from pathlib import Path

import PIL
from PIL import features


def silence_libtiff() -> None:
    """Take away libtiff's error handler, in the library that Pillow brings with it, and Pillow's own lines on TIFFs."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    folder = Path(PIL.__file__).parent
    beside = [folder.parent / "pillow.libs", folder.parent / "PIL" / ".dylibs"]  # where its wheels keep libraries
    for path in [path for place in beside for path in place.glob("libtiff*")] if features.check("libtiff") else []:
        ctypes.CDLL(str(path)).TIFFSetErrorHandler(None)
