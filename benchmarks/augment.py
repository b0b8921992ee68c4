"""Augmentation speed in images/s of four implementations: `python -m benchmarks.augment`.

compose  albumentations' own A.Compose of the same steps, with a warp per step, as without `training/augment`
cpu      `training.augment.cpu`, one image at a time, as in a worker
batch    `training.augment.batched` on the CPU, as in tests
gpu      the same on a GPU, if there is one, from tensors in host memory to the augmented batch on the device

On one thread, because each worker has one. Synthetic images of 360 x 480, crops of the same size, batches of 8. The
implementations alternate, so that other load on the machine affects all equally; the median of the rounds counts. The times
include sampling the parameters, and cropping and collating the batches.

Prints a table and writes benchmarks/results/augment.json.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch

from benchmarks.usage import print_help_if_requested
from models.engines.host_info import host_info
from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX
from training.augment import FILL_COLOR, AugmentPolicy, batched, cpu, crop_to_source_window, pad_and_stack
from training.config import TrainConfig
from training.data.synthetic import generate_scene

RESULTS = Path(__file__).parent / "results" / "augment.json"
CROP, BATCH, ROUNDS = (360, 480), 8, 15
CONFIGS = {
    "default": TrainConfig(),  # scale, crop, flip, color
    "geometry": TrainConfig(color_jitter=0, rotate=30),
    "everything": TrainConfig(rotate=30, vflip=0.5, elastic=0.05, hue=0.05, blur=2, noise=15),
}
AugmentBatch = Callable[[int], None]  # augments one batch, with parameters sampled from a seed
BORDER = {"border_mode": cv2.BORDER_CONSTANT, "fill": FILL_COLOR, "fill_mask": IGNORE_INDEX}


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = [generate_scene(np.random.default_rng(seed), CROP) for seed in range(BATCH)]
    print(f"{'images/s':12}" + "".join(f"{name:>12}" for name in ("compose", "cpu", "batch", "gpu")))
    found: dict[str, dict[str, Any]] = {}
    for name, config in CONFIGS.items():
        rates = measure_rates(make_pipelines(config, images))
        found[name] = rates | {"cpu_to_compose": round(rates["cpu"] / rates["compose"], 2)}
        print(f"{name:12}" + "".join(f"{rate:12.0f}" for rate in rates.values()), flush=True)
    packages = ("albumentations", "opencv-python-headless", "torch")
    result = host_info() | {"versions": {package: version(package) for package in packages}}
    result |= {"threads": 1, "crop": CROP, "batch": BATCH, "rounds": ROUNDS, "images_per_second": found}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure_rates(pipelines: dict[str, AugmentBatch]) -> dict[str, float]:
    """Images/s of each implementation: the median of the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for seed in range(ROUNDS + 1):
        for name, augment in pipelines.items():
            start = time.perf_counter()
            augment(seed)
            seconds[name].append(time.perf_counter() - start)
    # The first round imports modules and fills caches.
    return {name: round(BATCH / statistics.median(times[1:]), 1) for name, times in seconds.items()}


def make_pipelines(config: TrainConfig, images: list[tuple[RGB, Labels]]) -> dict[str, AugmentBatch]:
    policy, steps = AugmentPolicy(config, CROP), albumentations_pipeline(config)

    def sample(seed: int) -> list[tuple[RGB, Labels, Any]]:
        generators = [np.random.default_rng((seed, index)) for index in range(len(images))]
        return [
            (image, labels, policy.sample_params(labels.shape, labels, generator))
            for (image, labels), generator in zip(images, generators, strict=True)
        ]

    def augment_compose(seed: int) -> None:
        steps.set_random_state(np.random.default_rng(seed), random.Random(seed))
        for image, labels in images:
            steps(image=image, mask=labels)

    def augment_cpu(seed: int) -> None:
        for item in sample(seed):
            cpu.augment_image(*item, CROP)

    def augment_batch(seed: int) -> None:
        batched.augment_batch(*pad_and_stack([crop_to_source_window(*item, CROP) for item in sample(seed)], CROP), CROP)

    def augment_gpu(seed: int) -> None:
        images, masks, params = pad_and_stack([crop_to_source_window(*item, CROP) for item in sample(seed)], CROP)
        batched.augment_batch(images.cuda(), masks.cuda(), type(params)(*(each.cuda() for each in params)), CROP)
        torch.cuda.synchronize()

    found: dict[str, AugmentBatch] = {"compose": augment_compose, "cpu": augment_cpu, "batch": augment_batch}
    return found | ({"gpu": augment_gpu} if torch.cuda.is_available() else {})


def albumentations_pipeline(config: TrainConfig) -> A.Compose:
    """albumentations' transforms of the same kinds and probabilities; its elastic transform displaces every pixel by itself."""
    smallest, largest = config.scale
    strength, angle = config.color_jitter, config.rotate
    factors = (1 - strength, 1 + strength)
    steps: list[A.BasicTransform] = [A.RandomScale((smallest - 1, largest - 1), p=1)]
    steps += [A.Rotate((-angle, angle), p=0.5, **BORDER)] * bool(angle)
    steps += [A.PadIfNeeded(*CROP, position="random", **BORDER), A.RandomCrop(*CROP)]
    steps += [A.HorizontalFlip(p=config.flip), A.VerticalFlip(p=config.vflip)]
    if config.elastic:
        steps.append(A.ElasticTransform(alpha=300, sigma=30, p=0.5, **BORDER))
    if strength:
        steps.append(A.ColorJitter(factors, factors, factors, hue=(-config.hue, config.hue), p=0.8))
    if config.blur:
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.01, config.blur), p=0.5))
    if config.noise:
        steps.append(A.GaussNoise(std_range=(0, config.noise / 255), p=0.5))
    return A.Compose(steps)


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    main()
