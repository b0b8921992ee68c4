"""What runs a frozen graph: one file an engine, one line here.

An engine is a function `load(bundle, device, precision, threads)` that returns a `Run` (`models/segmenter.py`):
images uint8 N x H x W x 3 RGB -> labels uint8 N x H x W and logits float32 N x C x h x w, callable from several
threads at once. It raises EngineError for a device or precision that this machine lacks.
"""

from models.engines import openvino

ENGINES = {
    "openvino": openvino.load,
}
