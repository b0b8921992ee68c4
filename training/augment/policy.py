"""Samples augmentation parameters from the config, a random generator, the image's size and, for class balance, its labels."""

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX
from training.augment.params import IDENTITY_COLOR_FACTORS, AugmentParams
from training.config import TrainConfig

APPLY_PROBABILITY = 0.5  # of rotation, elastic change, blur and noise, each if it is enabled
COLOR_PROBABILITY = 0.8  # of a change of color (SimCLR's, arXiv 2002.05709)
ELASTIC_CELLS = 4  # control cells of an elastic change along the crop's shorter side

Vector = NDArray[np.float64]  # (x, y) in pixels


class AugmentPolicy:
    """Samples scale, rotation, flips, position, elastic change, color, blur and noise, independently of each other."""

    def __init__(self, config: TrainConfig, crop: tuple[int, int]) -> None:
        """`crop` is (height, width) in pixels."""
        self.config = config
        self.crop_size = crop

    def sample_params(self, size: tuple[int, int], labels: Labels | None, random: np.random.Generator) -> AugmentParams:
        """Sample parameters for an image of (height, width) `size`; `labels` uint8 H x W only matter for `class_balanced_crops`."""
        scale = random.uniform(*self.config.scale)
        linear = self._sample_rotation_and_flip(random) / scale
        middle = np.array(self.crop_size[::-1]) / 2
        center = (self._sample_offset(size, labels, scale, linear, random) + middle) / scale
        # `center` and `middle` are measured from the image's edge, matrices from the center of its first pixel.
        translation = center - 0.5 - linear @ (middle - 0.5)
        color, hue = self._sample_color(random)
        return AugmentParams(
            size=size,
            matrix=np.column_stack([linear, translation]),
            elastic_grid=self._sample_elastic_grid(random),
            color_factors=color,
            hue_shift=hue,
            blur_sigma=self._sample_strength(self.config.blur, random),
            noise_std=self._sample_strength(self.config.noise, random),
            noise_seed=int(random.integers(2**31)),
        )

    def _sample_rotation_and_flip(self, random: np.random.Generator) -> NDArray[np.float64]:
        """2 x 2: rotation and flips."""
        largest = self.config.rotate
        angle = np.deg2rad(random.uniform(-largest, largest)) if random.random() < APPLY_PROBABILITY else 0.0
        flips = [-1.0 if random.random() < p else 1.0 for p in (self.config.flip, self.config.vflip)]
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return np.asarray(rotation * flips)

    def _sample_offset(
        self,
        size: tuple[int, int],
        labels: Labels | None,
        scale: float,
        linear: NDArray[np.float64],
        random: np.random.Generator,
    ) -> Vector:
        """(x, y) of the crop's corner in the scaled image; negative if a smaller image is padded.

        In whole pixels, so that an unscaled image is not interpolated. The unrotated crop is within the image and rotates
        around its own center: a rotation then only brings in the corners of crops at the edge, while rotating the image
        would bring in a quarter of every crop near a corner.
        """
        slack = np.array(size[::-1]) * scale - self.crop_size[::-1]
        spare = np.floor(np.abs(slack)).astype(int)
        offset = np.sign(slack) * random.integers(spare + 1)
        if labels is not None and random.random() < self.config.class_balanced_crops:
            pixel = sample_class_balanced_pixel(labels, random)
            if pixel is not None:
                middle = np.array(self.crop_size[::-1]) / 2
                target = random.integers(self.crop_size[::-1]) + 0.5  # where in the crop the pixel goes
                ideal = (pixel + 0.5 - linear @ (target - middle)) * scale - middle
                offset = np.clip(np.rint(ideal), np.minimum(0, -spare * (slack < 0)), spare * (slack > 0))
        return np.asarray(offset, np.float64)

    def _sample_elastic_grid(self, random: np.random.Generator) -> NDArray[np.float32] | None:
        """Displacements of control cells, 2 x gh x gw, crop pixels, as in U-Net (arXiv 1505.04597, section 3.1)."""
        shorter = min(self.crop_size)
        strength = self._sample_strength(self.config.elastic, random) * shorter
        cells = [max(ELASTIC_CELLS, round(ELASTIC_CELLS * length / shorter)) for length in self.crop_size]
        return random.uniform(-strength, strength, (2, *cells)).astype(np.float32) if strength else None

    def _sample_color(self, random: np.random.Generator) -> tuple[tuple[float, float, float], float]:
        """Factors of brightness, contrast and saturation, and the shift of hue."""
        strength, hue = self.config.color_jitter, self.config.hue
        if random.random() >= COLOR_PROBABILITY:
            return IDENTITY_COLOR_FACTORS, 0.0
        brightness, contrast, saturation = random.uniform(1 - strength, 1 + strength, 3).tolist()
        return (brightness, contrast, saturation), random.uniform(-hue, hue)

    @staticmethod
    def _sample_strength(largest: float, random: np.random.Generator) -> float:
        """0, or between 0 and the largest."""
        return random.uniform(0, largest) if random.random() < APPLY_PROBABILITY else 0.0


def sample_class_balanced_pixel(labels: Labels, random: np.random.Generator) -> Vector | None:
    """A pixel (x, y) of a class sampled uniformly from those in uint8 H x W; None if all pixels are ignored.

    nnU-Net does so for a third of its patches (doi 10.1038/s41592-020-01008-z). The alternative, mmsegmentation's
    `cat_max_ratio`, discards crops until one class no longer fills them, at the cost of a warp each.
    """
    present = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256)[:IGNORE_INDEX])
    if not present.size:
        return None
    pixels = np.flatnonzero(labels == random.choice(present))
    row, column = divmod(int(random.choice(pixels)), labels.shape[1])
    return np.array([column, row], np.float64)
