"""One suite over every network of the family: what it promises, and that it refuses what it cannot do.

A new line in `ARCHITECTURES` is tested by being there. What an entry cannot do is said by a flag, and then its refusal is
asserted. `make test` asks a few entries, `make test-all` every one.
"""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from models.architectures import ARCHITECTURES, build
from models.architectures.base import MEAN, STD, Network, upsample
from models.errors import ConfigError
from models.inference.segmenter import Segmenter, agreement
from tests.fixtures_bundles import drawing
from tests.fixtures_networks import CLASSES, NATIVE, flop, frozen, noise, pictures, seeded, settled
from training.engine.model_factory import live

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Entry:
    """A network, and what it cannot do."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    stride: int = 4  # of its scores, in pixels
    aux: bool = True  # it takes an auxiliary head; where not, asking for one is refused
    strides: tuple[int, ...] = (8, 16, 32)  # what `output_stride` may be; anything else is refused
    one_picture: bool = True  # it trains on a batch of one; where not, its batch norm fails on a pooled single value
    fast: bool = False  # asked in `make test` too
    frozen_fast: bool = False  # frozen there too, which takes seconds

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{value}" for value in self.options.values())])


SKIPS = {"32s": 32, "16s": 16, "8s": 8}
FCN = [
    Entry("fcn", {"head": head, "output_stride": stride, "skips": skips}, min(stride, SKIPS[skips]))
    for head, stride, skips in product(["linear", "fcn", "d6", "aspp", "psp"], [8, 16, 32], SKIPS)
]
FCN += [
    Entry("fcn", {"upsampling": "learned"}, 1, fast=True),
    Entry("fcn", {"upsampling": "learned", "head": "linear", "output_stride": 8, "skips": "16s"}, 1),
    Entry("fcn", {"upsampling": "learned", "head": "linear", "output_stride": 32, "skips": "32s"}, 1),
    Entry("fcn", {"head": "psp", "aux": True}, 8),
    Entry("fcn", {"head": "aspp", "aux": True, "separable": True}, 16, fast=True, frozen_fast=True),
    Entry("fcn", {"head": "d6", "separable": True, "init": "xavier"}, 16),
    Entry("fcn", {"encoder": "alexnet", "head": "linear"}, 8),
    Entry("fcn", {"encoder": "alexnet", "head": "linear", "output_stride": 16, "skips": "16s"}, 16),
    Entry("fcn", {"encoder": "mobilenet_v2", "output_stride": 8}, 8),
    Entry("fcn", {"encoder": "efficientnet-b0"}, 8),
    Entry("fcn", {"encoder": "densenet121"}, 8),
    Entry("fcn", {"encoder": "mobileone_s4"}, 8),
    Entry("fcn", {"encoder": "tu-hrnet_w18_small", "skips": "32s"}, 32),
    Entry("fcn", {"encoder": "tu-convnext_atto", "output_stride": 16}, 8),
]
KNOWN = {
    entry.name: entry
    for entry in [
        Entry("fcn", {}, 8, fast=True),
        Entry("smp/Unet", {}, 1, aux=False, strides=(32,), fast=True),
        Entry("smp/UnetPlusPlus", {}, 1, aux=False, strides=(32,)),
        Entry("smp/MAnet", {}, 1, aux=False, strides=(32,)),
        Entry("smp/Linknet", {}, 1, aux=False, strides=(32,)),
        Entry("smp/FPN", {}, 4, aux=False, strides=(32,)),
        Entry("smp/PSPNet", {}, 8, aux=False, strides=(8,), fast=True, frozen_fast=True),
        Entry("smp/DeepLabV3", {}, 8, aux=False, strides=(8, 16), one_picture=False),
        Entry("smp/DeepLabV3Plus", {}, 4, aux=False, strides=(8, 16), one_picture=False),
        Entry("smp/UPerNet", {}, 4, aux=False, strides=(32,), one_picture=False),
        Entry("smp/Segformer", {}, 4, aux=False, strides=(32,)),
        Entry("torchvision/fcn_resnet50", {}, 8, strides=()),
        Entry("torchvision/fcn_resnet101", {}, 8, strides=()),
        Entry("torchvision/deeplabv3_resnet50", {}, 8, strides=(), one_picture=False),
        Entry("torchvision/deeplabv3_resnet101", {}, 8, strides=(), one_picture=False),
        Entry("torchvision/deeplabv3_mobilenet_v3_large", {}, 16, strides=(), one_picture=False),
        Entry("torchvision/lraspp_mobilenet_v3_large", {}, 8, aux=False, strides=(), fast=True),
    ]
}
ENTRIES = [*(KNOWN.get(name, Entry(name)) for name in ARCHITECTURES), *FCN]


def over(entries: list[Entry], fast: str = "fast") -> Any:
    """Parametrise by entries; those that are not fast are marked slow."""
    marked = [
        pytest.param(entry, id=str(entry), marks=() if getattr(entry, fast) else pytest.mark.slow) for entry in entries
    ]
    return pytest.mark.parametrize("entry", marked)


class Watched:
    """A live network's Segmenter that holds every answer of the network against the contract."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.segmenter = Segmenter(self.run, NATIVE)
        self.scores: list[tuple[int, ...]] = []

    def run(self, images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, np.ndarray]:
        count, height, width, _ = images.shape
        with torch.inference_mode():
            labels, scores = self.network(torch.from_numpy(images))
            full = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
        assert (labels.dtype, labels.shape) == (torch.uint8, (count, height, width))
        assert scores.dtype == torch.float32 and scores.shape[:2] == (count, CLASSES)
        assert scores.isfinite().all()
        assert torch.equal(labels, full.argmax(dim=1).to(torch.uint8))
        self.scores.append(tuple(scores.shape[2:]))
        return labels.numpy(), scores.numpy()


