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
from models.architectures.base import IMAGENET_MEAN, IMAGENET_STD, Network, upsample
from models.errors import ConfigError
from models.inference.segmenter import Segmenter, agreement
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_networks import (
    CLASSES,
    NATIVE,
    calibrated_network,
    export_to_segmenter,
    measure_flops,
    noise_images,
    sample_images,
    seeded_network,
)
from training.engine.model_factory import make_torch_segmenter

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class ArchitectureCase:
    """A network, and what it cannot do."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    stride: int = 4  # of its scores, in pixels
    aux: bool = True  # it takes an auxiliary head; where not, asking for one is refused
    output_strides: tuple[int, ...] = (8, 16, 32)  # what `output_stride` may be; anything else is refused
    trains_on_one_image: bool = (
        True  # it trains on a batch of one; where not, its batch norm fails on a pooled single value
    )
    fast: bool = False  # asked in `make test` too
    export_fast: bool = False  # frozen there too, which takes seconds

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{value}" for value in self.options.values())])


SKIP_STRIDES = {"32s": 32, "16s": 16, "8s": 8}
FCN_CASES = [
    ArchitectureCase("fcn", {"head": head, "output_stride": stride, "skips": skips}, min(stride, SKIP_STRIDES[skips]))
    for head, stride, skips in product(["linear", "fcn", "d6", "aspp", "psp"], [8, 16, 32], SKIP_STRIDES)
]
FCN_CASES += [
    ArchitectureCase("fcn", {"upsampling": "learned"}, 1, fast=True),
    ArchitectureCase("fcn", {"upsampling": "learned", "head": "linear", "output_stride": 8, "skips": "16s"}, 1),
    ArchitectureCase("fcn", {"upsampling": "learned", "head": "linear", "output_stride": 32, "skips": "32s"}, 1),
    ArchitectureCase("fcn", {"head": "psp", "aux": True}, 8),
    ArchitectureCase("fcn", {"head": "aspp", "aux": True, "separable": True}, 16, fast=True, export_fast=True),
    ArchitectureCase("fcn", {"head": "d6", "separable": True, "init": "xavier"}, 16),
    ArchitectureCase("fcn", {"encoder": "alexnet", "head": "linear"}, 8),
    ArchitectureCase("fcn", {"encoder": "alexnet", "head": "linear", "output_stride": 16, "skips": "16s"}, 16),
    ArchitectureCase("fcn", {"encoder": "mobilenet_v2", "output_stride": 8}, 8),
    ArchitectureCase("fcn", {"encoder": "efficientnet-b0"}, 8),
    ArchitectureCase("fcn", {"encoder": "densenet121"}, 8),
    ArchitectureCase("fcn", {"encoder": "mobileone_s4"}, 8),
    ArchitectureCase("fcn", {"encoder": "tu-hrnet_w18_small", "skips": "32s"}, 32),
    ArchitectureCase("fcn", {"encoder": "tu-convnext_atto", "output_stride": 16}, 8),
]
CASES_BY_NAME = {
    entry.name: entry
    for entry in [
        ArchitectureCase("fcn", {}, 8, fast=True),
        ArchitectureCase("smp/Unet", {}, 1, aux=False, output_strides=(32,), fast=True),
        ArchitectureCase("smp/UnetPlusPlus", {}, 1, aux=False, output_strides=(32,)),
        ArchitectureCase("smp/MAnet", {}, 1, aux=False, output_strides=(32,)),
        ArchitectureCase("smp/Linknet", {}, 1, aux=False, output_strides=(32,)),
        ArchitectureCase("smp/FPN", {}, 4, aux=False, output_strides=(32,)),
        ArchitectureCase("smp/PSPNet", {}, 8, aux=False, output_strides=(8,), fast=True, export_fast=True),
        ArchitectureCase("smp/DeepLabV3", {}, 8, aux=False, output_strides=(8, 16), trains_on_one_image=False),
        ArchitectureCase("smp/DeepLabV3Plus", {}, 4, aux=False, output_strides=(8, 16), trains_on_one_image=False),
        ArchitectureCase("smp/UPerNet", {}, 4, aux=False, output_strides=(32,), trains_on_one_image=False),
        ArchitectureCase("smp/Segformer", {}, 4, aux=False, output_strides=(32,)),
        ArchitectureCase("torchvision/fcn_resnet50", {}, 8, output_strides=()),
        ArchitectureCase("torchvision/fcn_resnet101", {}, 8, output_strides=()),
        ArchitectureCase("torchvision/deeplabv3_resnet50", {}, 8, output_strides=(), trains_on_one_image=False),
        ArchitectureCase("torchvision/deeplabv3_resnet101", {}, 8, output_strides=(), trains_on_one_image=False),
        ArchitectureCase(
            "torchvision/deeplabv3_mobilenet_v3_large", {}, 16, output_strides=(), trains_on_one_image=False
        ),
        ArchitectureCase("torchvision/lraspp_mobilenet_v3_large", {}, 8, aux=False, output_strides=(), fast=True),
    ]
}
CASES = [*(CASES_BY_NAME.get(name, ArchitectureCase(name)) for name in ARCHITECTURES), *FCN_CASES]


def parametrize_cases(entries: list[ArchitectureCase], fast: str = "fast") -> Any:
    """Parametrise by entries; those that are not fast are marked slow."""
    marked = [
        pytest.param(entry, id=str(entry), marks=() if getattr(entry, fast) else pytest.mark.slow) for entry in entries
    ]
    return pytest.mark.parametrize("entry", marked)


class CheckedSegmenter:
    """A live network's Segmenter that holds every answer of the network against the contract."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.segmenter = Segmenter(self.run, NATIVE)
        self.logit_sizes: list[tuple[int, ...]] = []

    def run(self, images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, np.ndarray]:
        count, height, width, _ = images.shape
        with torch.inference_mode():
            labels, scores = self.network(torch.from_numpy(images))
            full = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
        assert (labels.dtype, labels.shape) == (torch.uint8, (count, height, width))
        assert scores.dtype == torch.float32 and scores.shape[:2] == (count, CLASSES)
        assert scores.isfinite().all()
        assert torch.equal(labels, full.argmax(dim=1).to(torch.uint8))
        self.logit_sizes.append(tuple(scores.shape[2:]))
        return labels.numpy(), scores.numpy()


