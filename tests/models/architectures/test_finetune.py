"""Initial weights from a file or bundle: which tensors are loaded, and which files are refused."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import fcn as torchvision_fcn

from models.architectures import build
from models.architectures.base import Network
from models.architectures.finetune import head_parameter_names, load_initial_weights
from models.architectures.state_dict_keys import canonical_key
from models.architectures.torchvision_models import MODEL_BACKBONES
from models.architectures.weight_files import read_state_dict
from models.bundle import CHECKSUM_FILE, WEIGHTS_FILE, bundle_writer, open_bundle
from models.errors import WeightsError
from tests.fixtures_bundles import ENCODER

pytestmark = pytest.mark.usefixtures("one_thread")

CLASS_NAMES = [f"class {label}" for label in range(6)]  # of the tiny bundle


def build_seeded(seed: int = 1, classes: int = 6, **options: Any) -> Network:
    torch.manual_seed(seed)
    return build(options.pop("architecture", "fcn"), classes, **options)


def distinct_state_dict(make_network: Callable[[], nn.Module], leave_out: str = "nothing") -> dict[str, Tensor]:
    """A state dict in which every tensor has one value of its own; cheaper than the network's initialisation."""
    with torch.device("meta"):
        state = make_network().state_dict()
    return {
        name: torch.full(value.shape, index / 1024, dtype=value.dtype)
        for index, (name, value) in enumerate(state.items(), start=1)
        if not name.startswith(leave_out)
    }


def equal_keys(first: Network, second: Network) -> set[str]:
    """The names of the tensors that are equal in two networks."""
    others = second.state_dict()
    return {
        name
        for name, value in first.state_dict().items()
        if name in others and value.shape == others[name].shape and torch.equal(value, others[name])
    }


def state_dict_keys(network: Network) -> set[str]:
    return set(network.state_dict())


def kernel_keys(network: Network, part: str) -> set[str]:
    """The kernels of a part of the network, which have other random values in each network."""
    return {name for name, value in network.named_parameters() if part in name and value.ndim == 4}


# bundles


def test_bundle_is_loaded_completely(tiny_bundle: Path) -> None:
    network = build_seeded(encoder=ENCODER)
    summary = load_initial_weights(network, tiny_bundle, CLASS_NAMES)
    stored = read_state_dict(open_bundle(tiny_bundle).weights_path)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())
    assert str(tiny_bundle) in summary and "scratch" not in summary


def test_bundle_with_other_classes_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(WeightsError, match=r"has 6 classes and this data set has 4; pass --reset-head"):
        load_initial_weights(build_seeded(classes=4, encoder=ENCODER), tiny_bundle, CLASS_NAMES[:4])
    with pytest.raises(WeightsError, match=r"the class 'class 5' and this data set has 'sky'; pass --reset-head"):
        load_initial_weights(build_seeded(encoder=ENCODER), tiny_bundle, [*CLASS_NAMES[:5], "sky"])


@pytest.mark.parametrize("classes", [4, 6])
def test_reset_head_loads_everything_but_the_head(tiny_bundle: Path, classes: int) -> None:
    network, fresh, stored = (
        build_seeded(classes=classes, encoder=ENCODER),
        build_seeded(classes=classes, encoder=ENCODER),
        build_seeded(encoder=ENCODER),
    )
    load_initial_weights(stored, tiny_bundle, CLASS_NAMES)
    summary = load_initial_weights(network, tiny_bundle, ["other"] * classes, reset_head=True)
    head = head_parameter_names(network)
    assert head == {
        f"body.{layer}.{kind}" for layer in ("score", "skip_scores.0", "skip_scores.1") for kind in ("weight", "bias")
    }
    assert equal_keys(network, stored) >= state_dict_keys(network) - head
    assert equal_keys(network, fresh) >= head
    assert "6 start from scratch" in summary


def test_new_auxiliary_head_starts_from_scratch(tiny_bundle: Path) -> None:
    network = build_seeded(aux=True, encoder=ENCODER)
    assert "start from scratch" in load_initial_weights(network, tiny_bundle, CLASS_NAMES)
    stored = read_state_dict(open_bundle(tiny_bundle).weights_path)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in stored.items())


def test_bundle_of_another_network_names_the_settings_to_use(tiny_bundle: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"no weights of mobilenet_v2: .* To continue from this bundle, set encoder=tu-test_resnet\."
    ):
        load_initial_weights(build_seeded(encoder="mobilenet_v2"), tiny_bundle, CLASS_NAMES)


