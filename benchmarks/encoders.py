"""Which encoders an FCN works on: `python -m benchmarks.encoders [NAME ...]`.

Of each family in segmentation-models-pytorch and timm, one small encoder with random weights is tested:

- does `fcn` build on it, at stride 32;
- can it be dilated to stride 16 and 8, and how exactly: the largest difference between the dilated and the undilated
  maps at the old positions, as a fraction of the largest value, in float64 (rounding alone gives less than 1e-10).
  Measured a second time with constant global means, which squeeze-and-excitation reads;
- can this FCN be exported to ONNX, and on what fraction of the pixels does OpenVINO agree with it, on the worse of two
  images.

Prints a table and the failures, and writes benchmarks/results/encoders.json. With names, only these encoders are tested
again. All of them take half an hour on one core.
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

from benchmarks.usage import print_help_if_requested
from models.architectures.base import Network
from models.engines.host_info import host_info
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
EXPORT_TIMEOUT = 300  # seconds; torch.export can spend hours on the symbolic sizes of some networks
SIZES = ((97, 211), (301, 150))  # (height, width) in pixels of the images on which ONNX and PyTorch are compared
DILATION_SIZE = (192, 256)  # (height, width) in pixels of the images on which dilation is measured
DILATION_KEYS = ("to_16", "to_16_constant_pooling", "to_8", "to_8_constant_pooling")
EXACT_TOLERANCE = 1e-10  # the difference of dilated maps that counts as rounding
NEAR_TOLERANCE = 0.05  # below this difference, pretrained features are mostly preserved


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["encoders"] if names and RESULTS.exists() else {}
    print(f"{'encoder':34} {'million':>8} {'to 16':>9} {'constant':>9} {'to 8':>9} {'constant':>9} {'ONNX':>9}")
    for name in names or ENCODER_NAMES.split():
        rows[name] = row = measure_encoder(name)
        errors = [f"{row[key]:9.1e}" if isinstance(row[key], float) else f"{'no':>9}" for key in DILATION_KEYS]
        parity = f"{row['onnx_agreement']:9.2%}" if isinstance(row["onnx_agreement"], float) else f"{'no':>9}"
        print(f"{name:34} {row['million_parameters'] or 0:8.1f} {' '.join(errors)} {parity}", flush=True)
        write_results({each: rows[each] for each in ENCODER_NAMES.split() if each in rows} | rows)
        gc.collect()
    steps = {"built": "built", "to_16": "dilated to 16", "to_8": "dilated to 8", "onnx_agreement": "exported"}
    for key, step in steps.items():
        print(f"\ncannot be {step}:")
        for name, row in rows.items():
            if isinstance(row[key], str):
                print(f"  {name}: {row[key]}")


def measure_encoder(name: str) -> dict[str, Any]:
    """The figures of an encoder, or in their place the error."""
    row: dict[str, Any] = dict.fromkeys(("million_parameters", "built", *DILATION_KEYS, "onnx_agreement"))
    try:
        network = calibrated_network("fcn", encoder=name)
    except Exception as error:  # smp and timm raise exceptions of many types
        return row | {"built": describe_error(error)}
    row["million_parameters"] = round(sum(each.numel() for each in network.body.encoder.parameters()) / 1e6, 2)
    row["built"] = True
    for stride in (16, 8):
        try:
            row[f"to_{stride}"] = dilation_error(name, stride, DILATION_SIZE)
            row[f"to_{stride}_constant_pooling"] = dilation_error(name, stride, DILATION_SIZE, constant_pooling=True)
        except Exception as error:
            row[f"to_{stride}"] = describe_error(error)
    signal.signal(signal.SIGALRM, raise_timeout)
    signal.alarm(EXPORT_TIMEOUT)
    try:
        row["onnx_agreement"] = onnx_agreement(network)
    except Exception as error:
        row["onnx_agreement"] = describe_error(error)
    finally:
        signal.alarm(0)
    return row


def raise_timeout(*_: object) -> NoReturn:
    raise TimeoutError(f"the export takes longer than {EXPORT_TIMEOUT} seconds")


def onnx_agreement(network: Network) -> float:
    """The fraction of pixels on which the exported network and PyTorch agree, on the worst image."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported, original = export_to_segmenter(network, Path(folder)), make_torch_segmenter(network, NATIVE)
        images = [synthetic_image(*size) for size in SIZES]
        return min(agreement(exported.segment(image).labels, original.segment(image).labels) for image in images)


def describe_error(error: Exception) -> str:
    """An error in one line, with its type if it is none of maskserve's."""
    if isinstance(error, MaskserveError):
        return str(error)
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__  # the exporter wraps the original error in advice
    return f"{type(deepest).__name__}: {' '.join(str(deepest).split())[:200]}"


def dilation_verdict(row: dict[str, Any], key: str) -> str:
    """How exactly an encoder can be dilated."""
    error, with_constant_pooling = row[key], row[f"{key}_constant_pooling"]
    if not isinstance(error, float):
        return "not"
    if error < EXACT_TOLERANCE:
        return "exactly"
    if with_constant_pooling < EXACT_TOLERANCE:
        return "exactly except for global means"
    return "nearly" if error < NEAR_TOLERANCE else "roughly"


def write_results(rows: dict[str, dict[str, Any]]) -> None:
    packages = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "onnx", "openvino")
    dilated = {key: dict(Counter(dilation_verdict(row, key) for row in rows.values())) for key in ("to_16", "to_8")}
    result = host_info() | {"versions": {package: version(package) for package in packages}}
    result |= {"tested": len(rows), "dilated": dilated, "encoders": rows}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    main(sys.argv[1:])
