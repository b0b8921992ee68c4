"""Stops libtiff and Pillow from writing about corrupt TIFFs to stderr and the log.

Pillow turns off only libtiff's warnings, so that any user's corrupt TIFF would be a line in the service's log. The caller
still gets the error, as an exception.
"""

import ctypes
import logging
from pathlib import Path

import PIL
from PIL import features


def silence_libtiff() -> None:
    """Remove the error handler of the libtiff that Pillow brings with it, and raise the level of Pillow's TIFF logger."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    site_packages = Path(PIL.__file__).parent.parent
    library_folders = [
        site_packages / "pillow.libs",
        site_packages / "PIL" / ".dylibs",
    ]  # in wheels for Linux and macOS
    if features.check("libtiff"):
        for path in [path for folder in library_folders for path in folder.glob("libtiff*")]:
            ctypes.CDLL(str(path)).TIFFSetErrorHandler(None)
