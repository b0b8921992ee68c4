"""Complexity figures of networks against the recurrences of papers, gradients and counts by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.analysis import complexity
from models.analysis.complexity import count_gflops, count_parameters, logit_stride, receptive_field
from models.analysis.receptive_field import PROBE_HEIGHT, ReceptiveFieldMode
from models.analysis.summary import list_stages
from models.architectures import ARCHITECTURES, build
from models.architectures.base import Network, upsample
from models.architectures.meta_device import copy_to_meta
from models.spec import Architecture

pytestmark = pytest.mark.usefixtures("one_thread")

SLOW_RESNETS = [("resnet18", 8), ("resnet34", 32), ("resnet50", 16), ("resnet101", 32)]
SIZE = (360, 490)  # padded to 384 x 512
RESNETS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def wrap_body(body: nn.Module) -> Network:
    return Network(body, Architecture(name="test"), 5)


def field_recurrence(layers: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Receptive field and stride of a chain of (kernel, stride, dilation): r += (k - 1) d j, j *= s (arXiv 1603.07285)."""
    field, jump = 1, 1
    for kernel, step, dilation in layers:
        field += (kernel - 1) * dilation * jump
        jump *= step
    return field, jump


def resnet_layers(name: str, output_stride: int = 32) -> list[tuple[int, int, int]]:
    """The longest path: 7x7 /2, 3x3 pool /2, then basic blocks of two 3x3 or bottlenecks of one, strided in its 3x3."""
    layers, dilation, jump = [(7, 2, 1), (3, 2, 1)], 1, 4
    for stage, blocks in enumerate(RESNETS[name]):
        for block in range(blocks):
            step = 2 if stage > 0 and block == 0 else 1
            dense = step == 2 and jump == output_stride
            layers.append((3, 1 if dense else step, dilation))
            dilation *= 2 if dense else 1
            jump *= 1 if dense else step
            if name in ("resnet18", "resnet34"):
                layers.append((3, 1, dilation))
    return layers


def meta_build(name: str, **options: Any) -> Network:
    """A network without values, which is enough for all figures here."""
    with torch.device("meta"):
        return build(name, 5, **options)


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("resnet18", 16), ("resnet50", 8), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_RESNETS)],
)
def test_receptive_field_of_resnets(name: str, output_stride: int) -> None:
    network = meta_build("fcn", encoder=name, output_stride=output_stride, head="fcn", skips="32s")
    field, jump = field_recurrence([*resnet_layers(name, output_stride), (3, 1, 1), (1, 1, 1)])
    assert (receptive_field(network), logit_stride(network)) == (field, jump)


@pytest.mark.parametrize(
    ("encoder", "field"),
    [("vgg16", 212), ("resnet18", 435), pytest.param("inceptionresnetv2", 3039, marks=pytest.mark.slow)],
)
def test_published_receptive_fields(encoder: str, field: int) -> None:
    """Araujo et al. 2019, Computing Receptive Fields of CNNs (distill.pub); 435 is that of ResNet-18's relatives."""
    assert receptive_field(meta_build("fcn", encoder=encoder, head="linear", skips="32s")) == field


def test_recurrence_gives_the_published_receptive_fields() -> None:
    vgg = [(3, 1, 1)] * 2 + [(2, 2, 1)] + [(3, 1, 1)] * 2 + [(2, 2, 1)]
    vgg += ([(3, 1, 1)] * 3 + [(2, 2, 1)]) * 3
    assert field_recurrence(vgg) == (212, 32)
    assert field_recurrence(resnet_layers("resnet18")) == (435, 32)


def test_skips_and_heads_widen_the_receptive_field() -> None:
    deep, _ = field_recurrence(resnet_layers("resnet18"))
    # Interpolation reads two neighbours: of stride 32, then of stride 16, which read three of stride 32 in all.
    assert receptive_field(meta_build("fcn", head="linear", skips="16s")) == deep + 32
    assert receptive_field(meta_build("fcn", head="linear", skips="8s")) == deep + 2 * 32
    d6, _ = field_recurrence([*resnet_layers("resnet18", 8), (3, 1, 6), (3, 1, 6), (3, 1, 1)])
    assert receptive_field(meta_build("fcn", head="d6", output_stride=8)) == d6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn", {"head": "psp"}),
        pytest.param("fcn", {"head": "aspp"}, marks=pytest.mark.slow),
        pytest.param("fcn", {"encoder": "se_resnet50"}, marks=pytest.mark.slow),
        pytest.param("fcn", {"encoder": "mit_b0"}, marks=pytest.mark.slow),
        ("smp/MAnet", {}),
        ("torchvision/lraspp_mobilenet_v3_large", {}),
    ],
    ids=str,
)
def test_global_means_and_attention_see_the_whole_image(name: str, options: dict[str, Any]) -> None:
    assert receptive_field(build(name, 5, **options)) is None


