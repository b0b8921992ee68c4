"""The HTTP service, on BentoML. It imports neither torch nor albumentations nor `training/`."""

import models as models  # first: it disables the telemetry of the libraries
