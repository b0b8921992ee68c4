"""Decodes masks in GIF files, which some data sets have (Carvana, DRIVE). Images in GIF are refused."""

import io

import numpy as np
from PIL import Image

from models.errors import CorruptImageError, ImageTooLargeError, MultiFrameImageError, first_line, quoted
from models.imaging.cpu_budget import allow_pixels


def decode_gif_mask(data: bytes, max_pixels: int) -> Image.Image:
    """The only frame of a GIF; of a gray palette its gray values, otherwise palette indices.

    Raises: ImageTooLargeError, MultiFrameImageError, CorruptImageError.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("GIF",)) as image:
            if image.width * image.height > max_pixels:
                raise ImageTooLargeError(
                    f"the mask has {image.width * image.height:,} pixels; the limit is {max_pixels:,}."
                )
            if getattr(image, "n_frames", 1) > 1:
                raise MultiFrameImageError(f"the GIF has {image.n_frames} frames; expected one. Save one frame as PNG.")  # type: ignore[attr-defined]
            allow_pixels(image.width * image.height)
            image.load()
            frame = image.copy()
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptImageError(
            f"the GIF is truncated or corrupt ({quoted(first_line(error))}). Save it again as PNG."
        ) from error
    if frame.mode == "P":
        palette = np.zeros((256, 3), np.uint8)  # indices past the end of the palette are black, as in image viewers
        stated = np.array(frame.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        palette[: len(stated)] = stated
        colors = palette[np.unique(np.asarray(frame))]
        if (colors == colors[:, :1]).all():
            return frame.convert("L")
    return frame
