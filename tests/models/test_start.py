"""Weights of a file or a bundle: which network they are of, what is taken, what is refused, and that no pickle runs."""

import os
import pickle
import re
import shutil
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from models.architectures import build
from models.architectures.encoders import normalisation, pretrained
from models.architectures.network import MEAN, STD, Network
from models.architectures.start import head_of, start
from models.architectures.torchvision import NETWORKS as TORCHVISION
from models.architectures.weights import read
from models.bundle import SUMS, WEIGHTS, open_bundle, writing
from models.errors import WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [f"class {label}" for label in range(6)]  # the tiny bundle's


def network(seed: int = 1, classes: int = 6, **options: Any) -> Network:
    torch.manual_seed(seed)
    return build(options.pop("architecture", "fcn"), classes, **options)


def equal(first: Network, second: Network) -> set[str]:
    """The names of the tensors that are equal in two networks."""
    others = second.state_dict()
    return {
        name
        for name, value in first.state_dict().items()
        if name in others and value.shape == others[name].shape and torch.equal(value, others[name])
    }


def names(of: Network) -> set[str]:
    return set(of.state_dict())


def kernels(of: Network, part: str) -> set[str]:
    """Weights that a random start makes different each time."""
    return {name for name, value in of.named_parameters() if part in name and value.ndim == 4}


# a bundle


def test_a_bundle_goes_on(tiny_bundle: Path) -> None:
    here = network()
    said = start(here, tiny_bundle, NAMES)
    stored = read(open_bundle(tiny_bundle).weights)
    assert all(torch.equal(value, stored[name]) for name, value in here.state_dict().items())
    assert str(tiny_bundle) in said and "scratch" not in said


def test_a_bundle_of_other_classes(tiny_bundle: Path) -> None:
    with pytest.raises(WeightsError, match=r"made for 6 classes and this data set has 4; --reset-head keeps"):
        start(network(classes=4), tiny_bundle, NAMES[:4])
    with pytest.raises(WeightsError, match=r"the class 'class 5' where this data set has 'sky'; --reset-head"):
        start(network(), tiny_bundle, [*NAMES[:5], "sky"])


@pytest.mark.parametrize("classes", [4, 6])
def test_reset_head_keeps_all_but_the_head(tiny_bundle: Path, classes: int) -> None:
    here, before, stored = network(classes=classes), network(classes=classes), network()
    start(stored, tiny_bundle, NAMES)
    said = start(here, tiny_bundle, ["other"] * classes, reset_head=True)
    head = head_of(here)
    assert head == {
        f"body.{layer}.{kind}" for layer in ("score", "skip_scores.0", "skip_scores.1") for kind in ("weight", "bias")
    }
    assert equal(here, stored) >= names(here) - head
    assert equal(here, before) >= head
    assert "6 start from scratch" in said


def test_a_new_auxiliary_head_starts_from_scratch(tiny_bundle: Path) -> None:
    here = network(aux=True)
    assert "start from scratch" in start(here, tiny_bundle, NAMES)
    stored = read(open_bundle(tiny_bundle).weights)
    assert all(torch.equal(here.state_dict()[name], value) for name, value in stored.items())


def test_a_bundle_of_another_network(tiny_bundle: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"no weights of resnet34: .* To go on from this bundle, set encoder=resnet18\."
    ):
        start(network(encoder="resnet34"), tiny_bundle, NAMES)


def test_a_bundle_without_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    with writing(tmp_path / "bare") as new:
        shutil.copytree(tiny_bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SUMS, WEIGHTS))
    with pytest.raises(WeightsError, match="imported from ONNX"):
        start(network(), tmp_path / "bare", NAMES)


# whole networks in files


@pytest.mark.parametrize("architecture", ["smp/FPN", "torchvision/lraspp_mobilenet_v3_large"])
def test_another_librarys_own_file(architecture: str, tmp_path: Path) -> None:
    there = network(2, architecture=architecture)
    torch.save(there.body.state_dict(), tmp_path / "model.pth")
    here = network(3, architecture=architecture)
    start(here, tmp_path / "model.pth", NAMES)
    assert equal(here, there) == names(here)


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    there = network(2)
    content = {"epoch": 3, "state_dict": {f"network.{name}": value for name, value in there.state_dict().items()}}
    torch.save(content, tmp_path / "best.ckpt")
    here = network(3)
    start(here, tmp_path / "best.ckpt", NAMES)
    assert equal(here, there) == names(here)


