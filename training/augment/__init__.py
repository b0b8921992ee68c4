"""Augmentation: a new crop of each image at each epoch, drawn once and laid on where it costs least.

    Policy(config, crop).draw(size, labels, random) -> Draw     policy.py   what the config allows, drawn as plain numbers
    cpu.apply(image, labels, draw, crop)                      cpu.py      one image, by albumentations and cv2
    batched.apply(images, labels, draws, crop)                  batch.py    a whole batch, by torch, where its tensors lie
    cut(...), collate(...)                                      draw.py     what a worker sends of an image to a GPU

The two ways agree: for one draw masks are equal, but for pixels that are read within 1e-4 of the middle between two others,
and each kind of change gives images within a level (`tests/training/augment/test_parity.py`, which holds both to
albumentations' own transforms); where all kinds come together, colours draw a rounded level further apart at 1 pixel in
1,000. Geometry is one warp, whatever it is made of, so that an image is
interpolated once. Masks move by nearest neighbour, and what comes in from outside is void, never a class: no label is
invented (albumentations #175, kornia #3090).
"""

from typing import Literal

from training.augment import batched, cpu
from training.augment.params import (
    FILL_COLOR,
    AugmentParams,
    BatchedAugmentParams,
    crop_to_source_window,
    pad_and_stack,
    stack_params,
)
from training.augment.policy import AugmentPolicy

__all__ = [
    "FILL_COLOR",
    "AugmentParams",
    "AugmentPolicy",
    "BatchedAugmentParams",
    "batched",
    "choose_augment_device",
    "cpu",
    "crop_to_source_window",
    "pad_and_stack",
    "stack_params",
]


def choose_augment_device(setting: Literal["auto", "cpu", "gpu"], device: str) -> Literal["cpu", "gpu"]:
    """Where images are augmented: "cpu" is by the workers, "gpu" on whole batches on `device`, "cuda" or "cpu".

    `auto` leaves them to the workers where there is no GPU: on one thread of a CPU, crops of 360 x 480 in batches of 8, cv2
    augmented 268 images a second and torch 25 (`benchmarks/augment.py`).
    """
    if setting != "auto":
        return setting
    return "gpu" if device.startswith("cuda") else "cpu"
