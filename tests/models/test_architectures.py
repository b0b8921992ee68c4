"""Every network keeps the house's contract, and the FCN is the paper's."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.architectures import ARCHITECTURES, build
from models.architectures.network import MEAN, STD, Network, upsample
from models.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 5
STRIDES = {"32s": 32, "16s": 16, "8s": 8}
VARIANTS = [
    {"encoder": encoder, "output_stride": output_stride, "skips": skips}
    for encoder in ("resnet18", "mobilenet_v2")
    for output_stride in (32, 16, 8)
    for skips in STRIDES
]
NETWORKS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ARCHITECTURES]
NETWORKS += [("fcn", options) for options in VARIANTS]


def named(value: object) -> str | None:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else None


def noise(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)


def seeded(name: str, **options: Any) -> Network:
    torch.manual_seed(0)
    return build(name, CLASSES, **options)


def settled(name: str, **options: Any) -> Network:
    """Ready to answer, with the batch norms' statistics taken from noise: fresh ones let a deep network's scores die out."""
    network = seeded(name, **options).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    network(noise(4, 64, 64))
    return network.eval()


def padded(images: Tensor) -> Tensor:
    """Edges repeated to multiples of 64, as the segmenter hands them in."""
    height, width = images.shape[1:3]
    rows = torch.arange(-(-height // 64) * 64).clamp(max=height - 1)
    columns = torch.arange(-(-width // 64) * 64).clamp(max=width - 1)
    return images[:, rows][:, :, columns]


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=named)
@torch.inference_mode()
def test_labels_are_the_argmax_of_upsampled_logits(name: str, options: dict[str, Any]) -> None:
    network = settled(name, **options)
    images = padded(noise(2, 61, 97))
    labels, logits = network(images)
    full = F.interpolate(logits, size=(64, 128), mode="bilinear", align_corners=False)
    assert (labels.dtype, labels.shape) == (torch.uint8, (2, 64, 128))
    assert logits.dtype == torch.float32
    assert torch.equal(labels, full.argmax(dim=1).to(torch.uint8))
    assert len(labels.unique()) > 1
    if "skips" in options:
        stride = min(STRIDES[options["skips"]], options["output_stride"])
        assert logits.shape == (2, CLASSES, 64 // stride, 128 // stride)


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=named)
@torch.inference_mode()
def test_the_batch_is_no_matter(name: str, options: dict[str, Any]) -> None:
    network = settled(name, **options)
    images = noise(3, 64, 64)
    together = network(images)[1]
    torch.testing.assert_close(torch.cat([network(image[None])[1] for image in images]), together, rtol=1e-3, atol=1e-4)
    channels_last = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network.logits(channels_last), together, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=named)
def test_gradients_reach_every_parameter(name: str, options: dict[str, Any]) -> None:
    network = seeded(name, **options).train()
    images = noise(2, 64, 64)
    logits = network.logits(images.permute(0, 3, 1, 2))
    F.cross_entropy(upsample(logits, (64, 64)), torch.randint(0, CLASSES, (2, 64, 64))).backward()
    for parameter_name, parameter in network.body.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@torch.inference_mode()
def test_dilation_keeps_the_output_stride(encoder: str, output_stride: int) -> None:
    body = seeded("fcn", encoder=encoder, output_stride=output_stride).body.eval()
    maps = body.encoder(torch.zeros(1, 3, 64, 128))
    assert [64 // one.shape[2] for one in maps] == [min(2**level, output_stride) for level in range(6)]
    assert [128 // one.shape[3] for one in maps] == [min(2**level, output_stride) for level in range(6)]


@torch.inference_mode()
def test_normalisation_stands_inside() -> None:
    network = settled("fcn")
    images = noise(1, 64, 64)
    normalised = (images.double().numpy() - MEAN) / STD
    expected = network.body(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float())
    torch.testing.assert_close(network(images)[1], expected, rtol=1e-4, atol=1e-5)
    assert {"mean", "std"} <= set(network.state_dict())


def doubled(scores: np.ndarray) -> np.ndarray:
    """C x h x w -> C x 2h x 2w: each new pixel lies a quarter of an old one off its centre; edges repeat."""
    for axis in (1, 2):
        last = scores.shape[axis] - 1
        at = np.arange(last + 1)
        before = scores.take(np.maximum(at - 1, 0), axis)
        after = scores.take(np.minimum(at + 1, last), axis)
        pairs = np.stack([0.75 * scores + 0.25 * before, 0.75 * scores + 0.25 * after], axis + 1)
        shape = list(scores.shape)
        shape[axis] *= 2
        scores = pairs.reshape(shape)
    return scores


def scored(layer: torch.nn.Conv2d, features: Tensor) -> np.ndarray:
    """A 1x1 convolution, written as the matrix product that it is."""
    assert layer.bias is not None
    weight, bias = layer.weight.double().numpy()[:, :, 0, 0], layer.bias.double().numpy()
    return np.einsum("kc,chw->khw", weight, features[0].double().numpy()) + bias[:, None, None]


@torch.inference_mode()
def test_fcn_8s_sums_as_the_paper_does() -> None:
    body = settled("fcn", encoder="resnet18", output_stride=32, skips="8s").body
    images = torch.randn(1, 3, 96, 160)
    maps = body.encoder(images)
    assert [one.shape[1] for one in maps[3:]] == [128, 256, 512]
    score_8, score_16 = body.skip_scores
    expected = scored(body.score, body.head(maps[5]))
    expected = doubled(expected) + scored(score_16, maps[4])
    expected = doubled(expected) + scored(score_8, maps[3])
    found = body(images)[0].numpy()
    assert found.shape == (CLASSES, 12, 20)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fnc", {}, "'fnc' is not known; choose from .*fcn"),
        ("fcn", {"encoder": "resnet81"}, "'resnet81'.* did you mean resnet18"),
        ("fcn", {"encoder": ""}, "did you mean resnet18"),
        ("fcn", {"encoder": "tu-nothing"}, "tu-nothing at output stride 32 cannot be built"),
        ("fcn", {"encoder": "vgg11", "output_stride": 8}, "vgg11 at output stride 8 cannot be built"),
        ("fcn", {"weights": "imagenot"}, "imagenot weights cannot be built.*imagenet.*weights=none"),
        ("fcn", {"output_stride": 4}, "output stride 4 is not possible; choose 8, 16 or 32"),
        ("fcn", {"skips": "4s"}, "'4s' are not known; choose from 32s, 16s, 8s"),
        ("fcn", {"dropout": 1.5}, "dropout of 1.5"),
        ("fcn", {"strides": 8}, "'strides'.*its options are encoder, weights, output_stride"),
    ],
    ids=str,
)
def test_what_cannot_be_built(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(name, CLASSES, **options)
