"""Encoders: which there are, what they return, that nothing in them is idle, and FCN-AlexNet as torchvision's AlexNet."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from models.architectures import build, encoders
from models.architectures.alexnet import AlexNetEncoder, convert_classifier_weights
from models.architectures.prune import prune_unused_layers
from models.errors import ConfigError
from tests.fixtures_networks import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

# One of each kind of code; benchmarks/encoders.py asks many more.
FAST = ["alexnet", "resnet18", "vgg11", "mobilenet_v2", "efficientnet-b0", "tu-convnext_atto", "tu-hrnet_w18_small"]
SLOW = [
    "dpn68", "densenet121", "inceptionv4", "inceptionresnetv2", "xception", "senet154", "mit_b0", "mobileone_s0",
    "tu-swin_tiny_patch4_window7_224", "tu-pvt_v2_b0", "tu-dla34", "tu-mobilenetv3_small_050", "tu-edgenext_xx_small",
]  # fmt: skip


def encoder_params() -> list[object]:
    return [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", encoder_params())
@torch.no_grad()
def test_maps_are_as_fine_and_wide_as_is_said(name: str) -> None:
    encoder = encoders.build(name).eval()
    maps = encoder(torch.randn(1, 3, 64, 192))
    assert [tuple(one.shape[2:]) for one in maps] == [(64 // 2**level, 192 // 2**level) for level in range(6)]
    assert [one.shape[1] for one in maps] == list(encoder.out_channels)


@pytest.mark.parametrize("depth", [5, 4, 3])
@pytest.mark.parametrize("name", encoder_params())
def test_trimmed_an_encoder_says_the_same_and_nothing_in_it_is_idle(name: str, depth: int) -> None:
    encoder = encoders.build(name, 2**depth, depth=depth).eval()
    if name == "alexnet" and depth < 5:  # it is one network, of one depth
        with pytest.raises(ConfigError, match="alexnet gives no feature maps that a segmentation network needs"):
            prune_unused_layers(encoder, name, 2**depth)
        return
    images = torch.randn(2, 3, 64, 128)
    before = encoder(images)
    prune_unused_layers(encoder, name, 2**depth)
    after = encoder(images)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    torch.stack([one.sum() for one in after]).sum().backward()
    assert [
        each for each, parameter in encoder.named_parameters() if parameter.requires_grad and parameter.grad is None
    ] == []


def test_what_no_map_needs_is_gone() -> None:
    plain, trimmed = encoders.build("efficientnet-b0"), build("fcn", CLASSES, encoder="efficientnet-b0").body.encoder
    gone = {"_conv_head.weight", "_bn1.weight", "_bn1.bias"}
    assert {name for name, _ in plain.named_parameters()} - {name for name, _ in trimmed.named_parameters()} == gone
    assert not [name for name in build("smp/PSPNet", CLASSES).body.encoder.state_dict() if name.startswith("layer3")]


def test_a_network_can_be_built_where_nothing_is_computed() -> None:
    with torch.device("meta"):
        meta = build("fcn", CLASSES, encoder="efficientnet-b0", output_stride=8)
    with torch.inference_mode():
        frozen = build("fcn", CLASSES, encoder="efficientnet-b0", output_stride=8)
    assert meta.state_dict().keys() == frozen.state_dict().keys()
    assert {each.device.type for each in meta.body.parameters()} == {"meta"}


def test_every_name_of_smp_is_offered_once() -> None:
    names = encoders.encoder_names()
    assert len(names) == len(set(names)) > 1000
    assert {name for name in smp.encoders.encoders if not name.startswith("timm-")} < set(names)
    assert {"alexnet", "tu-resnet50", "tu-convnext_tiny"} < set(names)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", "'resnet81'.* did you mean resnet18"),
        ("", "did you mean resnet18"),
        ("timm-resnest14d", "'timm-resnest14d' is not known.*tu-resnest14d"),
        ("tu-nothing", "'tu-nothing' is not known"),
        ("tu-vit_tiny_patch16_224", "tu-vit_tiny_patch16_224 cannot be built"),
        ("tu-hiera_tiny_224", "tu-hiera_tiny_224 gives no feature maps that a segmentation network needs"),
    ],
)
def test_what_is_no_encoder_for_this_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build("fcn", CLASSES, encoder=name)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """torchvision's AlexNet in double, of weights that keep its signal alive through eight layers."""
    torch.manual_seed(0)
    network = torchvision.models.alexnet(weights=None).double().eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network


@pytest.fixture(scope="module")
def alexnet(classifier: nn.Module) -> AlexNetEncoder:
    network = AlexNetEncoder().double().eval()
    network.load_state_dict(convert_classifier_weights(classifier.state_dict()), strict=True)
    return network


@torch.no_grad()
def test_fc6_and_fc7_are_the_classifiers_as_convolutions(classifier: nn.Module, alexnet: AlexNetEncoder) -> None:
    pooled = classifier.features(torch.randn(2, 3, 224, 224, dtype=torch.float64))
    assert pooled.shape == (2, 256, 6, 6)
    fc6 = F.relu(classifier.classifier[1](pooled.flatten(1)))
    fc7 = F.relu(classifier.classifier[4](fc6))
    found = F.relu(alexnet.fc6[2](pooled))  # at its single position
    assert found.shape == (2, 4096, 1, 1) and fc7.std() > 0.1
    torch.testing.assert_close(found.flatten(1), fc6, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(alexnet.fc7(found).flatten(1), fc7, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_inside_a_large_image_alexnet_says_what_the_classifier_says_of_a_window(
    classifier: nn.Module, alexnet: AlexNetEncoder
) -> None:
    image = torch.randn(1, 3, 480, 480, dtype=torch.float64)
    # Each layer is padded to H / stride, by 1, 4, 8 and 16 pixels more than in torchvision's, which shifts the grid.
    maps = alexnet(image[..., 29:, 29:])
    theirs = classifier.features(image)
    for row, column in ((6, 6), (6, 7), (7, 6)):  # far from all borders: a window is 355 pixels wide
        window = theirs[..., row - 2 : row + 4, column - 2 : column + 4]
        fc7 = F.relu(classifier.classifier[4](F.relu(classifier.classifier[1](window.flatten(1)))))
        torch.testing.assert_close(maps[5][..., row, column], fc7, rtol=1e-10, atol=1e-10)
