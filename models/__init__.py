"""Networks, the bundle, and every step between an image and a mask.

`training`, `service` and `maskserve` import this package before any library, so it opts out of the libraries' telemetry.
"""

import os
import sys

TELEMETRY_OPT_OUT = {
    "BENTOML_DO_NOT_TRACK": "True",  # bentoml: usage statistics
    "NO_ALBUMENTATIONS_UPDATE": "1",  # albumentations: version check at import
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, which timm and smp load encoders with
    "DO_NOT_TRACK": "1",  # a convention that several libraries follow
}
os.environ.update(TELEMETRY_OPT_OUT)

# `import openvino` forks a process that reports to Google Analytics, unless its telemetry package cannot be imported:
# then it uses its own stub (openvino/tools/ovc/telemetry_utils.py). NNCF reports through the same package. No
# environment variable turns it off.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes the import fail
