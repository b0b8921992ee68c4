"""Augmentation on the CPU: the only place that knows albumentations.

Masks move by nearest neighbour, and what a transform brings in from outside is void, never a class.
"""

import random

import albumentations as A
import cv2
import numpy as np

from models.image import RGB, Labels
from models.spec import VOID
from training.config import TrainConfig

FILL = (124, 116, 104)  # ImageNet's mean colour: what is brought in is 0 after normalisation


class Augment:
    """Random scale, rotation, crop, flip and colour, as the config sets them; every result has the crop's size."""

    def __init__(self, config: TrainConfig, crop: tuple[int, int]) -> None:
        """`crop` is (height, width) in pixels."""
        height, width = crop
        smallest, largest = config.scale
        steps: list[A.BasicTransform] = [
            A.RandomScale(
                (smallest - 1, largest - 1),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST_EXACT,
                p=1,
            ),
        ]
        if config.rotate:
            steps.append(
                A.Rotate(
                    (-config.rotate, config.rotate),
                    interpolation=cv2.INTER_LINEAR,
                    mask_interpolation=cv2.INTER_NEAREST,
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=FILL,
                    fill_mask=VOID,
                    p=0.5,
                )
            )
        steps += [
            A.PadIfNeeded(height, width, position="random", border_mode=cv2.BORDER_CONSTANT, fill=FILL, fill_mask=VOID),
            A.RandomCrop(height, width),
            A.HorizontalFlip(p=config.flip),
        ]
        if config.colour:
            strength = config.colour
            steps.append(
                A.ColorJitter(
                    brightness=(1 - strength, 1 + strength),
                    contrast=(1 - strength, 1 + strength),
                    saturation=(1 - strength, 1 + strength),
                    hue=(0.0, 0.0),
                    p=0.8,
                )
            )
        self.compose = A.Compose(steps)

    def __call__(self, picture: RGB, labels: Labels, seed: int) -> tuple[RGB, Labels]:
        """Augment RGB uint8 H x W x 3 and labels uint8 H x W; the same seed gives the same result."""
        # `set_random_seed` gives each transform a generator of the same seed, so that a large scale would always come with
        # a low crop and no flip; one generator that they share draws independently.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = self.compose(image=picture, mask=labels)
        return np.ascontiguousarray(result["image"]), np.ascontiguousarray(result["mask"])