def test_windowed_attention_sees_its_windows() -> None:
    """A token is four columns, a window eight tokens, shifted by half a window; only at the edges it is rolled around."""
    body = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), WindowAttention(), WindowAttention(), nn.Conv2d(4, 2, 1))
    assert receptive_field(wrap_body(body)) == 4 * 8
    assert receptive_field(wrap_body(nn.Sequential(body, nn.Conv2d(2, 2, 3, padding=1)))) == 4 * 16


class Lambda(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, maps: Tensor) -> Tensor:
        return self.function(maps)


class WindowAttention(nn.Module):
    """Attention within windows of eight columns, shifted by four, as in a Swin transformer."""

    def forward(self, maps: Tensor) -> Tensor:
        count, channels, height, width = maps.shape
        rolled = maps.roll(-4, 3)
        tokens = rolled.view(count, channels, height, width // 8, 8).permute(0, 2, 3, 4, 1).reshape(-1, 8, channels)
        scores = torch.softmax(tokens @ tokens.transpose(1, 2), -1)
        mixed = (scores @ tokens).view(count, height, width // 8, 8, channels)
        return mixed.permute(0, 4, 1, 2, 3).reshape(count, channels, height, width).roll(4, 3)


def add_in_place(maps: Tensor) -> Tensor:
    maps = F.conv2d(maps, torch.ones(3, 3, 1, 3, dtype=maps.dtype, device=maps.device), padding=(0, 1))
    maps[:, :1] += F.avg_pool2d(maps[:, 1:2].clone(), (1, 9), 1, (0, 4))
    return maps.mean(1, keepdim=True)


OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "a plain convolution": lambda: nn.Conv2d(3, 4, 5, padding=2),
    "stride and dilation": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=3, dilation=3),
    "an even kernel": lambda: nn.Conv2d(3, 4, (3, 6), stride=(1, 2)),
    "reflection padding": lambda: nn.Conv2d(3, 4, 7, padding=3, padding_mode="reflect"),
    "groups": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.Conv2d(6, 2, 1)),
    "a transposed convolution": lambda: nn.ConvTranspose2d(3, 2, 5, stride=3, padding=1, output_padding=2, dilation=2),
    "a maximum": lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    "a mean": lambda: nn.AvgPool2d(4, 3, padding=1, ceil_mode=True, count_include_pad=False),
    "a mean in cells": lambda: nn.AdaptiveAvgPool2d((3, 5)),
    "bilinear, larger": lambda: Lambda(lambda maps: upsample(maps, (PROBE_HEIGHT * 2, 300))),
    "bilinear, smaller": lambda: Lambda(lambda maps: upsample(maps, (16, 50))),
    "bilinear on corners": lambda: nn.UpsamplingBilinear2d(scale_factor=4),
    "bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "nearest": lambda: nn.Sequential(nn.AvgPool2d(3, 2), nn.UpsamplingNearest2d(scale_factor=2)),
    "pixel shuffle": lambda: nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 3), nn.PixelShuffle(2)),
    "a sum of paths": lambda: Lambda(lambda maps: maps + F.avg_pool2d(maps, 5, 1, 2)),
    "a stack of paths": lambda: Lambda(lambda maps: torch.cat([maps, F.avg_pool2d(maps, (1, 9), 1, (0, 4))], 1)),
    "a part": lambda: Lambda(lambda maps: F.pad(maps[..., 3::2], (5, 1))),
    "parts": lambda: Lambda(lambda maps: torch.stack(maps.chunk(3, 1)[:2]).sum(0) * 2),
    "a global mean": lambda: Lambda(lambda maps: maps * maps.mean((2, 3), keepdim=True)),
    "channels last": lambda: Lambda(lambda maps: F.layer_norm(maps.permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2)),
    "an instance norm": lambda: nn.InstanceNorm2d(3),
    "a group norm": lambda: nn.GroupNorm(1, 3),
    "a softmax": lambda: Lambda(lambda maps: F.softmax(F.avg_pool2d(maps, 1, 2), 3)),
    "windows": WindowAttention,
    "in place": lambda: Lambda(add_in_place),
}


# The gradient of a maximum is that of one pixel; and writing into a part counts as a dependency of the whole tensor.
OVERESTIMATED = ("a maximum", "in place")


def probe(body: nn.Module, width: int) -> tuple[ReceptiveFieldMode, Tensor]:
    """Run a module on a probe image. Returns the mode with all reaches, and the module's output."""
    mode = ReceptiveFieldMode()
    with torch.no_grad():
        image = mode.make_probe_image(width)
        with mode:
            return mode, body(image)


