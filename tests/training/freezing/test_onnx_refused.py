"""ONNX files that cannot be imported, and the errors that say what to do."""

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
        r"holds the label \d, so \d classes or more; --classes names 4",
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
    "int8 in": ({"kind": "int8"}, {}, WeightsError, r"'x0' is int8; export it with one of uint8, float16"),
    "bytes with a mean": (
        {"kind": "uint8"},
        {"mean": "0", "std": "1"},
        ConfigError,
        "the graph normalises them itself",
    ),
    "a mean alone": ({}, {"mean": "0"}, ConfigError, "belong together"),
    "a deviation of nothing": ({}, {"mean": "0", "std": "1,0,1"}, ConfigError, "above 0"),
    "an unlikely mean": ({}, {"mean": "1,2", "std": "1"}, ConfigError, "three numbers"),
    "a mean that is none": ({}, {"mean": "nan", "std": "1"}, ConfigError, "three numbers"),
    "an unlikely order": ({}, {"order": "gbr"}, ConfigError, "--order gbr is not possible; choose rgb or bgr"),
    "an unlikely layout": ({}, {"output_layout": "chw"}, ConfigError, "--output-layout chw .* choose nchw or nhwc"),
    "an unlikely scale": ({}, {"scale": 2}, ConfigError, "--scale 2 .* choose 1 or 255"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unreadable_graph_or_wrong_hint_is_an_error(
    case: str, import_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    options, hints, error, message = REFUSED[case]
    if options.get("kind") == "int8":
        file = write_cast_graph(tmp_path / "int8.onnx", ["N", 3, "H", "W"], kind=TensorProto.INT8)
    else:
        file = write_onnx_graph(tmp_path / "theirs.onnx", **options)
    with pytest.raises(error, match=message):
        import_bundle(file, **hints)
    assert not (tmp_path / "b").exists()


def write_cast_graph(file: Path, *shapes: list[int | str], kind: int = TensorProto.FLOAT) -> Path:
    """A graph of one node per input, with inputs of these shapes."""
    drawing = GraphBuilder()
    entries = [helper.make_tensor_value_info(f"x{index}", kind, shape) for index, shape in enumerate(shapes)]
    for index in range(len(shapes)):
        drawing.add_node("Cast", f"x{index}", out=f"y{index}", to=TensorProto.FLOAT)
    outputs = [
        helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, shape) for index, shape in enumerate(shapes)
    ]
    made = helper.make_graph(drawing.nodes, "foreign", entries, outputs)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.mark.parametrize(
    ("shapes", "error", "message"),
    [
        ([["N", 3, "H", "W"], ["N", 1]], WeightsError, r"takes 2 inputs \(x0, x1\)"),
        ([["N", 1, "H", "W"]], WeightsError, "any x 1 x any x any.*three channels"),
        ([["N", 4, 32, 32]], WeightsError, "any x 4 x 32 x 32.*three channels"),
        ([["N", "C", "H", "W"]], ConfigError, "add --layout nchw or --layout nhwc"),
        (
            [[3, "H", "W"]],
            WeightsError,
            "'x0' is 3 x any x any, not an image, and only networks of images can be imported; export it with N x 3 x H x W",
        ),
    ],
)
def test_inputs_that_are_not_images_are_an_error(
    shapes: list[list[int | str]],
    error: type[MaskserveError],
    message: str,
    import_bundle: Callable[..., Bundle],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        import_bundle(write_cast_graph(tmp_path / "theirs.onnx", *shapes))


def test_graph_that_wrongly_declares_any_size(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """It adds a position for each of 15 x 25 patches, as transformers do; with its size given it can be imported."""
    drawing = GraphBuilder()
    first = drawing.add_weight(np.random.default_rng(0).normal(0, 1, (4, 3, 8, 8)))
    patches = drawing.add_node("Conv", "x", first, kernel_shape=[8, 8], strides=[8, 8])
    drawing.add_node("Add", patches, drawing.add_weight(np.random.default_rng(1).normal(0, 1, (1, 4, 15, 25))), out="y")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "h", "w"])
    file = save_graph(tmp_path / "vit.onnx", drawing, entry, [out])
    with pytest.raises(WeightsError, match=r"on an image of 64 x 64 .*--input exact:HEIGHTxWIDTH"):
        import_bundle(file)
    image = scene_image(120, 200)
    labels = Segmenter.load(import_bundle(file, input="exact:120x200"), precision="f32").segment(image).labels
    assert agreement(labels, reference_labels(file, image)) >= 0.999


def test_undeclared_shape_needs_a_layout(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "theirs.onnx", layout="nhwc")
    model = onnx.load(file)
    for axis in model.graph.input[0].type.tensor_type.shape.dim:
        axis.Clear()
    onnx.save(model, file)
    with pytest.raises(ConfigError, match="--layout nchw or --layout nhwc"):
        import_bundle(file)
    image = scene_image()
    labels = Segmenter.load(import_bundle(file, layout="nhwc"), precision="f32").segment(image).labels
    assert agreement(labels, reference_labels(file, image, layout="nhwc")) >= 0.999


def test_broken_files_are_an_error(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    whole = write_onnx_graph(tmp_path / "whole.onnx").read_bytes()
    for name, content in (
        ("empty", b""),
        ("text", b"this is not a graph, in spite of its name"),
        ("half", whole[: len(whole) // 2]),
        ("noise", np.random.default_rng(0).bytes(5000)),
    ):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name}\.onnx is not an ONNX file"):
            import_bundle(tmp_path / f"{name}.onnx")
    with pytest.raises(WeightsError, match=r"none\.onnx does not exist"):
        import_bundle(tmp_path / "none.onnx")
    with (tmp_path / "large.onnx").open("wb") as file:
        os.truncate(file.fileno(), 3 * 10**9)  # a sparse file
    with pytest.raises(WeightsError, match=r"3\.0 GB of weights; .* 2 GB"):
        import_bundle(tmp_path / "large.onnx")


def test_external_weights(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "theirs.onnx")
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=16)
    image = scene_image()
    labels = Segmenter.load(import_bundle(file), precision="f32").segment(image).labels
    assert agreement(labels, reference_labels(file, image)) >= 0.999
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="cannot"):
        import_bundle(file)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(WeightsError, match=r"keeps its weights in weights\.bin, which is missing"):
        import_bundle(file)


def test_external_weights_outside_the_folder_are_not_read(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
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


def test_graph_with_an_unknown_operator(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "theirs.onnx")
    model = onnx.load(file)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, file)
    with pytest.raises(WeightsError, match=r"theirs\.onnx: ONNX Runtime cannot load it: .*Mystery"):
        import_bundle(file)