@over(ENTRIES)
def test_a_picture_of_any_size_gets_its_mask(entry: Entry) -> None:
    watched = Watched(settled(entry.name, **entry.options))

    @settings(max_examples=6, deadline=None)
    @given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 99))
    def ask(height: int, width: int, seed: int) -> None:
        labels = watched.segmenter.segment(drawing(height, width, seed)).labels
        assert labels.shape == (height, width)
        padded = (height + -height % 64, width + -width % 64)
        assert watched.scores[-1] == (padded[0] // entry.stride, padded[1] // entry.stride)

    ask()
    assert len(np.unique(watched.segmenter.segment(drawing(301, 223)).labels)) > 1


@over(ENTRIES)
@torch.no_grad()
def test_the_batch_and_the_memory_format_are_no_matter(entry: Entry) -> None:
    network = settled(entry.name, **entry.options).double()  # where rounding cannot hide a mistake
    images = pictures(64, 128)
    together = network(images)[1]
    alone = torch.cat([network(image[None])[1] for image in images])
    last = network.logits(images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last))
    scale = together.abs().max()
    assert (alone - together).abs().max() < 1e-9 * scale
    assert (last - together).abs().max() < 1e-9 * scale


@over(ENTRIES)
def test_gradients_reach_every_parameter(entry: Entry) -> None:
    network = seeded(entry.name, **entry.options).train()
    truth = torch.randint(0, CLASSES, (2, 64, 64))
    answers = network.training_logits(noise(2, 64, 64).permute(0, 3, 1, 2))
    torch.stack([F.cross_entropy(upsample(logits, (64, 64)), truth) for logits in answers]).sum().backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:  # computed and thrown away, see trim.py
            assert name.startswith("body.encoder.") and "hrnet" in str(entry)
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@over(list(KNOWN.values()))
def test_an_auxiliary_head_is_trained_where_there_may_be_one(entry: Entry) -> None:
    plain = seeded(entry.name).train()
    images = noise(2, 64, 64).permute(0, 3, 1, 2)
    assert len(plain.training_logits(images)) == 1
    if not entry.aux:
        with pytest.raises(ConfigError, match=r"no option 'aux'|auxiliary"):
            build(entry.name, CLASSES, aux=True)
        return
    network = seeded(entry.name, aux=True).train()
    scores, aux = network.training_logits(images)
    assert scores.shape[:2] == aux.shape[:2] == (2, CLASSES)
    own = {name for name, _ in network.named_parameters()} - {name for name, _ in plain.named_parameters()}
    F.cross_entropy(upsample(aux, (64, 64)), torch.randint(0, CLASSES, (2, 64, 64))).backward()
    reached = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert own and own <= reached
    assert any("encoder" in name or "backbone" in name for name in reached - own)
    with torch.no_grad():  # where it answers, the head is not there
        assert torch.equal(network.eval().training_logits(images)[0], network.logits(images))


