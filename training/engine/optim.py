"""The optimiser of a network, and the course of its learning rate."""

import math
from typing import Any

import torch
from torch import nn

from models.architectures.base import Network
from training.config import TrainConfig


def find_encoder(network: Network) -> nn.Module:
    """The part that pretrained weights fill: `encoder` in ours and smp's networks, `backbone` in torchvision's.

    The whole body where there is neither, as nothing is then known of its parts.
    """
    body = network.body
    part: nn.Module = getattr(body, "encoder", None) or getattr(body, "backbone", None) or body
    return part


def parameter_groups(network: Network, config: TrainConfig) -> list[dict[str, Any]]:
    """Every parameter that learns, once: the encoder's and the others', each with and without decay; no group is empty.

    Kernels decay; biases and the scales of norms (the parameters of one axis or none) do not. What stands on the
    encoder learns at `head_lr` times its rate.
    """
    pretrained = {id(parameter) for parameter in find_encoder(network).parameters()}
    groups: dict[tuple[str, bool], dict[str, Any]] = {
        (part, decays): {
            "name": f"{part}, {'decayed' if decays else 'not decayed'}",
            "params": [],
            "lr": config.lr * (config.head_lr if part == "head" else 1),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for part in ("encoder", "head")
        for decays in (True, False)
    }
    for parameter in network.parameters():
        if parameter.requires_grad:
            part = "encoder" if id(parameter) in pretrained else "head"
            groups[part, parameter.ndim > 1]["params"].append(parameter)
    # The peak, of which `lr` becomes a share with each step; by the name that torch's own schedules use.
    return [{**group, "initial_lr": group["lr"]} for group in groups.values() if group["params"]]


def make_optimizer(network: Network, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum (plain where the momentum is 0), or AdamW, at the peak of each group's rate."""
    groups = parameter_groups(network, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr)


def lr_factor(progress: float, step: int, config: TrainConfig) -> float:
    """The share of the peak learning rate, 0..1, before the step of that number (from 0).

    progress: how much of the run is done, 0..1, by its steps or by its minutes, whichever is further; what is beyond 1
    counts as 1. The rise of `warmup` steps lies over the decay, it does not put it off.
    """
    left = 1 - min(1.0, max(0.0, progress))
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    shapes = {
        "poly": left**config.power,  # arXiv 1506.04579
        "cosine": (1 - math.cos(math.pi * left)) / 2,  # arXiv 1608.03983, without restarts
        "constant": 1.0,
    }
    return warm * float(config.lr_min + (1 - config.lr_min) * shapes[config.schedule])
