"""A dilated encoder computes, at the old positions, the values that it computed with strides."""

import warnings
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.encoders._efficientnet import Conv2dStaticSamePadding
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from models.architectures import encoders
from models.architectures.dilation import replace_strides_with_dilation
from models.errors import ConfigError
from tests.fixtures_networks import calibrate_norms, dilation_error, max_relative_difference, sample_images

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDING = 1e-10  # of the largest value, in float64
SIZE = (64, 128)  # (height, width) in pixels

# Only convolutions, pools and norms.
EXACT = ["resnet18", "mobilenet_v2", "tu-convnext_atto", "tu-regnetx_002"]
EXACT_SLOW = [
    "alexnet", "vgg11", "densenet121", "xception", "inceptionv4", "dpn68", "mobileone_s0", "tu-res2net50_14w_8s", "tu-dla34",
    "tu-darknet17",
]  # fmt: skip
# Squeeze-and-excitation, or a norm over the whole image.
GLOBAL_POOLING = ["efficientnet-b0"]
GLOBAL_POOLING_SLOW = [
    "se_resnet50",
    "tu-regnety_002",
    "tu-mobilenetv3_small_050",
    "tu-tf_efficientnet_b0",
    "tu-poolformer_s12",
]
# Global attention: the largest difference, with random weights.
ATTENTION = {"tu-edgenext_xx_small": 0.01, "mit_b0": 0.05}


def dilation_cases(fast: list[str], slow: list[str]) -> Any:
    """Parametrise by encoder and output stride. Stride 8 dilates two stages; the first encoder is dilated to 16 too."""
    cases = [pytest.param(name, 8) for name in fast]
    cases += [pytest.param(fast[0], 16, marks=pytest.mark.slow)]
    cases += [pytest.param(name, 8, marks=pytest.mark.slow) for name in slow]
    return pytest.mark.parametrize(("name", "output_stride"), cases)


@dilation_cases(EXACT, EXACT_SLOW)
def test_old_positions_keep_their_values(name: str, output_stride: int) -> None:
    assert dilation_error(name, output_stride, SIZE) < ROUNDING


@dilation_cases(GLOBAL_POOLING, GLOBAL_POOLING_SLOW)
def test_only_global_means_change_old_positions(name: str, output_stride: int) -> None:
    assert dilation_error(name, output_stride, SIZE) > ROUNDING
    assert dilation_error(name, output_stride, SIZE, constant_pooling=True) < ROUNDING


@dilation_cases(["tu-edgenext_xx_small"], ["mit_b0"])
def test_attention_changes_old_positions_a_little(name: str, output_stride: int) -> None:
    assert ROUNDING < dilation_error(name, output_stride, SIZE) < ATTENTION[name]