def test_bundle_without_weights_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "bare") as new:
        shutil.copytree(
            tiny_bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE, WEIGHTS_FILE)
        )
    with pytest.raises(WeightsError, match=r"has no weights\.safetensors \(it was imported from ONNX\)"):
        load_initial_weights(build_seeded(), tmp_path / "bare", CLASS_NAMES)


# whole networks in files


@pytest.mark.parametrize("architecture", ["smp/FPN", "torchvision/lraspp_mobilenet_v3_large"])
def test_file_of_another_library(architecture: str, tmp_path: Path) -> None:
    source = build_seeded(2, architecture=architecture)
    torch.save(source.body.state_dict(), tmp_path / "model.pth")
    network = build_seeded(3, architecture=architecture)
    load_initial_weights(network, tmp_path / "model.pth", CLASS_NAMES)
    assert equal_keys(network, source) == state_dict_keys(network)


def test_lightning_checkpoint(tmp_path: Path) -> None:
    source = build_seeded(2)
    content = {"epoch": 3, "state_dict": {f"network.{name}": value for name, value in source.state_dict().items()}}
    torch.save(content, tmp_path / "best.ckpt")
    network = build_seeded(3)
    load_initial_weights(network, tmp_path / "best.ckpt", CLASS_NAMES)
    assert equal_keys(network, source) == state_dict_keys(network)


def test_fcn_of_torchvision(tmp_path: Path) -> None:
    def make_fcn() -> nn.Module:
        """torchvision builds its FCN on ResNet-50 and larger; the same classes work on ResNet-18."""
        backbone = IntermediateLayerGetter(torchvision.models.resnet18(), {"layer4": "out", "layer3": "aux"})
        return torchvision_fcn.FCN(backbone, torchvision_fcn.FCNHead(512, 21), torchvision_fcn.FCNHead(256, 21))

    state, options = distinct_state_dict(make_fcn), {"skips": "32s", "aux": True}
    save_file(state, tmp_path / "fcn.safetensors")
    network = build_seeded(classes=21, **options)
    load_initial_weights(network, tmp_path / "fcn.safetensors", CLASS_NAMES)
    loaded = network.body.state_dict()
    for ours, theirs in {
        "score.weight": "classifier.4.weight",
        "aux_head.0.weight": "aux_classifier.0.weight",
        "encoder.layer4.1.conv2.weight": "backbone.layer4.1.conv2.weight",
    }.items():
        assert torch.equal(loaded[ours], state[theirs])
    with pytest.raises(WeightsError, match="has 21 classes and this data set has 6; pass --reset-head"):
        load_initial_weights(build_seeded(**options), tmp_path / "fcn.safetensors", CLASS_NAMES)
    load_initial_weights(build_seeded(**options), tmp_path / "fcn.safetensors", CLASS_NAMES, reset_head=True)


# classifiers


