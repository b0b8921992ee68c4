"""The stages of a network: they sum to the network, and have the operations of its paper."""

import pytest
import torch

from models.analysis import complexity
from models.analysis.complexity import count_gflops, count_parameters
from models.analysis.summary import list_stages
from models.architectures import ARCHITECTURES, build

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (360, 490)  # padded to 384 x 512


def test_stages_of_an_fcn() -> None:
    stages = {stage.name: stage for stage in list_stages(build("fcn", 5, head="fcn", skips="8s"), SIZE)}
    assert list(stages)[:7] == [
        "encoder.conv1", "encoder.maxpool", "encoder.layer1", "encoder.layer2", "encoder.layer3", "encoder.layer4", "head",
    ]  # fmt: skip
    assert [(stage.channels, stage.stride, stage.receptive_field) for stage in list(stages.values())[:7]] == [
        (64, 2, 7), (64, 4, 11), (64, 4, 43), (128, 8, 99), (256, 16, 211), (512, 32, 435), (128, 32, 499),
    ]  # fmt: skip
    assert stages["encoder.conv1"].operations == {"conv 7x7 /2": 1}
    assert stages["encoder.maxpool"].operations == {"max pool 3x3 /2": 1}
    assert stages["encoder.layer2"].operations == {"conv 3x3 /2": 1, "conv 3x3": 3, "conv 1x1 /2": 1, "sum": 2}
    assert stages["skip_scores.0"].operations == {"conv 1x1": 1, "sum": 1}  # FCN-8s adds the map of stride 8


def test_dilated_convolutions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "PROBE_WIDTHS", (128, 256))
    with torch.device("meta"):
        network = build("fcn", 5, encoder="resnet50", output_stride=8)
    operations = {stage.name: stage.operations for stage in list_stages(network, SIZE)}
    assert operations["encoder.layer4"]["conv 3x3 dilated 4"] == 2


def test_neighbours_of_one_stride_are_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "PROBE_WIDTHS", (128, 256))
    with torch.device("meta"):
        network = build("fcn", 5, encoder="vgg16", head="linear", skips="32s")
    stages = list_stages(network, SIZE)
    assert [stage.operations.get("conv 3x3") for stage in stages] == [2, 2, 3, 3, 3, None, None]  # the paper's blocks
    assert [stage.stride for stage in stages] == [1, 2, 4, 8, 16, 32, 32]
    assert stages[1].name == "encoder.features.4-8"


def test_unchanged_scores_are_no_stage_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "PROBE_WIDTHS", (128, 256))
    names = [stage.name for stage in list_stages(build("fcn", 5, output_stride=16, skips="16s"), (64, 64))]
    assert "score" in names and "upsample_layers.0" not in names


FEW = ("fcn", "unet", "smp/FPN", "torchvision/lraspp_mobilenet_v3_large")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_stages_sum_to_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "PROBE_WIDTHS", (64, 128))  # the receptive fields do not matter here
    with torch.device("meta"):
        network = build(name, 5)
    stages = list_stages(network, (64, 128))
    assert sum(stage.parameters for stage in stages) == count_parameters(network)
    assert sum(stage.flops for stage in stages) / 1e9 == pytest.approx(count_gflops(network, (64, 128)))
    assert all(stage.parameters >= 0 and stage.flops >= 0 for stage in stages)
    assert len(stages) < 30


def test_training_only_parts_come_last() -> None:
    stages = list_stages(build("fcn", 5, aux=True), SIZE)
    assert (stages[-1].name, stages[-1].flops) == ("", 0)
    assert stages[-1].parameters > 0
