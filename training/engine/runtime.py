"""What a training runs on: devices, number format, processes; and what to do when the machine fails it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from models.engines.openvino_engine import has_bf16
from models.errors import ConfigError, DataError, MaskserveError, RunError, first_line
from training.config import TrainConfig
from training.oom import is_out_of_memory

T = TypeVar("T")


def choose_device(config: TrainConfig) -> str:
    """cpu or cuda. Raises: ConfigError where a GPU is asked for and none is there, or fewer than are asked for."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("The setting device=cuda is not possible: torch sees no GPU here. Take device=cpu or auto.")
    if config.device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    if (local := int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))) > (there := torch.cuda.device_count()):
        raise ConfigError(
            f"{local} processes on this machine want a GPU each, and torch sees {there}; set devices={there}."
        )
    return "cuda"


def choose_precision(config: TrainConfig, device: str) -> str:
    """f32 or bf16; `auto` takes bf16 where it is quicker on this machine."""
    if config.precision != "auto":
        return config.precision
    if device == "cpu" and config.deterministic:  # a trial by the clock may come out otherwise on another day
        return "bf16" if has_bf16() else "f32"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "f32"
    return "bf16" if is_bf16_faster() else "f32"


def is_bf16_faster() -> bool:
    """Whether a convolution is clearly quicker in bfloat16 on this CPU: tried, because its flags do not tell."""
    with torch.no_grad():
        seconds = {}
        for kind in (torch.float32, torch.bfloat16):
            layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(kind)
            images = torch.randn(4, 64, 64, 64).to(kind, memory_format=torch.channels_last)
            times = []
            for _ in range(5):
                begun = time.perf_counter()
                layer(images)
                times.append(time.perf_counter() - begun)
            seconds[kind] = min(times)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def launch_fabric(config: TrainConfig, device: str) -> Fabric:
    """Lightning's hold on the devices. Under torchrun every process calls this, and they meet here.

    Raises: ConfigError where the settings and torchrun speak of different numbers of processes.
    """
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world != config.devices:
        raise ConfigError(
            f"devices={config.devices} and torchrun's {world} processes do not agree; write `maskserve train ... "
            f"devices={config.devices}`, or `torchrun --nproc-per-node={config.devices} -m maskserve train ...`."
        )
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        # The others wait while the first looks through a data set, which may take longer than the usual half an hour.
        strategy=DDPStrategy(timeout=timedelta(days=1)) if world > 1 else "auto",
    )
    fabric.launch()
    return fabric


def run_on_rank_zero(fabric: Fabric, what: Callable[[], T]) -> T:
    """Do something in the first process alone, and have its result in all. Where it fails, the others leave in silence."""
    result: T | MaskserveError | None = None
    if fabric.is_global_zero:
        try:
            result = what()
        except MaskserveError as error:
            if fabric.world_size == 1:
                raise
            result = error
    result = fabric.broadcast(result)
    if isinstance(result, MaskserveError):
        raise result if fabric.is_global_zero else SystemExit(1)
    return result  # type: ignore[return-value] # the first process has put it there


@contextmanager
def deterministic_mode(wanted: bool) -> Iterator[None]:
    """Within, torch takes only algorithms that give the same bits each time, where `wanted`.

    Raises: RuntimeError, torch's own, at an operation that has none.
    """
    before, tuned = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses; NVIDIA's cuBLAS manual, 2.1.4
        torch.use_deterministic_algorithms(True)
    # Crops are of one size, so the search for the quickest convolution is done once.
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = tuned


@contextmanager
def translate_errors(config: TrainConfig, crop: tuple[int, int]) -> Iterator[None]:
    """Within, what the machine fails at is a sentence that names the setting to change.

    Raises: RunError, DataError, ConfigError.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own kinds are RuntimeErrors
        if is_out_of_memory(error):
            raise RunError(out_of_memory_message(config, crop, first_line(error)[:200])) from error
        if "DataLoader worker" in str(error):  # torch says so wherever the training is just then
            raise DataError(
                f"A process that reads images was ended from outside ({first_line(error)}); where memory is short, "
                "set workers=1 or 0."
            ) from error
        if "deterministic" in str(error):
            raise ConfigError(
                f"Something in {config.architecture} cannot be computed by the same bits each time on this device: set "
                f"deterministic=false. ({first_line(error)[:200]})"
            ) from error
        raise


def out_of_memory_message(config: TrainConfig, crop: tuple[int, int], reason: str) -> str:
    """The sentence for a lack of memory. Halved batches of twice the number make the same step."""
    less = f"lower crop={crop[0]},{crop[1]}"
    if config.batch // 2 >= config.devices:
        parts = f"batch={config.batch // 2} accumulate={config.accumulate * 2}"
        less = f"set {parts} (the same images a step, in smaller parts), or {less}"
    return f"Out of memory with batch={config.batch} crops of {crop[1]} x {crop[0]} ({reason}): {less}."
