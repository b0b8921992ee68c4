"""From a folder of images and masks to a bundle. Stands on `models/`, knows nothing of `service/`."""

import models as models  # first of all: it tells the libraries that call home not to
