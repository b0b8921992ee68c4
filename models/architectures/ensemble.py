"""Several networks as one: the mean of their logits, in one graph."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.architectures.base import Network, upsample
from models.architectures.meta_device import copy_to_meta
from models.spec import Architecture

PROBE_LENGTH = 128  # of the axes of the image that tells the networks' strides
ENSEMBLE = "ensemble"  # the name of the architecture in a spec; `members` in its options are architectures


class Ensemble(nn.Module):
    """The bodies of several networks that take the same normalised images; the finest grid of logits is that of all."""

    def __init__(self, bodies: Sequence[nn.Module], channels: int, dims: int) -> None:
        """`channels` and `dims`, the number of axes: of the images that the bodies take."""
        super().__init__()
        if hasattr(bodies[0], "normalisation"):
            self.normalisation = bodies[0].normalisation
        probe = torch.empty(1, channels, *[PROBE_LENGTH] * dims, device="meta")
        with torch.no_grad():  # here and not in `forward`, whose sizes are symbols when it is exported
            self.grids = [int(copy_to_meta(body)(probe).shape[-1]) for body in bodies]
        self.members = nn.ModuleList(bodies)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images float N x C x H x W -> logits float N x classes x h x w."""
        logits = [member(images) for member in self.members]
        finest = max(self.grids)
        size = logits[self.grids.index(finest)].shape[2:]
        total = logits[0] if self.grids[0] == finest else upsample(logits[0], size)
        for grid, each in zip(self.grids[1:], logits[1:], strict=True):
            total = total + (each if grid == finest else upsample(each, size))
        return total / len(logits)


def combine(networks: Sequence[Network]) -> Network:
    """The ensemble of networks of the same classes and input rule, for inference.

    Raises: ValueError, with the number of the network from 0, if one normalises images otherwise than the first.
    """
    first = networks[0]
    for number, network in enumerate(networks):
        if not (torch.equal(network.mean, first.mean) and torch.equal(network.std, first.std)):
            raise ValueError(number)
    members = [network.architecture.model_dump() for network in networks]
    ensemble = Network(
        Ensemble([network.body for network in networks], first.num_channels, len(first.input.axes)),
        Architecture(name=ENSEMBLE, options={"members": members}),
        first.num_classes,
        first.input.axes,
    )
    ensemble.input = first.input
    for name in ("mean", "std", "low", "high"):
        setattr(ensemble, name, getattr(first, name))
    return ensemble.eval()
