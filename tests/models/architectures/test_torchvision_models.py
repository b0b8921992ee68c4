"""The proof: a torchvision network's weights in the house's own give the same logits and the same mask."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision.models as library
from torch import Tensor, nn

from models.architectures import build
from models.architectures.base import Network, upsample
from models.architectures.smp_models import SMP_MODELS as SMP_NETWORKS
from models.architectures.torchvision_models import FCN_KEY_PREFIXES, MODEL_BACKBONES
from models.errors import ConfigError, WeightsError
from tests.fixtures_networks import calibrate_norms, measure_flops, sample_images, seeded_network

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 21


def torchvision_model(name: str) -> nn.Module:
    """torchvision's own network with random weights that answers as a trained one."""
    torch.manual_seed(0)
    network = library.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    with torch.no_grad():
        calibrate_norms(network, equivalent_fcn().normalise(sample_images(96, 128).permute(0, 3, 1, 2)))
    return network


def equivalent_fcn(encoder: str = "resnet18") -> Network:
    options = {"encoder": encoder, "output_stride": 8, "skips": "32s", "aux": True}
    return build("fcn", CLASSES, **options).eval()


def convert_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names -> ours, each by the one key that fits."""
    found = {}
    for name, value in state.items():
        (old,) = [each for each in FCN_KEY_PREFIXES if name.startswith(each)]
        found[FCN_KEY_PREFIXES[old] + name.removeprefix(old)] = value
    return found


@pytest.mark.parametrize("size", [(65, 97), pytest.param((480, 640), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("encoder", ["resnet50", "resnet101"])
@torch.no_grad()
def test_torchvisions_fcn_is_ours(encoder: str, size: tuple[int, int]) -> None:
    original, network = torchvision_model(f"fcn_{encoder}"), equivalent_fcn(encoder)
    network.body.load_state_dict(convert_keys(original.state_dict()), strict=True)
    images = sample_images(*size)[1:3]
    # Contiguous as in the network: another memory format is another order of sums.
    planes = network.normalise(images.permute(0, 3, 1, 2).contiguous())
    maps, expected = original.backbone(planes), original(planes)
    scores, aux = network.body.training_logits(planes)
    for found, wanted in (
        (scores, original.classifier(maps["out"])),
        (aux, original.aux_classifier(maps["aux"])),
        (upsample(scores, size), expected["out"]),
        (upsample(aux, size), expected["aux"]),
    ):
        assert wanted.abs().max() > 0.1
        assert (found - wanted).abs().max() <= 1e-5
    assert torch.equal(network(images)[0], expected["out"].argmax(dim=1).to(torch.uint8))
    assert len(expected["out"].argmax(dim=1).unique()) > 1


@pytest.mark.parametrize("name", MODEL_BACKBONES)
def test_their_parameters_and_work_are_those_that_torchvision_tells(name: str) -> None:
    known = library.get_model_weights(name)["DEFAULT"].meta
    network = build(f"torchvision/{name}", CLASSES, aux=not name.startswith("lraspp"))
    assert sum(each.numel() for each in network.parameters()) == known["num_params"]
    # It tells pairs of a multiplication and an addition, in billions, at 520 x 520 pixels, with the auxiliary head.
    pairs = measure_flops(network.body, torch.empty(1, 3, 520, 520), "training_logits") / 2e9
    assert pairs == pytest.approx(known["_ops"], rel=0.001)


def test_ours_has_as_many_parameters_and_as_much_work() -> None:
    network = equivalent_fcn("resnet50")
    assert sum(each.numel() for each in network.parameters()) == 35_322_218
    plain = build("fcn", CLASSES, encoder="resnet50", output_stride=8, skips="32s")
    assert sum(each.numel() for each in plain.parameters()) == 32_957_013
    pairs = measure_flops(network.body, torch.empty(1, 3, 520, 520), "training_logits") / 2e9
    assert pairs == pytest.approx(152.717, rel=0.001)


@pytest.mark.parametrize("name", SMP_NETWORKS)
@torch.no_grad()
def test_smps_networks_are_smps(name: str) -> None:
    """Where nothing is dilated, smp's weights give smp's scores; its own upsampling of them is left out."""
    network = seeded_network(f"smp/{name}", encoder="resnet34")
    original = getattr(smp, name)(encoder_name="resnet34", encoder_weights=None, classes=network.num_classes)
    planes = network.normalise(sample_images(64, 128).permute(0, 3, 1, 2))
    calibrate_norms(original, planes)
    original.segmentation_head[1] = nn.Identity()
    known = original.state_dict()
    if name == "PSPNet":  # its encoder ends at stride 8
        known = {key: value for key, value in known.items() if not key.startswith(("encoder.layer3", "encoder.layer4"))}
    nn.Module.load_state_dict(network.body, known, strict=True)
    found, wanted = network.eval().body(planes), original(planes)
    if SMP_NETWORKS[name].output_strides == (32,) or name == "PSPNet":
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    else:  # smp bends the dilated layers, see test_dilation.py
        assert found.shape == wanted.shape


def test_what_torchvision_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="lraspp_mobilenet_v3_large has no auxiliary head"):
        build("torchvision/lraspp_mobilenet_v3_large", CLASSES, aux=True)
    with pytest.raises(WeightsError, match=r"'coco'.*which has imagenet"):
        build("torchvision/fcn_resnet50", CLASSES, weights="coco")
