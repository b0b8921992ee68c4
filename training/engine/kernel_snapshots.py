"""Snapshots of the first layer's kernels in the course of a training, for `maskserve explain`: `kernels.npz` in the run folder.

They are taken before the first step, after the steps 1, 2, 4, 8, ... and at each validation, and written with each checkpoint,
so that a resumed run goes on where its checkpoint does. Nothing here draws random numbers.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from models.atomic_write import write_atomically
from training.run_folder import KERNELS_FILE

MAX_KERNELS = 64  # of the first layer
MAX_BYTES = 1_800_000  # of all snapshots; beyond it, every second one between the powers of two is dropped
MAX_SNAPSHOT_BYTES = 40_000  # of one; a layer of large kernels is kept in part

Kernels = NDArray[np.float16]  # O x C x k x l; of a signal O x C x k
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class KernelSnapshots:
    """The snapshots of a run, by step."""

    def __init__(self, network: nn.Module, out: Path, step: int = 0) -> None:
        """`step`: steps done before this start; later snapshots of the file are dropped."""
        self.layer = first_convolution(network)
        self.file = out / KERNELS_FILE
        self.kernels: dict[int, Kernels] = {}
        if step:
            self.kernels = {done: values for done, values in read_snapshots(self.file).items() if done <= step}
        self.record(step, "start")

    def record(self, step: int, event: str = "step") -> None:
        """Keep the kernels after `step` steps: always at a validation, and after a step if it is a power of two."""
        if self.layer is None or (event == "step" and step & (step - 1)):
            return
        if event == "start" and step:
            return
        self.kernels[step] = read_kernels(self.layer)
        while sum(values.nbytes for values in self.kernels.values()) > MAX_BYTES:
            between = [done for done in sorted(self.kernels)[:-1] if done & (done - 1)]
            if len(between) < 2:
                break
            for done in between[::2]:
                del self.kernels[done]

    def save(self) -> None:
        """Write the file, with the old one unchanged on an error. Raises: OSError."""
        if self.kernels:
            memory = io.BytesIO()
            arrays: dict[str, Any] = {str(step): values for step, values in sorted(self.kernels.items())}
            np.savez(memory, **arrays)
            write_atomically(self.file, memory.getvalue())


def first_convolution(network: nn.Module) -> Convolution | None:
    """The first convolution of a network, which reads the image; None without any."""
    return next((module for module in network.modules() if isinstance(module, Convolution)), None)


def read_kernels(layer: Convolution) -> Kernels:
    """A copy of up to MAX_KERNELS kernels of a layer."""
    weight: Tensor = layer.weight.detach()
    count = max(1, min(MAX_KERNELS, MAX_SNAPSHOT_BYTES // (2 * weight[0].numel())))
    kernels = weight[:count].float().cpu().numpy()
    limit = np.finfo(np.float16).max  # weights of a training that diverges are larger
    return np.array(np.clip(kernels, -limit, limit), np.float16)


def read_snapshots(file: Path) -> dict[int, Kernels]:
    """The snapshots by step, in order; none if the file is missing or damaged: they are no part of a training."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return {int(step): content[step] for step in sorted(content.files, key=int)}
    except Exception:  # numpy and zipfile raise many kinds for a damaged file
        return {}
