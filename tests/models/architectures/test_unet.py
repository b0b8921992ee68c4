"""The residual U-Net with 1, 2 and 3 axes. `test_all_architectures.py` tests it as an architecture for images."""

from typing import Any

import pytest
import torch
from torch import nn

from models.architectures import build
from models.architectures.unet import build_for_axes
from models.errors import ConfigError
from tests.fixtures_networks import max_relative_difference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("shape", "strides", "grids"),
    [
        ((50,), None, [(25,), (13,), (7,), (4,)]),
        ((5, 33), [1, [1, 2], 2], [(5, 33), (5, 17)]),
        ((7, 32, 20), [[1, 2, 2], [1, 2, 2], 2], [(7, 16, 10), (7, 8, 5)]),
    ],
    ids=["T", "HW", "DHW"],
)
def test_strides_per_axis_give_the_grids(shape: tuple[int, ...], strides: Any, grids: list[tuple[int, ...]]) -> None:
    network = build_for_axes(len(shape), 2, 3, width=4, strides=strides, blocks=1, aux=True)
    logits = network.training_logits(torch.randn(2, 2, *shape))
    assert [tuple(each.shape) for each in logits] == [(2, 3, *grid) for grid in grids]


@torch.no_grad()
def test_flat_kernels_treat_slices_as_images() -> None:
    """A volume network whose kernels and strides are 1 along the depth is the image network on each slice."""
    torch.manual_seed(0)
    flat: Any = [[1, 2, 2], [1, 2, 2], [1, 4, 2]]
    volume = build_for_axes(3, 2, 3, width=4, strides=flat, kernel=[[1, 3, 3]] * 3).eval()
    image = build_for_axes(2, 2, 3, width=4, strides=[2, 2, [4, 2]]).eval()
    image.load_state_dict(
        {name: value.squeeze(2) if value.ndim == 5 else value for name, value in volume.state_dict().items()}
    )
    samples = torch.randn(1, 2, 5, 32, 48)
    slices = torch.stack([image(samples[:, :, index]) for index in range(5)], dim=2)
    assert max_relative_difference([slices], [volume(samples)], 1) < 1e-4


def test_kernels_blocks_and_norm_follow_the_options() -> None:
    network = build(
        "unet", 5, width=8, strides=[1, 2, 4], kernel=[[1, 3], 3, 5], blocks=[1, 2, 3], norm="instance"
    ).body
    assert [len(stage) for stage in network.encoder] == [1, 2, 3]
    assert [stage[0].second[0].kernel_size for stage in network.encoder] == [(1, 3), (3, 3), (5, 5)]
    assert [stage[0].second[0].out_channels for stage in network.encoder] == [8, 16, 32]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert sum(isinstance(layer, nn.InstanceNorm2d) for layer in network.modules()) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [2, 2, 3]}, "multiply to 12; choose strides whose product divides 32"),
        ({"strides": [2]}, "has 1 stage; it needs 2 or more"),
        ({"strides": [2, 2], "aux": True}, "has 2 stages; it needs 3 or more"),
        ({"strides": [2, [2, 2, 2]]}, r"has the entry \[2, 2, 2\]; expected a number from 1, or 2"),
        ({"strides": [0, 2]}, "has the entry 0"),
        ({"kernel": 4}, "A kernel of 4x4 is not possible"),
        ({"kernel": [3, 3]}, "has 2 entries for 5 stages"),
        ({"blocks": [1, 1, 0, 1, 1]}, "blocks=0 is not possible"),
        ({"width": 2}, "width=2 is invalid"),
        ({"norm": "layer"}, "norm=layer is invalid"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("unet", 5, **options)
