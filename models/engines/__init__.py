"""Engines that run a frozen network: one module each. `base.py` states what such a module must define."""

from types import ModuleType

from models.engines import onnxruntime_engine, openvino_engine, torch_engine

ENGINES: dict[str, ModuleType] = {
    "openvino": openvino_engine,
    "onnxruntime": onnxruntime_engine,
    "torch": torch_engine,
}
