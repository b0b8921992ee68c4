"""Images augmented a second, and by which way: `python -m benchmarks.augment`.

compose  albumentations' own A.Compose of the same steps, a warp each, as a training without `training/augment` has it
cpu      `training.augment.cpu`, an image at a time, as a worker does it
batch    `training.augment.batched` on the CPU, which tests use
gpu      the same on a GPU where there is one, from tensors in the host's memory to the augmented batch on the device

On one thread, since workers have one each. Images are drawn, 360 x 480, crops as large, in batches of 8. The ways take
turns, so that whatever else the machine does falls on each alike; the median of the rounds counts. What is drawn anew each
time is drawn within the time measured, and so is the cutting and collating of batches.

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

from maskserve.host_info import host_info
from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX
from training.augment import FILL_COLOR, AugmentPolicy, batched, cpu, crop_to_source_window, pad_and_stack
from training.config import TrainConfig
from training.data.synthetic import generate_scene

RESULTS = Path(__file__).parent / "results" / "augment.json"
CROP, BATCH, ROUNDS = (360, 480), 8, 15
CONFIGS = {
    "default": TrainConfig(),  # scale, crop, flip, colour
    "geometry": TrainConfig(color_jitter=0, rotate=30),
    "everything": TrainConfig(rotate=30, vflip=0.5, elastic=0.05, hue=0.05, blur=2, noise=15),
}
AugmentBatch = Callable[[int], None]  # augments one batch, drawn from a seed
BORDER = {"border_mode": cv2.BORDER_CONSTANT, "fill": FILL_COLOR, "fill_mask": IGNORE_INDEX}


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = [generate_scene(np.random.default_rng(seed), CROP) for seed in range(BATCH)]
    print(f"{'images/s':12}" + "".join(f"{way:>12}" for way in ("compose", "cpu", "batch", "gpu")))
    found: dict[str, dict[str, Any]] = {}
    for name, config in CONFIGS.items():
        rates = measure_rates(make_pipelines(config, images))
        found[name] = rates | {"cpu_to_compose": round(rates["cpu"] / rates["compose"], 2)}
        print(f"{name:12}" + "".join(f"{rates[way]:12.0f}" for way in rates), flush=True)
    packages = ("albumentations", "opencv-python-headless", "torch")
    result = host_info() | {"versions": {package: version(package) for package in packages}}
    result |= {"threads": 1, "crop": CROP, "batch": BATCH, "rounds": ROUNDS, "images_per_second": found}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure_rates(asked: dict[str, AugmentBatch]) -> dict[str, float]:
    """Images a second by way: the median of the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(ROUNDS + 1):
        for name, way in asked.items():
            start = time.perf_counter()
            way(turn)
            seconds[name].append(time.perf_counter() - start)
    # The first round imports, and fills caches.
    return {name: round(BATCH / statistics.median(taken[1:]), 1) for name, taken in seconds.items()}


def make_pipelines(config: TrainConfig, images: list[tuple[RGB, Labels]]) -> dict[str, AugmentBatch]:
    policy, steps = AugmentPolicy(config, CROP), albumentations_pipeline(config)

    def drawn(seed: int) -> list[tuple[RGB, Labels, Any]]:
        generators = [np.random.default_rng((seed, place)) for place in range(len(images))]
        return [
            (image, labels, policy.sample_params(labels.shape, labels, generator))
            for (image, labels), generator in zip(images, generators, strict=True)
        ]

    def by_compose(seed: int) -> None:
        steps.set_random_state(np.random.default_rng(seed), random.Random(seed))
        for image, labels in images:
            steps(image=image, mask=labels)

    def by_cpu(seed: int) -> None:
        for item in drawn(seed):
            cpu.augment_image(*item, CROP)

    def by_batch(seed: int) -> None:
        batched.augment_batch(*pad_and_stack([crop_to_source_window(*item, CROP) for item in drawn(seed)], CROP), CROP)

    def by_gpu(seed: int) -> None:
        images, masks, draws = pad_and_stack([crop_to_source_window(*item, CROP) for item in drawn(seed)], CROP)
        batched.augment_batch(images.cuda(), masks.cuda(), type(draws)(*(each.cuda() for each in draws)), CROP)
        torch.cuda.synchronize()

    found: dict[str, AugmentBatch] = {"compose": by_compose, "cpu": by_cpu, "batch": by_batch}
    return found | ({"gpu": by_gpu} if torch.cuda.is_available() else {})


def albumentations_pipeline(config: TrainConfig) -> A.Compose:
    """The same kinds and probabilities of change by albumentations' transforms; its elastic one moves every pixel alone."""
    smallest, largest = config.scale
    strength, turned = config.color_jitter, config.rotate
    around = (1 - strength, 1 + strength)
    steps: list[A.BasicTransform] = [A.RandomScale((smallest - 1, largest - 1), p=1)]
    steps += [A.Rotate((-turned, turned), p=0.5, **BORDER)] * bool(turned)
    steps += [A.PadIfNeeded(*CROP, position="random", **BORDER), A.RandomCrop(*CROP)]
    steps += [A.HorizontalFlip(p=config.flip), A.VerticalFlip(p=config.vflip)]
    if config.elastic:
        steps.append(A.ElasticTransform(alpha=300, sigma=30, p=0.5, **BORDER))
    if strength:
        steps.append(A.ColorJitter(around, around, around, hue=(-config.hue, config.hue), p=0.8))
    if config.blur:
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.01, config.blur), p=0.5))
    if config.noise:
        steps.append(A.GaussNoise(std_range=(0, config.noise / 255), p=0.5))
    return A.Compose(steps)


if __name__ == "__main__":
    main()
