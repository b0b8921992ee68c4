"""Which encoders an FCN can stand on: `python -m benchmarks.encoders [NAME ...]`.

Of each family in segmentation-models-pytorch and timm a small member, with random weights, is asked three things:

- does `fcn` build on it, at stride 32;
- can it be dilated to stride 16 and 8, and how exactly: the largest difference, as a share of the largest value, that
  the old positions of a dilated map have to the undilated one, in float64. Rounding alone is below 1e-10. Asked again
  with means over the whole image, which squeeze-and-excitation reads, held still;
- does that FCN freeze to ONNX, and on what share of pixels, of the worse of two images, does OpenVINO agree with it.

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

from maskserve.host_info import host_info
from models.architectures.base import Network
from models.errors import MaskserveError
from models.inference.segmenter import agreement
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_networks import NATIVE, calibrated_network, dilation_error, export_to_segmenter
from training.engine.model_factory import make_torch_segmenter

ENCODER_NAMES = """
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
EXPORT_TIMEOUT_SECONDS = (
    300  # seconds that freezing may take; torch.export can think for hours about the sizes of some networks
)
SIZES = ((97, 211), (301, 150))  # (height, width) in pixels of the images on which frozen and live are compared
DILATION_SIZE = (192, 256)  # (height, width) in pixels of the images on which dilation is measured
DILATION_KEYS = ("to_16", "to_16_still", "to_8", "to_8_still")
EXACT_TOLERANCE = 1e-10  # a dilated map that differs by less than this is the same
NEAR_TOLERANCE = 0.05  # one that differs by less than this keeps most of what pretrained weights know


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["encoders"] if names and RESULTS.exists() else {}
    print(f"{'encoder':34} {'million':>8} {'to 16':>9} {'still':>9} {'to 8':>9} {'still':>9} {'frozen':>9}")
    for name in names or ENCODER_NAMES.split():
        found[name] = row = check_encoder(name)
        shown = [f"{row[key]:9.1e}" if isinstance(row[key], float) else f"{'no':>9}" for key in DILATION_KEYS]
        share = f"{row['frozen']:9.2%}" if isinstance(row["frozen"], float) else f"{'no':>9}"
        print(f"{name:34} {row['million_parameters'] or 0:8.1f} {' '.join(shown)} {share}", flush=True)
        write_results({each: found[each] for each in ENCODER_NAMES.split() if each in found} | found)
        gc.collect()
    for key, what in (("built", "built"), ("to_16", "dilated to 16"), ("to_8", "dilated to 8"), ("frozen", "frozen")):
        print(f"\ncannot be {what}:")
        for name, row in found.items():
            if isinstance(row[key], str):
                print(f"  {name}: {row[key]}")


def check_encoder(name: str) -> dict[str, Any]:
    """An encoder's answers: figures, or the reason why there is none."""
    row: dict[str, Any] = dict.fromkeys(("million_parameters", "built", *DILATION_KEYS, "frozen"))
    try:
        network = calibrated_network("fcn", encoder=name)
    except Exception as error:  # libraries raise what they meet
        return row | {"built": describe_error(error)}
    row["million_parameters"] = round(sum(each.numel() for each in network.body.encoder.parameters()) / 1e6, 2)
    row["built"] = True
    for stride in (16, 8):
        try:
            row[f"to_{stride}"] = dilation_error(name, stride, DILATION_SIZE)
            row[f"to_{stride}_still"] = dilation_error(name, stride, DILATION_SIZE, constant_pooling=True)
        except Exception as error:
            row[f"to_{stride}"] = describe_error(error)
    signal.signal(signal.SIGALRM, raise_timeout)
    signal.alarm(EXPORT_TIMEOUT_SECONDS)
    try:
        row["frozen"] = export_parity(network)
    except Exception as error:
        row["frozen"] = describe_error(error)
    finally:
        signal.alarm(0)
    return row


def raise_timeout(*_: object) -> NoReturn:
    raise TimeoutError(f"it takes longer than {EXPORT_TIMEOUT_SECONDS} seconds")


def export_parity(network: Network) -> float:
    """The lowest share of an image's pixels on which the frozen network and the live one agree."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph, original = export_to_segmenter(network, Path(folder)), make_torch_segmenter(network, NATIVE)
        asked = [synthetic_image(*size) for size in SIZES]
        return min(agreement(graph.segment(each).labels, original.segment(each).labels) for each in asked)


def describe_error(error: Exception) -> str:
    """An error in a line, with its kind where it is not the house's own."""
    if isinstance(error, MaskserveError):
        return str(error)
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__  # the exporter wraps what it met in advice
    return f"{type(deepest).__name__}: {' '.join(str(deepest).split())[:200]}"


def dilation_verdict(row: dict[str, Any], key: str) -> str:
    """How exactly an encoder can be dilated."""
    error, still = row[key], row[f"{key}_still"]
    if not isinstance(error, float):
        return "not"
    if error < EXACT_TOLERANCE:
        return "exactly"
    return (
        "exactly but for means over the image"
        if still < EXACT_TOLERANCE
        else "nearly"
        if error < NEAR_TOLERANCE
        else "roughly"
    )


def write_results(found: dict[str, dict[str, Any]]) -> None:
    packages = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "onnx", "openvino")
    dilated = {key: dict(Counter(dilation_verdict(row, key) for row in found.values())) for key in ("to_16", "to_8")}
    result = host_info() | {"versions": {package: version(package) for package in packages}}
    result |= {"asked": len(found), "dilated": dilated, "encoders": found}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