@parametrize_cases(CASES)
def test_an_image_of_any_size_gets_its_mask(entry: ArchitectureCase) -> None:
    watched = CheckedSegmenter(calibrated_network(entry.name, **entry.options))

    @settings(max_examples=6, deadline=None)
    @given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 99))
    def ask(height: int, width: int, seed: int) -> None:
        labels = watched.segmenter.segment(synthetic_image(height, width, seed)).labels
        assert labels.shape == (height, width)
        padded = (height + -height % 64, width + -width % 64)
        assert watched.logit_sizes[-1] == (padded[0] // entry.stride, padded[1] // entry.stride)

    ask()
    assert len(np.unique(watched.segmenter.segment(synthetic_image(301, 223)).labels)) > 1


@parametrize_cases(CASES)
@torch.no_grad()
def test_the_batch_and_the_memory_format_are_no_matter(entry: ArchitectureCase) -> None:
    network = calibrated_network(entry.name, **entry.options).double()  # where rounding cannot hide a mistake
    images = sample_images(64, 128)
    together = network(images)[1]
    alone = torch.cat([network(image[None])[1] for image in images])
    last = network.logits(images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last))
    scale = together.abs().max()
    assert (alone - together).abs().max() < 1e-9 * scale
    assert (last - together).abs().max() < 1e-9 * scale


@parametrize_cases(CASES)
def test_gradients_reach_every_parameter(entry: ArchitectureCase) -> None:
    network = seeded_network(entry.name, **entry.options).train()
    truth = torch.randint(0, CLASSES, (2, 64, 64))
    answers = network.training_logits(noise_images(2, 64, 64).permute(0, 3, 1, 2))
    torch.stack([F.cross_entropy(upsample(logits, (64, 64)), truth) for logits in answers]).sum().backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:  # computed and thrown away, see trim.py
            assert name.startswith("body.encoder.") and "hrnet" in str(entry)
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@parametrize_cases(list(CASES_BY_NAME.values()))
def test_an_auxiliary_head_is_trained_where_there_may_be_one(entry: ArchitectureCase) -> None:
    plain = seeded_network(entry.name).train()
    images = noise_images(2, 64, 64).permute(0, 3, 1, 2)
    assert len(plain.training_logits(images)) == 1
    if not entry.aux:
        with pytest.raises(ConfigError, match=r"no option 'aux'|auxiliary"):
            build(entry.name, CLASSES, aux=True)
        return
    network = seeded_network(entry.name, aux=True).train()
    scores, aux = network.training_logits(images)
    assert scores.shape[:2] == aux.shape[:2] == (2, CLASSES)
    own = {name for name, _ in network.named_parameters()} - {name for name, _ in plain.named_parameters()}
    F.cross_entropy(upsample(aux, (64, 64)), torch.randint(0, CLASSES, (2, 64, 64))).backward()
    reached = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert own and own <= reached
    assert any("encoder" in name or "backbone" in name for name in reached - own)
    with torch.no_grad():  # where it answers, the head is not there
        assert torch.equal(network.eval().training_logits(images)[0], network.logits(images))


