"""One suite over every architecture: the contract of `Network`, and the errors for what an architecture cannot do.

A new line in `ARCHITECTURES` is tested without further code. Flags say what an architecture cannot do, and the tests then
expect the error. `make test` covers a few architectures, `make test-slow` the others: on small images, with the smallest
encoder where the encoder does not matter (`test_encoders.py` and `test_dilation.py` test encoders), and one export per kind of
layer, because an export takes 15 seconds of a processor and more.
"""

import copy
from dataclasses import dataclass, field, replace
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
    """An architecture with options, and what it can do."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    stride: int = 4  # of its logits, in pixels
    aux: bool = True  # has the option of an auxiliary head
    output_strides: tuple[int, ...] = (8, 16, 32)  # the allowed values of `output_stride`
    trains_on_one_image: bool = True  # False: batch norm fails on a batch of one image, after global pooling
    fast: bool = False  # tested in `make test` too
    build_only: bool = False  # only built: a deeper one of another case

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{value}" for value in self.options.values())])


TINY = {"encoder": "tu-test_resnet"}  # all kinds of layers of a ResNet, in half a million parameters
SKIP_STRIDES = {"32s": 32, "16s": 16, "8s": 8}
# Every pair of head and stride, of head and skips, and of stride and skips, in 15 instead of 45 cases.
FCN_CASES = [
    ArchitectureCase(
        "fcn", {**TINY, "head": head, "output_stride": stride, "skips": skips}, min(stride, SKIP_STRIDES[skips])
    )
    for row, head in enumerate(["linear", "fcn", "d6", "aspp", "psp"])
    for column, stride in enumerate([8, 16, 32])
    for skips in [list(SKIP_STRIDES)[(row + column) % 3]]
]
FCN_CASES += [
    ArchitectureCase("fcn", {**TINY, "upsampling": "learned"}, 1, fast=True),
    ArchitectureCase("fcn", {**TINY, "upsampling": "learned", "head": "linear", "output_stride": 8, "skips": "16s"}, 1),
    ArchitectureCase(
        "fcn", {**TINY, "upsampling": "learned", "head": "linear", "output_stride": 32, "skips": "32s"}, 1
    ),
    ArchitectureCase("fcn", {**TINY, "head": "psp", "aux": True}, 8),
    ArchitectureCase("fcn", {**TINY, "head": "aspp", "aux": True, "separable": True}, 16, fast=True),
    ArchitectureCase("fcn", {**TINY, "head": "d6", "separable": True, "init": "xavier"}, 16),
    ArchitectureCase("fcn", {"encoder": "alexnet", "head": "linear", "output_stride": 16, "skips": "16s"}, 16),
    ArchitectureCase("fcn", {"encoder": "efficientnet-b0"}, 8),
    ArchitectureCase("fcn", {"encoder": "tu-hrnet_w18_small", "skips": "32s"}, 32),
    ArchitectureCase("fcn", {"encoder": "tu-convnext_atto", "output_stride": 16}, 8),
]
UNET_CASES = [
    ArchitectureCase("unet", {"width": 8, "blocks": 1, "aux": True}, 2, fast=True),
    ArchitectureCase("unet", {"width": 8, "strides": [1, [1, 2], 2, [2, 4]], "kernel": [[1, 3], 3, 5, 3]}, 1),
    ArchitectureCase("unet", {"width": 8, "strides": [4, 2, 2], "blocks": [1, 2, 3], "norm": "instance"}, 4),
]
CASES_BY_NAME = {
    case.name: case
    for case in [
        ArchitectureCase("fcn", {}, 8, fast=True),
        ArchitectureCase("unet", {}, 2, output_strides=()),
        ArchitectureCase("smp/Unet", TINY, 1, aux=False, output_strides=(32,), fast=True),
        ArchitectureCase("smp/UnetPlusPlus", TINY, 1, aux=False, output_strides=(32,)),
        ArchitectureCase("smp/MAnet", {}, 1, aux=False, output_strides=(32,)),
        ArchitectureCase("smp/Linknet", TINY, 1, aux=False, output_strides=(32,)),
        ArchitectureCase("smp/FPN", TINY, 4, aux=False, output_strides=(32,)),
        ArchitectureCase("smp/PSPNet", TINY, 8, aux=False, output_strides=(8,), fast=True),
        ArchitectureCase("smp/DeepLabV3", TINY, 8, aux=False, output_strides=(8, 16), trains_on_one_image=False),
        ArchitectureCase("smp/DeepLabV3Plus", TINY, 4, aux=False, output_strides=(8, 16), trains_on_one_image=False),
        ArchitectureCase("smp/UPerNet", TINY, 4, aux=False, output_strides=(32,), trains_on_one_image=False),
        ArchitectureCase("smp/Segformer", TINY, 4, aux=False, output_strides=(32,)),
        ArchitectureCase("torchvision/fcn_resnet50", {}, 8, output_strides=()),
        ArchitectureCase("torchvision/fcn_resnet101", {}, output_strides=(), build_only=True),
        ArchitectureCase("torchvision/deeplabv3_resnet50", {}, 8, output_strides=(), trains_on_one_image=False),
        ArchitectureCase("torchvision/deeplabv3_resnet101", {}, output_strides=(), build_only=True),
        ArchitectureCase(
            "torchvision/deeplabv3_mobilenet_v3_large", {}, 16, output_strides=(), trains_on_one_image=False
        ),
        ArchitectureCase("torchvision/lraspp_mobilenet_v3_large", {}, 8, aux=False, output_strides=(), fast=True),
    ]
}
CASES = [*(CASES_BY_NAME.get(name, ArchitectureCase(name)) for name in ARCHITECTURES), *FCN_CASES, *UNET_CASES]
# Together they have every kind of layer. The training fixtures export an FCN-8s and a U-Net of signals, test_model_factory.py
# smp/Unet, and test_import_model.py LR-ASPP.
EXPORTED_CASES = [
    *(replace(case, fast=False) for case in (UNET_CASES[0], CASES_BY_NAME["smp/PSPNet"])),
    *(CASES_BY_NAME[f"smp/{name}"] for name in ("MAnet", "DeepLabV3Plus")),
    CASES_BY_NAME["smp/Segformer"],
    CASES_BY_NAME["torchvision/deeplabv3_mobilenet_v3_large"],
    ArchitectureCase("fcn", {**TINY, "upsampling": "learned"}),
    ArchitectureCase("fcn", {**TINY, "head": "aspp", "aux": True, "separable": True}),
    ArchitectureCase("fcn", {"encoder": "efficientnet-b0"}),
    ArchitectureCase("fcn", {"encoder": "tu-convnext_atto", "output_stride": 16}),
    UNET_CASES[2],
]


def case_params(cases: list[ArchitectureCase]) -> list[Any]:
    """The cases as pytest parameters, without those that are only built; slow ones are marked."""
    tested = [case for case in cases if not case.build_only]
    return [pytest.param(case, id=str(case), marks=() if case.fast else pytest.mark.slow) for case in tested]


NAMED_CASES = pytest.mark.parametrize("named_case", case_params(list(CASES_BY_NAME.values())))


@pytest.fixture(scope="module", params=case_params(CASES))
def case(request: pytest.FixtureRequest) -> ArchitectureCase:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def network(case: ArchitectureCase) -> Network:
    """The calibrated network of the case, built once for all tests of it. Tests must not change it."""
    return calibrated_network(case.name, **case.options)


class CheckedSegmenter:
    """A Segmenter on a network that checks every output of the network against the contract."""

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


def test_images_of_any_size_are_segmented(case: ArchitectureCase, network: Network) -> None:
    checked = CheckedSegmenter(network)
    largest = 120

    @settings(max_examples=3, deadline=None)
    @given(height=st.integers(1, largest), width=st.integers(1, largest), seed=st.integers(0, 99))
    def segment(height: int, width: int, seed: int) -> None:
        labels = checked.segmenter.segment(synthetic_image(height, width, seed)).labels
        assert labels.shape == (height, width)
        padded = (height + -height % 32, width + -width % 32)
        assert checked.logit_sizes[-1] == (padded[0] // case.stride, padded[1] // case.stride)

    segment()
    assert len(np.unique(checked.segmenter.segment(synthetic_image(largest + 1, 97)).labels)) > 1


@torch.no_grad()
def test_batch_and_memory_format_do_not_change_the_logits(case: ArchitectureCase, network: Network) -> None:
    double = copy.deepcopy(network).double()  # so that rounding cannot hide an error
    images = sample_images(64, 96)[1:3]
    batch = double(images)[1]
    single = torch.cat([double(image[None])[1] for image in images])
    channels_last = double.logits(images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last))
    scale = batch.abs().max()
    assert (single - batch).abs().max() < 1e-9 * scale
    assert (channels_last - batch).abs().max() < 1e-9 * scale


@torch.no_grad()
def test_weights_and_spec_rebuild_the_network(case: ArchitectureCase, network: Network, tmp_path: Path) -> None:
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "weights.safetensors"
    )
    spec = network.architecture
    rebuilt = build(spec.name, network.num_classes, **spec.options).eval()
    images = sample_images(64, 96)[1:3]
    assert not torch.equal(rebuilt(images)[1], network(images)[1])
    rebuilt.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    assert torch.equal(rebuilt(images)[1], network(images)[1])


def test_parameters_and_flops_match_the_layers(case: ArchitectureCase, network: Network) -> None:
    with torch.device("meta"):
        wider = build(case.name, CLASSES + 1, **case.options)
    count, more = (sum(parameter.numel() for parameter in each.parameters()) for each in (network, wider))
    assert 0 < more - count < 0.05 * count  # one more class adds a few rows to the classifiers
    small, large = (measure_flops(network.body, torch.empty(1, 3, side, side)) for side in (256, 512))
    # Nearly all FLOP are in convolutions, and their FLOP grow with the area.
    assert 3.8 < large / small < 4.5


def test_every_parameter_gets_a_gradient(case: ArchitectureCase, network: Network) -> None:
    # timm starts the last norm of each block of a ResNet with zeros, which stop the gradient before it.
    is_tiny = case.options.get("encoder") == TINY["encoder"]
    trained = (copy.deepcopy(network) if is_tiny else seeded_network(case.name, **case.options)).train()
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    outputs = trained.training_logits(noise_images(2, 64, 64).permute(0, 3, 1, 2))
    torch.stack([F.cross_entropy(upsample(logits, (64, 64)), labels) for logits in outputs]).sum().backward()
    for name, parameter in trained.named_parameters():
        if not parameter.requires_grad:  # computed and discarded, see prune.py
            assert name.startswith("body.encoder.") and "hrnet" in str(case)
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@NAMED_CASES
def test_auxiliary_head_is_trained_or_refused(named_case: ArchitectureCase) -> None:
    plain = seeded_network(named_case.name, **named_case.options).train()
    images = noise_images(2, 64, 64).permute(0, 3, 1, 2)
    assert len(plain.training_logits(images)) == 1
    if not named_case.aux:
        with pytest.raises(ConfigError, match=r"no option 'aux'|auxiliary"):
            build(named_case.name, CLASSES, **named_case.options, aux=True)
        return
    network = seeded_network(named_case.name, **named_case.options, aux=True).train()
    logits, *heads = network.training_logits(images)
    assert heads and {each.shape[:2] for each in (logits, *heads)} == {(2, CLASSES)}
    head = {name for name, _ in network.named_parameters()} - {name for name, _ in plain.named_parameters()}
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    torch.stack([F.cross_entropy(upsample(aux, (64, 64)), labels) for aux in heads]).sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert head and head <= trained
    assert any("encoder" in name or "backbone" in name for name in trained - head)
    with torch.no_grad():  # inference does not use the head
        assert torch.equal(network.eval().training_logits(images)[0], network.logits(images))


@pytest.mark.parametrize("name", CASES_BY_NAME)
def test_output_stride_is_applied_or_refused(name: str) -> None:
    for stride in (4, 8, 16, 32):
        with torch.device("meta"):
            if stride in CASES_BY_NAME[name].output_strides:
                network = build(name, CLASSES, output_stride=stride)
                assert network.architecture.options["output_stride"] == stride
            else:
                with pytest.raises(ConfigError, match=r"output.stride"):
                    build(name, CLASSES, output_stride=stride)


@NAMED_CASES
def test_batch_of_one_image_trains_or_batch_norm_refuses_it(named_case: ArchitectureCase) -> None:
    network = seeded_network(named_case.name, **named_case.options).train()
    images = noise_images(1, 64, 64).permute(0, 3, 1, 2)
    if named_case.trains_on_one_image:
        assert network.logits(images).isfinite().all()
    else:  # which is why the loader drops a last small batch
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network.logits(images)


@pytest.mark.parametrize("exported_case", case_params(EXPORTED_CASES))
def test_exported_network_agrees_with_pytorch(exported_case: ArchitectureCase, tmp_path: Path) -> None:
    network = calibrated_network(exported_case.name, **exported_case.options)
    exported, original = export_to_segmenter(network, tmp_path), make_torch_segmenter(network, NATIVE)
    labels_seen: set[int] = set()
    for seed, size in enumerate([(97, 211), (161, 120), (1, 65)]):
        image = synthetic_image(*size, seed)
        expected = original.segment(image).labels
        assert agreement(exported.segment(image).labels, expected) >= 0.999
        labels_seen.update(np.unique(expected).tolist())
    assert len(labels_seen) > 1  # otherwise agreement would mean little
    batch = np.stack([synthetic_image(64, 192, seed) for seed in range(3)])
    for image, labels in zip(batch, exported.run(batch)[0].copy(), strict=True):
        assert agreement(exported.run(image[None])[0][0], labels) >= 0.999


@torch.no_grad()
def test_normalisation_is_part_of_the_network() -> None:
    network = seeded_network("fcn").eval()
    images = noise_images(1, 64, 64)
    normalised = (images.double().numpy() - IMAGENET_MEAN) / IMAGENET_STD
    expected = network.body(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float())
    torch.testing.assert_close(network(images)[1], expected, rtol=1e-4, atol=1e-5)
    assert {"mean", "std"} <= set(network.state_dict())


def test_every_architecture_has_a_case() -> None:
    assert set(CASES_BY_NAME) == set(ARCHITECTURES)
