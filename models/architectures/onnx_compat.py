"""Layers of other libraries whose frozen form would be bound to one size of image, in a form that is not."""

from typing import Any

from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from segmentation_models_pytorch.encoders.mobileone import SEBlock
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.layers import ExportableAdaptiveAvgPool2d


class ExportablePSPBlock(PSPBlock):  # type: ignore[misc]
    """A level of PSPNet's pyramid; smp's own takes, in an export, an operation that is bound to a size."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> N x (a quarter of C) x h x w."""
        return F.interpolate(self.pool(maps), maps.shape[-2:], mode="bilinear", align_corners=True)


class ExportableSEBlock(SEBlock):  # type: ignore[misc]
    """MobileOne's squeeze-and-excitation; smp's own averages by a pool whose kernel is as large as the map."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> the same, each channel times a factor from 0 to 1."""
        means = maps.mean(dim=(2, 3), keepdim=True)
        factors: Tensor = self.expand(F.relu(self.reduce(means))).sigmoid()
        return maps * factors


def make_exportable(network: nn.Module) -> None:
    """Change such layers in place; their weights, and what they compute, stay as they are."""
    for path, layer in list(network.named_modules()):
        parent, _, child = path.rpartition(".")
        if isinstance(layer, PSPBlock):
            layer.__class__ = ExportablePSPBlock
        elif isinstance(layer, SEBlock):
            layer.__class__ = ExportableSEBlock
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            size: Any = layer.output_size
            bins = size if isinstance(size, int) else size[0]
            if bins > 1:  # one mean of the whole is exported as what it is
                setattr(network.get_submodule(parent), child, ExportableAdaptiveAvgPool2d(bins))
