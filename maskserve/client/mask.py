"""The mask of an image: the class of each pixel, to compute with, to save, and to display."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskserve.client.image_encoding import ImageLike, open_sent_image

IGNORE_INDEX = 255
NOTEBOOK_MAX_SIDE = 1024  # pixels: the longest side at which a notebook shows a mask


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """The label of each pixel of an image. A notebook shows it over the image that was sent."""

    labels: NDArray[np.uint8]  # H x W of the upright image: the index in `classes`; 255 is unlabeled
    classes: list[dict[str, Any]]  # {"name": ..., "rgb": [red, green, blue]} by label
    palette: NDArray[np.uint8]  # 256 x 3 RGB by label
    model: str  # the bundle's name and the beginning of its hash
    png: bytes  # the indexed PNG that the service returned
    confidence: NDArray[np.float32] | None = None  # H x W, softmax probability 0..1 of the label; if requested
    request_id: str = ""  # the request's id in the service's log
    timing: dict[str, float] = field(default_factory=dict)  # milliseconds by stage of the service
    image: ImageLike | None = None  # the object that was sent, not a copy

    @classmethod
    def from_png(cls, png: bytes, confidence: bytes | None = None, **fields: Any) -> "Mask":
        """The mask of the service's PNGs; `fields`: the other fields.

        Raises: OSError, ValueError, SyntaxError for invalid PNGs, and whatever else Pillow raises for them.
        """
        image = Image.open(io.BytesIO(png), formats=["PNG"])
        colors = image.getpalette()
        if image.mode != "P" or colors is None:
            raise ValueError(f"expected a PNG with a palette, got mode {image.mode}")
        palette = np.frombuffer(bytearray(colors).ljust(256 * 3, b"\0"), np.uint8).reshape(256, 3)
        probability = None
        if confidence is not None:
            gray = Image.open(io.BytesIO(confidence), formats=["PNG"])
            if gray.mode != "L" or gray.size != image.size:
                raise ValueError(
                    f"expected the confidence as a gray PNG of {image.size}, got {gray.mode} of {gray.size}"
                )
            probability = np.multiply(np.asarray(gray), 1 / 255, dtype=np.float32)
        return cls(labels=np.array(image), palette=palette, png=png, confidence=probability, **fields)

    def save(self, path: Path | str) -> None:
        """Write the indexed PNG, whose pixels are the labels."""
        Path(path).write_bytes(self.png)

    def class_fractions(self) -> dict[str, float]:
        """Fraction of the image's pixels, 0..1, by class name, the largest first. Only classes that occur; 255 is none."""
        pixels = Image.fromarray(self.labels).histogram()
        counts = sorted(zip(pixels, self.classes, strict=False), key=lambda pair: -pair[0])
        return {entry["name"]: count / self.labels.size for count, entry in counts if count}

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image that was sent, RGB, blended with the class colors; `alpha`, 0..1, is their opacity.

        Unlabeled pixels are unchanged. It is made locally, from the image as it is now.
        Raises: ValueError if the image cannot be opened or has another size than the mask.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; expected a number from 0 to 1.")
        blended = self._blend_with_image(alpha)
        if blended is None:
            raise ValueError("The image that was sent cannot be opened any more, or has another size than its mask.")
        return blended

    def _blend_with_image(self, alpha: float, side: int | None = None) -> Image.Image | None:
        height, width = self.labels.shape
        image = open_sent_image(self.image, (width, height), side) if self.image is not None else None
        if image is None:
            return None
        colors = self._to_palette_image().resize(image.size, Image.Resampling.NEAREST)
        unlabeled = Image.fromarray((np.asarray(colors) == IGNORE_INDEX).astype(np.uint8) * 255)
        return Image.composite(image, Image.blend(image, colors.convert("RGB"), alpha), unlabeled)

    def _to_palette_image(self) -> Image.Image:
        image = Image.fromarray(self.labels)
        image.putpalette(self.palette.tobytes())
        return image

    def _repr_png_(self) -> bytes:
        """For notebooks: the overlay, or only the colors if the image cannot be opened; 1024 pixels a side at most."""
        shown = self._blend_with_image(0.5, NOTEBOOK_MAX_SIDE)
        if shown is None:
            shown = self._to_palette_image()
            shown.info["transparency"] = IGNORE_INDEX
            shown.thumbnail((NOTEBOOK_MAX_SIDE, NOTEBOOK_MAX_SIDE), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        shown.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.labels.shape
        fractions = ", ".join(f"{name} {fraction:.1%}" for name, fraction in self.class_fractions().items())
        return f"<Mask {width} x {height} by {self.model}: {fractions or 'unlabeled'}>"
