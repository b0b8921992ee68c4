"""The sampled parameters of one augmented image as plain numbers, and stacked for a batch.

A matrix maps pixel coordinates (x, y) of the crop to those of the image. The center of pixel 0 is at 0 and its edges at
-0.5 and 0.5. Mirroring an image of width w is therefore x -> w - 1 - x, and enlarging by s is x -> (x + 0.5) / s - 0.5
(Ultralytics #24617 shows the error without the halves).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.imaging.decode import Labels
from models.inference.geometry import Image
from models.spec import IGNORE_INDEX

FILL_COLOR = (124, 116, 104)  # ImageNet's mean color, RGB: the area outside the image is then 0 after normalization
IDENTITY_COLOR_FACTORS = (1.0, 1.0, 1.0)  # brightness, contrast and saturation unchanged

# The largest overshoot of bicubic interpolation (Keys 1981, a = -0.75, in cv2 and torch): the square of the largest sum of
# its kernel's absolute values.
CUBIC_OVERSHOOT = 1.375**2


class AugmentParams(NamedTuple):
    """The parameters of one sample. `AugmentParams(size, matrix)` is a warp without color changes."""

    size: tuple[int, int]  # (height, width) in pixels of the image, or of the window that is passed on
    matrix: NDArray[np.float64]  # 2 x 3, from (x, y, 1) in the crop to (x, y) in the whole image
    window_corner: tuple[int, int] = (0, 0)  # (x, y) in the whole image of the first pixel of the window
    elastic_grid: NDArray[np.float32] | None = None  # 2 x gh x gw, x then y: displacement of control cells, crop pixels
    color_factors: tuple[float, float, float] = (
        IDENTITY_COLOR_FACTORS  # brightness, contrast, saturation, in this order
    )
    hue_shift: float = 0.0  # fraction of the color circle, -0.5..0.5
    blur_sigma: float = 0.0  # standard deviation in pixels of the crop
    noise_std: float = 0.0  # standard deviation in levels, 0..255
    noise_seed: int = 0  # 0..2**31 - 1


class BatchedAugmentParams(NamedTuple):
    """The parameters of a batch as tensors, for any device. A change that no sample has is an empty tensor and is skipped.

    The shapes decide, because reading values from a GPU would make it wait.
    """

    size: Tensor  # int32 N x 2, height and width
    linear: Tensor  # float32 N x 2 x 2, of the matrix
    center_fraction: Tensor  # float32 N x 2, (x, y): source of the crop's center, minus `center_pixel`; 0..1
    center_pixel: Tensor  # int32 N x 2, (x, y): whole pixels of that source, in the window
    elastic_grid: Tensor  # float32 N x 2 x gh x gw, or N x 2 x 0 x 0
    color_factors: Tensor  # float64 N x 3, or N x 0
    hue_shift: Tensor  # float32 N, or 0
    blur_kernel: Tensor  # float32 N x R, the Gaussian's weights from the center outwards, or N x 0
    noise_std: Tensor  # float32 N, or 0
    noise_seed: Tensor  # int32 N, or 0


def stack_params(samples: list[AugmentParams], crop: tuple[int, int]) -> BatchedAugmentParams:
    """Stack the parameters of a batch. `crop` is (height, width) in pixels.

    The translation is split into whole pixels and a fraction, at the crop's center: float32 only holds the fraction, which
    keeps its precision in images of any size, and makes the labels of a window those of the whole image, bit for bit.
    """
    matrices = np.stack([each.matrix for each in samples])
    middle = np.array([(crop[1] - 1) / 2, (crop[0] - 1) / 2, 1])
    centers = matrices @ middle
    origins = np.floor(centers)
    corners = np.array([each.window_corner for each in samples])
    has_color = any(each.color_factors != IDENTITY_COLOR_FACTORS for each in samples)
    has_hue = any(each.hue_shift for each in samples)
    has_noise = any(each.noise_std for each in samples)
    return BatchedAugmentParams(
        size=torch.tensor([each.size for each in samples], dtype=torch.int32),
        linear=torch.tensor(matrices[:, :, :2], dtype=torch.float32),
        center_fraction=torch.tensor(centers - origins, dtype=torch.float32),
        center_pixel=torch.tensor(origins - corners, dtype=torch.int32),
        elastic_grid=_stack_elastic_grids(samples),
        color_factors=torch.tensor([each.color_factors if has_color else () for each in samples], dtype=torch.float64),
        hue_shift=torch.tensor([each.hue_shift for each in samples if has_hue], dtype=torch.float32),
        blur_kernel=_stack_blur_kernels(samples),
        noise_std=torch.tensor([each.noise_std for each in samples if has_noise], dtype=torch.float32),
        noise_seed=torch.tensor([each.noise_seed for each in samples if has_noise], dtype=torch.int32),
    )


def _stack_elastic_grids(samples: list[AugmentParams]) -> Tensor:
    """float32 N x 2 x gh x gw, zeros for a sample without a grid."""
    grids = [each.elastic_grid for each in samples]
    zeros = np.zeros(next((grid.shape for grid in grids if grid is not None), (2, 0, 0)), np.float32)
    return torch.from_numpy(np.stack([zeros if grid is None else grid for grid in grids]))


def _stack_blur_kernels(samples: list[AugmentParams]) -> Tensor:
    """float32 N x R: the weights by distance from the center."""
    kernels = [gaussian_kernel(each.blur_sigma) for each in samples]
    longest = max(len(kernel) for kernel in kernels)
    if longest == 1:
        return torch.zeros(len(samples), 0)
    padded = [np.pad(kernel[len(kernel) // 2 :], (0, (longest - len(kernel)) // 2)) for kernel in kernels]
    return torch.tensor(np.stack(padded), dtype=torch.float32)


def gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    """A normalised kernel of odd length, 3.5 sigma to each side: albumentations' `create_gaussian_kernel_1d`."""
    radius = int(sigma * 3.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-9)) ** 2)
    return np.asarray(weights / weights.sum())