@pytest.mark.parametrize("name", OPERATIONS)
def test_rules_agree_with_gradients(name: str) -> None:
    """With random weights and images a gradient is zero outside of the receptive field, and not zero at its ends."""
    torch.manual_seed(0)
    body, width = OPERATIONS[name]().double().eval(), 128
    mode, maps = probe(copy_to_meta(body), width)
    reach = mode.reaches[maps].expand(maps.shape)
    assert not mode.unsupported_operations
    images = torch.rand(1, 3, PROBE_HEIGHT, width, dtype=torch.float64, requires_grad=True)
    outputs = body(images)
    row = outputs.shape[2] // 2
    for column in {0, 1, outputs.shape[3] // 3, outputs.shape[3] // 2 + 1, outputs.shape[3] - 1}:
        last, first = reach[0, :, row, column].max(), -reach[1, :, row, column].max()
        first, last = first.clamp(min=0), last.clamp(max=width - 1)  # a conservative rule may exceed the image
        # Channels with random weights: a norm makes their plain sum constant.
        score = (outputs[0, :, row, column] * torch.rand(outputs.shape[1], dtype=torch.float64)).sum()
        (gradient,) = torch.autograd.grad(score, images, retain_graph=True)
        columns = gradient.abs().amax((0, 1, 2)).nonzero().flatten()
        if name in OVERESTIMATED:
            assert first <= columns.min() and columns.max() <= last
        elif columns.numel():
            assert (first, last) == (columns.min(), columns.max()), column
        else:  # a border that was added
            assert last < 0 < first


def test_receptive_field_of_a_dilated_maximum() -> None:
    """Measured with images in which a single pixel is 1, because the gradient of a maximum is that of one pixel."""
    pool = nn.MaxPool2d(3, 2, padding=1, dilation=2)
    mode, maps = probe(pool, 64)
    reach = mode.reaches[maps].expand(maps.shape)
    one_hot = torch.eye(64).view(64, 1, 1, 64).expand(64, 1, PROBE_HEIGHT, 64)
    seen = pool(one_hot)[:, 0, 16]  # by pixel, by output column
    for column in range(seen.shape[1]):
        pixels = seen[:, column].nonzero().flatten()
        assert (-reach[1, 0, 16, column], reach[0, 0, 16, column]) == (pixels.min(), pixels.max())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "resnet101" in name else ()) for name in ARCHITECTURES]
)
def test_every_operation_of_every_architecture_has_a_rule(name: str) -> None:
    mode, _ = probe(copy_to_meta(meta_build(name).body), 128)
    assert not mode.unsupported_operations


def test_operation_without_a_rule_sees_the_whole_image() -> None:
    assert receptive_field(wrap_body(Lambda(lambda maps: maps.cumsum(3)))) is None


def test_parameters_of_torchvisions_resnet18_with_an_fcn_head() -> None:
    """Counted from the paper's table: 3x3 kernels of 64, 128, 256, 512 channels, two values per channel of a norm, no biases."""

    def convolution(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs

    count = convolution(3, 64, 7)
    inputs = 64
    for outputs in (64, 128, 256, 512):
        count += convolution(inputs, outputs, 3) + 3 * convolution(outputs, outputs, 3)
        count += convolution(inputs, outputs, 1) if inputs != outputs else 0
        inputs = outputs
    assert count == 11_689_512 - 513_000  # torchvision's own figure, without its classifier of 1000
    count += convolution(512, 128, 3) + 128 * 5 + 5
    assert count_parameters(meta_build("fcn", encoder="resnet18", head="fcn", skips="32s")) == count
    assert count_parameters(meta_build("fcn", encoder="resnet18", head="fcn", skips="32s", aux=True)) > count


def test_gflops_by_hand() -> None:
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 5, 1),
        nn.ConvTranspose2d(5, 5, 4, stride=2, padding=1),
    )
    half = 192 * 256  # positions at stride 2 of 384 x 512
    count = 2 * half * (3 * 8 * 9 + 8 * 9 + 8 * 5 + 5 * 5 * 16)
    assert count_gflops(wrap_body(body), SIZE) == pytest.approx(count / 1e9)
    assert count_gflops(wrap_body(body), (384, 512)) == count_gflops(wrap_body(body), SIZE)
    assert logit_stride(wrap_body(body)) == 1


@pytest.mark.parametrize(
    ("options", "pixels"),
    [
        ({"skips": "32s"}, 32),
        ({"skips": "8s"}, 8),
        ({"skips": "32s", "output_stride": 16}, 16),
        ({"upsampling": "learned"}, 1),
    ],
    ids=str,
)
def test_logit_stride(options: dict[str, Any], pixels: int) -> None:
    assert logit_stride(meta_build("fcn", **options)) == pixels


def test_analysis_does_not_change_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "PROBE_WIDTHS", (128, 256))
    network = build("fcn", 5).train()
    before = copy.deepcopy(network.state_dict())
    figures = count_gflops(network, SIZE), logit_stride(network), list_stages(network, SIZE)
    receptive_field(network)
    assert network.training and all(figures)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
