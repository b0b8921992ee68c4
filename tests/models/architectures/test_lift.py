"""Lifted networks: what is constant along the new or the removed axis gets the scores of the 2D network."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures import build
from models.architectures.dilation import pad_input
from models.architectures.layers import LearnedUpsampling
from models.architectures.lift import lift
from models.errors import ConfigError
from tests.fixtures_networks import calibrate_norms

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 1e-4  # of the largest score, in float32
HEIGHT, WIDTH = 32, 64  # pixels


def resnet_cases() -> list[Any]:
    """Every output stride with every number of skips, the heads with pools and wide kernels, and learned upsampling."""
    cases = [
        pytest.param(
            {"output_stride": stride, "skips": skips}, marks=() if fast else pytest.mark.slow, id=f"{stride}-{skips}"
        )
        for stride, skips, fast in [
            (8, "8s", True),
            (8, "32s", False),
            (16, "16s", False),
            (16, "8s", True),
            (32, "8s", False),
        ]
    ]
    more = [
        ("learned", {"upsampling": "learned"}), ("aspp", {"head": "aspp"}), ("psp", {"head": "psp"}),
        ("mobilenet", {"encoder": "mobilenet_v2", "output_stride": 8}), ("vgg", {"encoder": "vgg11_bn", "output_stride": 8}),
    ]  # fmt: skip
    return cases + [pytest.param(options, marks=pytest.mark.slow, id=name) for name, options in more]


def network_2d(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    body: nn.Module = build("fcn", 3, **options).body
    calibrate_norms(body, torch.randn(2, 3, HEIGHT, WIDTH))
    return body


def pad_rows_in_a_circle(network: nn.Module) -> None:
    """Replace the zeros above and below every convolution's input by the rows of the other end."""

    def pad_rows(above: int, below: int, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        rows = inputs[0].shape[2]
        return (inputs[0][:, :, torch.arange(-above, rows + below) % rows],)

    layer: Any
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            rows, columns = (layer.padding,) * 2 if isinstance(layer.padding, int) else layer.padding
            pads = [(rows, rows)]
            for key, hook in list(layer._forward_pre_hooks.items()):
                sides, fill = hook.args
                pads.append(sides[2:])
                layer._forward_pre_hooks[key] = partial(pad_input, (*sides[:2], 0, 0), fill)
            layer.padding = (0, int(columns))
            for above, below in pads:
                layer.register_forward_pre_hook(partial(pad_rows, above, below))


def assert_equal_scores(scores: Tensor, expected: Tensor) -> None:
    """Compare along all axes; an axis of length 1 in `expected` is repeated."""
    assert (scores - expected).abs().max() < LIMIT * expected.abs().max()
    assert expected.std() > 0.01 * expected.abs().max()  # constant scores would hide errors


@pytest.mark.parametrize("options", resnet_cases())
@torch.no_grad()
def test_signal_gets_the_scores_of_an_image_of_equal_rows(options: dict[str, Any]) -> None:
    network = network_2d(options)
    signal = torch.randn(2, 3, WIDTH)
    scores = lift(network, 1)(signal)
    pad_rows_in_a_circle(network)
    image = network(signal[:, :, None].expand(2, 3, HEIGHT, WIDTH))
    assert scores.shape == (*image.shape[:2], image.shape[3])
    if "learned" not in options.values():
        assert_equal_scores(image, scores[:, :, None])
    else:  # a transposed convolution has a kernel per phase of the rows; in 1D it has their mean
        assert_equal_scores(image.mean(2), scores)


@pytest.mark.parametrize("options", resnet_cases())
@torch.no_grad()
def test_volume_of_equal_slices_gets_the_scores_of_the_slice(options: dict[str, Any]) -> None:
    network = network_2d(options)
    image = torch.randn(1, 3, HEIGHT, WIDTH)
    depth = 16 if options.get("output_stride") in (8, 16) else 32
    scores = lift(network, 3)(image[:, :, None].expand(1, 3, depth, HEIGHT, WIDTH))
    expected = network(image)
    assert scores.shape[3:] == expected.shape[2:] and scores.shape[2] * HEIGHT == depth * expected.shape[2]
    assert_equal_scores(scores, expected[:, :, None])


LAYERS: dict[str, Any] = {
    "conv 4 /2": lambda: nn.Conv2d(4, 4, 4, stride=2, padding=1),
    "conv 3x5": lambda: nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=2),
    "conv same": lambda: nn.Conv2d(4, 4, 3, padding="same", dilation=2),
    "transposed 2": lambda: nn.ConvTranspose2d(4, 4, 2, stride=2),
    "transposed 4": lambda: nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1),
    "transposed 3": lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1),
    "learned": lambda: LearnedUpsampling(4, 4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "mean pool": lambda: nn.AvgPool2d(2),
    "padded mean pool": lambda: nn.AvgPool2d(3, stride=2, padding=1),
    "adaptive mean": lambda: nn.AdaptiveAvgPool2d((2, 3)),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d(2),
    "zeros": lambda: nn.Sequential(nn.ZeroPad2d((2, 3, 2, 3)), nn.Conv2d(4, 4, 6)),
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "nearest": lambda: nn.Upsample(size=(8, 12)),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_layer_on_a_volume_of_equal_slices(name: str) -> None:
    torch.manual_seed(0)
    layer, image = LAYERS[name]().eval(), torch.randn(1, 4, 8, 12)
    scores = lift(layer, 3)(image[:, :, None].expand(1, 4, 8, 8, 12))
    expected = layer(image)
    assert scores.shape == (*expected.shape[:2], expected.shape[2], *expected.shape[2:])
    assert_equal_scores(scores, expected[:, :, None])


@pytest.mark.parametrize("name", [name for name in LAYERS if "zeros" not in name])
@torch.no_grad()
def test_layer_on_an_image_of_equal_rows(name: str) -> None:
    """Rows far from the border, so that padding does not count; of a transposed convolution their mean."""
    torch.manual_seed(0)
    layer, signal = LAYERS[name]().eval(), torch.randn(1, 4, 12)
    rows = layer(signal[:, :, None].expand(1, 4, 24, 12))
    middle = rows[:, :, rows.shape[2] // 4 :][:, :, : max(2, rows.shape[2] // 2)]
    lifted = lift(layer, 1)
    assert_equal_scores(lifted(signal), middle.mean(2))


def test_training_state_and_gradients_carry_over() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.3))
    network[0].requires_grad_(False)
    lifted: Any = lift(network, 3)
    assert lifted.training and isinstance(lifted[2], nn.Dropout3d)
    assert [parameter.requires_grad for parameter in lifted.parameters()] == [False, False, True, True]
    assert dict(lifted.named_parameters()).keys() == dict(network.named_parameters()).keys()
    lifted(torch.randn(2, 3, 4, 5, 6)).sum().backward()
    assert lifted[1].num_batches_tracked == 1 and network[1].num_batches_tracked == 0


class SqueezeOfRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * F.relu(self.conv(maps.mean((2, 3), keepdim=True)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), SqueezeOfRows()), r"The layer 1 \(SqueezeOfRows\) has no form for volumes"),
        (nn.Sequential(nn.PixelShuffle(2)), r"The layer 0 \(PixelShuffle\)"),
        (nn.Sequential(nn.Conv3d(3, 3, 1)), r"The layer 0 \(Conv3d\)"),
    ],
    ids=["code", "layer", "volume"],
)
def test_layer_without_a_counterpart_is_refused_by_name(network: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lift(network, 3)


def test_networks_of_other_encoders_are_refused_by_the_name_of_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"The layer encoder.* has no form for signals; choose .* encoder=resnet18"):
        lift(build("fcn", 3, encoder="efficientnet-b0").body, 1)


def test_other_numbers_of_axes_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be lifted to 2 axes; choose 1"):
        lift(nn.Conv2d(3, 3, 1), 2)


def test_hook_of_another_file_is_refused() -> None:
    layer = nn.Conv2d(3, 3, 1)
    layer.register_forward_pre_hook(lambda module, inputs: None)
    with pytest.raises(ConfigError, match="Conv2d"):
        lift(layer, 1)
