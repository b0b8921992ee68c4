"""Measures this machine: free memory, and the time of a training step."""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.architectures.base import Network, use_channels_last
from models.architectures.meta_device import copy_to_meta
from models.cgroup_limits import free_memory, usable_cores
from models.console import Console
from models.engines.openvino_engine import has_bf16
from models.spec import ClassInfo, InputRule, default_rgb
from training.config import TrainConfig
from training.data import SegmentationDataset
from training.engine.losses import Criterion
from training.engine.model_factory import check_batch_norm, make_network
from training.engine.optim import make_optimizer
from training.engine.runtime import choose_device, deterministic_mode
from training.engine.step import NetworkWithLoss
from training.oom import is_out_of_memory

NUM_TIMED_READS = 7  # images whose reading is timed
MAX_TIMED_STEPS, MAX_TIMED_SECONDS = (
    4,
    4.0,
)  # timed steps, of which the fastest counts, and the seconds that they may take
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class MachineProfile:
    """The hardware that a training uses."""

    device: str  # cpu or cuda
    name: str  # for people
    cores: int  # usable by this process
    free_bytes: int  # of the GPU, or of the computer
    bf16: bool  # whether it has bfloat16 instructions

    @classmethod
    def detect(cls, config: TrainConfig) -> "MachineProfile":
        """The device of the settings. Raises: ConfigError if it is a GPU and there is none."""
        device = choose_device(config)
        cores = usable_cores()
        if device == "cuda":
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return cls(device, torch.cuda.get_device_name(), cores, torch.cuda.mem_get_info()[0], bf16)
        return cls(device, f"{cores} CPU core{'s' * (cores > 1)}", cores, free_memory(), has_bf16())


def activation_bytes_per_image(
    config: TrainConfig, classes: int, crop: tuple[int, ...], rule: InputRule | None = None
) -> int:
    """Bytes that a step keeps for the backward pass per image of `crop`, one length per axis, float32, without computing it."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    network = copy_to_meta(_untrained_network(config, classes, rule)).train().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        channels = len(network.input.channels)
        statistics = torch.ones(2, 2, channels, device="meta") if network.input.scaling.kind == "zscore" else None
        network.training_logits(torch.empty(2, channels, *crop, device="meta"), statistics)
    # The loss holds four values per pixel and class: logits, softmax, its logarithm, and their gradient.
    loss = 4 * 4 * classes * math.prod(crop)
    return sum(kept.values()) // 2 + loss


def measure_step_seconds(
    config: TrainConfig, classes: int, crop: tuple[int, ...], batch: int, device: str, precision: str,
    rule: InputRule | None = None,
) -> float | None:  # fmt: skip
    """Seconds of the fastest of some steps on `batch` images of noise; None if it does not fit into memory.

    crop: one length per axis; precision: bf16 or f32. Raises: ConfigError for a batch too small for batch norm.
    """
    with torch.random.fork_rng(devices=[]), deterministic_mode(config.deterministic):
        network = _untrained_network(config, classes, rule)
        check_batch_norm(network, batch, crop)
        try:
            return _fastest_step(network, config, classes, (batch, *crop), device, precision)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        del network
    if device == "cuda":
        torch.cuda.empty_cache()
    return None


def _fastest_step(
    network: Network, config: TrainConfig, classes: int, shape: tuple[int, ...], device: str, precision: str
) -> float:
    """Seconds of a step on images of `shape` = N x H x W, or N x T, without the time that other programs had this thread's core."""
    network = network.to(torch.device(device))
    use_channels_last(network, network.input.axes)
    model = NetworkWithLoss(network, Criterion.from_config(config), config).train()
    optimizer = make_optimizer(network, config)
    channels = len(network.input.channels)
    images = torch.randint(256, (*shape, channels), dtype=torch.uint8, device=device)
    if network.input.axes != "HW":
        images = images.to(getattr(torch, network.input.dtype))
    statistics = (torch.ones(shape[0], 2, channels, device=device),) if network.input.scaling.kind == "zscore" else ()
    labels = torch.randint(classes, shape, dtype=torch.uint8, device=device)
    half = torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
    times: list[float] = []
    while len(times) < 2 or (len(times) < MAX_TIMED_STEPS and sum(times[1:]) < MAX_TIMED_SECONDS):
        start = time.perf_counter() - runnable_wait_seconds()
        with half:
            loss = model(images, labels, *statistics)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append(time.perf_counter() - runnable_wait_seconds() - start)
        if times[0] > 2 * MAX_TIMED_SECONDS:  # so long that the warmup hardly matters
            return times[0]
    return min(times[1:])


def runnable_wait_seconds() -> float:
    """Seconds that this thread has waited for a core because other programs ran; 0 where Linux does not report it."""
    try:
        # Nanoseconds on a core, nanoseconds waiting, number of turns: Linux's Documentation/scheduler/sched-stats.rst.
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def measure_read_seconds(samples: SegmentationDataset | None) -> float:
    """Median seconds to decode an image and its mask on one core, from some of the split; 0 without a split."""
    if not samples:
        return 0.0
    times = []
    for index in samples.evenly_spaced_indices(NUM_TIMED_READS):
        start = time.perf_counter()
        samples.sample_and_labels(index)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _untrained_network(config: TrainConfig, classes: int, rule: InputRule | None = None) -> Network:
    """The network of the settings with random weights, which are as large and as fast as pretrained ones."""
    class_infos = [ClassInfo(name=f"class{label}", rgb=default_rgb(label)) for label in range(classes)]
    return make_network(
        config.model_copy(update={"weights": "none", "reset_head": False}), class_infos, QUIET, False, rule
    )
