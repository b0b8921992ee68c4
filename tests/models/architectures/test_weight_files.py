"""Weights files: accepted and refused files, no code execution, and the download of pretrained weights."""

import os
import pickle
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from models.architectures import build
from models.architectures.base import IMAGENET_MEAN, IMAGENET_STD
from models.architectures.encoders import fetch_pretrained, normalisation
from models.architectures.weight_files import read_state_dict
from models.errors import WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")


class MaliciousPickle:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("kind", ["whole module", "code", "plain pickle"])
def test_no_code_of_a_file_is_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.pth"
    if kind == "whole module":
        torch.save(nn.Linear(2, 2), file)
    elif kind == "code":
        torch.save({"state_dict": {"weight": torch.zeros(1)}, "extra": MaliciousPickle()}, file)
    else:
        file.write_bytes(pickle.dumps(MaliciousPickle()))
    with pytest.raises(WeightsError, match=r"would run code.*content = torch\.load\(FILE, weights_only=False\)"):
        read_state_dict(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "is not a weights file: expected safetensors"),
        ("a.pth", b"hello" * 99, "is not a weights file: expected safetensors"),
        ("a.pth", b"\xff\xd8\xff\xe0 a JPEG", "is not a weights file: expected safetensors"),
        ("a.pth", b"PK\x03\x04" + bytes(99), "is damaged"),
        ("a.safetensors", b"hello" * 99, "is not a weights file: expected safetensors"),
        ("a.safetensors", b"\x10" + bytes(7) + b'{"a": "cut sho', "is a damaged safetensors file"),
        ("b.pth", None, "does not exist"),
        (".", None, "is a folder; name a weights file"),
    ],
)
def test_file_without_weights_is_refused(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / name)


def test_format_does_not_depend_on_the_suffix(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "a.bin")
    assert torch.equal(read_state_dict(tmp_path / "a.bin")["weight"], torch.ones(3))
    torch.save({"weight": torch.ones(3)}, tmp_path / "b.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "b.safetensors")["weight"], torch.ones(3))


def test_damaged_file_and_file_without_names_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(9999)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:20000])
    with pytest.raises(WeightsError, match="is damaged, or not a weights file"):
        read_state_dict(tmp_path / "a.pth")
    torch.save([1, 2, 3], tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read_state_dict(tmp_path / "b.pth")


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(99999)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(WeightsError, match="compressed archive, which torch never writes"):
        read_state_dict(tmp_path / "b.pth")


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
def test_failed_download_names_url_and_option(
    encoder: str, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(
        WeightsError, match=rf"imagenet weights of {encoder} .*no route to host.*{address}.*weights=FILE"
    ):
        build("fcn", 6, encoder=encoder, weights="imagenet")


def test_cached_weights_are_used_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state: dict[str, Tensor] = torchvision.models.resnet18().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "model.safetensors"))
    network = build("fcn", 6, encoder="resnet18", weights="imagenet")
    assert torch.equal(network.body.encoder.conv1.weight, state["conv1.weight"])
    assert network.architecture.options["weights"] is None  # a bundle is rebuilt without downloads


def test_unknown_weights_list_the_known_names() -> None:
    with pytest.raises(
        WeightsError,
        match="'imagenot' are neither a file or bundle nor known for resnet18; choose from imagenet, ssl, swsl",
    ):
        fetch_pretrained("resnet18", "imagenot")
    with pytest.raises(WeightsError, match="nor known for fcn_resnet50; choose from imagenet"):
        build("torchvision/fcn_resnet50", 6, weights="coco")


def test_normalisation_that_the_weights_expect() -> None:
    assert normalisation("resnet50") == (IMAGENET_MEAN, IMAGENET_STD)
    assert normalisation("efficientnet-b0", "advprop") == ((127.5,) * 3, (127.5,) * 3)
    assert normalisation("xception") == ((127.5,) * 3, (127.5,) * 3)
    assert normalisation("tu-efficientnetv2_rw_t")[0] == pytest.approx(IMAGENET_MEAN, abs=0.01)
    assert normalisation("tu-mobilevit_s") == ((0.0,) * 3, (255.0,) * 3)
    assert build("fcn", 6, encoder="xception").mean.flatten().tolist() == [127.5] * 3
