"""A bundle of volumes that is written and opened in milliseconds, with a network by hand: 0, 100 and 200 are the three classes.

The network moves what it sees by one voxel, to the head and to the right: in another orientation it would give other labels.
"""

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.bundle import MODEL_FILE, SPEC_FILE, Bundle, bundle_writer
from models.inference.segmenter import Segmenter
from models.sample import Sample
from models.spec import Architecture, BundleSpec, ClassInfo, InputRule, Scaling
from tests.fixtures_graphs import GraphBuilder, save_graph

COLORS = {"none": (0, 0, 0), "organ": (200, 60, 60), "lesion": (60, 90, 220)}
CLASSES = [ClassInfo(name=name, rgb=rgb) for name, rgb in COLORS.items()]
SPACING = np.array([1.0, 2.0, 3.0])  # mm to the right, front and head
AFFINE = nibabel.affines.from_matvec(np.diag(SPACING), [5, -6, 7])


def write_volume_bundle(folder: Path, name: str = "volumes") -> Path:
    """Write the bundle into `folder` and return that path."""
    spec = BundleSpec(
        name=name,
        classes=CLASSES,
        input=InputRule(
            rule="native", axes="DHW", channels=("gray",), dtype="float32", divisor=2,
            scaling=Scaling(low=(0.0,), high=(200.0,)),
        ),
        architecture=Architecture(name="by hand"),
    )  # fmt: skip
    with bundle_writer(folder) as new:
        _write_graph(new / MODEL_FILE)
        (new / SPEC_FILE).write_text(spec.model_dump_json())
        (new / "probes").mkdir()
        values = phantom().transpose(2, 1, 0)[:, ::-1, ::-1, None].astype(np.float32)
        np.savez(new / "probes" / "0.npz", values=values)
        labels = Segmenter.load(Bundle(new, spec), "onnxruntime").segment(Sample(values, "DHW", ("gray",))).labels
        np.save(new / "probes" / "0.labels.npy", labels)
    return folder


def phantom() -> NDArray[np.int16]:
    """An asymmetric volume in RAS, of the values of the classes: 8 to the right, 9 to the front, 10 to the head."""
    volume = np.zeros((8, 9, 10), np.int16)
    volume[1:4, 2:7, 3:8] = 100
    volume[5, 1:4, 1:3] = 200
    volume[6, 7, 7] = 200
    return volume


def phantom_labels() -> NDArray[np.uint8]:
    """The labels that the network gives the phantom, in RAS."""
    return (np.roll(phantom(), (1, 1), axis=(0, 2)) // 100).astype(np.uint8)


def _write_graph(file: Path) -> None:
    """The contract of a frozen network: volumes float32 N x D x H x W x 1 -> labels N x D x H x W, logits at stride 1."""
    graph = GraphBuilder()
    values = graph.add_node("Transpose", "images", perm=[0, 4, 1, 2, 3])
    move = np.zeros((1, 1, 3, 3, 3))
    move[0, 0, 0, 1, 2] = 0.05  # a voxel takes the value of the one below, and of the one to its left
    moved = graph.add_node("Conv", values, graph.add_weight(move), kernel_shape=[3, 3, 3], pads=[1] * 6)
    centers = np.array([0.0, 5.0, 10.0])  # the class is that of the nearest
    weights, bias = graph.add_weight(centers.reshape(3, 1, 1, 1, 1)), graph.add_weight(-(centers**2) / 2)
    logits = graph.add_node("Conv", moved, weights, bias, kernel_shape=[1, 1, 1], out="logits")
    graph.add_node("Cast", graph.add_node("ArgMax", logits, axis=1, keepdims=0), to=TensorProto.UINT8, out="labels")
    entry = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", "D", "H", "W", 1])
    outputs = [
        helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "depth", "height", "width"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES), "d", "h", "w"]),
    ]
    save_graph(file, graph, entry, outputs)
