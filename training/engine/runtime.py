"""The machine that a training runs on: devices, precision, processes, and errors of the machine."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from models.engines.openvino_engine import has_bf16
from models.errors import ConfigError, DataError, MaskserveError, RunError, first_line
from training.config import TrainConfig
from training.oom import is_out_of_memory

T = TypeVar("T")


def choose_device(config: TrainConfig) -> str:
    """cpu or cuda. Raises: ConfigError if the settings need more GPUs than torch finds."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("The setting device=cuda is not possible: torch finds no GPU. Set device=cpu or device=auto.")
    if config.device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    if (local := int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))) > (count := torch.cuda.device_count()):
        raise ConfigError(
            f"{local} processes on this machine need a GPU each, and torch finds {count}; set devices={count}."
        )
    return "cuda"


def choose_precision(config: TrainConfig, device: str) -> Literal["f32", "bf16"]:
    """f32 or bf16; `auto` is bf16 if it is faster on this machine."""
    if config.precision != "auto":
        return config.precision
    if device == "cpu" and config.deterministic:  # a timing could decide differently on another day
        return "bf16" if has_bf16() else "f32"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "f32"
    return "bf16" if is_bf16_faster() else "f32"


def is_bf16_faster() -> bool:
    """Whether a convolution is clearly faster in bfloat16 on this CPU; timed, because the CPU's flags do not say."""
    with torch.no_grad():
        seconds = {}
        for dtype in (torch.float32, torch.bfloat16):
            layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(dtype)
            images = torch.randn(4, 64, 64, 64).to(dtype, memory_format=torch.channels_last)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                layer(images)
                times.append(time.perf_counter() - start)
            seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def launch_fabric(config: TrainConfig, device: str) -> Fabric:
    """Lightning Fabric on the device. Under torchrun every process calls this, and they connect here.

    Raises: ConfigError if `devices` is not torchrun's number of processes.
    """
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world != config.devices:
        raise ConfigError(
            f"devices={config.devices} differs from torchrun's {world} processes; write `maskserve train ... "
            f"devices={config.devices}`, or `torchrun --nproc-per-node={config.devices} -m maskserve train ...`."
        )
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        # The others wait while the first scans the data set, which may take longer than the default of 30 minutes.
        strategy=DDPStrategy(timeout=timedelta(days=1)) if world > 1 else "auto",
    )
    fabric.launch()
    return fabric


def run_on_rank_zero(fabric: Fabric, function: Callable[[], T]) -> T:
    """Call a function in the first process only, and return its result in all. If it fails, the others exit silently."""
    result: T | MaskserveError | None = None
    if fabric.is_global_zero:
        try:
            result = function()
        except MaskserveError as error:
            if fabric.world_size == 1:
                raise
            result = error
    result = fabric.broadcast(result)
    if isinstance(result, MaskserveError):
        raise result if fabric.is_global_zero else SystemExit(1)
    return result  # type: ignore[return-value] # broadcast from the first process


@contextmanager
def deterministic_mode(enabled: bool) -> Iterator[None]:
    """If `enabled`, torch uses only deterministic algorithms in this context.

    Raises: RuntimeError, torch's own, at an operation that has none.
    """
    before, tuned = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS: its manual, section 2.1.4
        torch.use_deterministic_algorithms(True)
    # Crops have one size, so cuDNN benchmarks its convolutions once.
    torch.backends.cudnn.benchmark = not enabled
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = tuned


@contextmanager
def translate_errors(config: TrainConfig, crop: tuple[int, ...]) -> Iterator[None]:
    """Translate errors of the machine (memory, killed workers) into messages that name the setting to change.

    Raises: RunError, DataError, ConfigError.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
        if is_out_of_memory(error):
            raise RunError(out_of_memory_message(config, crop, first_line(error)[:200])) from error
        if "DataLoader worker" in str(error):  # torch raises it wherever the training is at that moment
            raise DataError(
                f"A process that reads images was killed ({first_line(error)}), as happens when memory runs out: "
                "set workers=1 or workers=0."
            ) from error
        if "deterministic" in str(error):
            raise ConfigError(
                f"{config.architecture} has an operation without a deterministic algorithm on this device "
                f"({first_line(error)[:200]}): set deterministic=false."
            ) from error
        raise


def out_of_memory_message(config: TrainConfig, crop: tuple[int, ...], reason: str) -> str:
    """The message for a lack of memory. Half the batch and twice `accumulate` give the same step."""
    advice = f"set a smaller crop than {','.join(map(str, crop))}"
    if config.batch // 2 >= config.devices:
        smaller = f"batch={config.batch // 2} accumulate={config.accumulate * 2}"
        advice = f"set {smaller} (the same images per step), or {advice}"
    return (
        f"Out of memory with batch={config.batch} crops of {' x '.join(map(str, reversed(crop)))} ({reason}): {advice}."
    )
