"""The story of a network, stage by stage: it sums to the network, and names what its paper names."""

import pytest

from models.analysis.complexity import count_gflops, count_parameters
from models.analysis.summary import list_stages
from models.architectures import ARCHITECTURES, build

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (360, 480)  # padded to 384 x 512


def test_the_story_of_an_fcn() -> None:
    told = {stage.name: stage for stage in list_stages(build("fcn", 5, head="fcn", skips="8s"), SIZE)}
    assert list(told)[:7] == [
        "encoder.conv1", "encoder.maxpool", "encoder.layer1", "encoder.layer2", "encoder.layer3", "encoder.layer4", "head",
    ]  # fmt: skip
    assert [(stage.channels, stage.stride, stage.receptive_field) for stage in list(told.values())[:7]] == [
        (64, 2, 7), (64, 4, 11), (64, 4, 43), (128, 8, 99), (256, 16, 211), (512, 32, 435), (128, 32, 499),
    ]  # fmt: skip
    assert told["encoder.conv1"].operations == {"conv 7x7 /2": 1}
    assert told["encoder.maxpool"].operations == {"max pool 3x3 /2": 1}
    assert told["encoder.layer2"].operations == {"conv 3x3 /2": 1, "conv 3x3": 3, "conv 1x1 /2": 1, "sum": 2}
    assert told["skip_scores.0"].operations == {"conv 1x1": 1, "sum": 1}  # FCN-8s adds the map of stride 8


def test_the_story_shows_dilation_and_groups_neighbours() -> None:
    dense = {
        stage.name: stage.operations
        for stage in list_stages(build("fcn", 5, encoder="resnet50", output_stride=8), SIZE)
    }
    assert dense["encoder.layer4"]["conv 3x3 dilated 4"] == 2
    vgg = list_stages(build("fcn", 5, encoder="vgg16", head="linear", skips="32s"), SIZE)
    assert [stage.operations.get("conv 3x3") for stage in vgg] == [2, 2, 3, 3, 3, None, None]  # the paper's five blocks
    assert [stage.stride for stage in vgg] == [1, 2, 4, 8, 16, 32, 32]
    assert vgg[1].name == "encoder.features.4-8"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stages_sum_to_the_network(name: str) -> None:
    net = build(name, 5)
    told = list_stages(net, (64, 128))
    assert sum(stage.parameters for stage in told) == count_parameters(net)
    assert sum(stage.flops for stage in told) / 1e9 == pytest.approx(count_gflops(net, (64, 128)))
    assert all(stage.parameters >= 0 and stage.flops >= 0 for stage in told)
    assert len(told) < 30


def test_what_serves_training_alone_comes_last() -> None:
    told = list_stages(build("fcn", 5, aux=True), SIZE)
    assert (told[-1].name, told[-1].flops) == ("", 0)
    assert told[-1].parameters > 0
