"""A bundle of signals that is written and opened in milliseconds, with a network by hand: high is class `up`, low is `down`."""

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.bundle import MODEL_FILE, SPEC_FILE, Bundle, bundle_writer
from models.inference.segmenter import Segmenter
from models.sample import Sample
from models.spec import Architecture, BundleSpec, ClassInfo, InputRule, Scaling, Spacing
from tests.fixtures_graphs import GraphBuilder, save_graph

RATE = 100.0  # Hz, that of the network
STRIDE, KERNEL = 4, 9  # time steps
COLORS = {"none": (0, 0, 0), "up": (200, 60, 60), "down": (60, 90, 220)}
CLASSES = [ClassInfo(name=name, rgb=rgb) for name, rgb in COLORS.items()]
EVENTS = [(1, 200, 300), (2, 500, 560), (1, 700, 800)]  # label, onset, offset in time steps of `signal`
TOLERANCE = 3  # time steps by which the network's events may lie beside them


def write_signal_bundle(folder: Path, name: str = "signals", channels: tuple[str, ...] = ("lead",)) -> Path:
    """Write the bundle into `folder` and return that path. A network of several channels looks at their mean."""
    count = len(channels)
    spec = BundleSpec(
        name=name,
        classes=CLASSES,
        input=InputRule(
            rule="native", axes="T", channels=channels, dtype="float32", spacing=Spacing(values=(RATE,), unit="Hz"),
            scaling=Scaling(low=(-1.0,) * count, high=(1.0,) * count),
        ),
        architecture=Architecture(name="by hand"),
    )  # fmt: skip
    with bundle_writer(folder) as new:
        _write_graph(new / MODEL_FILE, count)
        (new / SPEC_FILE).write_text(spec.model_dump_json())
        (new / "probes").mkdir()
        values = np.repeat(signal()[:, None], count, axis=1)
        (new / "probes" / "0.npz").write_bytes(npz_bytes(values=values, rate=RATE, channels=np.array(channels)))
        sample = Sample(values, "T", channels, spec.input.spacing)
        np.save(
            new / "probes" / "0.labels.npy", Segmenter.load(Bundle(new, spec), "onnxruntime").segment(sample).labels
        )
    return folder


def signal(length: int = 1000) -> NDArray[np.float32]:
    """A signal of the network's rate with the events of EVENTS, float32 T; the rest is near 0."""
    values = np.full(length, 0.1, np.float32)
    for label, onset, offset in EVENTS:
        values[onset:offset] = 1 if label == 1 else -1
    return values


def npz_bytes(**arrays: object) -> bytes:
    """An npz with these arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def wfdb_files(values: NDArray[np.float32], rate: float, leads: tuple[str, ...], name: str = "rec") -> dict[str, bytes]:
    """The files of a WFDB record of format 16, from values T x leads in mV."""
    counts = np.round(values * 1000).astype("<i2")
    lines = [f"{name} {len(leads)} {rate:g} {len(values)}"]
    for index, lead in enumerate(leads):
        checksum = int(counts[:, index].astype(np.int64).sum()) & 0xFFFF
        lines.append(f"{name}.dat 16 1000(0)/mV 16 0 {counts[0, index]} {checksum - (checksum >> 15 << 16)} 0 {lead}")
    return {f"{name}.hea": ("\n".join(lines) + "\n").encode(), f"{name}.dat": counts.tobytes()}


def zip_bytes(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _write_graph(file: Path, channels: int) -> None:
    """The contract of a frozen network: signals float32 N x T x C -> labels N x T, logits at stride 4."""
    graph = GraphBuilder()
    values = graph.add_node("Transpose", "images", perm=[0, 2, 1])
    mean = np.full((1, channels, KERNEL), 1 / (channels * KERNEL))
    pair = graph.add_weight(np.concatenate([mean, -mean]))
    high_low = graph.add_node(
        "Relu", graph.add_node("Conv", values, pair, kernel_shape=[KERNEL], strides=[STRIDE], pads=[4, 4])
    )
    weights, bias = graph.add_weight(np.array([[0, 0], [8, 0], [0, 8]])[:, :, None]), graph.add_weight([4.4, 0, 0])
    logits = graph.add_node("Conv", high_low, weights, bias, kernel_shape=[1], out="logits")
    full = graph.add_node("Resize", logits, graph.add_weight([]), graph.add_weight([1, 1, STRIDE]), mode="linear")
    graph.add_node("Cast", graph.add_node("ArgMax", full, axis=1, keepdims=0), to=TensorProto.UINT8, out="labels")
    entry = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", "T", channels])
    outputs = [
        helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "time"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES), "t"]),
    ]
    save_graph(file, graph, entry, outputs)
