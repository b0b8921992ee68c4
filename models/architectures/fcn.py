"""Fully convolutional networks: Long, Shelhamer and Darrell 2015 (arXiv 1411.4038), on any encoder.

An image classifier ends in fully connected layers: one prediction per image, at one image size only. The same weights
as 1x1 convolutions predict at every position of the last feature map, whatever the size of the image: a coarse map of
class scores. `FCN` does this and recovers resolution, in the order of the code below:

1. stride: the encoder halves its maps five times, so that its last one has one position per 32 x 32 pixels;
2. dilation (`output_stride`): the encoder stops halving earlier and dilates its kernels, which keeps what they see;
3. head (`head`) and 1x1 classifier: the scores of each position, from the paper's 1x1 alone to pyramids of dilated kernels;
4. upsampling (`skips`, `upsampling`): the scores are enlarged, bilinearly or by transposed convolutions that start as
   bilinear and learn, and the 1x1 scores of finer, earlier maps are added: 32s adds none, 16s the map of stride 16, 8s
   that of stride 8 too.
"""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from models.architectures import encoders
from models.architectures.heads import HEADS, HeadSpec, fcn_head
from models.architectures.layers import LearnedUpsampling, upsampling_layer
from models.architectures.onnx_compat import make_exportable
from models.architectures.prune import prune_unused_layers
from models.errors import ConfigError, closest_names, quoted

SKIP_COUNTS = {"32s": 0, "16s": 1, "8s": 2}  # finer maps whose scores are added
LEARNED_UPSAMPLING = {"bilinear": False, "learned": True}
INIT_FUNCTIONS = {"kaiming": nn.init.kaiming_normal_, "xavier": nn.init.xavier_uniform_}


class FCN(nn.Module):
    """Normalised images float N x 3 x H x W -> class scores (logits) float N x C x h x w.

    h and w are those of the finest map in use; H and W with learned upsampling.
    """

    normalisation: tuple[tuple[float, ...], tuple[float, ...]]

    def __init__(
        self, encoder: nn.Module, classes: int, head: HeadSpec, output_stride: int, skips: int, learned: bool,
        aux: bool, separable: bool, dropout: float,
    ) -> None:  # fmt: skip
        """`encoder` ends at `output_stride`; `skips` counts the finer maps in use."""
        super().__init__()
        # 1. and 2. The last three maps. Without dilation their strides are 8, 16 and 32.
        self.encoder = encoder
        channels: list[int] = encoder.out_channels[-3:]  # type: ignore[index, assignment]
        strides = [min(stride, output_stride) for stride in (8, 16, 32)]

        # 3. The head and the 1x1 classifier.
        self.head, features = head.build(channels[-1], output_stride, separable)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(features, classes, kernel_size=1)

        # 4. A 1x1 classifier per finer map (finest first), and an upsampling to each of them (coarsest first).
        finest = 2 - skips
        self.skip_scores = nn.ModuleList(nn.Conv2d(count, classes, kernel_size=1) for count in channels[finest:-1])
        factors = [coarse // fine for fine, coarse in pairwise(strides[finest:])]
        self.upsample_layers = nn.ModuleList(upsampling_layer(classes, factor, learned) for factor in reversed(factors))
        self.final_upsampling = LearnedUpsampling(classes, strides[finest]) if learned else nn.Identity()

        self.has_aux = aux
        if aux:  # on the map of stride 16, as in torchvision and mmsegmentation
            self.aux_head, features = fcn_head(channels[1], 16, separable)
            self.aux_score = nn.Conv2d(features, classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Score every position of the deepest map, then add the scores of finer maps on the way up."""
        return self.decode(self.encoder(images))

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The encoder's maps, finest first -> the scores."""
        scores: Tensor = self.score(self.dropout(self.head(maps[-1])))
        for upsampling, skip_score, finer in zip(
            self.upsample_layers, reversed(self.skip_scores), maps[-2::-1], strict=False
        ):
            scores = upsampling(scores, finer.shape[2:]) + skip_score(finer)
        full: Tensor = self.final_upsampling(scores)
        return full

    def training_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """The scores, and those of the auxiliary head if there is one: N x C x H/16 x W/16 (finer if dilated)."""
        maps = self.encoder(images)
        if not self.has_aux:
            return (self.decode(maps),)
        # The auxiliary scores first: dropout draws its random numbers in this order.
        auxiliary = self.aux_score(self.dropout(self.aux_head(maps[-2])))
        return self.decode(maps), auxiliary


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
    """Build an FCN for `classes` classes. Raises: ConfigError, WeightsError.

    encoder: of segmentation-models-pytorch, timm (`tu-NAME`), or alexnet, the paper's FCN-AlexNet with fc6 and fc7
    weights: none to start from scratch, or pretrained ones by name, such as imagenet
    output_stride: of the deepest map: 32, 16 or 8 by dilation (arXiv 1511.07122); default: as in the head's paper
    head: linear (1x1, arXiv 1411.4038), fcn (3x3, 1x1), d6 (mmsegmentation), aspp (arXiv 1706.05587), psp (arXiv 1612.01105)
    skips: 32s, 16s or 8s: finer maps added to the coarse scores (arXiv 1411.4038); default: 8s for linear and fcn, else 32s
    upsampling: bilinear, or learned by transposed convolutions that start as bilinear (arXiv 1411.4038)
    aux: train a second head on the map of stride 16 as well (PSPNet, arXiv 1612.01105)
    separable: depthwise separable 3x3 convolutions in the heads, for small devices (arXiv 1610.02357)
    dropout: fraction of the values before the 1x1 classifier dropped in training (Srivastava et al. 2014)
    init: kaiming (arXiv 1502.01852) or xavier (Glorot and Bengio 2010), of all layers that start from scratch
    """
    head_spec = _look_up_option("head", head, HEADS)
    output_stride = output_stride or head_spec.output_stride
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"The output stride {output_stride} is not possible; choose 8, 16 or 32.")
    skip_count = _look_up_option("skips", skips or head_spec.skips, SKIP_COUNTS)
    learned = _look_up_option("upsampling", upsampling, LEARNED_UPSAMPLING)
    initialise = _look_up_option("init", init, INIT_FUNCTIONS)
    if not 0 <= dropout < 1:
        raise ConfigError(f"A dropout of {dropout} is not possible; choose a fraction from 0 to below 1.")

    backbone = encoders.build(encoder, output_stride, weights)
    prune_unused_layers(backbone, encoder, output_stride, finest_level=min(5 - skip_count, 4 if aux else 5))
    make_exportable(backbone)
    network = FCN(backbone, classes, head_spec, output_stride, skip_count, learned, aux, separable, dropout)
    network.normalisation = encoders.normalisation(encoder, weights)
    for name, layer in network.named_modules():
        # Encoders initialise themselves, by Kaiming's rule. The 1x1 classifiers, with no ReLU after them, keep torch's
        # default, which starts with nearly equal scores.
        from_scratch = not name.startswith("encoder") or (init == "xavier" and not weights)
        if isinstance(layer, nn.Conv2d) and from_scratch and "score" not in name:
            initialise(layer.weight)
    return network


def _look_up_option(option: str, value: str, choices: dict[str, Any]) -> Any:
    """The entry of `choices` for an option's value. Raises: ConfigError with the closest value."""
    if value not in choices:
        closest = closest_names(str(value), choices)
        hint = f"did you mean {closest}? Choose" if closest else "choose"
        raise ConfigError(f"The option {option}={quoted(value)} is not known; {hint} from {', '.join(choices)}.")
    return choices[value]
