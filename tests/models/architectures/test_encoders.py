"""Encoders: their names, their feature maps, the removal of unused layers, and FCN-AlexNet against torchvision's AlexNet."""

import copy

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from models.architectures import build, encoders
from models.architectures.alexnet import AlexNetEncoder, convert_classifier_weights
from models.architectures.layers import StridedPointwiseConv2d, replace_strided_pointwise
from models.architectures.prune import prune_unused_layers
from models.errors import ConfigError
from tests.fixtures_networks import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

# One per implementation, the smallest; benchmarks/encoders.py covers many more.
FAST = ["alexnet", "resnet18", "efficientnet-b0", "tu-convnext_atto", "tu-hrnet_w18_small"]
SLOW = [
    "vgg11", "mobilenet_v2",
    "dpn68", "densenet121", "inceptionv4", "inceptionresnetv2", "xception", "se_resnet50", "mit_b0", "mobileone_s0",
    "tu-swin_tiny_patch4_window7_224", "tu-pvt_v2_b0", "tu-dla34", "tu-mobilenetv3_small_050", "tu-edgenext_xx_small",
]  # fmt: skip


# Encoders of less depth leave layers out: the stages of smp's, in lists, in timm's, and where layers stay unused.
SHALLOW = ["resnet18", "tu-hrnet_w18_small", "efficientnet-b0", "densenet121", "mit_b0", "tu-dla34"]


def depth_cases() -> list[object]:
    """(encoder, depth); full depth in `make test` for some encoders, less depth for two of them."""
    fast = [*((name, 5) for name in FAST), ("resnet18", 3), ("tu-hrnet_w18_small", 3)]
    cases = [*((name, 5) for name in [*FAST, *SLOW]), *((name, 3) for name in SHALLOW)]
    return [pytest.param(*case, marks=() if case in fast else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("name", "depth"), depth_cases())
def test_pruned_encoder_returns_the_same_maps_and_uses_all_parameters(name: str, depth: int) -> None:
    encoder = encoders.build(name, 2**depth, depth=depth).eval()
    images = torch.randn(2, 3, 64, 128)
    before = encoder(images)
    prune_unused_layers(encoder, name, 2**depth)
    after = encoder(images)
    assert [tuple(maps.shape[2:]) for maps in after] == [
        (64 // 2**level, 128 // 2**level) for level in range(depth + 1)
    ]
    assert [maps.shape[1] for maps in after] == list(encoder.out_channels)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    torch.stack([maps.sum() for maps in after]).sum().backward()
    assert not [
        key for key, parameter in encoder.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]


def test_gradient_of_a_strided_pointwise_convolution() -> None:
    plain = nn.Conv2d(3, 8, kernel_size=1, stride=2)
    layer = nn.Sequential(copy.deepcopy(plain))
    replace_strided_pointwise(layer)
    images = torch.randn(2, 3, 33, 64).to(memory_format=torch.channels_last)
    expected = plain.double()(images.double())  # oneDNN has no float64
    output = layer(images)
    gradient = torch.randn_like(output)
    expected.backward(gradient.double())
    output.backward(gradient)
    torch.testing.assert_close(output, expected.float())
    torch.testing.assert_close(layer[0].weight.grad, plain.weight.grad.float(), rtol=1e-4, atol=1e-4)


def test_networks_have_no_strided_pointwise_convolution_of_the_image() -> None:
    layers = [layer for layer in build("fcn", 2, encoder="mobileone_s0").modules() if isinstance(layer, nn.Conv2d)]
    strided = [layer for layer in layers if layer.kernel_size == (1, 1) and layer.stride == (2, 2)]
    assert {type(layer) is StridedPointwiseConv2d for layer in strided if layer.in_channels == 3} == {True}


def test_alexnet_has_one_depth() -> None:
    with torch.device("meta"):
        encoder = encoders.build("alexnet", 16, depth=4)
    with pytest.raises(ConfigError, match="alexnet does not return the feature maps that a segmentation network needs"):
        prune_unused_layers(encoder, "alexnet", 16)


def test_pruning_removes_unused_layers() -> None:
    with torch.device("meta"):
        complete = encoders.build("efficientnet-b0")
        pruned = build("fcn", CLASSES, encoder="efficientnet-b0").body.encoder
        pspnet = build("smp/PSPNet", CLASSES).body.encoder
    removed = {name for name, _ in complete.named_parameters()} - {name for name, _ in pruned.named_parameters()}
    assert removed == {"_conv_head.weight", "_bn1.weight", "_bn1.bias"}
    assert not [name for name in pspnet.state_dict() if name.startswith("layer3")]


def test_networks_can_be_built_on_the_meta_device_and_in_inference_mode() -> None:
    with torch.device("meta"):
        meta = build("fcn", CLASSES, encoder="efficientnet-b0", output_stride=8)
    with torch.inference_mode():
        inference = build("fcn", CLASSES, encoder="efficientnet-b0", output_stride=8)
    assert meta.state_dict().keys() == inference.state_dict().keys()
    assert {parameter.device.type for parameter in meta.body.parameters()} == {"meta"}


def test_every_name_of_smp_and_timm_is_listed_once() -> None:
    names = encoders.encoder_names()
    assert len(names) == len(set(names)) > 1000
    assert {name for name in smp.encoders.encoders if not name.startswith("timm-")} < set(names)
    assert {"alexnet", "tu-resnet50", "tu-convnext_tiny"} < set(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "'resnet81'.* did you mean resnet18"),
        ("", "did you mean resnet18"),
        ("timm-resnest14d", "'timm-resnest14d' is not known.*tu-resnest14d"),
        ("tu-nothing", "'tu-nothing' is not known"),
        ("tu-vit_tiny_patch16_224", "tu-vit_tiny_patch16_224 cannot be built"),
        ("tu-hiera_tiny_224", "tu-hiera_tiny_224 does not return the feature maps that a segmentation network needs"),
    ],
)
def test_unsuitable_encoder_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("fcn", CLASSES, encoder=name)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """torchvision's AlexNet with weights that keep the signal from vanishing over eight layers."""
    torch.manual_seed(0)
    with torch.device("meta"):  # which skips torch's own initialisation
        network = torchvision.models.alexnet(weights=None).eval()
    network.to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.normal_(layer.bias, std=0.1)
    return network


