"""Replacements for layers of other libraries that cannot be exported to ONNX with dynamic image sizes."""

from typing import Any

from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from segmentation_models_pytorch.encoders.mobileone import SEBlock
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.layers import ExportableAdaptiveAvgPool2d


class ExportablePSPBlock(PSPBlock):  # type: ignore[misc]
    """A level of PSPNet's pyramid; smp's own exports to an operation with a fixed size."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> N x C/4 x h x w."""
        return F.interpolate(self.pool(maps), maps.shape[-2:], mode="bilinear", align_corners=True)


class ExportableSEBlock(SEBlock):  # type: ignore[misc]
    """MobileOne's squeeze-and-excitation; smp's own averages by a pool with a kernel as large as the map."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> N x C x h x w, each channel times a factor from 0 to 1."""
        means = maps.mean(dim=(2, 3), keepdim=True)
        factors: Tensor = self.expand(F.relu(self.reduce(means))).sigmoid()
        return maps * factors


def make_exportable(network: nn.Module) -> None:
    """Replace such layers of a network in place; weights and results stay the same."""
    for path, layer in list(network.named_modules()):
        parent, _, child = path.rpartition(".")
        if isinstance(layer, PSPBlock):
            layer.__class__ = ExportablePSPBlock
        elif isinstance(layer, SEBlock):
            layer.__class__ = ExportableSEBlock
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            size: Any = layer.output_size
            bins = size if isinstance(size, int) else size[0]
            if bins > 1:  # a global mean can be exported as it is
                setattr(network.get_submodule(parent), child, ExportableAdaptiveAvgPool2d(bins))
