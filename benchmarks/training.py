"""Training speed in images/s, compared with torchvision's reference loop: `python -m benchmarks.training [--encoder NAME] ...`.

The same network (torchvision's FCN-ResNet-50, or `fcn` on another encoder), images, crops and batch, alternating in one run. The
reference is torchvision's `references/segmentation` in a simple form: float32 eager, its transforms on the CPU, SGD, a poly
schedule. Ours is the product's own loader and training step, which is then profiled.
Results: benchmarks/results/training.json, with the machine.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision.transforms.v2 as T
from lightning_fabric import Fabric
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from models.architectures import build
from models.engines.host_info import host_info
from models.spec import InputRule
from training.augment import choose_augment_device
from training.config import TrainConfig
from training.data import load_split
from training.data.dataset import SegmentationDataset
from training.data.loader import build_train_loader, iterate_batches
from training.data.synthetic import generate_dataset
from training.engine.losses import Criterion
from training.engine.model_factory import architecture_options
from training.engine.runtime import choose_device, choose_precision
from training.engine.schedule import TrainingDuration
from training.engine.trainer import Trainer
from training.run_folder import ImageList, RunMetadata

SIZE = (360, 480)  # (height, width) of the images


class ReferenceDataset(Dataset[Any]):
    """torchvision's SegmentationPresetTrain: random resize, flip, crop, to float, normalize."""

    def __init__(self, samples: SegmentationDataset, crop: tuple[int, int]) -> None:
        self.samples = samples
        self.transforms = T.Compose(
            [
                T.ToImage(),
                T.RandomResize(SIZE[0] // 2, SIZE[0] * 2),
                T.RandomHorizontalFlip(0.5),
                T.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Mask: 255, "others": 0}),
                T.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
                T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        image = Image.open(self.samples.pairs[index].image).convert("RGB")
        mask = tv_tensors.Mask(torch.from_numpy(self.samples.labels(index)))
        return self.transforms(image, mask)


def cycle_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def make_reference_step(
    network: nn.Module, samples: SegmentationDataset, config: TrainConfig, device: str
) -> Callable[[], None]:
    """torchvision's train_one_epoch, one step per call, on NCHW float32."""
    assert config.crop is not None
    network = network.to(device).train()
    data = ReferenceDataset(samples, config.crop)
    loader = DataLoader(data, config.batch, shuffle=True, num_workers=config.workers, drop_last=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 10**6, 0.9)
    batches = cycle_batches(loader)

    def step() -> None:
        images, target = (part.to(device) for part in next(batches))
        logits, *auxiliary = network(images)
        losses = [
            F.cross_entropy(F.interpolate(each, target.shape[1:], mode="bilinear"), target.squeeze(1), ignore_index=255)
            for each in (logits, *auxiliary)
        ]
        loss = losses[0] + sum(0.5 * each for each in losses[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss.item()  # as its MetricLogger does

    return step


def make_product_step(
    network: Any, samples: SegmentationDataset, config: TrainConfig, device: str, precision: Literal["f32", "bf16"]
) -> Callable[[], None]:
    """The product's loader and training step."""
    assert config.crop is not None
    crop, rule = config.crop, InputRule(rule="native")
    run = RunMetadata(
        data=Path(),
        classes=samples.classes,
        input=rule,
        crop=crop,
        precision=precision,
        images=ImageList(count=len(samples), sha256=""),
    )
    network = network.to(memory_format=torch.channels_last)
    duration = TrainingDuration(len(samples), 1, config)
    fabric = Fabric(accelerator=device, devices=1)
    trainer = Trainer(fabric, config, run, network, Criterion.from_config(config), duration, Path())
    augment_on = choose_augment_device(config.augment, device)
    batches = iterate_batches(build_train_loader(samples, rule, crop, config, augment_on))
    trainer.learner.train()

    def step() -> None:
        trainer.train_step(batches)

    return step


class UnnormalizedNetwork(nn.Module):
    """Our network without its normalization, which torchvision's loop has among its transforms."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.body = network.body

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps: tuple[torch.Tensor, ...] = self.body.training_logits(images)
        return maps


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(loops: dict[str, Callable[[], None]], rounds: int, steps: int, device: str) -> dict[str, float]:
    """Median seconds per step of each loop. They alternate every `steps` steps; the first two rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for round_number in range(2 + rounds):
        for name, step in loops.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(steps):
                step()
            synchronize(device)
            if round_number >= 2:
                seconds[name].append((time.perf_counter() - start) / steps)
    return {name: statistics.median(values) for name, values in seconds.items()}


def profile_step(step: Callable[[], None], device: str, steps: int = 5) -> dict[str, Any]:
    """The time of our step by operation, and on a GPU the fraction of time that it is busy."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    synchronize(device)
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            step()
        synchronize(device)
    wall = time.perf_counter() - start
    rows = profile.key_averages()
    attribute = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    costs = sorted(((getattr(row, attribute) / 1e6, row.key) for row in rows), reverse=True)
    fractions = {key: round(cost / wall, 3) for cost, key in costs[:15]}
    return {"fraction_of_wall": fractions, "busy": round(sum(cost for cost, _ in costs) / wall, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--crop", default="240,320", help="height,width")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.crop.split(","))
    torchvision_like = {"output_stride": 8, "skips": "32s", "aux": True} if arguments.encoder == "resnet50" else {}
    config = TrainConfig.model_validate(
        {
            "encoder": arguments.encoder,
            "crop": (height, width),
            "batch": arguments.batch,
            "lr": 0.01,
            **torchvision_like,
        }
    )
    device = choose_device(config)
    precision = choose_precision(config, device)
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        generate_dataset(Path(folder) / "shapes", counts={"train": 64, "val": 1}, size=SIZE)
        samples = load_split(Path(folder) / "shapes", "train")
        options = architecture_options(config)
        bf16 = build(config.architecture, 6, **options)
        f32 = build(config.architecture, 6, **options)
        reference = build(config.architecture, 6, **options)
        loops = {
            "torchvision's loop, f32": make_reference_step(UnnormalizedNetwork(reference), samples, config, device),
            "ours, f32": make_product_step(f32, samples, config, device, "f32"),
            f"ours, {precision}": make_product_step(bf16, samples, config, device, precision),
        }
        medians = time_steps(loops, arguments.rounds, arguments.steps, device)
        profile = profile_step(loops[f"ours, {precision}"], device)
    base = medians["torchvision's loop, f32"]
    rows = {
        name: {"images_per_second": round(config.batch / value, 2), "times_reference": round(base / value, 2)}
        for name, value in medians.items()
    }
    for name, row in rows.items():
        print(f"{row['images_per_second']:8.2f} images/s  {row['times_reference']:5.2f}x  {name}")
    print(
        f"busy {profile['busy']:.0%}:",
        ", ".join(f"{key} {fraction:.0%}" for key, fraction in profile["fraction_of_wall"].items()),
    )
    settings = {"encoder": arguments.encoder, "crop": [height, width], "batch": config.batch, "workers": config.workers}
    target = Path(__file__).parent / "results" / "training.json"
    results = json.loads(target.read_text()) if target.exists() else {}
    name = f"fcn on {arguments.encoder}, {width}x{height}, batch {config.batch}, {device}"
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    results[name] = {**host_info(), **versions, **settings, "rows": rows, "profile": profile}
    target.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