def crop_to_source_window(
    image: Image, labels: Labels, params: AugmentParams, crop: tuple[int, int]
) -> tuple[Image, Labels, AugmentParams]:
    """The window of an image that a warp reads, as views, and the parameters for it: less to send to a GPU.

    Image H x W x C and labels uint8 H x W; `crop` is (height, width). The augmented result is the same.
    """
    reach = 0.0 if params.elastic_grid is None else CUBIC_OVERSHOOT * float(np.abs(params.elastic_grid).max())
    height, width = crop
    x, y = np.array([-reach, width - 1 + reach]), np.array([-reach, height - 1 + reach])
    corners = np.stack([*np.meshgrid(x, y), np.ones((2, 2))]).reshape(3, 4)
    source = params.matrix @ corners - np.array(params.window_corner)[:, None]
    limits = np.array(params.size[::-1])
    # One pixel for the neighbors that bilinear interpolation reads, one for float32's rounding. A crop entirely outside
    # the image still gets a pixel, because many operations fail on empty tensors.
    first = np.clip(np.floor(source.min(axis=1)) - 2, 0, limits - 1).astype(int)
    last = np.clip(np.ceil(source.max(axis=1)) + 3, first + 1, limits).astype(int)
    window = slice(first[1], last[1]), slice(first[0], last[0])
    corner = params.window_corner[0] + int(first[0]), params.window_corner[1] + int(first[1])
    return image[window], labels[window], params._replace(size=labels[window].shape, window_corner=corner)


def pad_and_stack(
    items: list[tuple[Image, Labels, AugmentParams]], crop: tuple[int, int]
) -> tuple[Tensor, Tensor, BatchedAugmentParams]:
    """Stack images that may differ in size: each is placed in the upper left of the largest height and width.

    Returns: images N x H x W x C in their dtype, labels uint8 N x H x W, and the parameters, all for `augment_batch`.
    """
    height, width = (max(labels.shape[axis] for _, labels, _ in items) for axis in (0, 1))
    first = items[0][0]
    images = torch.from_numpy(np.zeros((len(items), height, width, first.shape[2]), first.dtype))
    masks = torch.full((len(items), height, width), IGNORE_INDEX, dtype=torch.uint8)
    for index, (image, labels, _) in enumerate(items):
        inside = index, slice(labels.shape[0]), slice(labels.shape[1])
        images.numpy()[inside] = image
        masks.numpy()[inside] = labels
    return images, masks, stack_params([params for *_, params in items], crop)
