"""The service: a bundle behind HTTP, on BentoML. Nothing here imports torch, albumentations or `training/`."""

import models as models  # first of all: it switches off what the libraries would report to an outside address
