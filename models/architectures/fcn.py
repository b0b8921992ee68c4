"""Fully convolutional networks: Long, Shelhamer and Darrell 2015 (arXiv 1411.4038), on any encoder.

A classifier ends in fully connected layers: one answer an image, and only at one image size. Put 1x1 convolutions in
their place and the same weights give an answer at every position of the last feature map, whatever the image's size:
a coarse map of class scores, one for each 32 x 32 pixels. This page does that, and then wins back resolution:

- dilation (`output_stride`): the encoder shrinks less, and its kernels are spread to see as far as before;
- skip sums (`skips`): finer, earlier feature maps get 1x1 classifiers of their own, and the coarse scores are
  upsampled and added to theirs: 32s has none, 16s adds the map of stride 16, 8s that of stride 8 too.
"""

from torch import Tensor, nn

from models.architectures import encoders
from models.architectures.network import upsample
from models.errors import ConfigError

SKIPS = {"32s": 0, "16s": 1, "8s": 2}


class FCN(nn.Module):
    """Normalised images float N x 3 x H x W -> class scores (logits) N x C x h x w at the finest map in use."""

    def __init__(self, encoder: nn.Module, channels: list[int], classes: int, dropout: float) -> None:
        """`channels`: of the feature maps in use, finest first; the last one is the encoder's deepest."""
        super().__init__()
        self.encoder = encoder
        *fine, deep = channels
        self.head = nn.Sequential(  # what was fc6 and fc7
            nn.Conv2d(deep, deep // 4, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(deep // 4),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        self.score = nn.Conv2d(deep // 4, classes, kernel_size=1)
        self.skip_scores = nn.ModuleList(nn.Conv2d(count, classes, kernel_size=1) for count in fine)
        for layer in self.head:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Score every position of the deepest map, then add the finer ones on the way up."""
        maps = self.encoder(images)
        scores: Tensor = self.score(self.head(maps[-1]))
        for skip, finer in zip(reversed(self.skip_scores), maps[-2::-1], strict=False):
            scores = upsample(scores, finer.shape[-2:]) + skip(finer)
        return scores


def build(
    classes: int,
    encoder: str = "resnet18",
    weights: str | None = None,
    output_stride: int = 32,
    skips: str = "8s",
    dropout: float = 0.1,
) -> FCN:
    """An FCN for `classes` classes.

    encoder: a name of segmentation-models-pytorch, such as resnet18, resnet50, mobilenet_v2.
    weights: None to start from scratch, or the name of pretrained weights, such as imagenet.
    output_stride: of the encoder's deepest map: 32, or 16 or 8 by dilation.
    skips: 32s, 16s or 8s: how many finer maps are added.
    dropout: share of the head's channels dropped in training, 0 to 1.
    """
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"The output stride {output_stride} is not possible; choose 8, 16 or 32.")
    if skips not in SKIPS:
        raise ConfigError(f"Skips {skips!r} are not known; choose from {', '.join(SKIPS)}.")
    if not 0 <= dropout <= 1:
        raise ConfigError(f"A dropout of {dropout} is not possible; choose a share from 0 to 1.")
    body = encoders.build(encoder, weights, output_stride)
    channels = list(body.out_channels)[-1 - SKIPS[skips] :]  # type: ignore[arg-type]  # smp sets it on every encoder
    return FCN(body, channels, classes, dropout)
