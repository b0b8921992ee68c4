"""What a network is, in numbers: parameters, work, stride, receptive field. None of them computes the network.

They are taken of `Network.body` in evaluation mode, so what serves training alone, as an auxiliary head does, counts
among the parameters and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.analysis.receptive_field import HEIGHT, Visit, follow
from models.analysis.receptive_field_rules import Call
from models.architectures.base import Network
from models.architectures.meta_device import on_meta
from models.inference.geometry import BUCKET

# Strips to follow fields on, in pixels, until a field is the same on two of them. Few are wider than the first.
WIDTHS = (1024, 2048, 4096, 8192)


def parameters(network: Network) -> int:
    """Numbers that are trained: kernels, biases, and the factors and offsets of norms."""
    return sum(one.numel() for one in network.body.parameters())


def gflop(network: Network, size: tuple[int, int]) -> float:
    """Billions of floating-point operations for one picture of `size` = (height, width) in pixels.

    A multiplication and an addition are two, as PyTorch's counter has it; the tables of torchvision and of most
    papers call the pair one, and so are half of this. Convolutions and matrix products count, norms and activations
    do not. The picture is padded as the segmenter pads it, to multiples of 64.
    """
    return flop(on_meta(network.body), size)[""] / 1e9


def stride(network: Network) -> int:
    """Pixels of the picture for one logit, along the width; 1 where the network returns to the picture's size."""
    with torch.no_grad():
        logits = on_meta(network.body)(torch.empty(1, 3, HEIGHT, HEIGHT, device="meta"))
    return HEIGHT // int(logits.shape[-1])


def receptive_field(network: Network) -> int | None:
    """How wide a part of the picture one logit can depend on, in pixels; None where that is all of the picture.

    It is all behind a global mean (squeeze-and-excitation, ASPP, PSP), behind attention, and behind a norm that takes
    its statistics from the picture (group norm). Interpolation inside the network widens the field as a kernel does.
    """
    return survey(on_meta(network.body)).fields[""]


@dataclass(frozen=True)
class Survey:
    """A network followed on a strip."""

    width: int  # of the strip, in pixels
    visits: dict[str, Visit]  # by module
    fields: dict[str, int | None]  # the receptive field behind each module, in pixels; None is the whole picture


def survey(body: nn.Module, words: Callable[[Call], str | None] | None = None) -> Survey:
    """Follow a module that is on the meta device on strips that are wide enough; `words` as in `follow`.

    A field is known when it is the same on a strip of twice the width. (A few pixels more are the same: enlarged with
    `align_corners`, a map's grid falls differently on each width.) One that grows with the strip is all of the picture.
    """
    width = WIDTHS[0]
    narrow, wide = {}, follow(body, width, words)
    for width in WIDTHS[1:]:
        narrow, wide = wide, follow(body, width, words)
        whole = {name for name, visit in wide.items() if visit.narrowest >= width}
        grows = {name for name, visit in wide.items() if visit.widest >= 1.5 * narrow[name].widest > 0} - whole
        if not grows:
            break
    fields = {name: None if name in whole | grows else visit.widest for name, visit in wide.items()}
    return Survey(width, wide, fields)


def flop(body: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Floating-point operations of each module that is on the meta device, as in `gflop`, by name; "" is all."""
    height, width = padded(size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        body(torch.empty(1, 3, height, width, device="meta"))
    # The counter's names begin with the class of the module that was called.
    found = {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return found | {"": counter.get_total_flops()}


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that the network meets for a picture of `size`, in pixels."""
    height, width = (length + -length % BUCKET for length in size)
    return height, width
