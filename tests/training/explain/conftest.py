"""Subjects around networks of a few layers, made in milliseconds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.architectures.base import Network
from models.spec import Architecture, ClassInfo, InputRule
from tests.fixtures_bundles import synthetic_image
from training.engine.model_factory import make_torch_segmenter
from training.explain.subject import NetworkFacts, NetworkSubject

RGB_RULE = InputRule(rule="native", divisor=1)
MakeSubject = Callable[..., NetworkSubject]


@pytest.fixture
def make_subject() -> MakeSubject:
    """`make_subject(body, image=..., point=...)`: a subject whose network is `Network(body)`, with the last layer's classes."""

    def make(
        body: nn.Module,
        image: Any = None,
        point: tuple[int, int] | None = None,
        rule: InputRule = RGB_RULE,
        **options: Any,
    ) -> NetworkSubject:
        image = synthetic_image(64, 96) if image is None else image
        with torch.no_grad():
            classes = body(torch.zeros(1, 3, 64, 64)).shape[1]
        network = Network(body, Architecture(name="by hand"), classes).eval()
        network.set_input(rule)
        names = [ClassInfo(name=f"class {label}", rgb=(40 * label, 0, 0)) for label in range(classes)]
        segmenter = make_torch_segmenter(network, rule)
        point = point or (image.shape[1] // 2, image.shape[0] // 2)
        options.setdefault("facts", NetworkFacts(network))
        return NetworkSubject("image", np.ascontiguousarray(image), segmenter, names, point, **options)

    return make


def small_body(classes: int = 3) -> nn.Module:
    """Three convolutions with an output stride of 4, and random weights of a fixed seed."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, classes, 1),
    )  # fmt: skip
