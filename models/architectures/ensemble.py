"""Several networks as one: the mean of their logits, in one graph."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.architectures.base import Network, upsample
from models.spec import Architecture

ENSEMBLE = "ensemble"  # the name of the architecture in a spec; `members` in its options are architectures


class Ensemble(nn.Module):
    """The bodies of several networks that take the same normalised images; the finest grid of logits is that of all."""

    def __init__(self, bodies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(bodies)
        if hasattr(bodies[0], "normalisation"):
            self.normalisation = bodies[0].normalisation

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images float N x C x H x W -> logits float N x classes x h x w."""
        logits = [member(images) for member in self.members]
        finest = max((each.shape[2:] for each in logits), key=lambda size: tuple(size))
        total = sum(each if each.shape[2:] == finest else upsample(each, finest) for each in logits)
        return torch.as_tensor(total) / len(logits)


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
        Ensemble([network.body for network in networks]),
        Architecture(name=ENSEMBLE, options={"members": members}),
        first.num_classes,
        first.input.axes,
    )
    ensemble.input = first.input
    for name in ("mean", "std", "low", "high"):
        setattr(ensemble, name, getattr(first, name))
    return ensemble.eval()
