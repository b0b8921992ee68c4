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
from tests.fixtures_graphs import GraphBuilder, reference_labels, save_graph, scene_image, write_onnx_graph

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
def test_what_cannot_be_read_is_said(case: str, import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    made, told, error, words = REFUSED[case]
    if made.get("kind") == "int8":
        file = write_cast_graph(tmp_path / "int8.onnx", ["N", 3, "H", "W"], kind=TensorProto.INT8)
    else:
        file = write_onnx_graph(tmp_path / "theirs.onnx", **made)
    with pytest.raises(error, match=words):
        import_bundle(file, **told)
    assert not (tmp_path / "b").exists()


def write_cast_graph(file: Path, *shapes: list[int | str], kind: int = TensorProto.FLOAT) -> Path:
    """A graph of one node an input, with inputs of these shapes."""
    drawing = GraphBuilder()
    entries = [helper.make_tensor_value_info(f"x{place}", kind, shape) for place, shape in enumerate(shapes)]
    for place in range(len(shapes)):
        drawing.add_node("Cast", f"x{place}", out=f"y{place}", to=TensorProto.FLOAT)
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
        ([[3, "H", "W"]], WeightsError, "'x0' is 3 x any x any; wanted are images, N x 3 x H x W"),
    ],
)
def test_inputs_that_are_no_images_are_named(
    shapes: list[list[int | str]],
    error: type[MaskserveError],
    words: str,
    import_bundle: Callable[..., Bundle],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=words):
        import_bundle(write_cast_graph(tmp_path / "theirs.onnx", *shapes))


def test_a_graph_that_only_says_that_it_takes_any_size(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """A position for each of 15 x 25 patches is added, as in transformers; told its size, it comes in."""
    drawing = GraphBuilder()
    first = drawing.add_weight(np.random.default_rng(0).normal(0, 1, (4, 3, 8, 8)))
    patches = drawing.add_node("Conv", "x", first, kernel_shape=[8, 8], strides=[8, 8])
    drawing.add_node("Add", patches, drawing.add_weight(np.random.default_rng(1).normal(0, 1, (1, 4, 15, 25))), out="y")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "h", "w"])
    file = save_graph(tmp_path / "vit.onnx", drawing, entry, [out])
    with pytest.raises(WeightsError, match=r"on an image of 64 x 64 .*--input exact:HEIGHTxWIDTH"):
        import_bundle(file)
    asked = scene_image(120, 200)
    answer = Segmenter.load(import_bundle(file, input="exact:120x200"), precision="f32").segment(asked).labels
    assert agreement(answer, reference_labels(file, asked)) >= 0.999


def test_a_shape_that_is_not_said_is_told(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "theirs.onnx", layout="nhwc")
    model = onnx.load(file)
    for axis in model.graph.input[0].type.tensor_type.shape.dim:
        axis.Clear()
    onnx.save(model, file)
    with pytest.raises(ConfigError, match="--layout nchw or --layout nhwc"):
        import_bundle(file)
    asked = scene_image()
    answer = Segmenter.load(import_bundle(file, layout="nhwc"), precision="f32").segment(asked).labels
    assert agreement(answer, reference_labels(file, asked, layout="nhwc")) >= 0.999


def test_broken_files(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    whole = write_onnx_graph(tmp_path / "whole.onnx").read_bytes()
    for name, content in (
        ("empty", b""),
        ("text", b"this is no graph, though it goes by the name of one"),
        ("half", whole[: len(whole) // 2]),
        ("noise", np.random.default_rng(0).bytes(5000)),
    ):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name}\.onnx is no ONNX file"):
            import_bundle(tmp_path / f"{name}.onnx")
    with pytest.raises(WeightsError, match=r"none\.onnx is not there"):
        import_bundle(tmp_path / "none.onnx")
    with (tmp_path / "large.onnx").open("wb") as file:
        os.truncate(file.fileno(), 3 * 10**9)  # a hole in the disk
    with pytest.raises(WeightsError, match=r"3\.0 GB of weights; .* 2 GB"):
        import_bundle(tmp_path / "large.onnx")


def test_weights_beside_the_file(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "theirs.onnx")
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=16)
    asked = scene_image()
    answer = Segmenter.load(import_bundle(file), precision="f32").segment(asked).labels
    assert agreement(answer, reference_labels(file, asked)) >= 0.999
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="cannot"):
        import_bundle(file)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(WeightsError, match=r"keeps its weights in weights\.bin, which is not beside it"):
        import_bundle(file)


def test_weights_from_elsewhere_are_not_read(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    file = write_onnx_graph(tmp_path / "inner" / "theirs.onnx")
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="weights.bin", size_threshold=16)
    (tmp_path / "inner" / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../weights.bin" if entry.key == "location" else entry.value
    file.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match="cannot"):
        import_bundle(file)


def test_a_graph_that_no_engine_knows(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "theirs.onnx")
    model = onnx.load(file)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, file)
    with pytest.raises(WeightsError, match=r"theirs\.onnx: onnxruntime cannot load it: .*Mystery"):
        import_bundle(file)
