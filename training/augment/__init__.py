"""Augmentation: a random crop of each image at each epoch. Parameters are sampled once, and applied on the CPU or the GPU.

    UserTransforms(settings)(image, labels, seed)             user_transforms.py  the user's albumentations transforms
    AugmentPolicy(config, crop).sample_params(size, labels, generator)  policy.py  samples the parameters as plain numbers
    cpu.augment_image(image, labels, params, crop)            cpu.py      one image, by albumentations' functions and cv2
    samples.augment_sample(image, labels, params, crop, rule) samples.py  the same for other channels and dtypes
    batched.augment_batch(images, labels, params, crop)       batched.py  a whole batch, by torch, on its device
    batched_samples.augment_samples(..., rule)                batched_samples.py  the same for other channels and dtypes
    crop_to_source_window(...), pad_and_stack(...)            params.py   the part of an image that a worker sends to a GPU

With equal parameters both give equal masks, except for pixels within 1e-4 of the midpoint between two source pixels, and each
kind of change gives images within one level (`tests/training/augment/test_parity.py`, which also compares both with
albumentations' own transforms); with all kinds together, 1 pixel in 1,000 differs by one more rounded level. All geometry
is one warp, so that an image is interpolated once. Masks move by nearest neighbor, and the area from outside the image is
ignored, so that no label is invented (albumentations #175, kornia #3090).
"""

from typing import Literal

from models.errors import ConfigError
from models.spec import InputRule
from training.augment import batched, batched_samples, cpu
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
    "batched_samples",
    "choose_augment_device",
    "cpu",
    "crop_to_source_window",
    "pad_and_stack",
    "stack_params",
]


def choose_augment_device(
    setting: Literal["auto", "cpu", "gpu"], device: str, rule: InputRule | None = None
) -> Literal["cpu", "gpu"]:
    """Where images are augmented: "cpu" is in the workers, "gpu" is whole batches on `device`, "cuda" or "cpu".

    `auto` is "gpu" only with a GPU: on one thread of a CPU, with crops of 360 x 480 in batches of 8, cv2 augmented 268
    images/s and torch 25 (`benchmarks/augment.py`). Signals and volumes are augmented in the workers.
    Raises: ConfigError for `gpu` with one of these.
    """
    if rule is not None and rule.axes != "HW":
        if setting == "gpu":
            raise ConfigError(f"augment=gpu is for images, and the network takes {rule.describe()}: set augment=cpu.")
        return "cpu"
    if setting != "auto":
        return setting
    return "gpu" if device.startswith("cuda") else "cpu"
