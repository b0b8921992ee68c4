"""The service: a bundle behind HTTP, on BentoML. Nothing here imports torch, albumentations or `training/`."""

import sys

import models  # noqa: F401  # first of all: it switches off what bentoml would report to an outside address

# Each `import openvino` forks a process that reports to Google Analytics, unless its telemetry cannot be imported:
# then it takes the stub that it brings (openvino/tools/ovc/telemetry_utils.py). There is no variable for it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how a module is barred
