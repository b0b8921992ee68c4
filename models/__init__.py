"""The ground floor: networks, the bundle, and every step between an image and a mask.

Every room imports this one first, so this is where the libraries that would call home are told not to.
"""

import os

QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",  # bentoml: usage statistics
    "NO_ALBUMENTATIONS_UPDATE": "1",  # albumentations: version check at import
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, which timm and smp load encoders with
    "DO_NOT_TRACK": "1",  # the common sign, read by several
}
os.environ.update(QUIET)