@torch.no_grad()
def test_dilation_of_smp_changes_old_positions() -> None:
    """The reason for a dilation of our own."""
    torch.manual_seed(0)
    images = (sample_images(*SIZE).double().permute(0, 3, 1, 2) - 128) / 64
    strided = calibrate_norms(encoders.build("resnet18").double(), images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dilated = smp.encoders.get_encoder("resnet18", weights=None, output_stride=16).double().eval()
    nn.Module.load_state_dict(dilated, strided.state_dict())
    assert max_relative_difference(strided(images), dilated(images), 16) > 0.1


class ToyEncoder(nn.Module):
    """Five layers that halve their map, each followed by one that keeps it."""

    def __init__(self, halving: list[nn.Module], keeping: list[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(*pair, nn.Tanh()) for pair in zip(halving, keeping, strict=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


STRIDED_LAYERS = {
    "conv1": lambda: nn.Conv2d(3, 3, 1, stride=2),
    "conv2": lambda: nn.Conv2d(3, 3, 2, stride=2),
    "conv3": lambda: nn.Conv2d(3, 3, 3, stride=2, padding=1),
    "conv4": lambda: nn.Conv2d(3, 3, 4, stride=2, padding=1),
    "conv5 dilated": lambda: nn.Conv2d(3, 3, 3, stride=2, padding=2, dilation=2),
    "conv7": lambda: nn.Conv2d(3, 3, 7, stride=2, padding=3),
    "wide": lambda: nn.Conv2d(3, 3, (3, 5), stride=2, padding=(1, 2)),
    "depthwise": lambda: nn.Conv2d(3, 3, 3, stride=2, padding=1, groups=3),
    "timm's same": lambda: Conv2dSame(3, 3, 3, stride=2),
    "smp's same, even": lambda: Conv2dStaticSamePadding(3, 3, 5, stride=2, image_size=224),
    "smp's same, odd": lambda: Conv2dStaticSamePadding(3, 3, 3, stride=2, image_size=75),
    "max2": lambda: nn.MaxPool2d(2),
    "max3": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "mean2": lambda: nn.AvgPool2d(2),
    "mean3": lambda: nn.AvgPool2d(3, stride=2, padding=1),
    "mean3 without padding": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
}
UNSTRIDED_LAYERS = {
    "conv1": lambda: nn.Conv2d(3, 3, 1),
    "conv3": lambda: nn.Conv2d(3, 3, 3, padding=1),
    "conv3 same": lambda: nn.Conv2d(3, 3, 3, padding="same"),
    "conv5 depthwise": lambda: nn.Conv2d(3, 3, 5, padding=2, groups=3),
    "dilated": lambda: nn.Conv2d(3, 3, 3, padding=3, dilation=3),
    "timm's same": lambda: Conv2dSame(3, 3, 3),
    "smp's same": lambda: Conv2dStaticSamePadding(3, 3, 5, image_size=28),
    "max3": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "mean3": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "mean3 without padding": lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


@settings(max_examples=40, deadline=None)
@given(
    halving=st.lists(st.sampled_from(sorted(STRIDED_LAYERS)), min_size=5, max_size=5),
    keeping=st.lists(st.sampled_from(sorted(UNSTRIDED_LAYERS)), min_size=5, max_size=5),
    output_stride=st.sampled_from([4, 8, 16]),
)
@torch.no_grad()
def test_any_chain_of_layers_keeps_its_values(halving: list[str], keeping: list[str], output_stride: int) -> None:
    torch.manual_seed(0)
    halving_layers, keeping_layers = [STRIDED_LAYERS[n]() for n in halving], [UNSTRIDED_LAYERS[n]() for n in keeping]
    toy = ToyEncoder(halving_layers, keeping_layers).double().eval()
    images = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    strided = toy(images)
    replace_strides_with_dilation(toy, output_stride)
    assert max_relative_difference(strided, toy(images), output_stride) < ROUNDING


def test_layer_that_loses_its_stride_keeps_its_dilation() -> None:
    with torch.device("meta"):
        body = encoders.build("resnet50", 8)
    strides_and_dilations = [
        [
            (layer.stride[0], layer.dilation[0])
            for layer in stage.modules()
            if getattr(layer, "kernel_size", 0) == (3, 3)
        ]
        for stage in (body.layer2, body.layer3, body.layer4)
    ]
    # As in torchvision's replace_stride_with_dilation.
    assert strides_and_dilations == [[(2, 1)] + [(1, 1)] * 3, [(1, 1)] + [(1, 2)] * 5, [(1, 2)] + [(1, 4)] * 2]
    assert {layer.dilation for layer in body.modules() if getattr(layer, "kernel_size", 0) == (1, 1)} == {(1, 1)}


def test_stride_after_separate_padding_is_refused() -> None:
    padded_convs: list[nn.Module] = [
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 3, 3, stride=2)) for _ in range(5)
    ]
    with pytest.raises(ConfigError, match="would have the strides"):
        replace_strides_with_dilation(ToyEncoder(padded_convs, [nn.Identity()] * 5), 8)


@pytest.mark.parametrize(
    "name", ["tu-hrnet_w18_small", pytest.param("tu-swin_tiny_patch4_window7_224", marks=pytest.mark.slow)]
)
def test_encoder_that_shrinks_by_other_layers_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be dilated to output stride 8 .* set output_stride=32"):
        encoders.build(name, 8)
