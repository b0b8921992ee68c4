"""What a network is, in numbers: parameters, work, stride, receptive field. None of them computes the network.

They are taken of `Network.body` in evaluation mode, so what serves training alone, as an auxiliary head does, counts
among the parameters and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.analysis.receptive_field import PROBE_HEIGHT, ModuleTrace, trace_modules
from models.analysis.receptive_field_rules import OpCall
from models.architectures.base import Network
from models.architectures.meta_device import copy_to_meta
from models.inference.geometry import SIZE_DIVISOR

# Strips to follow fields on, in pixels, until a field is the same on two of them. Few are wider than the first.
PROBE_WIDTHS = (1024, 2048, 4096, 8192)


def count_parameters(network: Network) -> int:
    """Numbers that are trained: kernels, biases, and the factors and offsets of norms."""
    return sum(one.numel() for one in network.body.parameters())


def count_gflops(network: Network, size: tuple[int, int]) -> float:
    """Billions of floating-point operations for one image of `size` = (height, width) in pixels.

    A multiplication and an addition are two, as PyTorch's counter has it; the tables of torchvision and of most
    papers call the pair one, and so are half of this. Convolutions and matrix products count, norms and activations
    do not. The image is padded as the segmenter pads it, to multiples of 64.
    """
    return count_flops(copy_to_meta(network.body), size)[""] / 1e9


def logit_stride(network: Network) -> int:
    """Pixels of the image for one logit, along the width; 1 where the network returns to the image's size."""
    with torch.no_grad():
        logits = copy_to_meta(network.body)(torch.empty(1, 3, PROBE_HEIGHT, PROBE_HEIGHT, device="meta"))
    return PROBE_HEIGHT // int(logits.shape[-1])


def receptive_field(network: Network) -> int | None:
    """How wide a part of the image one logit can depend on, in pixels; None where that is all of the image.

    It is all behind a global mean (squeeze-and-excitation, ASPP, PSP), behind attention, and behind a norm that takes
    its statistics from the image (group norm). Interpolation inside the network widens the field as a kernel does.
    """
    return trace_network(copy_to_meta(network.body)).receptive_fields[""]


@dataclass(frozen=True)
class NetworkTrace:
    """A network followed on a strip."""

    probe_width: int  # of the strip, in pixels
    module_traces: dict[str, ModuleTrace]  # by module
    receptive_fields: dict[
        str, int | None
    ]  # the receptive field behind each module, in pixels; None is the whole image


def trace_network(body: nn.Module, words: Callable[[OpCall], str | None] | None = None) -> NetworkTrace:
    """Follow a module that is on the meta device on strips that are wide enough; `words` as in `follow`.

    A field is known when it is the same on a strip of twice the width. (A few pixels more are the same: enlarged with
    `align_corners`, a map's grid falls differently on each width.) One that grows with the strip is all of the image.
    """
    width = PROBE_WIDTHS[0]
    narrow, wide = {}, trace_modules(body, width, words)
    for width in PROBE_WIDTHS[1:]:
        narrow, wide = wide, trace_modules(body, width, words)
        whole = {name for name, visit in wide.items() if visit.min_field >= width}
        grows = {name for name, visit in wide.items() if visit.max_field >= 1.5 * narrow[name].max_field > 0} - whole
        if not grows:
            break
    fields = {name: None if name in whole | grows else visit.max_field for name, visit in wide.items()}
    return NetworkTrace(width, wide, fields)


def count_flops(body: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Floating-point operations of each module that is on the meta device, as in `gflop`, by name; "" is all."""
    height, width = padded_size(size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        body(torch.empty(1, 3, height, width, device="meta"))
    # The counter's names begin with the class of the module that was called.
    found = {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return found | {"": counter.get_total_flops()}


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that the network meets for an image of `size`, in pixels."""
    height, width = (length + -length % SIZE_DIVISOR for length in size)
    return height, width