@over(list(KNOWN.values()))
def test_output_strides_are_kept_or_refused(entry: Entry) -> None:
    for stride in (4, 8, 16, 32):
        if stride in entry.strides:
            assert build(entry.name, CLASSES, output_stride=stride).architecture.options["output_stride"] == stride
        else:
            with pytest.raises(ConfigError, match=r"output.stride"):
                build(entry.name, CLASSES, output_stride=stride)


@over(list(KNOWN.values()))
def test_a_batch_of_one_picture_trains_or_fails_by_name(entry: Entry) -> None:
    network = seeded(entry.name).train()
    images = noise(1, 64, 64).permute(0, 3, 1, 2)
    if entry.one_picture:
        assert network.logits(images).isfinite().all()
    else:  # which is why the loader drops a last small batch
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network.logits(images)


@over(ENTRIES, "frozen_fast")
def test_frozen_it_answers_as_live(entry: Entry, tmp_path: Path) -> None:
    network = settled(entry.name, **entry.options)
    graph, original = frozen(network, tmp_path), live(network, NATIVE)
    seen: set[int] = set()
    for seed, size in enumerate([(97, 211), (301, 150), (1, 65)]):
        picture = drawing(*size, seed)
        expected = original.segment(picture).labels
        assert agreement(graph.segment(picture).labels, expected) >= 0.999
        seen.update(np.unique(expected).tolist())
    assert len(seen) > 1  # or agreement would mean little
    batch = np.stack([drawing(64, 192, seed) for seed in range(3)])
    for picture, labels in zip(batch, graph.run(batch)[0].copy(), strict=True):
        assert agreement(graph.run(picture[None])[0][0], labels) >= 0.999


@over(ENTRIES)
@torch.no_grad()
def test_weights_return_from_a_file(entry: Entry, tmp_path: Path) -> None:
    network = settled(entry.name, **entry.options)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "weights.safetensors"
    )
    known = network.architecture
    again = build(known.name, network.classes, **known.options).eval()
    images = pictures(64, 128)
    assert not torch.equal(again(images)[1], network(images)[1])
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    assert torch.equal(again(images)[1], network(images)[1])


@over(ENTRIES)
def test_its_size_and_work_are_those_of_its_layers(entry: Entry) -> None:
    network = seeded(entry.name, **entry.options)
    wider = build(entry.name, CLASSES + 1, **entry.options)
    count, more = (sum(each.numel() for each in one.parameters()) for one in (network, wider))
    assert 0 < more - count < 0.05 * count  # one class more costs some rows of the classifiers
    small, large = (flop(network.body, torch.empty(1, 3, side, side)) for side in (256, 512))
    # Convolutions are by far the most of it, and their work grows with the area.
    assert 3.8 < large / small < 4.5


@torch.no_grad()
def test_normalisation_stands_inside() -> None:
    network = settled("fcn")
    images = noise(1, 64, 64)
    normalised = (images.double().numpy() - MEAN) / STD
    expected = network.body(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float())
    torch.testing.assert_close(network(images)[1], expected, rtol=1e-4, atol=1e-5)
    assert {"mean", "std"} <= set(network.state_dict())


def test_the_entries_are_those_of_the_house() -> None:
    assert set(KNOWN) == set(ARCHITECTURES)
