"""ONNX files that cannot come into a bundle, and the sentence that says what is missing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.bundle import Bundle
from models.errors import ConfigError, MaskserveError, WeightsError
from models.inference.segmenter import Segmenter, agreement
from tests.fixtures_graphs import Drawing, alone, graph, picture, save

pytestmark = pytest.mark.usefixtures("one_thread")


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[MaskserveError], str]] = {
    "fewer names than channels": ({"channels": 21}, {}, WeightsError, r"1 x 21 x 8 x 8, 21 classes.*--classes names 4"),
    "more names": ({"channels": 3}, {}, WeightsError, r"3 classes as nchw; --classes names 4"),
    "NHWC": ({"channels": 5, "gives": "nhwc"}, {}, WeightsError, r"5 classes as nhwc; --classes names 4"),
    "one channel, four names": ({"channels": 1}, {}, WeightsError, r"1 class as nchw; --classes names 4"),
    "labels above the names": (
        {"channels": 9, "ending": "labels"},
        {},
        WeightsError,
        r"gives the label \d, so \d classes or more; --classes names 4",
    ),
    "two outputs alike": (
        {"also": ("aux",)},
        {},
        ConfigError,
        r"several outputs.*aux \(float32.*; y \(float32.*--output",
    ),
    "an output that is not there": (
        {},
        {"output": "z"},
        ConfigError,
        r"no output 'z'; it has y \(float32 1 x 4 x 8 x 8\)",
    ),
    "no output with the classes": (
        {"channels": 7, "also": ("aux",)},
        {},
        WeightsError,
        r"no output with scores for the 4 classes.*aux.*y",
    ),
    "the wrong layout": ({}, {"layout": "nhwc"}, WeightsError, r"--layout nhwc"),
    "int8 in": ({"kind": "int8"}, {}, WeightsError, r"'x0' is int8; wanted is one of uint8, float16"),
    "bytes with a mean": ({"kind": "uint8"}, {"mean": "0", "std": "1"}, ConfigError, "its normalisation is inside"),
    "a mean alone": ({}, {"mean": "0"}, ConfigError, "belong together"),
    "a deviation of nothing": ({}, {"mean": "0", "std": "1,0,1"}, ConfigError, "above 0"),
    "an unlikely mean": ({}, {"mean": "1,2", "std": "1"}, ConfigError, "three numbers"),
    "a mean that is none": ({}, {"mean": "nan", "std": "1"}, ConfigError, "three numbers"),
    "an unlikely order": ({}, {"order": "gbr"}, ConfigError, "--order gbr is not possible; choose rgb or bgr"),
    "an unlikely layout": ({}, {"output_layout": "chw"}, ConfigError, "--output-layout chw .* choose nchw or nhwc"),
    "an unlikely scale": ({}, {"scale": 2}, ConfigError, "--scale 2 .* choose 1 or 255"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_said(case: str, bring: Callable[..., Bundle], tmp_path: Path) -> None:
    made, told, error, words = REFUSED[case]
    if made.get("kind") == "int8":
        file = untrained(tmp_path / "int8.onnx", ["N", 3, "H", "W"], kind=TensorProto.INT8)
    else:
        file = graph(tmp_path / "theirs.onnx", **made)
    with pytest.raises(error, match=words):
        bring(file, **told)
    assert not (tmp_path / "b").exists()


def untrained(file: Path, *shapes: list[int | str], kind: int = TensorProto.FLOAT) -> Path:
    """A graph of one node an input, with inputs of these shapes."""
    drawing = Drawing()
    entries = [helper.make_tensor_value_info(f"x{place}", kind, shape) for place, shape in enumerate(shapes)]
    for place in range(len(shapes)):
        drawing.node("Cast", f"x{place}", out=f"y{place}", to=TensorProto.FLOAT)
    outputs = [
        helper.make_tensor_value_info(f"y{place}", TensorProto.FLOAT, shape) for place, shape in enumerate(shapes)
    ]
    made = helper.make_graph(drawing.nodes, "foreign", entries, outputs)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.mark.parametrize(
    ("shapes", "error", "words"),
    [
        ([["N", 3, "H", "W"], ["N", 1]], WeightsError, r"takes 2 inputs \(x0, x1\)"),
        ([["N", 1, "H", "W"]], WeightsError, "any x 1 x any x any.*three channels"),
        ([["N", 4, 32, 32]], WeightsError, "any x 4 x 32 x 32.*three channels"),
        ([["N", "C", "H", "W"]], ConfigError, "add --layout nchw or --layout nhwc"),
        ([[3, "H", "W"]], WeightsError, "'x0' is 3 x any x any; wanted are pictures, N x 3 x H x W"),
    ],
)
def test_inputs_that_are_no_pictures_are_named(
    shapes: list[list[int | str]], error: type[MaskserveError], words: str, bring: Callable[..., Bundle], tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        bring(untrained(tmp_path / "theirs.onnx", *shapes))


def test_a_graph_that_only_says_that_it_takes_any_size(bring: Callable[..., Bundle], tmp_path: Path) -> None:
    """A position for each of 15 x 25 patches is added, as in transformers; told its size, it comes in."""
    drawing = Drawing()
    first = drawing.weight(np.random.default_rng(0).normal(0, 1, (4, 3, 8, 8)))
    patches = drawing.node("Conv", "x", first, kernel_shape=[8, 8], strides=[8, 8])
    drawing.node("Add", patches, drawing.weight(np.random.default_rng(1).normal(0, 1, (1, 4, 15, 25))), out="y")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "h", "w"])
    file = save(tmp_path / "vit.onnx", drawing, entry, [out])
    with pytest.raises(WeightsError, match=r"on a picture of 64 x 64 .*--input exact:HEIGHTxWIDTH"):
        bring(file)
    asked = picture(120, 200)
    answer = Segmenter.load(bring(file, input="exact:120x200"), precision="f32").segment(asked).labels
    assert agreement(answer, alone(file, asked)) >= 0.999


def test_a_shape_that_is_not_said_is_told(bring: Callable[..., Bundle], tmp_path: Path) -> None:
    file = graph(tmp_path / "theirs.onnx", layout="nhwc")
    model = onnx.load(file)
    for axis in model.graph.input[0].type.tensor_type.shape.dim:
        axis.Clear()
    onnx.save(model, file)
    with pytest.raises(ConfigError, match="--layout nchw or --layout nhwc"):
        bring(file)
    asked = picture()
    answer = Segmenter.load(bring(file, layout="nhwc"), precision="f32").segment(asked).labels
    assert agreement(answer, alone(file, asked, layout="nhwc")) >= 0.999


def test_broken_files(bring: Callable[..., Bundle], tmp_path: Path) -> None:
    whole = graph(tmp_path / "whole.onnx").read_bytes()
    for name, content in (
        ("empty", b""),
        ("text", b"this is no graph, though it goes by the name of one"),
        ("half", whole[: len(whole) // 2]),
        ("noise", np.random.default_rng(0).bytes(5000)),
    ):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name}\.onnx is no ONNX file"):
            bring(tmp_path / f"{name}.onnx")
    with pytest.raises(WeightsError, match=r"none\.onnx is not there"):
        bring(tmp_path / "none.onnx")
    with (tmp_path / "large.onnx").open("wb") as file:
        os.truncate(file.fileno(), 3 * 10**9)  # a hole in the disk
    with pytest.raises(WeightsError, match=r"3\.0 GB of weights; .* 2 GB"):
        bring(tmp_path / "large.onnx")


def test_weights_beside_the_file(bring: Callable[..., Bundle], tmp_path: Path) -> None:
    file = graph(tmp_path / "theirs.onnx")
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=16)
    asked = picture()
    answer = Segmenter.load(bring(file), precision="f32").segment(asked).labels
    assert agreement(answer, alone(file, asked)) >= 0.999
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="cannot"):
        bring(file)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(WeightsError, match=r"keeps its weights in weights\.bin, which is not beside it"):
        bring(file)


def test_weights_from_elsewhere_are_not_read(bring: Callable[..., Bundle], tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    file = graph(tmp_path / "inner" / "theirs.onnx")
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="weights.bin", size_threshold=16)
    (tmp_path / "inner" / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../weights.bin" if entry.key == "location" else entry.value
    file.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match="cannot"):
        bring(file)


def test_a_graph_that_no_engine_knows(bring: Callable[..., Bundle], tmp_path: Path) -> None:
    file = graph(tmp_path / "theirs.onnx")
    model = onnx.load(file)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, file)
    with pytest.raises(WeightsError, match=r"theirs\.onnx: onnxruntime cannot load it: .*Mystery"):
        bring(file)
