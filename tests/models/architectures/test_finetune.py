"""Weights of a file or a bundle: which network they are of, what is taken, and what is refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from models.architectures import build
from models.architectures.base import Network
from models.architectures.finetune import head_parameter_names, load_initial_weights
from models.architectures.torchvision_models import MODEL_BACKBONES as TORCHVISION
from models.architectures.weight_files import read_state_dict
from models.bundle import CHECKSUM_FILE, WEIGHTS_FILE, bundle_writer, open_bundle
from models.errors import WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")

CLASS_NAMES = [f"class {label}" for label in range(6)]  # the tiny bundle's


def build_seeded(seed: int = 1, classes: int = 6, **options: Any) -> Network:
    torch.manual_seed(seed)
    return build(options.pop("architecture", "fcn"), classes, **options)


def equal_keys(first: Network, second: Network) -> set[str]:
    """The names of the tensors that are equal in two networks."""
    others = second.state_dict()
    return {
        name
        for name, value in first.state_dict().items()
        if name in others and value.shape == others[name].shape and torch.equal(value, others[name])
    }


def state_dict_keys(of: Network) -> set[str]:
    return set(of.state_dict())


def kernel_keys(of: Network, part: str) -> set[str]:
    """Weights that a random start makes different each time."""
    return {name for name, value in of.named_parameters() if part in name and value.ndim == 4}


# a bundle


def test_a_bundle_goes_on(tiny_bundle: Path) -> None:
    here = build_seeded()
    said = load_initial_weights(here, tiny_bundle, CLASS_NAMES)
    stored = read_state_dict(open_bundle(tiny_bundle).weights_path)
    assert all(torch.equal(value, stored[name]) for name, value in here.state_dict().items())
    assert str(tiny_bundle) in said and "scratch" not in said


def test_a_bundle_of_other_classes(tiny_bundle: Path) -> None:
    with pytest.raises(WeightsError, match=r"made for 6 classes and this data set has 4; --reset-head keeps"):
        load_initial_weights(build_seeded(classes=4), tiny_bundle, CLASS_NAMES[:4])
    with pytest.raises(WeightsError, match=r"the class 'class 5' where this data set has 'sky'; --reset-head"):
        load_initial_weights(build_seeded(), tiny_bundle, [*CLASS_NAMES[:5], "sky"])


@pytest.mark.parametrize("classes", [4, 6])
def test_reset_head_keeps_all_but_the_head(tiny_bundle: Path, classes: int) -> None:
    here, before, stored = build_seeded(classes=classes), build_seeded(classes=classes), build_seeded()
    load_initial_weights(stored, tiny_bundle, CLASS_NAMES)
    said = load_initial_weights(here, tiny_bundle, ["other"] * classes, reset_head=True)
    head = head_parameter_names(here)
    assert head == {
        f"body.{layer}.{kind}" for layer in ("score", "skip_scores.0", "skip_scores.1") for kind in ("weight", "bias")
    }
    assert equal_keys(here, stored) >= state_dict_keys(here) - head
    assert equal_keys(here, before) >= head
    assert "6 start from scratch" in said


def test_a_new_auxiliary_head_starts_from_scratch(tiny_bundle: Path) -> None:
    here = build_seeded(aux=True)
    assert "start from scratch" in load_initial_weights(here, tiny_bundle, CLASS_NAMES)
    stored = read_state_dict(open_bundle(tiny_bundle).weights_path)
    assert all(torch.equal(here.state_dict()[name], value) for name, value in stored.items())


def test_a_bundle_of_another_network(tiny_bundle: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"no weights of resnet34: .* To go on from this bundle, set encoder=resnet18\."
    ):
        load_initial_weights(build_seeded(encoder="resnet34"), tiny_bundle, CLASS_NAMES)


def test_a_bundle_without_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "bare") as new:
        shutil.copytree(
            tiny_bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE, WEIGHTS_FILE)
        )
    with pytest.raises(WeightsError, match="imported from ONNX"):
        load_initial_weights(build_seeded(), tmp_path / "bare", CLASS_NAMES)


# whole networks in files


@pytest.mark.parametrize("architecture", ["smp/FPN", "torchvision/lraspp_mobilenet_v3_large"])
def test_another_librarys_own_file(architecture: str, tmp_path: Path) -> None:
    there = build_seeded(2, architecture=architecture)
    torch.save(there.body.state_dict(), tmp_path / "model.pth")
    here = build_seeded(3, architecture=architecture)
    load_initial_weights(here, tmp_path / "model.pth", CLASS_NAMES)
    assert equal_keys(here, there) == state_dict_keys(here)


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    there = build_seeded(2)
    content = {"epoch": 3, "state_dict": {f"network.{name}": value for name, value in there.state_dict().items()}}
    torch.save(content, tmp_path / "best.ckpt")
    here = build_seeded(3)
    load_initial_weights(here, tmp_path / "best.ckpt", CLASS_NAMES)
    assert equal_keys(here, there) == state_dict_keys(here)


def test_torchvisions_fcn_in_ours(tmp_path: Path) -> None:
    options = {"encoder": "resnet50", "output_stride": 8, "skips": "32s", "aux": True}
    there = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    save_file(there.state_dict(), tmp_path / "fcn.safetensors")
    here = build_seeded(classes=21, **options)
    load_initial_weights(here, tmp_path / "fcn.safetensors", CLASS_NAMES)
    assert torch.equal(here.body.score.weight, there.classifier[4].weight)
    assert torch.equal(here.body.aux_head[0].weight, there.aux_classifier[0].weight)
    assert torch.equal(here.body.encoder.layer4[2].conv3.weight, there.backbone.layer4[2].conv3.weight)
    with pytest.raises(WeightsError, match="made for 21 classes and this data set has 6; --reset-head"):
        load_initial_weights(build_seeded(**options), tmp_path / "fcn.safetensors", CLASS_NAMES)
    load_initial_weights(build_seeded(**options), tmp_path / "fcn.safetensors", CLASS_NAMES, reset_head=True)


# classifiers


@pytest.mark.parametrize(
    ("encoder", "classifier"),
    [
        ("resnet18", lambda: torchvision.models.resnet18()),
        ("vgg11", lambda: torchvision.models.vgg11()),
        ("alexnet", lambda: torchvision.models.alexnet()),
        ("tu-convnext_atto", lambda: timm.create_model("convnext_atto")),
        ("tu-resnet18d", lambda: timm.create_model("resnet18d")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_classifier_becomes_the_encoder(encoder: str, classifier: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    there = classifier().state_dict()
    torch.save({"epoch": 1, "model": there}, tmp_path / "classifier.pth")
    here, before = build_seeded(encoder=encoder), build_seeded(encoder=encoder)
    assert "the encoder's; the rest starts from scratch" in load_initial_weights(
        here, tmp_path / "classifier.pth", CLASS_NAMES
    )
    changed = state_dict_keys(here) - equal_keys(here, before)
    assert changed >= kernel_keys(here, "encoder.")
    assert not changed & {name for name in state_dict_keys(here) if "encoder" not in name}
    sums = {round(float(value.double().sum()), 4) for value in there.values()}
    assert {round(float(here.state_dict()[name].double().sum()), 4) for name in kernel_keys(here, "encoder.")} <= sums


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_classifier_for_torchvisions_backbone(name: str, tmp_path: Path) -> None:
    there = torchvision.models.get_model(TORCHVISION[name]).state_dict()
    torch.save(there, tmp_path / "classifier.pth")
    here = build_seeded(architecture=f"torchvision/{name}")
    load_initial_weights(here, tmp_path / "classifier.pth", CLASS_NAMES)
    first = "0.0.weight" if "mobilenet" in name else "conv1.weight"
    assert torch.equal(
        here.body.backbone.state_dict()[first], there[f"features.{first}" if "mobilenet" in name else first]
    )


def test_torchvisions_densenet_under_its_published_names(tmp_path: Path) -> None:
    there = torchvision.models.densenet121().state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.", r"\1.\2.", name): value for name, value in there.items()
    }
    assert any("norm.1." in name for name in old)
    torch.save(old, tmp_path / "densenet.pth")
    here = build_seeded(encoder="densenet121")
    load_initial_weights(here, tmp_path / "densenet.pth", CLASS_NAMES)
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(here.body.encoder.state_dict()[name], there[name])


# the encoder of another network


@pytest.mark.parametrize(
    "options", [{"head": "aspp"}, {"architecture": "smp/Unet"}, {"skips": "32s", "upsampling": "learned"}], ids=str
)
def test_a_bundles_encoder_under_another_head(tiny_bundle: Path, options: dict[str, Any]) -> None:
    here = build_seeded(classes=4, **{"encoder": "resnet18", **options})
    with torch.no_grad():
        here.mean.fill_(7)
    if "skips" not in options:
        assert "the rest starts from scratch" in load_initial_weights(here, tiny_bundle, CLASS_NAMES[:4])
    else:
        load_initial_weights(here, tiny_bundle, CLASS_NAMES[:4], reset_head=True)
    stored = read_state_dict(open_bundle(tiny_bundle).weights_path)
    assert all(torch.equal(here.state_dict()[name], stored[name]) for name in kernel_keys(here, "encoder."))
    assert torch.equal(here.mean, stored["mean"])  # what the encoder learned to see


@pytest.mark.parametrize("prefix", ["backbone.", "module.", "module.encoder.", "model.backbone."])
def test_other_scripts_prefixes(prefix: str, tmp_path: Path) -> None:
    there = torchvision.models.resnet18().state_dict()
    save_file({prefix + name: value for name, value in there.items()}, tmp_path / "a.safetensors")
    here = build_seeded()
    load_initial_weights(here, tmp_path / "a.safetensors", CLASS_NAMES)
    assert torch.equal(here.body.encoder.layer4[1].conv2.weight, there["layer4.1.conv2.weight"])


@pytest.mark.parametrize("encoder", ["mit_b0", "tu-swin_tiny_patch4_window7_224", "alexnet", "tu-resnet18d"])
def test_every_kind_of_encoder_goes_on(encoder: str, tmp_path: Path) -> None:
    there = build_seeded(2, encoder=encoder)
    save_file({name: value.contiguous() for name, value in there.state_dict().items()}, tmp_path / "w.safetensors")
    here = build_seeded(3, encoder=encoder)
    state = torch.random.get_rng_state()
    load_initial_weights(here, tmp_path / "w.safetensors", CLASS_NAMES)
    assert equal_keys(here, there) == state_dict_keys(here)
    assert torch.equal(torch.random.get_rng_state(), state)  # looking at the head costs no random numbers


def test_a_stride_that_learned_upsampling_does_not_have(tmp_path: Path) -> None:
    torch.save(build_seeded(2, skips="32s", upsampling="learned").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"another network: its body.finish.kernels.weight is \(6, 1, 64, 64\)"):
        load_initial_weights(
            build_seeded(skips="32s", output_stride=16, upsampling="learned"), tmp_path / "w.pth", CLASS_NAMES
        )


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"other\.pth holds no weights of resnet18: 100 of its 100 tensors are missing"
    ):
        load_initial_weights(build_seeded(), tmp_path / "other.pth", CLASS_NAMES)
    state = build_seeded(2).state_dict()
    state["body.encoder.conv1.weight"] = torch.zeros(64, 3, 5, 5)
    torch.save(state, tmp_path / "shape.pth")
    with pytest.raises(
        WeightsError,
        match=r"another network: its body.encoder.conv1.weight is \(64, 3, 5, 5\), wanted is \(64, 3, 7, 7\)",
    ):
        load_initial_weights(build_seeded(), tmp_path / "shape.pth", CLASS_NAMES)
