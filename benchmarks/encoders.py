"""Which encoders an FCN can stand on: `python -m benchmarks.encoders [NAME ...]`.

Of each family in segmentation-models-pytorch and timm a small member, with random weights, is asked three things:

- does `fcn` build on it, at stride 32;
- can it be dilated to stride 16 and 8, and how exactly: the largest difference, as a share of the largest value, that
  the old positions of a dilated map have to the undilated one, in float64. Rounding alone is below 1e-10. Asked again
  with means over the whole picture, which squeeze-and-excitation reads, held still;
- does that FCN freeze to ONNX, and on what share of pixels, of the worse of two pictures, does OpenVINO agree with it.

Prints a table and the names of those that cannot, and writes benchmarks/results/encoders.json. Given names, only those
are asked again. All of them take half an hour on one core.
"""

import gc
import json
import signal
import sys
import tempfile
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch

from maskserve.host_info import machine
from models.architectures.base import Network
from models.errors import MaskserveError
from models.inference.segmenter import agreement
from tests.fixtures_bundles import drawing
from tests.fixtures_networks import NATIVE, dilation_error, frozen, settled
from training.engine.model_factory import live

LISTED = """
    alexnet resnet18 resnet50 resnext50_32x4d dpn68 dpn68b vgg11 vgg11_bn vgg16 senet154 se_resnet50 se_resnext50_32x4d
    densenet121 densenet161 inceptionresnetv2 inceptionv4 efficientnet-b0 efficientnet-b3 mobilenet_v2 xception
    mit_b0 mit_b2 mobileone_s0 mobileone_s4
    tu-resnet18 tu-resnet50d tu-seresnet18 tu-skresnet18 tu-resnetv2_18 tu-resnest14d tu-res2net50_14w_8s tu-regnetx_002
    tu-regnety_002 tu-convnext_atto tu-convnextv2_atto tu-inception_next_atto tu-mambaout_femto tu-nfnet_l0 tu-hrnet_w18_small
    tu-dla34 tu-ese_vovnet19b_dw tu-hgnetv2_b0 tu-darknet17 tu-cspdarknet53 tu-repvgg_a0 tu-selecsls42 tu-efficientnet_b0
    tu-efficientnet_lite0 tu-tf_efficientnet_b0 tu-tf_efficientnetv2_b0 tu-mobilenetv3_small_050 tu-mobilenetv4_conv_small
    tu-mnasnet_050 tu-lcnet_050 tu-ghostnet_050 tu-rexnet_100 tu-starnet_s050 tu-fasternet_t0 tu-repvit_m0_9 tu-fastvit_t8
    tu-edgenext_xx_small tu-mobilevit_xxs tu-mobilevitv2_050 tu-efficientvit_b0 tu-efficientvit_m0 tu-efficientformerv2_s0
    tu-poolformer_s12 tu-pvt_v2_b0 tu-swin_tiny_patch4_window7_224 tu-swinv2_tiny_window8_256 tu-maxvit_pico_rw_256
    tu-davit_tiny tu-focalnet_tiny_srf tu-gcvit_xxtiny tu-nest_tiny tu-tiny_vit_5m_224 tu-hiera_tiny_224 tu-levit_128s
    tu-nextvit_small tu-xcit_nano_12_p16_224 tu-vit_tiny_patch16_224
"""
RESULTS = Path(__file__).parent / "results" / "encoders.json"
LIMIT = 300  # seconds that freezing may take; torch.export can think for hours about the sizes of some networks
SIZES = ((97, 211), (301, 150))  # (height, width) in pixels of the pictures on which frozen and live are compared
PROBED = (192, 256)  # (height, width) in pixels of the pictures on which dilation is measured
DILATED = ("to_16", "to_16_still", "to_8", "to_8_still")
ROUNDING = 1e-10  # a dilated map that differs by less than this is the same
LITTLE = 0.05  # one that differs by less than this keeps most of what pretrained weights know


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["encoders"] if names and RESULTS.exists() else {}
    print(f"{'encoder':34} {'million':>8} {'to 16':>9} {'still':>9} {'to 8':>9} {'still':>9} {'frozen':>9}")
    for name in names or LISTED.split():
        found[name] = row = ask(name)
        shown = [f"{row[key]:9.1e}" if isinstance(row[key], float) else f"{'no':>9}" for key in DILATED]
        share = f"{row['frozen']:9.2%}" if isinstance(row["frozen"], float) else f"{'no':>9}"
        print(f"{name:34} {row['million_parameters'] or 0:8.1f} {' '.join(shown)} {share}", flush=True)
        write({each: found[each] for each in LISTED.split() if each in found} | found)
        gc.collect()
    for key, what in (("built", "built"), ("to_16", "dilated to 16"), ("to_8", "dilated to 8"), ("frozen", "frozen")):
        print(f"\ncannot be {what}:")
        for name, row in found.items():
            if isinstance(row[key], str):
                print(f"  {name}: {row[key]}")


def ask(name: str) -> dict[str, Any]:
    """An encoder's answers: figures, or the reason why there is none."""
    row: dict[str, Any] = dict.fromkeys(("million_parameters", "built", *DILATED, "frozen"))
    try:
        network = settled("fcn", encoder=name)
    except Exception as error:  # libraries raise what they meet
        return row | {"built": reason(error)}
    row["million_parameters"] = round(sum(each.numel() for each in network.body.encoder.parameters()) / 1e6, 2)
    row["built"] = True
    for stride in (16, 8):
        try:
            row[f"to_{stride}"] = dilation_error(name, stride, PROBED)
            row[f"to_{stride}_still"] = dilation_error(name, stride, PROBED, still=True)
        except Exception as error:
            row[f"to_{stride}"] = reason(error)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)
    try:
        row["frozen"] = parity(network)
    except Exception as error:
        row["frozen"] = reason(error)
    finally:
        signal.alarm(0)
    return row


def too_long(*_: object) -> NoReturn:
    raise TimeoutError(f"it takes longer than {LIMIT} seconds")


def parity(network: Network) -> float:
    """The lowest share of a picture's pixels on which the frozen network and the live one agree."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph, original = frozen(network, Path(folder)), live(network, NATIVE)
        asked = [drawing(*size) for size in SIZES]
        return min(agreement(graph.segment(each).labels, original.segment(each).labels) for each in asked)


def reason(error: Exception) -> str:
    """An error in a line, with its kind where it is not the house's own."""
    if isinstance(error, MaskserveError):
        return str(error)
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__  # the exporter wraps what it met in advice
    return f"{type(deepest).__name__}: {' '.join(str(deepest).split())[:200]}"


def word(row: dict[str, Any], key: str) -> str:
    """How exactly an encoder can be dilated."""
    error, still = row[key], row[f"{key}_still"]
    if not isinstance(error, float):
        return "not"
    if error < ROUNDING:
        return "exactly"
    return "exactly but for means over the picture" if still < ROUNDING else "nearly" if error < LITTLE else "roughly"


def write(found: dict[str, dict[str, Any]]) -> None:
    packages = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "onnx", "openvino")
    dilated = {key: dict(Counter(word(row, key) for row in found.values())) for key in ("to_16", "to_8")}
    result = machine() | {"versions": {package: version(package) for package in packages}}
    result |= {"asked": len(found), "dilated": dilated, "encoders": found}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
