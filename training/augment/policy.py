"""What the config allows, drawn: a function of the generator, the picture's size and, for balance, its labels."""

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import VOID
from training.augment.params import NO_CHANGE, Draw
from training.config import TrainConfig

OFTEN = 0.5  # probability of a rotation, an elastic change, a blur, noise, where they are asked for at all
COLOURED = 0.8  # probability of a change of colours (SimCLR's, arXiv 2002.05709)
CELLS = 4  # control cells of an elastic change along the crop's shorter side

Vector = NDArray[np.float64]  # (x, y) in pixels


class Policy:
    """Draws scale, rotation, mirroring, place, elastic change, colours, blur and noise, each independently of the others."""

    def __init__(self, config: TrainConfig, crop: tuple[int, int]) -> None:
        """`crop` is (height, width) in pixels."""
        self.config = config
        self.crop = crop

    def draw(self, size: tuple[int, int], labels: Labels | None, random: np.random.Generator) -> Draw:
        """One sample of a picture of (height, width) `size`; `labels` uint8 H x W are looked at for `balance` alone."""
        scale = random.uniform(*self.config.scale)
        linear = self._turned(random) / scale
        middle = np.array(self.crop[::-1]) / 2
        centre = (self._offset(size, labels, scale, linear, random) + middle) / scale
        # `centre` and `middle` count from a picture's edge, matrices from its first pixel's centre.
        translation = centre - 0.5 - linear @ (middle - 0.5)
        colour, hue = self._colour(random)
        return Draw(
            size=size,
            matrix=np.column_stack([linear, translation]),
            elastic=self._elastic(random),
            colour=colour,
            hue=hue,
            blur=self._sometimes(self.config.blur, random),
            noise=self._sometimes(self.config.noise, random),
            seed=int(random.integers(2**31)),
        )

    def _turned(self, random: np.random.Generator) -> NDArray[np.float64]:
        """2 x 2: rotation and mirroring."""
        largest = self.config.rotate
        angle = np.deg2rad(random.uniform(-largest, largest)) if random.random() < OFTEN else 0.0
        mirrored = [-1.0 if random.random() < chance else 1.0 for chance in (self.config.flip, self.config.vflip)]
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return np.asarray(turn * mirrored)

    def _offset(
        self,
        size: tuple[int, int],
        labels: Labels | None,
        scale: float,
        linear: NDArray[np.float64],
        random: np.random.Generator,
    ) -> Vector:
        """(x, y) of the crop's corner in the scaled picture, negative where a smaller picture is padded.

        It is whole pixels, so that a picture that is not scaled is not interpolated either. The crop lies within the
        picture as it stands upright and turns around its own centre: what a rotation brings in from outside is then
        corners of crops at the edge, and not, as where pictures turn, a quarter of every crop near a corner.
        """
        slack = np.array(size[::-1]) * scale - self.crop[::-1]
        spare = np.floor(np.abs(slack)).astype(int)
        offset = np.sign(slack) * random.integers(spare + 1)
        if labels is not None and random.random() < self.config.balance:
            pixel = rare_pixel(labels, random)
            if pixel is not None:
                middle = np.array(self.crop[::-1]) / 2
                spot = random.integers(self.crop[::-1]) + 0.5
                wanted = (pixel + 0.5 - linear @ (spot - middle)) * scale - middle
                offset = np.clip(np.rint(wanted), np.minimum(0, -spare * (slack < 0)), spare * (slack > 0))
        return np.asarray(offset, np.float64)

    def _elastic(self, random: np.random.Generator) -> NDArray[np.float32] | None:
        """Displacements of control cells over the crop, 2 x gh x gw, as in U-Net (arXiv 1505.04597, section 3.1)."""
        shorter = min(self.crop)
        strength = self._sometimes(self.config.elastic, random) * shorter
        cells = [max(CELLS, round(CELLS * length / shorter)) for length in self.crop]
        return random.uniform(-strength, strength, (2, *cells)).astype(np.float32) if strength else None

    def _colour(self, random: np.random.Generator) -> tuple[tuple[float, float, float], float]:
        """Factors of brightness, contrast and saturation, and a shift of hue."""
        strength, hue = self.config.colour, self.config.hue
        if random.random() >= COLOURED:
            return NO_CHANGE, 0.0
        brightness, contrast, saturation = random.uniform(1 - strength, 1 + strength, 3).tolist()
        return (brightness, contrast, saturation), random.uniform(-hue, hue)

    @staticmethod
    def _sometimes(largest: float, random: np.random.Generator) -> float:
        """0, or between 0 and the largest."""
        return random.uniform(0, largest) if random.random() < OFTEN else 0.0


def rare_pixel(labels: Labels, random: np.random.Generator) -> Vector | None:
    """A pixel (x, y) of a class drawn evenly from those present in uint8 H x W; None where all is void.

    So does nnU-Net with a third of its patches (doi 10.1038/s41592-020-01008-z); the other known way, mmsegmentation's
    `cat_max_ratio`, throws crops away until one class no longer fills them, which costs as many warps.
    """
    present = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256)[:VOID])
    if not present.size:
        return None
    places = np.flatnonzero(labels == random.choice(present))
    row, column = divmod(int(random.choice(places)), labels.shape[1])
    return np.array([column, row], np.float64)
