"""Layers and heads: what the papers say of them, in numbers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures import build
from models.architectures.base import upsample
from models.architectures.fcn import FCN
from models.architectures.heads import HEADS
from models.architectures.layers import ExportableAdaptiveAvgPool2d, LearnedUpsampling, PoolingBranch, conv_bn_relu
from models.errors import ConfigError
from tests.fixtures_networks import CLASSES, calibrate_norms, calibrated_network, measure_flops, seeded_network

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(max_examples=30, deadline=None)
@given(factor=st.sampled_from([2, 4, 8, 16, 32]), height=st.integers(1, 9), width=st.integers(1, 9))
@torch.no_grad()
def test_learned_upsampling_starts_as_bilinear_at_the_borders_too(factor: int, height: int, width: int) -> None:
    scores = torch.randn(2, 3, height, width)
    found = LearnedUpsampling(3, factor)(scores)
    torch.testing.assert_close(found, upsample(scores, (height * factor, width * factor)), rtol=0, atol=1e-6)


def test_learned_upsampling_learns_each_class_by_itself() -> None:
    layer = LearnedUpsampling(3, 2)
    layer(torch.randn(1, 3, 4, 4))[:, 1].square().sum().backward()
    gradient = layer.transposed_conv.weight.grad
    assert gradient is not None
    assert [bool(one.any()) for one in gradient] == [False, True, False]


@pytest.mark.parametrize("options", [{}, {"output_stride": 16, "skips": "16s", "head": "linear"}, {"output_stride": 8}])
@torch.no_grad()
def test_with_learned_upsampling_a_network_starts_as_with_bilinear(options: dict[str, Any]) -> None:
    plain, learned = calibrated_network("fcn", **options), calibrated_network("fcn", upsampling="learned", **options)
    assert not learned.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    images = torch.randint(0, 256, (1, 64, 128, 3), dtype=torch.uint8)
    labels, logits = plain(images)
    found, full = learned(images)
    assert full.shape[2:] == (64, 128)
    scale = float(logits.abs().max())
    torch.testing.assert_close(full, upsample(logits, (64, 128)), rtol=0, atol=1e-5 * scale)
    assert (found == labels).float().mean() > 0.999


@settings(max_examples=60, deadline=None)
@given(bins=st.integers(1, 6), height=st.integers(1, 50), width=st.integers(1, 50))
def test_cells_are_those_of_adaptive_pooling(bins: int, height: int, width: int) -> None:
    maps = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(ExportableAdaptiveAvgPool2d(bins)(maps), F.adaptive_avg_pool2d(maps, bins))


@torch.no_grad()
def test_context_of_one_bin_is_the_same_everywhere() -> None:
    found = PoolingBranch(4, 3, bins=1)(torch.randn(1, 4, 5, 7))
    assert found.shape == (1, 3, 5, 7)
    torch.testing.assert_close(found, found[..., :1, :1].expand_as(found))


def kernel_taps(module: nn.Module, channels: int, side: int) -> list[int]:
    """The rows, relative to its own, that the middle output of a module reads."""
    maps = torch.randn(1, channels, side, side, requires_grad=True)
    module.eval()(maps)[..., side // 2, side // 2].sum().backward()
    assert maps.grad is not None
    rows = maps.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten() - side // 2
    return [int(row) for row in rows]


@pytest.mark.parametrize(("stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
@pytest.mark.parametrize("separable", [False, True])
def test_aspp_looks_as_far_as_the_paper_says(stride: int, rates: list[int], separable: bool) -> None:
    head, features = HEADS["aspp"].build(16, stride, separable)
    one, *wide, _ = head[0].branches
    assert features == 256
    assert kernel_taps(one, 16, 81) == [0]
    for rate, branch in zip(rates, wide, strict=True):
        assert kernel_taps(branch, 16, 81) == [-rate, 0, rate]
    assert len(kernel_taps(head, 16, 81)) == 81  # by the mean of the image


@pytest.mark.parametrize("separable", [False, True])
def test_d6_spans_27_positions(separable: bool) -> None:
    head, features = HEADS["d6"].build(64, 16, separable)
    torch.manual_seed(0)
    calibrate_norms(head, torch.randn(4, 64, 16, 16))
    assert features == 16
    # Two kernels of dilation 6 reach 12 both ways, and the one that joins them 1 more; between them are gaps.
    assert kernel_taps(head, 64, 61) == [middle + side for middle in (-12, -6, 0, 6, 12) for side in (-1, 0, 1)]


@torch.no_grad()
def test_psp_has_the_cells_of_the_paper() -> None:
    head, features = HEADS["psp"].build(16, 8, False)
    maps = torch.randn(1, 16, 12, 18)
    pyramid = head[0](maps)
    assert features == 4 and pyramid.shape == (1, 32, 12, 18)
    assert torch.equal(pyramid[:, :16], maps)
    for place, bins in enumerate((1, 2, 3, 6)):
        own = F.relu(head[0].branches[place].mix[0](F.adaptive_avg_pool2d(maps, bins)))
        part = pyramid[:, 16 + 4 * place : 20 + 4 * place]
        torch.testing.assert_close(part, upsample(own, (12, 18)), rtol=1e-4, atol=1e-6)


def test_a_separable_kernel_costs_a_ninth() -> None:
    plain, separable = (
        measure_flops(conv_bn_relu(512, 512, separable=each), torch.empty(1, 512, 16, 16)) for each in (False, True)
    )
    assert plain == 2 * 9 * 512 * 512 * 16 * 16
    assert separable == 2 * (9 * 512 + 512 * 512) * 16 * 16  # 1/9 + 1/512
    for head in ("fcn", "d6", "aspp", "psp"):
        # ASPP keeps its 1x1 branches as they are.
        maps = torch.empty(1, 512, 16, 16)
        ratio = measure_flops(HEADS[head].build(512, 16, True)[0], maps) / measure_flops(
            HEADS[head].build(512, 16, False)[0], maps
        )
        assert ratio < (0.25 if head == "aspp" else 0.15), head


def kernel_deviations(network: FCN, part: str) -> list[tuple[float, nn.Conv2d]]:
    """The standard deviation of each large kernel of a part of the network."""
    layers = [layer for layer in getattr(network, part).modules() if isinstance(layer, nn.Conv2d)]
    found = [(float(layer.weight.detach().std()), layer) for layer in layers if layer.weight.numel() > 10_000]
    assert found
    return found


@pytest.mark.parametrize("head", ["fcn", "d6", "aspp", "psp"])
@pytest.mark.parametrize("init", ["kaiming", "xavier"])
def test_heads_start_by_the_rule_that_was_asked_for(head: str, init: str) -> None:
    body = seeded_network("fcn", head=head, init=init, aux=True).body
    for part in ("head", "aux_head"):
        for found, layer in kernel_deviations(body, part):
            area = layer.kernel_size[0] * layer.kernel_size[1] / layer.groups
            fan_in, fan_out = layer.in_channels * area, layer.out_channels * area
            wanted = math.sqrt(2 / fan_in) if init == "kaiming" else math.sqrt(2 / (fan_in + fan_out))
            assert found == pytest.approx(wanted, rel=0.03)
    bound = 1 / math.sqrt(body.score.in_channels)  # torch's own: near even scores, with no ReLU after them
    assert body.score.weight.abs().max() <= bound


def test_xavier_starts_the_encoder_too() -> None:
    for found, layer in kernel_deviations(seeded_network("fcn", init="xavier").body, "encoder"):
        area = layer.kernel_size[0] * layer.kernel_size[1]
        assert found == pytest.approx(math.sqrt(2 / (area * (layer.in_channels + layer.out_channels))), rel=0.03)


@torch.no_grad()
def test_dropout_drops_its_share_and_only_in_training() -> None:
    network = calibrated_network("fcn", dropout=0.9)
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(network(images)[1], network(images)[1])
    network.body.dropout.train()
    assert not torch.equal(network(images)[1], network(images)[1])
    dropped = network.body.dropout(torch.ones(1, 100, 10, 10))
    assert 0.85 < float((dropped == 0).float().mean()) < 0.95
    assert not any(
        isinstance(layer, nn.Dropout) and layer.p for layer in seeded_network("fcn", dropout=0).body.modules()
    )


def upsample_2x(scores: np.ndarray) -> np.ndarray:
    """C x h x w -> C x 2h x 2w: each new pixel lies a quarter of an old one off its centre; edges repeat."""
    for axis in (1, 2):
        last = scores.shape[axis] - 1
        at = np.arange(last + 1)
        before = scores.take(np.maximum(at - 1, 0), axis)
        after = scores.take(np.minimum(at + 1, last), axis)
        pairs = np.stack([0.75 * scores + 0.25 * before, 0.75 * scores + 0.25 * after], axis + 1)
        shape = list(scores.shape)
        shape[axis] *= 2
        scores = pairs.reshape(shape)
    return scores


def apply_conv1x1(layer: nn.Conv2d, features: Tensor) -> np.ndarray:
    """A 1x1 convolution, written as the matrix product that it is."""
    assert layer.bias is not None
    weight, bias = layer.weight.double().numpy()[:, :, 0, 0], layer.bias.double().numpy()
    return np.einsum("kc,chw->khw", weight, features[0].double().numpy()) + bias[:, None, None]


@pytest.mark.parametrize("head", ["linear", "fcn"])
@torch.no_grad()
def test_fcn_8s_sums_as_the_paper_does(head: str) -> None:
    body = calibrated_network("fcn", encoder="resnet18", output_stride=32, skips="8s", head=head).body
    maps = body.encoder(torch.randn(1, 3, 96, 160))
    assert [one.shape[1] for one in maps[3:]] == [128, 256, 512]
    score_8, score_16 = body.skip_scores
    expected = apply_conv1x1(body.score, body.head(maps[5]))
    expected = upsample_2x(expected) + apply_conv1x1(score_16, maps[4])
    expected = upsample_2x(expected) + apply_conv1x1(score_8, maps[3])
    found = body.decode(maps)[0].numpy()
    assert found.shape == (CLASSES, 12, 20)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "ccn"}, "head='ccn' is not known; did you mean fcn"),
        ({"skips": "4s"}, "skips='4s' is not known.* 32s, 16s, 8s"),
        ({"upsampling": "cubic"}, "upsampling='cubic' is not known; there is bilinear, learned"),
        ({"init": "xaver"}, "did you mean xavier"),
        ({"output_stride": 4}, "output stride 4 is not possible; choose 8, 16 or 32"),
        ({"dropout": 1.5}, "dropout of 1.5 is not possible"),
        ({"strides": 8}, "fcn has no option 'strides'; did you mean output_stride"),
    ],
    ids=str,
)
def test_what_cannot_be_built_says_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build("fcn", CLASSES, **options)
