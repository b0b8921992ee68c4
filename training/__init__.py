"""Training: from a folder of images and masks to a bundle. Imports `models/`, never `service/`."""

import models as models  # first: it turns off the telemetry of other libraries
