"""The HTTP service, on BentoML. It imports neither torch nor albumentations nor `training/`."""

import os

import models as models  # first: it disables the telemetry of the libraries
from models.thread_count import OPENMP_WAITING

# Requests and workers share the cores: threads that spin while they wait would keep each other from running. Read when torch
# is imported (models/engines/torch_engine.py).
if not any(name in os.environ for name in OPENMP_WAITING):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
