"""Layers, heads and the FCN against the figures of their papers."""

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


@settings(max_examples=20, deadline=None)
@given(factor=st.sampled_from([2, 4, 8, 16, 32]), height=st.integers(1, 9), width=st.integers(1, 9))
@torch.no_grad()
def test_learned_upsampling_starts_as_bilinear_also_at_the_borders(factor: int, height: int, width: int) -> None:
    scores = torch.randn(2, 3, height, width)
    upsampled = LearnedUpsampling(3, factor)(scores)
    torch.testing.assert_close(upsampled, upsample(scores, (height * factor, width * factor)), rtol=0, atol=1e-6)


def test_learned_upsampling_has_a_kernel_per_class() -> None:
    layer = LearnedUpsampling(3, 2)
    layer(torch.randn(1, 3, 4, 4))[:, 1].square().sum().backward()
    gradient = layer.transposed_conv.weight.grad
    assert gradient is not None
    assert [bool(kernel.any()) for kernel in gradient] == [False, True, False]


@pytest.mark.parametrize("options", [{}, {"output_stride": 16, "skips": "16s", "head": "linear"}, {"output_stride": 8}])
@torch.no_grad()
def test_network_with_learned_upsampling_starts_as_with_bilinear(options: dict[str, Any]) -> None:
    bilinear = seeded_network("fcn", **options).eval()
    learned = seeded_network("fcn", upsampling="learned", **options).eval()
    assert not learned.load_state_dict(bilinear.state_dict(), strict=False).unexpected_keys
    images = torch.randint(0, 256, (1, 64, 128, 3), dtype=torch.uint8)
    labels, logits = bilinear(images)
    learned_labels, full = learned(images)
    assert full.shape[2:] == (64, 128)
    scale = float(logits.abs().max())
    torch.testing.assert_close(full, upsample(logits, (64, 128)), rtol=0, atol=1e-5 * scale)
    assert (learned_labels == labels).float().mean() > 0.999


@settings(max_examples=40, deadline=None)
@given(bins=st.integers(1, 6), height=st.integers(1, 50), width=st.integers(1, 50))
def test_pooling_equals_adaptive_average_pooling_of_torch(bins: int, height: int, width: int) -> None:
    maps = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(ExportableAdaptiveAvgPool2d(bins)(maps), F.adaptive_avg_pool2d(maps, bins))


@torch.no_grad()
def test_pooling_branch_of_one_bin_is_constant() -> None:
    output = PoolingBranch(4, 3, bins=1)(torch.randn(1, 4, 5, 7))
    assert output.shape == (1, 3, 5, 7)
    torch.testing.assert_close(output, output[..., :1, :1].expand_as(output))


