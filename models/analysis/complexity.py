"""The complexity of a network: parameters, FLOP, stride, receptive field. No tensor values are computed.

The figures are those of `Network.body` in evaluation mode: an auxiliary head, which only training uses, counts among
the parameters and nowhere else.
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
from models.inference.geometry import canvas_size
from models.inference.windows import padded_lengths
from models.spec import InputRule

# Widths in pixels of the images that receptive fields are measured on, in turn, until two agree. Few fields need more
# than the first two.
PROBE_WIDTHS = (1024, 2048, 4096, 8192)


def count_parameters(network: Network) -> int:
    """The number of trained values: kernels, biases, and the scales and offsets of norms."""
    return sum(parameter.numel() for parameter in network.body.parameters())


def count_gflops(network: Network, size: tuple[int, ...]) -> float:
    """Billions of floating-point operations for one image of `size` = (height, width) in pixels, or a sample of other axes.

    A multiplication and an addition count as two, as in PyTorch's counter; the tables of torchvision and most papers
    count the pair as one, which gives half of this. Convolutions and matrix products count, norms and activations do
    not. The image is padded as the segmenter pads it, to multiples of 32.
    """
    return count_flops(copy_to_meta(network.body), padded_size(size), network.num_channels)[""] / 1e9


def logit_stride(network: Network) -> int:
    """Pixels of the image per logit, along the last axis; 1 if the network upsamples to the size of the image."""
    with torch.no_grad():
        probe = torch.empty(1, network.num_channels, *[PROBE_HEIGHT] * len(network.input.axes), device="meta")
        logits = copy_to_meta(network.body)(probe)
    return PROBE_HEIGHT // int(logits.shape[-1])


def receptive_field(network: Network) -> int | None:
    """The width in pixels of the part of the image that one logit can depend on; None for the whole image.

    Of a signal it is in time steps; of a volume in voxels along its last axis.

    It is the whole image after a global mean (squeeze-and-excitation, ASPP, PSP), after attention, and after a norm with
    statistics of the image (group norm). Interpolation inside the network widens the field as a kernel does.
    """
    return trace_network(
        copy_to_meta(network.body), None, network.num_channels, len(network.input.axes)
    ).receptive_fields[""]


@dataclass(frozen=True)
class NetworkTrace:
    """The receptive fields of a network's modules, by module name; "" is the network itself."""

    probe_width: int  # of the probe image, in pixels
    module_traces: dict[str, ModuleTrace]
    receptive_fields: dict[str, int | None]  # of each module's output, in pixels; None is the whole image
    dims: int = 2  # axes of the samples


def trace_network(
    body: nn.Module, describe: Callable[[OpCall], str | None] | None = None, channels: int = 3, dims: int = 2
) -> NetworkTrace:
    """Trace a module that is on the meta device on probe images of growing width; the arguments are those of `trace_modules`.

    A field is final when it is the same on an image of twice the width. (A difference of a few pixels counts as the
    same: with `align_corners` the grid of an upsampled map depends on the width.) A field that grows with the width is
    the whole image.
    """
    width = PROBE_WIDTHS[0]
    narrow, wide = {}, trace_modules(body, width, describe, channels, dims)
    for width in PROBE_WIDTHS[1:]:
        narrow, wide = wide, trace_modules(body, width, describe, channels, dims)
        whole = {name for name, trace in wide.items() if trace.min_field >= width}
        growing = {name for name, trace in wide.items() if trace.max_field >= 1.5 * narrow[name].max_field > 0} - whole
        if not growing:
            break
    fields = {name: None if name in whole | growing else trace.max_field for name, trace in wide.items()}
    return NetworkTrace(width, wide, fields, dims)


def count_flops(body: nn.Module, size: tuple[int, ...], channels: int = 3) -> dict[str, int]:
    """Floating-point operations per module of a `body` on the meta device, by module name; "" is all.

    `size`: the lengths of the axes, as the network gets them (`padded_size`).
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        body(torch.empty(1, channels, *size, device="meta"))
    # The counter's names begin with the class name of `body`.
    flops = {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return flops | {"": counter.get_total_flops()}


def padded_size(size: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths to which an image, signal or volume of `size` is padded for a network that was trained here."""
    if len(size) == 2:
        return canvas_size((size[0], size[1]), InputRule(rule="native"))
    return padded_lengths(size, InputRule(rule="native", axes="T" if len(size) == 1 else "DHW"))
