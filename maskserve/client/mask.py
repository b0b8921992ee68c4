"""What comes back: a label for each pixel, to compute with, to write, and to look at."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskserve.client.image_encoding import ImageLike, open_sent_image

IGNORE_INDEX = 255
NOTEBOOK_MAX_SIDE = 1024  # pixels: the longest side at which a notebook shows it


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """A label for each pixel of an image. A notebook shows it over the image that was sent."""

    labels: NDArray[np.uint8]  # H x W of the upright image: the place of a class in `classes`, 255 is void
    classes: list[dict[str, Any]]  # {"name": ..., "rgb": [red, green, blue]} by label
    palette: NDArray[np.uint8]  # 256 x 3 RGB by label
    model: str  # name and short hash of the bundle that answered
    png: bytes  # the indexed PNG as it came
    confidence: NDArray[np.float32] | None = None  # H x W, softmax probability 0..1 of the label; where asked for
    request_id: str = ""  # by which the service's log has it
    timing: dict[str, float] = field(default_factory=dict)  # milliseconds by stage of the service
    image: ImageLike | None = None  # what was sent, itself and not a copy

    @classmethod
    def from_png(cls, png: bytes, confidence: bytes | None = None, **rest: Any) -> "Mask":
        """Of the service's two PNGs. Raises: OSError, ValueError, SyntaxError where they are none."""
        image = Image.open(io.BytesIO(png), formats=["PNG"])
        held = image.getpalette()
        if held is None:
            raise ValueError(f"a mask has a palette, and this is {image.mode}")
        palette = np.frombuffer(bytearray(held).ljust(256 * 3, b"\0"), np.uint8).reshape(256, 3)
        sure = None
        if confidence is not None:
            grey = np.asarray(Image.open(io.BytesIO(confidence), formats=["PNG"]))
            sure = np.multiply(grey, 1 / 255, dtype=np.float32)
        return cls(labels=np.array(image), palette=palette, png=png, confidence=sure, **rest)

    def save(self, path: Path | str) -> None:
        """Write the indexed PNG; each of its pixels is the label."""
        Path(path).write_bytes(self.png)

    def class_fractions(self) -> dict[str, float]:
        """Share of the image, 0..1, by the name of each class that is there, the largest first; void is no class."""
        pixels = Image.fromarray(self.labels).histogram()
        counted = sorted(zip(pixels, self.classes, strict=False), key=lambda pair: -pair[0])
        return {entry["name"]: count / self.labels.size for count, entry in counted if count}

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image that was sent under its classes' colours, RGB; `alpha` of the colours, 0..1. Void stays as it is.

        Made here, of the image as it is now. Raises: ValueError where that cannot be opened or has another size.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; wanted is a number from 0 to 1.")
        shown = self._blend_with_image(alpha)
        if shown is None:
            raise ValueError(
                "The image that was sent cannot be opened here any more, or has another size than its mask."
            )
        return shown

    def _blend_with_image(self, alpha: float, side: int | None = None) -> Image.Image | None:
        height, width = self.labels.shape
        image = open_sent_image(self.image, (width, height), side) if self.image is not None else None
        if image is None:
            return None
        colours = self._to_palette_image().resize(image.size, Image.Resampling.NEAREST)
        void = Image.fromarray((np.asarray(colours) == IGNORE_INDEX).astype(np.uint8) * 255)
        return Image.composite(image, Image.blend(image, colours.convert("RGB"), alpha), void)

    def _to_palette_image(self) -> Image.Image:
        image = Image.fromarray(self.labels)
        image.putpalette(self.palette.tobytes())
        return image

    def _repr_png_(self) -> bytes:
        """For notebooks: the overlay, or the colours alone where the image cannot be had; 1024 pixels a side at most."""
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
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.class_fractions().items())
        return f"<Mask {width} x {height} by {self.model}: {shares or 'void'}>"
