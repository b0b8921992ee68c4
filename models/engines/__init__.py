"""What runs a frozen network: one file an engine, one line here; `contract.py` tells what such a file must have."""

from types import ModuleType

from models.engines import onnxruntime_engine, openvino_engine, torch_engine

ENGINES: dict[str, ModuleType] = {
    "openvino": openvino_engine,
    "onnxruntime": onnxruntime_engine,
    "torch": torch_engine,
}