def kernel_taps(module: nn.Module, channels: int, side: int) -> list[int]:
    """The input rows that the middle output of a module depends on, relative to its own row."""
    maps = torch.randn(1, channels, side, side, requires_grad=True)
    module.eval()(maps)[..., side // 2, side // 2].sum().backward()
    assert maps.grad is not None
    rows = maps.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten() - side // 2
    return [int(row) for row in rows]


@pytest.mark.parametrize(("stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
@pytest.mark.parametrize("separable", [False, True])
def test_aspp_has_the_dilation_rates_of_the_paper(stride: int, rates: list[int], separable: bool) -> None:
    head, features = HEADS["aspp"].build(16, stride, separable)
    pointwise, *dilated, _ = head[0].branches
    assert features == 256
    assert kernel_taps(pointwise, 16, 81) == [0]
    for rate, branch in zip(rates, dilated, strict=True):
        assert kernel_taps(branch, 16, 81) == [-rate, 0, rate]
    assert len(kernel_taps(head, 16, 81)) == 81  # through the mean of the image


@pytest.mark.parametrize("separable", [False, True])
def test_d6_spans_27_positions(separable: bool) -> None:
    head, features = HEADS["d6"].build(64, 16, separable)
    torch.manual_seed(0)
    calibrate_norms(head, torch.randn(4, 64, 16, 16))
    assert features == 16
    # Two kernels of dilation 6 reach 12 rows to each side, and the one that follows 1 more; there are gaps between them.
    assert kernel_taps(head, 64, 61) == [middle + side for middle in (-12, -6, 0, 6, 12) for side in (-1, 0, 1)]


@torch.no_grad()
def test_psp_has_the_pyramid_of_the_paper() -> None:
    head, features = HEADS["psp"].build(16, 8, False)
    maps = torch.randn(1, 16, 12, 18)
    pyramid = head[0](maps)
    assert features == 4 and pyramid.shape == (1, 32, 12, 18)
    assert torch.equal(pyramid[:, :16], maps)
    for index, bins in enumerate((1, 2, 3, 6)):
        pooled = F.relu(head[0].branches[index].conv[0](F.adaptive_avg_pool2d(maps, bins)))
        level = pyramid[:, 16 + 4 * index : 20 + 4 * index]
        torch.testing.assert_close(level, upsample(pooled, (12, 18)), rtol=1e-4, atol=1e-6)


def test_separable_convolution_needs_a_ninth_of_the_flops() -> None:
    plain, separable = (
        measure_flops(conv_bn_relu(512, 512, separable=each), torch.empty(1, 512, 16, 16)) for each in (False, True)
    )
    assert plain == 2 * 9 * 512 * 512 * 16 * 16
    assert separable == 2 * (9 * 512 + 512 * 512) * 16 * 16  # 1/9 + 1/512
    for head in ("fcn", "d6", "aspp", "psp"):
        # ASPP has 1x1 branches too, which stay the same.
        maps = torch.empty(1, 512, 16, 16)
        ratio = measure_flops(HEADS[head].build(512, 16, True)[0], maps) / measure_flops(
            HEADS[head].build(512, 16, False)[0], maps
        )
        assert ratio < (0.25 if head == "aspp" else 0.15), head


def kernel_deviations(network: FCN, part: str) -> list[tuple[float, nn.Conv2d]]:
    """The standard deviation of each large kernel of a part of the network, and its layer."""
    layers = [layer for layer in getattr(network, part).modules() if isinstance(layer, nn.Conv2d)]
    deviations = [(float(layer.weight.detach().std()), layer) for layer in layers if layer.weight.numel() > 10_000]
    assert deviations
    return deviations


@pytest.mark.parametrize(
    ("head", "init"), [("fcn", "xavier"), ("d6", "kaiming"), ("aspp", "kaiming"), ("psp", "xavier")]
)
def test_heads_are_initialised_by_the_chosen_rule(head: str, init: str) -> None:
    body = seeded_network("fcn", head=head, init=init, aux=True).body
    for part in ("head", "aux_head"):
        for deviation, layer in kernel_deviations(body, part):
            area = layer.kernel_size[0] * layer.kernel_size[1] / layer.groups
            fan_in, fan_out = layer.in_channels * area, layer.out_channels * area
            expected = math.sqrt(2 / fan_in) if init == "kaiming" else math.sqrt(2 / (fan_in + fan_out))
            assert deviation == pytest.approx(expected, rel=0.03)
    bound = 1 / math.sqrt(body.score.in_channels)  # torch's default: nearly equal scores, with no ReLU after them
    assert body.score.weight.abs().max() <= bound


def test_xavier_initialises_the_encoder_too() -> None:
    for deviation, layer in kernel_deviations(seeded_network("fcn", init="xavier").body, "encoder"):
        area = layer.kernel_size[0] * layer.kernel_size[1]
        assert deviation == pytest.approx(math.sqrt(2 / (area * (layer.in_channels + layer.out_channels))), rel=0.03)


@torch.no_grad()
def test_dropout_drops_its_fraction_in_training_only() -> None:
    network = seeded_network("fcn", dropout=0.9).eval()
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
    """C x h x w -> C x 2h x 2w: each new pixel is a quarter of an old one away from its centre; edges are repeated."""
    for axis in (1, 2):
        last = scores.shape[axis] - 1
        index = np.arange(last + 1)
        before = scores.take(np.maximum(index - 1, 0), axis)
        after = scores.take(np.minimum(index + 1, last), axis)
        pairs = np.stack([0.75 * scores + 0.25 * before, 0.75 * scores + 0.25 * after], axis + 1)
        shape = list(scores.shape)
        shape[axis] *= 2
        scores = pairs.reshape(shape)
    return scores


def apply_conv1x1(layer: nn.Conv2d, features: Tensor) -> np.ndarray:
    """A 1x1 convolution as a matrix product."""
    assert layer.bias is not None
    weight, bias = layer.weight.double().numpy()[:, :, 0, 0], layer.bias.double().numpy()
    return np.einsum("kc,chw->khw", weight, features[0].double().numpy()) + bias[:, None, None]


@pytest.mark.parametrize("head", ["linear", "fcn"])
@torch.no_grad()
def test_fcn_8s_adds_skip_scores_as_in_the_paper(head: str) -> None:
    body = calibrated_network("fcn", encoder="resnet18", output_stride=32, skips="8s", head=head).body
    maps = body.encoder(torch.randn(1, 3, 96, 160))
    assert [each.shape[1] for each in maps[3:]] == [128, 256, 512]
    score_8, score_16 = body.skip_scores
    expected = apply_conv1x1(body.score, body.head(maps[5]))
    expected = upsample_2x(expected) + apply_conv1x1(score_16, maps[4])
    expected = upsample_2x(expected) + apply_conv1x1(score_8, maps[3])
    scores = body.decode(maps)[0].numpy()
    assert scores.shape == (CLASSES, 12, 20)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "ccn"}, "head='ccn' is not known; did you mean fcn"),
        ({"skips": "4s"}, "skips='4s' is not known.* from 32s, 16s, 8s"),
        ({"upsampling": "cubic"}, "upsampling='cubic' is not known; choose from bilinear, learned"),
        ({"init": "xaver"}, "did you mean xavier\\? Choose from kaiming, xavier"),
        ({"output_stride": 4}, "output stride 4 is not possible; choose 8, 16 or 32"),
        ({"dropout": 1.5}, "dropout of 1.5 is not possible"),
        ({"strides": 8}, "fcn has no option 'strides'; did you mean output_stride"),
    ],
    ids=str,
)
def test_invalid_option_names_the_valid_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("fcn", CLASSES, **options)
