"""What is looked into: a network as the Segmenter runs it, and one image at the network's scale."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from models.imaging.decode import RGB, Labels
from models.inference.geometry import Image, canvas_size, network_input_size, resize_and_pad, resize_image
from models.inference.postprocess import Scores, resize_scores
from models.inference.segmenter import TILE_SIZE, Segmenter
from models.readers.composite import to_rgb
from models.sample import Statistics, Values
from models.spec import ClassInfo

Probabilities = NDArray[np.float32]  # K x H x W, softmax over the K classes


@dataclass(frozen=True)
class Subject:
    """A network, and an image that was resized by the input rule. Points are (x, y), sizes (height, width), in its pixels."""

    name: str  # of the image
    image: Image  # H x W x C in the channels and dtype of the input rule, at the network's scale
    segmenter: Segmenter
    classes: list[ClassInfo]
    point: tuple[int, int]  # (x, y) of the pixel that views of a single pixel explain
    target: int | None = None  # the class that `occlusion` and `why` explain; None for the predicted one
    statistics: Statistics | None = None  # of the whole sample, for the scaling `zscore` only
    stride: int = 8  # pixels up to which `shifts` moves the image: the network's largest stride

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def rgb(self) -> RGB:
        """The image for people, RGB uint8 H x W x 3; of other channels than RGB, three of them."""
        return to_rgb(self.image, self.segmenter.rule)

    @cached_property
    def gray(self) -> NDArray[np.float64]:
        """The image without color, float64 H x W x 3 in 0..255, for maps on top of it."""
        return np.asarray(self.rgb.mean(axis=2, keepdims=True).repeat(3, axis=2), np.float64)

    @cached_property
    def mean_sample(self) -> Values:
        """The mean of each channel, in the image's dtype: what hides a part of the image."""
        return np.asarray(self.image.reshape(-1, self.image.shape[2]).mean(axis=0).astype(self.image.dtype))

    def logits(self, image: Image) -> Scores:
        """The network's logits float32 K x h x w for an image H x W x C, on the grid of the padded canvas."""
        size = (image.shape[0], image.shape[1])
        canvas = resize_and_pad(image, size, canvas_size(size, self.segmenter.rule))
        images = np.ascontiguousarray(canvas)[None]
        if self.statistics is None:  # imported networks' functions take no more
            scores = self.segmenter.run(images, logits=True)[1]
        else:
            scores = self.segmenter.run(images, logits=True, statistics=self.statistics[None])[1]
        assert scores is not None  # they were requested
        first: Scores = scores[0]
        return first

    def predict(self, image: Image) -> Probabilities:
        """Class probabilities float32 K x H x W of an image H x W x C."""
        height, width = image.shape[:2]
        canvas = canvas_size((height, width), self.segmenter.rule)
        return softmax(resize_scores(self.logits(image), canvas)[:, :height, :width])

    @cached_property
    def probabilities(self) -> Probabilities:
        """Class probabilities float32 K x H x W of the image."""
        return self.predict(self.image)

    @cached_property
    def labels(self) -> Labels:
        """The most probable class of each pixel, uint8 H x W."""
        return np.asarray(self.probabilities.argmax(axis=0), np.uint8)

    def label_at_point(self) -> int:
        """The predicted class of the subject's point."""
        return int(self.labels[self.point[1], self.point[0]])

    def target_label(self) -> int:
        """The class to explain: as chosen, or else the one that is predicted at the point."""
        return self.label_at_point() if self.target is None else self.target


def softmax(scores: Scores) -> Probabilities:
    """Softmax over the first axis, in float32."""
    shifted = np.exp(scores - scores.max(axis=0))
    return np.asarray(shifted / shifted.sum(axis=0), np.float32)


def fit_image(
    image: Image, segmenter: Segmenter, point: tuple[int, int] | None
) -> tuple[Image, tuple[int, int], tuple[int, int]]:
    """Resize an image H x W x C as the network sees it, and scale the point (x, y) with it; without one, the center.

    An image that is larger than a tile is cropped to a tile around the point.
    Returns: the image, the point, and the (x, y) of its upper left pixel in the resized image.
    Raises: ConfigError for a point outside the image.
    """
    height, width = image.shape[:2]
    x, y = point or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise ConfigError(
            f"--at {x},{y} is outside the image, which has {width} x {height} pixels (x from 0, y from 0)."
        )
    rows, columns = network_input_size((height, width), segmenter.rule)
    fitted = resize_image(image, (rows, columns))
    x, y = x * columns // width, y * rows // height
    left = min(max(0, x - TILE_SIZE // 2), max(0, columns - TILE_SIZE))
    top = min(max(0, y - TILE_SIZE // 2), max(0, rows - TILE_SIZE))
    if segmenter.rule.rule != "exact":
        fitted = np.ascontiguousarray(fitted[top : top + TILE_SIZE, left : left + TILE_SIZE])
    else:
        left = top = 0
    return fitted, (x - left, y - top), (left, top)
