"""What augmentation does, for the eye: `python -m benchmarks.augment_gallery [PICTURE MASK] [TARGET]` draws docs/augment.png.

Each row shows one kind of change on one picture, the borders of its mask over it: they must lie on the borders of what is
seen, and what comes in from outside must have none within. Without a picture one of the *shapes* data set is drawn.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.imaging.decode import RGB, Labels
from models.spec import VOID
from training.augment import Policy, batched, collate
from training.config import TrainConfig
from training.data.synthetic import scene

TARGET = Path(__file__).parents[1] / "docs" / "augment.png"
COLUMNS, CROP = 4, (144, 192)
STILL = {"scale": (1, 1), "flip": 0, "colour": 0}
ROWS = [
    TrainConfig(colour=0, rotate=30),
    TrainConfig(**STILL | {"elastic": 0.1}),
    TrainConfig(**STILL | {"colour": 0.4, "hue": 0.1}),
    TrainConfig(**STILL | {"blur": 2.5, "noise": 25}),
    TrainConfig(rotate=30, elastic=0.05, hue=0.05, blur=1.5, noise=15),
]


def main(arguments: list[str]) -> None:
    target = Path(arguments.pop()) if len(arguments) % 2 else TARGET
    picture, labels = read(*arguments) if arguments else scene(np.random.default_rng(3), CROP)
    rows = [row(config, picture, labels, seed) for seed, config in enumerate(ROWS)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.quantize(96, dither=Image.Dither.NONE).save(target, optimize=True)


def read(picture: str, mask: str) -> tuple[RGB, Labels]:
    return np.array(Image.open(picture).convert("RGB")), np.array(Image.open(mask))


def row(config: TrainConfig, picture: RGB, labels: Labels, seed: int) -> RGB:
    """COLUMNS crops side by side, RGB uint8."""
    policy, random = Policy(config, CROP), np.random.default_rng(seed + 40)
    items = [(picture, labels, policy.draw(labels.shape, labels, random)) for _ in range(COLUMNS)]
    pictures, masks = batched.apply(*collate(items, CROP), CROP)
    return np.concatenate([outlined(*each) for each in zip(pictures, masks, strict=True)], axis=1)


def outlined(picture: torch.Tensor, labels: torch.Tensor) -> RGB:
    """White where a pixel's label differs from its right or lower neighbour's, black where the neighbour is void."""
    drawn, mask = picture.numpy().copy(), labels.numpy()
    edge, void = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        edge[here] |= mask[here] != mask[there]
        void[here] |= (mask[here] == VOID) != (mask[there] == VOID)
    drawn[edge] = 255
    drawn[void] = 0
    return np.asarray(np.pad(drawn[:-4, :-4], ((0, 4), (0, 4), (0, 0)), constant_values=255))


if __name__ == "__main__":
    main(sys.argv[1:])
