"""What runs a frozen network: one file an engine, one line here; `contract.py` tells what such a file must have."""

from types import ModuleType

from models.engines import onnxruntime, openvino, torch

ENGINES: dict[str, ModuleType] = {
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "torch": torch,
}
