"""A gallery of augmented images: `python -m benchmarks.augment_gallery [IMAGE MASK] [TARGET]` writes docs/augment.png.

Each row shows one kind of change on one image, with the outlines of its mask: they must follow the objects, and the
area from outside the image must have none. Without an image, one of the *shapes* data set is generated.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.usage import print_help_if_requested
from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX
from training.augment import AugmentPolicy, batched, pad_and_stack
from training.config import TrainConfig
from training.data.synthetic import generate_scene

OUTPUT_FILE = Path(__file__).parents[1] / "docs" / "augment.png"
COLUMNS, CROP = 4, (144, 192)
NO_AUGMENTATION = {"scale": (1, 1), "flip": 0, "color_jitter": 0}
ROWS = [
    TrainConfig(color_jitter=0, rotate=30),
    TrainConfig(**NO_AUGMENTATION | {"elastic": 0.1}),
    TrainConfig(**NO_AUGMENTATION | {"color_jitter": 0.4, "hue": 0.1}),
    TrainConfig(**NO_AUGMENTATION | {"blur": 2.5, "noise": 25}),
    TrainConfig(rotate=30, elastic=0.05, hue=0.05, blur=1.5, noise=15),
]


def main(arguments: list[str]) -> None:
    target = Path(arguments.pop()) if len(arguments) % 2 else OUTPUT_FILE
    image, labels = read_pair(*arguments) if arguments else generate_scene(np.random.default_rng(3), CROP)
    rows = [make_row(config, image, labels, seed) for seed, config in enumerate(ROWS)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.quantize(96, dither=Image.Dither.NONE).save(target, optimize=True)


def read_pair(image: str, mask: str) -> tuple[RGB, Labels]:
    return np.array(Image.open(image).convert("RGB")), np.array(Image.open(mask))


def make_row(config: TrainConfig, image: RGB, labels: Labels, seed: int) -> RGB:
    """COLUMNS crops side by side, RGB uint8."""
    policy, random = AugmentPolicy(config, CROP), np.random.default_rng(seed + 40)
    items = [(image, labels, policy.sample_params(labels.shape, labels, random)) for _ in range(COLUMNS)]
    images, masks = batched.augment_batch(*pad_and_stack(items, CROP), CROP)
    return np.concatenate([draw_outlines(*each) for each in zip(images, masks, strict=True)], axis=1)


def draw_outlines(image: torch.Tensor, labels: torch.Tensor) -> RGB:
    """White if a pixel's label differs from that of its right or lower neighbor, black if one of the two is ignored."""
    drawn, mask = image.numpy().copy(), labels.numpy()
    edge, border = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        edge[first] |= mask[first] != mask[second]
        border[first] |= (mask[first] == IGNORE_INDEX) != (mask[second] == IGNORE_INDEX)
    drawn[edge] = 255
    drawn[border] = 0
    return np.asarray(np.pad(drawn[:-4, :-4], ((0, 4), (0, 4), (0, 0)), constant_values=255))


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    main(sys.argv[1:])