@pytest.mark.parametrize(
    ("encoder", "classifier"),
    [
        ("resnet18", lambda: torchvision.models.resnet18()),
        pytest.param("vgg11", lambda: torchvision.models.vgg11(), marks=pytest.mark.slow),
        pytest.param("alexnet", lambda: torchvision.models.alexnet(), marks=pytest.mark.slow),
        ("tu-resnet18d", lambda: timm.create_model("resnet18d")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_classifier_is_loaded_into_the_encoder(encoder: str, classifier: Any, tmp_path: Path) -> None:
    state = distinct_state_dict(classifier, leave_out="classifier" if encoder == "vgg11" else "nothing")
    torch.save({"epoch": 1, "model": state}, tmp_path / "classifier.pth")
    network, fresh = build_seeded(encoder=encoder), build_seeded(encoder=encoder)
    assert "the encoder only; the rest starts from scratch" in load_initial_weights(
        network, tmp_path / "classifier.pth", CLASS_NAMES
    )
    changed = state_dict_keys(network) - equal_keys(network, fresh)
    assert changed >= kernel_keys(network, "encoder.")
    assert not changed & {name for name in state_dict_keys(network) if "encoder" not in name}
    values = [network.state_dict()[name].unique().tolist() for name in sorted(kernel_keys(network, "encoder."))]
    assert all(len(value) == 1 for value in values)  # each kernel comes from one tensor of the classifier,
    assert len({value[0] for value in values}) == len(values)  # and each from another one


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", pytest.param("fcn_resnet50", marks=pytest.mark.slow)])
def test_classifier_is_loaded_into_the_backbone_of_torchvision(name: str, tmp_path: Path) -> None:
    state = distinct_state_dict(lambda: torchvision.models.get_model(MODEL_BACKBONES[name]))
    torch.save(state, tmp_path / "classifier.pth")
    network = build_seeded(architecture=f"torchvision/{name}")
    load_initial_weights(network, tmp_path / "classifier.pth", CLASS_NAMES)
    first = "0.0.weight" if "mobilenet" in name else "conv1.weight"
    assert torch.equal(
        network.body.backbone.state_dict()[first], state[f"features.{first}" if "mobilenet" in name else first]
    )


def test_published_names_of_densenet() -> None:
    name = "features.denseblock4.denselayer16.{}.weight"
    assert canonical_key(name.format("norm.1")) == name.format("norm1")
    assert canonical_key(name.format("conv2")) == name.format("conv2")


@pytest.mark.slow
def test_densenet_of_torchvision_with_its_published_names(tmp_path: Path) -> None:
    state = distinct_state_dict(torchvision.models.densenet121)
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.", r"\1.\2.", name): value for name, value in state.items()
    }
    assert any("norm.1." in name for name in published)
    torch.save(published, tmp_path / "densenet.pth")
    network = build_seeded(encoder="densenet121")
    load_initial_weights(network, tmp_path / "densenet.pth", CLASS_NAMES)
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(network.body.encoder.state_dict()[name], state[name])


# the encoder of another network


@pytest.mark.parametrize(
    "options", [{"head": "aspp"}, {"architecture": "smp/Unet"}, {"skips": "32s", "upsampling": "learned"}], ids=str
)
def test_encoder_of_a_bundle_under_another_head(tiny_bundle: Path, options: dict[str, Any]) -> None:
    network = build_seeded(classes=4, **{"encoder": ENCODER, **options})
    with torch.no_grad():
        network.mean.fill_(7)
    if "skips" not in options:
        assert "the rest starts from scratch" in load_initial_weights(network, tiny_bundle, CLASS_NAMES[:4])
    else:
        load_initial_weights(network, tiny_bundle, CLASS_NAMES[:4], reset_head=True)
    stored = read_state_dict(open_bundle(tiny_bundle).weights_path)
    assert all(torch.equal(network.state_dict()[name], stored[name]) for name in kernel_keys(network, "encoder."))
    assert torch.equal(network.mean, stored["mean"])  # the normalisation that the encoder was trained with


def test_prefixes_of_other_scripts(tmp_path: Path) -> None:
    state = distinct_state_dict(torchvision.models.resnet18)
    network = build_seeded()
    for number, prefix in enumerate(["backbone.", "module.", "module.encoder.", "model.backbone."]):
        save_file({prefix + name: value + number for name, value in state.items()}, tmp_path / "a.safetensors")
        load_initial_weights(network, tmp_path / "a.safetensors", CLASS_NAMES)
        assert torch.equal(network.body.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"] + number)


@pytest.mark.parametrize(
    "encoder",
    [
        "mit_b0",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tu-swin_tiny_patch4_window7_224", "alexnet")),
        "tu-convnext_atto",
    ],
)
def test_network_of_any_encoder_is_loaded_completely(encoder: str, tmp_path: Path) -> None:
    source = build_seeded(2, encoder=encoder)
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, tmp_path / "w.safetensors")
    network = build_seeded(3, encoder=encoder)
    random_state = torch.random.get_rng_state()
    load_initial_weights(network, tmp_path / "w.safetensors", CLASS_NAMES)
    assert equal_keys(network, source) == state_dict_keys(network)
    assert torch.equal(torch.random.get_rng_state(), random_state)  # finding the head uses no random numbers


def test_learned_upsampling_of_another_stride_is_refused(tmp_path: Path) -> None:
    torch.save(build_seeded(2, skips="32s", upsampling="learned").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match=r"another network: its body.final_upsampling.transposed_conv.weight has shape \(6, 1, 64, 64\)",
    ):
        load_initial_weights(
            build_seeded(skips="32s", output_stride=16, upsampling="learned"), tmp_path / "w.pth", CLASS_NAMES
        )


def test_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    network = build_seeded()
    with pytest.raises(WeightsError, match=r"other\.pth holds no weights of resnet18: 100 of 100 tensors are missing"):
        load_initial_weights(network, tmp_path / "other.pth", CLASS_NAMES)
    state = network.state_dict()
    state["body.encoder.conv1.weight"] = torch.zeros(64, 3, 5, 5)
    torch.save(state, tmp_path / "shape.pth")
    with pytest.raises(
        WeightsError,
        match=r"another network: its body.encoder.conv1.weight has shape \(64, 3, 5, 5\), expected \(64, 3, 7, 7\)",
    ):
        load_initial_weights(network, tmp_path / "shape.pth", CLASS_NAMES)
