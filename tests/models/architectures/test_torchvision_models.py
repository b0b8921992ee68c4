"""The networks of torchvision and smp: with the same weights, the same logits and masks as the originals."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision.models as library
from torch import Tensor, nn

from models.architectures import build
from models.architectures.base import Network, upsample
from models.architectures.smp_models import SMP_MODELS
from models.architectures.torchvision_models import FCN_KEY_PREFIXES, MODEL_BACKBONES
from models.errors import ConfigError, WeightsError
from tests.fixtures_networks import calibrate_norms, measure_flops, sample_images, seeded_network

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 21


def torchvision_model(name: str) -> nn.Module:
    """The original network of torchvision, calibrated."""
    torch.manual_seed(0)
    network = library.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    with torch.no_grad():
        calibrate_norms(network, equivalent_fcn().normalise(sample_images(96, 128).permute(0, 3, 1, 2)))
    return network


def equivalent_fcn(encoder: str = "resnet18") -> Network:
    options = {"encoder": encoder, "output_stride": 8, "skips": "32s", "aux": True}
    return build("fcn", CLASSES, **options).eval()


def convert_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of torchvision's FCN changed to ours, each by exactly one prefix."""
    converted = {}
    for name, value in state.items():
        (old,) = [prefix for prefix in FCN_KEY_PREFIXES if name.startswith(prefix)]
        converted[FCN_KEY_PREFIXES[old] + name.removeprefix(old)] = value
    return converted


@pytest.mark.parametrize("size", [(65, 97), pytest.param((480, 640), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("encoder", ["resnet50", pytest.param("resnet101", marks=pytest.mark.slow)])
@torch.no_grad()
def test_fcn_equals_the_fcn_of_torchvision(encoder: str, size: tuple[int, int]) -> None:
    original, network = torchvision_model(f"fcn_{encoder}"), equivalent_fcn(encoder)
    network.body.load_state_dict(convert_keys(original.state_dict()), strict=True)
    images = sample_images(*size)[1:3]
    # Contiguous as in `Network`: another memory format sums in another order.
    planes = network.normalise(images.permute(0, 3, 1, 2).contiguous())
    maps, expected = original.backbone(planes), original(planes)
    scores, aux = network.body.training_logits(planes)
    for output, reference in (
        (scores, original.classifier(maps["out"])),
        (aux, original.aux_classifier(maps["aux"])),
        (upsample(scores, size), expected["out"]),
        (upsample(aux, size), expected["aux"]),
    ):
        assert reference.abs().max() > 0.1
        assert (output - reference).abs().max() <= 1e-5
    assert torch.equal(network(images)[0], expected["out"].argmax(dim=1).to(torch.uint8))
    assert len(expected["out"].argmax(dim=1).unique()) > 1


@pytest.mark.parametrize("name", MODEL_BACKBONES)
def test_parameters_and_flops_are_those_that_torchvision_publishes(name: str) -> None:
    published = library.get_model_weights(name)["DEFAULT"].meta
    with torch.device("meta"):
        network = build(f"torchvision/{name}", CLASSES, aux=not name.startswith("lraspp"))
    assert sum(each.numel() for each in network.parameters()) == published["num_params"]
    # Published are billions of multiply-adds at 520 x 520 pixels, including the auxiliary head.
    pairs = measure_flops(network.body, torch.empty(1, 3, 520, 520), "training_logits") / 2e9
    assert pairs == pytest.approx(published["_ops"], rel=0.001)


def test_fcn_has_the_published_parameters_and_flops() -> None:
    with torch.device("meta"):
        network = equivalent_fcn("resnet50")
        plain = build("fcn", CLASSES, encoder="resnet50", output_stride=8, skips="32s")
    assert sum(each.numel() for each in network.parameters()) == 35_322_218
    assert sum(each.numel() for each in plain.parameters()) == 32_957_013
    pairs = measure_flops(network.body, torch.empty(1, 3, 520, 520), "training_logits") / 2e9
    assert pairs == pytest.approx(152.717, rel=0.001)


@pytest.mark.parametrize("name", SMP_MODELS)
@torch.no_grad()
def test_networks_of_smp_equal_the_originals(name: str) -> None:
    """With the weights of smp: the logits before smp's upsampling are equal, unless the encoder is dilated."""
    network = seeded_network(f"smp/{name}", encoder="resnet18")
    original = getattr(smp, name)(encoder_name="resnet18", encoder_weights=None, classes=network.num_classes)
    planes = network.normalise(sample_images(64, 128)[1:3].permute(0, 3, 1, 2))
    calibrate_norms(original, planes)
    original.segmentation_head[1] = nn.Identity()
    state = original.state_dict()
    if name == "PSPNet":  # its encoder ends at stride 8
        state = {key: value for key, value in state.items() if not key.startswith(("encoder.layer3", "encoder.layer4"))}
    nn.Module.load_state_dict(network.body, state, strict=True)
    logits, expected = network.eval().body(planes), original(planes)
    if SMP_MODELS[name].output_strides == (32,) or name == "PSPNet":
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    else:  # smp dilates in another way, see test_dilation.py
        assert logits.shape == expected.shape


def test_missing_auxiliary_head_and_unknown_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="lraspp_mobilenet_v3_large has no auxiliary head"):
        build("torchvision/lraspp_mobilenet_v3_large", CLASSES, aux=True)
    with pytest.raises(WeightsError, match=r"'coco'.*choose from imagenet"):
        build("torchvision/fcn_resnet50", CLASSES, weights="coco")