@parametrize_cases(list(CASES_BY_NAME.values()))
def test_output_strides_are_kept_or_refused(entry: ArchitectureCase) -> None:
    for stride in (4, 8, 16, 32):
        if stride in entry.output_strides:
            assert build(entry.name, CLASSES, output_stride=stride).architecture.options["output_stride"] == stride
        else:
            with pytest.raises(ConfigError, match=r"output.stride"):
                build(entry.name, CLASSES, output_stride=stride)


@parametrize_cases(list(CASES_BY_NAME.values()))
def test_a_batch_of_one_image_trains_or_fails_by_name(entry: ArchitectureCase) -> None:
    network = seeded_network(entry.name).train()
    images = noise_images(1, 64, 64).permute(0, 3, 1, 2)
    if entry.trains_on_one_image:
        assert network.logits(images).isfinite().all()
    else:  # which is why the loader drops a last small batch
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network.logits(images)


@parametrize_cases(CASES, "frozen_fast")
def test_frozen_it_answers_as_live(entry: ArchitectureCase, tmp_path: Path) -> None:
    network = calibrated_network(entry.name, **entry.options)
    graph, original = export_to_segmenter(network, tmp_path), make_torch_segmenter(network, NATIVE)
    seen: set[int] = set()
    for seed, size in enumerate([(97, 211), (301, 150), (1, 65)]):
        image = synthetic_image(*size, seed)
        expected = original.segment(image).labels
        assert agreement(graph.segment(image).labels, expected) >= 0.999
        seen.update(np.unique(expected).tolist())
    assert len(seen) > 1  # or agreement would mean little
    batch = np.stack([synthetic_image(64, 192, seed) for seed in range(3)])
    for image, labels in zip(batch, graph.run(batch)[0].copy(), strict=True):
        assert agreement(graph.run(image[None])[0][0], labels) >= 0.999


@parametrize_cases(CASES)
@torch.no_grad()
def test_weights_return_from_a_file(entry: ArchitectureCase, tmp_path: Path) -> None:
    network = calibrated_network(entry.name, **entry.options)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "weights.safetensors"
    )
    known = network.architecture
    again = build(known.name, network.num_classes, **known.options).eval()
    images = sample_images(64, 128)
    assert not torch.equal(again(images)[1], network(images)[1])
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    assert torch.equal(again(images)[1], network(images)[1])


@parametrize_cases(CASES)
def test_its_size_and_work_are_those_of_its_layers(entry: ArchitectureCase) -> None:
    network = seeded_network(entry.name, **entry.options)
    wider = build(entry.name, CLASSES + 1, **entry.options)
    count, more = (sum(each.numel() for each in one.parameters()) for one in (network, wider))
    assert 0 < more - count < 0.05 * count  # one class more costs some rows of the classifiers
    small, large = (measure_flops(network.body, torch.empty(1, 3, side, side)) for side in (256, 512))
    # Convolutions are by far the most of it, and their work grows with the area.
    assert 3.8 < large / small < 4.5


@torch.no_grad()
def test_normalisation_stands_inside() -> None:
    network = calibrated_network("fcn")
    images = noise_images(1, 64, 64)
    normalised = (images.double().numpy() - IMAGENET_MEAN) / IMAGENET_STD
    expected = network.body(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float())
    torch.testing.assert_close(network(images)[1], expected, rtol=1e-4, atol=1e-5)
    assert {"mean", "std"} <= set(network.state_dict())


def test_the_entries_are_those_of_the_house() -> None:
    assert set(CASES_BY_NAME) == set(ARCHITECTURES)
