"""Networks for other channels than RGB: the first convolution and the normalization, and weights of RGB for them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv

from models.architectures import build
from models.architectures.finetune import load_initial_weights
from models.architectures.input_channels import adapt_weight
from models.spec import InputRule, Scaling


def rule(*channels: str, dtype: str = "uint16", kind: str = "window") -> InputRule:
    low, high = ((), ()) if kind == "zscore" else ((100.0,) * len(channels), (4100.0,) * len(channels))
    return InputRule(rule="native", channels=channels, dtype=dtype, scaling=Scaling(kind=kind, low=low, high=high))  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 2, 4, 7, 13])
def test_kernels_are_adapted_as_timm_does(channels: int) -> None:
    kernel = torch.randn(8, 3, 5, 5)
    adapted = adapt_weight(kernel, channels)
    assert torch.equal(adapted, adapt_input_conv(channels, kernel))
    if channels == 1:  # gray gives what it gave as RGB
        gray = torch.rand(1, 1, 9, 9)
        expected = torch.nn.functional.conv2d(gray.repeat(1, 3, 1, 1), kernel)
        assert torch.allclose(torch.nn.functional.conv2d(gray, adapted), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["fcn", "smp/Unet", "torchvision/fcn_resnet50"])
def test_weights_of_rgb_are_loaded_into_a_network_of_four_channels(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"encoder": "resnet18"} if "torchvision" not in name else {}
    source = build(name, 3, **options)  # three classes: as many as channels
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, tmp_path / "rgb.safetensors")
    network = build(name, 3, **options)
    network.set_input(rule("red", "green", "blue", "nir"))
    load_initial_weights(network, tmp_path / "rgb.safetensors", ["a", "b", "c"])
    adapted = 0
    for key, value in network.body.state_dict().items():
        before = source.body.state_dict()[key]
        if value.shape != before.shape:
            adapted += 1
            before = adapt_weight(before, 4)
        assert torch.equal(value, before), key
    assert adapted == 1


def test_samples_are_clipped_and_normalized_as_photographs_are() -> None:
    network = build("fcn", 2, encoder="resnet18")
    photograph = network.normalise(torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1).expand(1, 3, 1, 1))
    network.set_input(rule("blue", "nir", "red"))
    samples = torch.tensor([4100, 2100, 50]).view(1, 3, 1, 1).to(torch.uint16)  # at the top, in the middle, below
    found = network.normalise(samples).flatten()
    assert found[0] == pytest.approx(photograph.flatten()[2].item(), rel=1e-5)  # blue at 255
    assert found[2] == pytest.approx(photograph.flatten()[0].item(), rel=1e-5)  # red at 0
    assert network.state_dict()["mean"].shape == (1, 3, 1, 1) and "low" not in network.state_dict()


def test_zscore_takes_the_statistics_of_each_sample() -> None:
    network = build("fcn", 2, encoder="resnet18")
    network.set_input(rule("hh", "hv", kind="zscore"))
    samples = torch.tensor([[10, 200], [20, 50]]).view(2, 2, 1, 1)
    statistics = torch.tensor([[[10.0, 100.0], [1.0, 50.0]], [[0.0, 0.0], [10.0, 10.0]]])
    assert network.normalise(samples, statistics).flatten().tolist() == [0, 2, 2, 5]


def test_photographs_change_nothing() -> None:
    network = build("fcn", 2, encoder="resnet18")
    kernels = {name: id(value) for name, value in network.named_parameters()}
    network.set_input(InputRule(rule="fit", side=64))
    assert {name: id(value) for name, value in network.named_parameters()} == kernels
    assert network.low is None
