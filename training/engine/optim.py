"""The optimizer, its parameter groups, and the learning rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from models.architectures.base import Network
from training.config import TrainConfig

ONE_CYCLE_RISE = 0.3  # of the training, over which `onecycle` rises; fast.ai's 0.25, torch's 0.3


def find_encoder(network: Network) -> nn.Module:
    """The part that has pretrained weights: `encoder` in ours and smp's networks, `backbone` in torchvision's.

    The whole body if it has neither.
    """
    body = network.body
    part: nn.Module = getattr(body, "encoder", None) or getattr(body, "backbone", None) or body
    return part


def parameter_groups(network: Network, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups for the optimizer: encoder and head, each with and without weight decay; no group is empty.

    Kernels decay; biases and norm scales (parameters of at most one axis) do not. All parameters outside the encoder have
    `head_lr` times its learning rate. Frozen parameters are left out.
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
    # The peak learning rate, under the name that torch's own schedulers use.
    return [{**group, "initial_lr": group["lr"]} for group in groups.values() if group["params"]]


def make_optimizer(network: Network, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum (plain SGD if momentum is 0), or AdamW, at the peak learning rate of each group."""
    groups = parameter_groups(network, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr)


def lr_factor(progress: float, step: int, config: TrainConfig) -> float:
    """The factor on the peak learning rate, 0..1, for step number `step` (from 0).

    `progress`: the fraction of the run that is done, by steps or by minutes, whichever is further; clipped to 0..1. The
    warmup multiplies the decay, it does not delay it.
    """
    left = 1 - min(1.0, max(0.0, progress))
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    rising = (1 - left) / ONE_CYCLE_RISE
    shapes = {
        "poly": left**config.power,  # arXiv 1506.04579
        "cosine": (1 - math.cos(math.pi * left)) / 2,  # arXiv 1608.03983, without restarts
        "onecycle": (1 - math.cos(math.pi * (rising if rising < 1 else left / (1 - ONE_CYCLE_RISE))))
        / 2,  # arXiv 1708.07120
        "constant": 1.0,
    }
    return warm * float(config.lr_min + (1 - config.lr_min) * shapes[config.schedule])
