"""From a picture of any size to a label for each of its pixels: the only inference path there is.

Evaluation, export, the service and the command line all come through `Segmenter.segment`, so the mIoU that is
reported is the mIoU that is served. Sizes are (height, width) in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.engines import ENGINES
from models.errors import EngineError, ParityError
from models.image import RGB, Labels, read, read_mask
from models.spec import InputRule

# Images uint8 N x H x W x 3 RGB -> labels uint8 N x H x W, logits float32 N x C x h x w at the network's stride.
Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.uint8], NDArray[np.float32]]]

# Engines plan memory and kernels anew for each size that they meet: 35 ms instead of 8 a picture and a heap that
# grows without end over random sizes. Padded to multiples of this, few sizes are left. It is also a multiple of
# the deepest stride, 32, so that every feature map divides evenly.
BUCKET = 64

# Below this share of equal pixels on a probe it is another network, or a broken engine; rounding alone (f32 against
# bf16, one CPU against another) was seen to stay above 0.995.
PROBE_AGREEMENT = 0.99


@dataclass(frozen=True)
class Prediction:
    """What the network says of a picture."""

    picture: RGB  # the picture that was asked about, H x W x 3
    labels: Labels  # H x W, of exactly the picture's size


class Segmenter:
    """A frozen network that takes pictures of any size.

    It applies the spec's input rule, pads to a size bucket (but for the rule `exact`, which takes one size alone), runs
    the engine, crops back, and returns the labels to the picture's size by nearest neighbour.
    """

    def __init__(self, run: Run, rule: InputRule) -> None:
        self.run = run
        self.rule = rule

    @classmethod
    def load(cls, bundle: Bundle, engine: str = "openvino", precision: str = "auto", threads: int = 0) -> "Segmenter":
        """Open a bundle's network with an engine; `threads=0` leaves their number to the engine. Raises: EngineError."""
        if engine not in ENGINES:
            raise EngineError(f"The engine {engine!r} is not known; choose from {', '.join(ENGINES)}.")
        return cls(ENGINES[engine](bundle, "cpu", precision, threads), bundle.spec.input)

    def segment(self, picture: RGB) -> Prediction:
        """Label every pixel of an RGB uint8 picture, H x W x 3 with H and W >= 1."""
        height, width = picture.shape[:2]
        fitted = resize_picture(picture, fitted_size((height, width), self.rule))
        padded = fitted if self.rule.rule == "exact" else pad_to_bucket(fitted)
        labels, _ = self.run(padded[None])
        upright = labels[0, : fitted.shape[0], : fitted.shape[1]]
        return Prediction(picture, resize_labels(upright, (height, width)))

    def answer_probes(self, bundle: Bundle) -> float:
        """Label the bundle's probe pictures again and compare with the labels that it carries.

        Returns: the lowest share of equal pixels of any probe.
        Raises: ParityError where a probe comes out differently on this machine.
        """
        lowest = 1.0
        for picture, mask in bundle.probes():
            equal = agreement(self.segment(read(picture)).labels, read_mask(mask))
            if equal < PROBE_AGREEMENT:
                raise ParityError(
                    f"{picture}: on this machine {equal:.2%} of the probe's pixels get the label that the bundle carries; "
                    f"at least {PROBE_AGREEMENT:.0%} must. Export the bundle again or try precision f32."
                )
            lowest = min(lowest, equal)
        return lowest


def fitted_size(size: tuple[int, int], rule: InputRule) -> tuple[int, int]:
    """The (height, width) at which the network sees a picture of this size."""
    if rule.size is not None:
        return rule.size
    if rule.side is None:
        return size
    scale = rule.side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_picture(picture: RGB, size: tuple[int, int]) -> RGB:
    """Resize RGB uint8 H x W x 3: by area where it shrinks (no aliasing), bilinear where it grows."""
    if picture.shape[:2] == size:
        return picture
    shrinks = size[0] * size[1] < picture.shape[0] * picture.shape[1]
    resized = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize uint8 H x W by nearest neighbour; the result owns its memory.

    cv2's plain INTER_NEAREST takes the pixel left of the centre and shifts the mask by up to half a pixel.
    """
    if labels.shape == size:
        return labels.copy()
    resized = cv2.resize(np.ascontiguousarray(labels), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, dtype=np.uint8)


def pad_to_bucket(picture: RGB, bucket: int = BUCKET) -> RGB:
    """Repeat the last row and column until height and width divide by `bucket`."""
    height, width = picture.shape[:2]
    bottom, right = -height % bucket, -width % bucket
    return np.asarray(cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE), dtype=np.uint8)


def agreement(first: Labels, second: Labels) -> float:
    """The share of equal pixels of two label masks; 0 where their sizes differ."""
    return float(np.mean(first == second)) if first.shape == second.shape else 0.0
