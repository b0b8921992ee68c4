"""Networks with random weights that behave like trained ones: no dead scores, and few pixels with nearly equal scores."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from models.architectures import build, encoders
from models.architectures.base import Network
from models.bundle import MODEL_FILE, Bundle
from models.inference.segmenter import Segmenter
from models.spec import BundleSpec, ClassInfo, InputRule
from tests.fixtures_bundles import synthetic_image
from training.freezing.onnx_export import export_onnx

CLASSES = 5
NATIVE = InputRule(rule="native")


def noise_images(count: int, height: int, width: int) -> Tensor:
    """Images of noise, uint8 N x H x W x 3."""
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)


def sample_images(height: int, width: int) -> Tensor:
    """Two images of noise and two with smooth areas, uint8 4 x H x W x 3."""
    smooth = [torch.from_numpy(synthetic_image(height, width, seed)) for seed in (1, 2)]
    return torch.cat([noise_images(2, height, width), torch.stack(smooth)])


def seeded_network(name: str, classes: int = CLASSES, **options: Any) -> Network:
    """A network with the same random weights each time."""
    torch.manual_seed(0)
    return build(name, classes, **options)


def calibrate_norms(network: nn.Module, *inputs: Tensor) -> nn.Module:
    """Make a network with random weights behave like a trained one: no branch is silent, and norms match their inputs.

    Libraries initialise the last norm of a residual branch, or its scale, to zero or nearly so; an error in such a branch
    would go unnoticed. Batch norms take their statistics from one batch, `inputs`, because with fresh statistics the
    scores of a deep network vanish or explode. The batch has to hold smooth images too: calibrated on noise alone, the
    network amplifies the small values of a smooth image, and their rounding errors.

    Returns: the network, in evaluation mode.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.normal_(0, 0.1) if name.endswith("bias") else parameter.uniform_(0.5, 1.5)
        network.train()(*inputs)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return network.eval()


def calibrated_network(name: str, classes: int = CLASSES, **options: Any) -> Network:
    """A calibrated network with the same random weights each time, in evaluation mode."""
    network = seeded_network(name, classes, **options)
    calibrate_norms(network, sample_images(128, 128))
    return network


class ConstantGlobalPooling(TorchFunctionMode):
    """While active, a mean over the whole image is the same constant for every image.

    Squeeze-and-excitation reads such means, and they change if a map is dilated. Nothing else may change.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__ in ("mean", "adaptive_avg_pool2d", "avg_pool2d") and args[0].dim() == 4:
            if result.dim() == 2 or result.shape[2:] == (1, 1):
                return torch.full_like(result, 0.5)
        elif func.__name__ == "group_norm":
            return args[0]
        return result


def dilation_error(name: str, output_stride: int, size: tuple[int, int], constant_pooling: bool = False) -> float:
    """The largest difference between the maps of a dilated and an undilated encoder, at the old positions.

    `size` is the (height, width) of the images in pixels; `constant_pooling` excludes means over the whole image
    (`ConstantGlobalPooling`).
    Returns: the difference as a fraction of the largest value of its map. In float64, rounding stays below 1e-10.
    """
    torch.manual_seed(0)
    images = (sample_images(*size).double().permute(0, 3, 1, 2) - 128) / 64
    with ConstantGlobalPooling() if constant_pooling else nullcontext(), torch.no_grad():
        strided = calibrate_norms(encoders.build(name).double(), images)
        dilated = encoders.build(name, output_stride).double().eval()
        nn.Module.load_state_dict(dilated, strided.state_dict())  # smp's override expects a classifier's last layer
        return max_relative_difference(strided(images[2:]), dilated(images[2:]), output_stride)


def max_relative_difference(strided: list[Tensor], dilated: list[Tensor], output_stride: int) -> float:
    """The largest difference between the maps of two encoders, finest first, at the positions of the strided ones."""
    worst = 0.0
    for level, (old, new) in enumerate(zip(strided, dilated, strict=True)):
        step = max(1, 2**level // output_stride)
        assert new[..., ::step, ::step].shape == old.shape
        if old.numel():  # some encoders have no map of stride 2
            worst = max(worst, float((new[..., ::step, ::step] - old).abs().max() / old.abs().max()))
    return worst


def measure_flops(module: nn.Module, like: Tensor, method: str = "forward") -> int:
    """Floating-point operations of a method on an input of this shape; a multiplication and an addition are two."""
    meta_copy = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(meta_copy, method)(like.to("meta"))
    return int(counter.get_total_flops())


def export_to_segmenter(network: Network, folder: Path) -> Segmenter:
    """Export the network to ONNX and load it in OpenVINO, in float32."""
    export_onnx(network, folder / MODEL_FILE)
    classes = [ClassInfo(name=str(label), rgb=(label, 0, 0)) for label in range(network.num_classes)]
    spec = BundleSpec(name="exported", classes=classes, input=NATIVE, architecture=network.architecture)
    return Segmenter.load(Bundle(folder, spec, hash=""), precision="f32", threads=1)
