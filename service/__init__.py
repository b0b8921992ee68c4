"""The service: a bundle behind HTTP, on BentoML. Nothing here imports torch, albumentations or `training/`."""

import models  # noqa: F401  # first of all: it switches off what bentoml would report to an outside address
