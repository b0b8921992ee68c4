"""Fully convolutional networks: Long, Shelhamer and Darrell 2015 (arXiv 1411.4038), on any encoder.

A classifier ends in fully connected layers: one answer an image, and only at one image size. Put 1x1 convolutions in
their place and the same weights give an answer at every position of the last feature map, whatever the image's size:
a coarse map of class scores, one for each 32 x 32 pixels. This page does that, and then wins back resolution:

- dilation (`output_stride`): the encoder shrinks less, and its kernels are spread to see as far as before;
- a head (`head`) that looks around before it judges: from the paper's 1x1 alone to pyramids of dilated kernels;
- skip sums (`skips`): finer, earlier feature maps get 1x1 classifiers of their own, and the coarse scores are
  upsampled and added to theirs: 32s has none, 16s adds the map of stride 16, 8s that of stride 8 too;
- upsampling (`upsampling`): bilinear, or by transposed convolutions that start as bilinear and learn.
"""

import difflib
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures import encoders
from models.architectures.base import upsample
from models.architectures.heads import HEADS, fcn_head
from models.architectures.layers import LearnedUpsampling
from models.architectures.onnx_compat import make_exportable
from models.architectures.prune import prune_unused_layers
from models.errors import ConfigError

SKIP_COUNTS = {"32s": 0, "16s": 1, "8s": 2}
INIT_FUNCTIONS = {"kaiming": nn.init.kaiming_normal_, "xavier": nn.init.xavier_uniform_}


class FCN(nn.Module):
    """Normalised images float N x 3 x H x W -> class scores (logits) N x C x h x w at the finest map in use.

    With learned upsampling the scores are N x C x H x W.
    """

    normalisation: tuple[tuple[float, ...], tuple[float, ...]]

    def __init__(
        self, encoder: nn.Module, classes: int, head: str, output_stride: int, skips: int, learned: bool,
        aux: bool, separable: bool, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = encoder
        *_, stride_8, stride_16, deep = encoder.out_channels  # type: ignore[misc]
        self.head, features = HEADS[head].build(deep, output_stride, separable)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(features, classes, kernel_size=1)
        fine = [stride_8, stride_16][2 - skips :]
        self.skip_scores = nn.ModuleList(nn.Conv2d(count, classes, kernel_size=1) for count in fine)

        strides = [min(stride, output_stride) for stride in (8, 16, 32)][2 - skips :]
        factors = [coarse // finer for finer, coarse in pairwise(strides)]
        self.upsample_layers = nn.ModuleList(_make_upsampling(classes, factor, learned) for factor in reversed(factors))
        self.final_upsampling = LearnedUpsampling(classes, strides[0]) if learned else nn.Identity()

        self.has_aux = aux
        if aux:  # on the map of stride 16, as in torchvision and mmsegmentation
            self.aux_head, features = fcn_head(stride_16, 16, separable)
            self.aux_score = nn.Conv2d(features, classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Score every position of the deepest map, then add the finer ones on the way up."""
        return self.decode(self.encoder(images))

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The encoder's maps, finest first -> the scores."""
        scores: Tensor = self.score(self.dropout(self.head(maps[-1])))
        for enlarge, skip, finer in zip(self.upsample_layers, reversed(self.skip_scores), maps[-2::-1], strict=False):
            # To the finer map's own size: torch.export cannot always prove that a factor leads there.
            scores = enlarge(scores, finer.shape[-2:]) if isinstance(enlarge, BilinearUpsampling) else enlarge(scores)
            scores = scores + skip(finer)
        finished: Tensor = self.final_upsampling(scores)
        return finished

    def training_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """The scores, and with an auxiliary head its own, N x C x H/16 x W/16 (finer where dilated)."""
        maps = self.encoder(images)
        auxiliary = [self.aux_score(self.dropout(self.aux_head(maps[-2])))] if self.has_aux else []
        return (self.decode(maps), *auxiliary)


class BilinearUpsampling(nn.Module):
    """Scores N x C x h x w -> N x C x H x W."""

    def forward(self, scores: Tensor, size: torch.Size) -> Tensor:
        """See the class."""
        return upsample(scores, size)


def _look_up_option(option: str, word: str, known: dict[str, Any]) -> Any:
    """What a word stands for. Raises: ConfigError with the nearest words."""
    if word not in known:
        close = difflib.get_close_matches(str(word), known, n=1)
        hint = f"did you mean {close[0]}? There" if close else "there"
        raise ConfigError(f"The option {option}={word!r} is not known; {hint} is {', '.join(known)}.")
    return known[word]


def _make_upsampling(classes: int, factor: int, learned: bool) -> nn.Module:
    if factor == 1:
        return nn.Identity()  # a dilated map is as fine as the one before it
    return LearnedUpsampling(classes, factor) if learned else BilinearUpsampling()


def build(
    classes: int,
    encoder: str = "resnet18",
    weights: str | None = None,
    output_stride: int | None = None,
    head: str = "fcn",
    skips: str | None = None,
    upsampling: str = "bilinear",
    aux: bool = False,
    separable: bool = False,
    dropout: float = 0.1,
    init: str = "kaiming",
) -> FCN:
    """An FCN for `classes` classes. Raises: ConfigError, WeightsError.

    encoder: of segmentation-models-pytorch, timm (`tu-NAME`), or alexnet, the paper's FCN-AlexNet with fc6 and fc7
    weights: none to start from scratch, or pretrained ones by name, such as imagenet
    output_stride: of the deepest map: 32, 16 or 8 by dilation (arXiv 1511.07122); default: as in the head's paper
    head: linear (1x1, arXiv 1411.4038), fcn (3x3, 1x1), d6 (mmsegmentation), aspp (arXiv 1706.05587), psp (arXiv 1612.01105)
    skips: 32s, 16s or 8s: finer maps added to the coarse scores (arXiv 1411.4038); default: 8s for linear and fcn, else 32s
    upsampling: bilinear, or learned by transposed convolutions that start as bilinear (arXiv 1411.4038)
    aux: train a second head on the map of stride 16 as well (PSPNet, arXiv 1612.01105)
    separable: the heads' 3x3 kernels a channel at a time, for small devices (arXiv 1610.02357)
    dropout: share of the values before the 1x1 classifier dropped in training (Srivastava et al. 2014)
    init: kaiming (arXiv 1502.01852) or xavier (Glorot and Bengio 2010), of all that starts from scratch
    """
    known = _look_up_option("head", head, HEADS)
    output_stride = output_stride or known.output_stride
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"The output stride {output_stride} is not possible; choose 8, 16 or 32.")
    finer = _look_up_option("skips", skips or known.skips, SKIP_COUNTS)
    learned = _look_up_option("upsampling", upsampling, {"bilinear": False, "learned": True})
    fill = _look_up_option("init", init, INIT_FUNCTIONS)
    if not 0 <= dropout < 1:
        raise ConfigError(f"A dropout of {dropout} is not possible; choose a share from 0 to below 1.")
    body = encoders.build(encoder, output_stride, weights)
    prune_unused_layers(body, encoder, output_stride, finest_level=min(5 - finer, 4 if aux else 5))
    make_exportable(body)
    network = FCN(body, classes, head, output_stride, finer, learned, aux, separable, dropout)
    network.normalisation = encoders.normalisation(encoder, weights)
    for name, layer in network.named_modules():
        # Encoders are built by Kaiming's rule; the 1x1 classifiers, with no ReLU after them, start near even scores.
        ours = not name.startswith("encoder") or (init == "xavier" and not weights)
        if isinstance(layer, nn.Conv2d) and ours and "score" not in name:
            fill(layer.weight)
    return network