def test_torchvisions_fcn_in_ours(tmp_path: Path) -> None:
    options = {"encoder": "resnet50", "output_stride": 8, "skips": "32s", "aux": True}
    there = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    save_file(there.state_dict(), tmp_path / "fcn.safetensors")
    here = network(classes=21, **options)
    start(here, tmp_path / "fcn.safetensors", NAMES)
    assert torch.equal(here.body.score.weight, there.classifier[4].weight)
    assert torch.equal(here.body.aux_head[0].weight, there.aux_classifier[0].weight)
    assert torch.equal(here.body.encoder.layer4[2].conv3.weight, there.backbone.layer4[2].conv3.weight)
    with pytest.raises(WeightsError, match="made for 21 classes and this data set has 6; --reset-head"):
        start(network(**options), tmp_path / "fcn.safetensors", NAMES)
    start(network(**options), tmp_path / "fcn.safetensors", NAMES, reset_head=True)


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
    here, before = network(encoder=encoder), network(encoder=encoder)
    assert "the encoder's; the rest starts from scratch" in start(here, tmp_path / "classifier.pth", NAMES)
    changed = names(here) - equal(here, before)
    assert changed >= kernels(here, "encoder.")
    assert not changed & {name for name in names(here) if "encoder" not in name}
    sums = {round(float(value.double().sum()), 4) for value in there.values()}
    assert {round(float(here.state_dict()[name].double().sum()), 4) for name in kernels(here, "encoder.")} <= sums


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_classifier_for_torchvisions_backbone(name: str, tmp_path: Path) -> None:
    there = torchvision.models.get_model(TORCHVISION[name]).state_dict()
    torch.save(there, tmp_path / "classifier.pth")
    here = network(architecture=f"torchvision/{name}")
    start(here, tmp_path / "classifier.pth", NAMES)
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
    here = network(encoder="densenet121")
    start(here, tmp_path / "densenet.pth", NAMES)
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(here.body.encoder.state_dict()[name], there[name])


# the encoder of another network


@pytest.mark.parametrize(
    "options", [{"head": "aspp"}, {"architecture": "smp/Unet"}, {"skips": "32s", "upsampling": "learned"}], ids=str
)
def test_a_bundles_encoder_under_another_head(tiny_bundle: Path, options: dict[str, Any]) -> None:
    here = network(classes=4, **{"encoder": "resnet18", **options})
    with torch.no_grad():
        here.mean.fill_(7)
    if "skips" not in options:
        assert "the rest starts from scratch" in start(here, tiny_bundle, NAMES[:4])
    else:
        start(here, tiny_bundle, NAMES[:4], reset_head=True)
    stored = read(open_bundle(tiny_bundle).weights)
    assert all(torch.equal(here.state_dict()[name], stored[name]) for name in kernels(here, "encoder."))
    assert torch.equal(here.mean, stored["mean"])  # what the encoder learned to see


@pytest.mark.parametrize("prefix", ["backbone.", "module.", "module.encoder.", "model.backbone."])
def test_other_scripts_prefixes(prefix: str, tmp_path: Path) -> None:
    there = torchvision.models.resnet18().state_dict()
    save_file({prefix + name: value for name, value in there.items()}, tmp_path / "a.safetensors")
    here = network()
    start(here, tmp_path / "a.safetensors", NAMES)
    assert torch.equal(here.body.encoder.layer4[1].conv2.weight, there["layer4.1.conv2.weight"])


@pytest.mark.parametrize("encoder", ["mit_b0", "tu-swin_tiny_patch4_window7_224", "alexnet", "tu-resnet18d"])
def test_every_kind_of_encoder_goes_on(encoder: str, tmp_path: Path) -> None:
    there = network(2, encoder=encoder)
    save_file({name: value.contiguous() for name, value in there.state_dict().items()}, tmp_path / "w.safetensors")
    here = network(3, encoder=encoder)
    state = torch.random.get_rng_state()
    start(here, tmp_path / "w.safetensors", NAMES)
    assert equal(here, there) == names(here)
    assert torch.equal(torch.random.get_rng_state(), state)  # looking at the head costs no random numbers