@pytest.fixture(scope="module")
def alexnet(classifier: nn.Module) -> AlexNetEncoder:
    with torch.device("meta"):
        network = AlexNetEncoder().eval()
    network.load_state_dict(convert_classifier_weights(classifier.state_dict()), strict=True, assign=True)
    return network


@torch.no_grad()
def test_fc6_and_fc7_equal_the_fully_connected_layers(classifier: nn.Module, alexnet: AlexNetEncoder) -> None:
    pooled = classifier.features(torch.randn(2, 3, 224, 224))
    assert pooled.shape == (2, 256, 6, 6)
    fc6 = F.relu(classifier.classifier[1](pooled.flatten(1)))
    fc7 = F.relu(classifier.classifier[4](fc6))
    convolved = F.relu(alexnet.fc6[2](pooled))  # at its single position
    assert convolved.shape == (2, 4096, 1, 1) and fc7.std() > 0.1
    torch.testing.assert_close(convolved.flatten(1), fc6, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alexnet.fc7(convolved).flatten(1), fc7, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_alexnet_on_a_large_image_equals_the_classifier_on_a_window(
    classifier: nn.Module, alexnet: AlexNetEncoder
) -> None:
    image = torch.randn(1, 3, 480, 480)
    # Each layer is padded to H / stride, by 1, 4, 8 and 16 pixels more than torchvision's, which shifts the grid.
    maps = alexnet(image[..., 29:, 29:])
    expected = classifier.features(image)
    for row, column in ((6, 6), (6, 7), (7, 6)):  # far from all borders: a window is 355 pixels wide
        window = expected[..., row - 2 : row + 4, column - 2 : column + 4]
        fc7 = F.relu(classifier.classifier[4](F.relu(classifier.classifier[1](window.flatten(1)))))
        torch.testing.assert_close(maps[5][..., row, column], fc7, rtol=1e-4, atol=1e-4)
