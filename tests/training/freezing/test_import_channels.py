"""Import of ONNX graphs that take other channels than RGB."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.bundle import Bundle
from models.errors import ConfigError
from models.inference.segmenter import Segmenter
from tests.fixtures_bundles import QUIET_CONSOLE
from training.freezing.onnx_import.graph_reader import UserHints
from training.import_model import import_onnx

CHANNELS = "red,green,blue,nir"
WEIGHT = np.random.default_rng(0).normal(size=(3, 4, 1, 1)).astype(np.float32)
MEAN, STD = (1000.0, 900.0, 800.0, 2000.0), (500.0, 400.0, 300.0, 900.0)


def write_graph(file: Path) -> Path:
    """A 1x1 convolution of four channels, float32 N x 4 x H x W -> logits N x 3 x H x W."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.fixture
def import_channels(tmp_path: Path) -> Callable[..., Bundle]:
    def run(**hints: str) -> Bundle:
        from models.bundle import open_bundle

        (tmp_path / "classes.csv").write_text("a\nb\nc\n")
        file = write_graph(tmp_path / "four.onnx")
        out = import_onnx(
            file, tmp_path / "b", str(tmp_path / "classes.csv"), UserHints.parse(**hints), console=QUIET_CONSOLE
        )
        return open_bundle(out)

    return run


def test_a_graph_of_four_channels_predicts_as_the_original(import_channels: Callable[..., Bundle]) -> None:
    mean, std = (",".join(map(str, values)) for values in (MEAN, STD))
    bundle = import_channels(channels=CHANNELS, samples="uint16", mean=mean, std=std)
    rule = bundle.spec.input
    assert rule.channels == tuple(CHANNELS.split(",")) and rule.dtype == "uint16"
    values = np.random.default_rng(1).integers(0, 4000, (40, 56, 4)).astype(np.uint16)
    segmenter = Segmenter.load(bundle, precision="f32", verify_probes=True)
    expected = ((values.astype(np.float32) - MEAN) / STD @ WEIGHT[:, :, 0, 0].T).argmax(axis=2)
    assert (segmenter.segment(values).labels == expected).mean() > 0.999


def test_what_the_graph_does_not_say_is_asked_for(import_channels: Callable[..., Bundle]) -> None:
    with pytest.raises(ConfigError, match=r"does not say how its 4 channels are normalised; add --mean and --std"):
        import_channels(channels=CHANNELS)
    with pytest.raises(ConfigError, match="no axis of 2 channels"):
        import_channels(channels="hh,hv", mean="0", std="1")
    with pytest.raises(ConfigError, match="--mean has 3 numbers for 4 channels"):
        import_channels(channels=CHANNELS, mean="1,2,3", std="1")
    with pytest.raises(ConfigError, match="write different names"):
        import_channels(channels="red,RED")
    with pytest.raises(ConfigError, match=r"--samples float16 is not possible; choose uint8"):
        import_channels(channels=CHANNELS, samples="float16")
