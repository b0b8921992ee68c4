"""Tensors outside the graph's file, which no checksum of the bundle would cover, are found wherever ONNX allows them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models.bundle import MODEL_FILE, Bundle, bundle_writer, open_bundle
from models.errors import BundleError
from models.external_data import external_data_files
from tests.models.test_bundle import TINY_SPEC, write_bundle_files


def external(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def in_initializer(tensor: TensorProto) -> ModelProto:
    return helper.make_model(helper.make_graph([], "g", [], [], [tensor]))


def in_branch(tensor: TensorProto) -> ModelProto:
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "b", [], [])
    node = helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch)
    return helper.make_model(helper.make_graph([node], "g", [], []))


def in_function(tensor: TensorProto) -> ModelProto:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    model = helper.make_model(helper.make_graph([], "g", [], []))
    model.functions.append(helper.make_function("d", "F", ["a"], ["y"], [node], [helper.make_opsetid("", 17)]))
    return model


def in_sparse_initializer(tensor: TensorProto) -> ModelProto:
    indices = numpy_helper.from_array(np.zeros(4, np.int64), "i")
    sparse = helper.make_sparse_tensor(tensor, indices, [4])
    return helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse]))


@pytest.mark.parametrize("make", [in_initializer, in_branch, in_function, in_sparse_initializer])
def test_external_data_is_found(make: Callable[[TensorProto], ModelProto], tmp_path: Path) -> None:
    content = make(external("side.bin")).SerializeToString()
    group = bytes([0x7B, 0x3A, 1, 0xFF, 0x7C])  # of field 15, with bytes that are no message: protobuf skips it
    for name, data in (("plain", content), ("group", group + content)):
        (tmp_path / name).write_bytes(data)
        onnx.load(tmp_path / name, load_external_data=False)
        assert external_data_files(tmp_path / name) == {"side.bin"}


def test_a_graph_with_its_own_weights_has_none(tiny_bundle: Path) -> None:
    assert external_data_files(tiny_bundle / MODEL_FILE) == set()


@pytest.mark.parametrize("content", [b"", b"a graph", b"\x3a\x7f", b"\x80" * 11])
def test_a_file_that_is_no_graph(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated|empty"):
        external_data_files(tmp_path / "file")


def test_a_bundle_with_external_data_is_refused(tmp_path: Path) -> None:
    """Listed or not: its graph would depend on a file that an engine opens without a check."""
    with bundle_writer(tmp_path / "bundle") as new:
        write_bundle_files(new, in_initializer(external("side.bin")).SerializeToString())
        (new / "side.bin").write_bytes(bytes(16))
    bundle = open_bundle(tmp_path / "bundle")
    for opened in (bundle, Bundle(bundle.folder, TINY_SPEC)):
        with pytest.raises(BundleError, match=r"model\.onnx keeps weights in another file \('side\.bin'\)"):
            opened.verify_file(MODEL_FILE)
