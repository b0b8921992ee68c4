"""The ground floor: networks, the bundle, and every step between an image and a mask.

Every room imports this one first, so this is where the libraries that would call home are told not to.
"""

import os
import sys

TELEMETRY_OPT_OUT = {
    "BENTOML_DO_NOT_TRACK": "True",  # bentoml: usage statistics
    "NO_ALBUMENTATIONS_UPDATE": "1",  # albumentations: version check at import
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, which timm and smp load encoders with
    "DO_NOT_TRACK": "1",  # the common sign, read by several
}
os.environ.update(TELEMETRY_OPT_OUT)

# Each `import openvino` forks a process that reports to Google Analytics, unless its telemetry cannot be imported:
# then it takes the stub that it brings (openvino/tools/ovc/telemetry_utils.py). NNCF's goes through the same package.
# There is no variable for it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how a module is barred
