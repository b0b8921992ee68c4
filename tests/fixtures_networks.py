"""Builds networks with random weights that answer as trained ones do: no dead scores, no knife-edge pixels."""

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
    """Two images of noise and two of soft shapes, uint8 4 x H x W x 3: what is steep and what is flat."""
    soft = [torch.from_numpy(synthetic_image(height, width, seed)) for seed in (1, 2)]
    return torch.cat([noise_images(2, height, width), torch.stack(soft)])


def seeded_network(name: str, classes: int = CLASSES, **options: Any) -> Network:
    """A network with the same random weights each time."""
    torch.manual_seed(0)
    return build(name, classes, **options)


def calibrate_norms(network: nn.Module, *inputs: Tensor) -> nn.Module:
    """Give a network of random weights what training would: no branch is silent, and norms fit what they meet.

    Libraries start the last norm of a residual branch, or its scale, at zero or near it: such a branch could be wrong and
    nobody would see it. Batch norms take their statistics from one batch; fresh ones let a deep network's scores die
    out or explode. A batch of noise alone would not do: met with a soft image, the network makes much of little,
    rounding included.

    Returns: the network, ready to answer.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    usual = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
    with torch.no_grad():
        for name, each in network.named_parameters():
            if each.numel() > 1 and each.min() == each.max():
                each.normal_(0, 0.1) if name.endswith("bias") else each.uniform_(0.5, 1.5)
        network.train()(*inputs)
    for layer, momentum in zip(norms, usual, strict=True):
        layer.momentum = momentum
    return network.eval()


def calibrated_network(name: str, classes: int = CLASSES, **options: Any) -> Network:
    """A network with the same random weights each time, ready to answer."""
    network = seeded_network(name, classes, **options)
    calibrate_norms(network, sample_images(128, 128))
    return network


class ConstantGlobalPooling(TorchFunctionMode):
    """While it is entered, a mean over the whole image says the same of every image.

    Squeeze-and-excitation reads such means, and they change where a map is made dense. Without them nothing else may.
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
    """How far a dilated encoder's maps lie, at the old positions, from the undilated one's.

    `size`: (height, width) of the images in pixels. `still`: with means over the image left out (`StillMeans`).
    Returns: the largest difference, as a share of its map's largest value; in float64 rounding stays below 1e-10.
    """
    torch.manual_seed(0)
    noisy = (sample_images(*size).double().permute(0, 3, 1, 2) - 128) / 64
    with ConstantGlobalPooling() if constant_pooling else nullcontext(), torch.no_grad():
        strided = calibrate_norms(encoders.build(name).double(), noisy)
        dilated = encoders.build(name, output_stride).double().eval()
        nn.Module.load_state_dict(dilated, strided.state_dict())  # not smp's, which looks for a classifier's last layer
        return max_relative_difference(strided(noisy[2:]), dilated(noisy[2:]), output_stride)


def max_relative_difference(strided: list[Tensor], dilated: list[Tensor], output_stride: int) -> float:
    """The largest difference of two encoders' maps, finest first, at the positions of the strided ones."""
    worst = 0.0
    for level, (old, new) in enumerate(zip(strided, dilated, strict=True)):
        step = max(1, 2**level // output_stride)
        assert new[..., ::step, ::step].shape == old.shape
        if old.numel():  # some have no map of stride 2
            worst = max(worst, float((new[..., ::step, ::step] - old).abs().max() / old.abs().max()))
    return worst


def measure_flops(module: nn.Module, like: Tensor, method: str = "forward") -> int:
    """Floating-point operations of a method on an input of this shape; a multiplication and an addition are two."""
    shadow = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(shadow, method)(like.to("meta"))
    return int(counter.get_total_flops())


def export_to_segmenter(network: Network, folder: Path) -> Segmenter:
    """The network as a graph, in OpenVINO, in float32."""
    export_onnx(network, folder / MODEL_FILE)
    classes = [ClassInfo(name=str(label), rgb=(label, 0, 0)) for label in range(network.num_classes)]
    spec = BundleSpec(name="frozen", classes=classes, input=NATIVE, architecture=network.architecture)
    return Segmenter.load(Bundle(folder, spec, hash=""), precision="f32", threads=1)