def test_a_stride_that_learned_upsampling_does_not_have(tmp_path: Path) -> None:
    torch.save(network(2, skips="32s", upsampling="learned").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"another network: its body.finish.kernels.weight is \(6, 1, 64, 64\)"):
        start(network(skips="32s", output_stride=16, upsampling="learned"), tmp_path / "w.pth", NAMES)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"other\.pth holds no weights of resnet18: 100 of its 100 tensors are missing"
    ):
        start(network(), tmp_path / "other.pth", NAMES)
    state = network(2).state_dict()
    state["body.encoder.conv1.weight"] = torch.zeros(64, 3, 5, 5)
    torch.save(state, tmp_path / "shape.pth")
    with pytest.raises(
        WeightsError,
        match=r"another network: its body.encoder.conv1.weight is \(64, 3, 5, 5\), wanted is \(64, 3, 7, 7\)",
    ):
        start(network(), tmp_path / "shape.pth", NAMES)


# files


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("how", ["whole module", "code", "plain pickle"])
def test_nothing_that_stands_in_a_file_is_run(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.pth"
    if how == "whole module":
        torch.save(torchvision.models.alexnet(num_classes=2), file)
    elif how == "code":
        torch.save({"state_dict": {"weight": torch.zeros(1)}, "extra": Evil()}, file)
    else:
        file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match=r"would run code.*content = torch\.load\(FILE, weights_only=False\)"):
        read(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pth", b"", "is no file of weights: it is neither"),
        ("a.pth", b"hello" * 99, "is no file of weights: it is neither"),
        ("a.pth", b"\xff\xd8\xff\xe0 a JPEG", "is no file of weights: it is neither"),
        ("a.pth", b"PK\x03\x04" + bytes(99), "is damaged"),
        ("a.safetensors", b"hello" * 99, "is no file of weights: it is neither"),
        ("a.safetensors", b"\x10" + bytes(7) + b'{"a": "cut sho', "safetensors file that is damaged"),
        ("b.pth", None, "is not there"),
        (".", None, "is a folder; wanted is a file"),
    ],
)
def test_what_is_no_file_of_weights(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        read(tmp_path / name)


def test_a_name_says_nothing_of_a_file(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "a.bin")
    assert torch.equal(read(tmp_path / "a.bin")["weight"], torch.ones(3))
    torch.save({"weight": torch.ones(3)}, tmp_path / "b.safetensors")
    assert torch.equal(read(tmp_path / "b.safetensors")["weight"], torch.ones(3))


def test_a_truncated_file(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(9999)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:20000])
    with pytest.raises(WeightsError, match="is damaged, or no file of weights"):
        read(tmp_path / "a.pth")
    torch.save([1, 2, 3], tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read(tmp_path / "b.pth")


def test_an_archive_that_would_unfold_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(99999)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(WeightsError, match="compressed archive, as torch never writes"):
        read(tmp_path / "b.pth")


# pretrained weights


def no_network(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize(
    ("encoder", "address"),
    [
        ("resnet18", "huggingface.co/smp-hub/resnet18.imagenet/resolve/[0-9a-f]{40}/model.safetensors"),
        ("tu-resnet18", "huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"),
        ("alexnet", "download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    ],
)
def test_without_a_network(encoder: str, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(
        WeightsError, match=rf"imagenet weights of {encoder} .*no route to host.*{address}.*weights=FILE"
    ):
        build("fcn", 6, encoder=encoder, weights="imagenet")


def test_weights_that_are_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(5)
    there: dict[str, Tensor] = torchvision.models.resnet18().state_dict()
    save_file(there, tmp_path / "model.safetensors")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "model.safetensors"))
    here = build("fcn", 6, encoder="resnet18", weights="imagenet")
    assert torch.equal(here.body.encoder.conv1.weight, there["conv1.weight"])
    assert here.architecture.options["weights"] is None  # a bundle is built again without a network


def test_names_of_weights() -> None:
    with pytest.raises(
        WeightsError,
        match="'imagenot' are no file, no bundle, and not known for resnet18, which has imagenet, ssl, swsl",
    ):
        pretrained("resnet18", "imagenot")
    with pytest.raises(WeightsError, match="not known for fcn_resnet50, which has imagenet"):
        build("torchvision/fcn_resnet50", 6, weights="coco")


def test_the_normalisation_that_weights_expect() -> None:
    assert normalisation("resnet50") == (MEAN, STD)
    assert normalisation("efficientnet-b0", "advprop") == ((127.5,) * 3, (127.5,) * 3)
    assert normalisation("xception") == ((127.5,) * 3, (127.5,) * 3)
    assert normalisation("tu-efficientnetv2_rw_t")[0] == pytest.approx(MEAN, abs=0.01)
    assert normalisation("tu-mobilevit_s") == ((0.0,) * 3, (255.0,) * 3)
    assert network(encoder="xception").mean.flatten().tolist() == [127.5] * 3
