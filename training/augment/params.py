"""A draw: all that is random about one augmented image, as plain numbers; alone, and stacked for a batch.

A matrix maps the crop's pixels to the image's: (x, y) of the one are those of the other's pixel centres, counted so
that pixel 0's centre is 0 and its edges are -0.5 and 0.5. A mirrored image of width w is therefore x -> w - 1 - x, and
an enlargement by s is x -> (x + 0.5) / s - 0.5 (Ultralytics #24617 is what comes of leaving the halves out).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX

FILL_COLOR = (124, 116, 104)  # ImageNet's mean colour, RGB: what is brought in is 0 after normalisation
IDENTITY_COLOR_FACTORS = (
    1.0,
    1.0,
    1.0,
)  # factors of brightness, contrast and saturation of an image that keeps its colours

# A cubic kernel (Keys 1981, a = -0.75, in cv2 and torch alike) overshoots what it interpolates: at most by this factor,
# the square of its absolute values' largest sum.
CUBIC_OVERSHOOT = 1.375**2


class AugmentParams(NamedTuple):
    """One sample's randomness. `Draw(size, matrix)` alone is a warp that leaves colours as they are."""

    size: tuple[int, int]  # (height, width) in pixels of the image as it is handed over
    matrix: NDArray[np.float64]  # 2 x 3, from (x, y, 1) in the crop to (x, y) in the whole image
    window_corner: tuple[int, int] = (0, 0)  # (x, y) in the whole image of the first pixel that is handed over
    elastic_grid: NDArray[np.float32] | None = (
        None  # 2 x gh x gw, x then y: pixels of the crop by which control cells move
    )
    color_factors: tuple[float, float, float] = (
        IDENTITY_COLOR_FACTORS  # factors of brightness, contrast and saturation, applied in this order
    )
    hue_shift: float = 0.0  # shift as a share of the colour circle, -0.5..0.5
    blur_sigma: float = 0.0  # standard deviation in pixels of the crop
    noise_std: float = 0.0  # standard deviation in levels, 0..255
    noise_seed: int = 0  # of the noise, 0..2**31 - 1


class BatchedAugmentParams(NamedTuple):
    """A batch's draws as tensors, for any device. What no sample of the batch asks for is empty, which costs nothing there.

    That is told by the shapes: asking a GPU for values would make it wait.
    """

    size: Tensor  # int32 N x 2, height and width
    linear: Tensor  # float32 N x 2 x 2, of the matrix
    center_fraction: Tensor  # float32 N x 2, (x, y): where the crop's centre falls, less `origin`; 0..1
    center_pixel: Tensor  # int32 N x 2, (x, y): whole pixels of the same, in the image as it is handed over
    elastic_grid: Tensor  # float32 N x 2 x gh x gw, or N x 2 x 0 x 0
    color_factors: Tensor  # float64 N x 3, or N x 0
    hue_shift: Tensor  # float32 N, or 0
    blur_kernel: Tensor  # float32 N x R, the Gaussian's weights from the centre outwards, or N x 0
    noise_std: Tensor  # float32 N, or 0
    noise_seed: Tensor  # int32 N, or 0


def stack_params(draws: list[AugmentParams], crop: tuple[int, int]) -> BatchedAugmentParams:
    """Bring draws of a batch together. `crop` is (height, width) in pixels.

    The translation is split into whole pixels and a rest around the crop's centre: float32 then carries the rest alone,
    which keeps its precision in images of any size and makes a cut image's labels those of the whole one, bit for bit.
    """
    matrices = np.stack([draw.matrix for draw in draws])
    middle = np.array([(crop[1] - 1) / 2, (crop[0] - 1) / 2, 1])
    centres = matrices @ middle
    origins = np.floor(centres)
    corners = np.array([draw.window_corner for draw in draws])
    noisy = any(draw.noise_std for draw in draws)
    return BatchedAugmentParams(
        size=torch.tensor([draw.size for draw in draws], dtype=torch.int32),
        linear=torch.tensor(matrices[:, :, :2], dtype=torch.float32),
        center_fraction=torch.tensor(centres - origins, dtype=torch.float32),
        center_pixel=torch.tensor(origins - corners, dtype=torch.int32),
        elastic_grid=_stack_elastic_grids(draws),
        color_factors=torch.tensor(
            [
                draw.color_factors if any(each.color_factors != IDENTITY_COLOR_FACTORS for each in draws) else ()
                for draw in draws
            ],
            dtype=torch.float64,
        ),
        hue_shift=torch.tensor(
            [draw.hue_shift for draw in draws if any(each.hue_shift for each in draws)], dtype=torch.float32
        ),
        blur_kernel=_stack_blur_kernels(draws),
        noise_std=torch.tensor([draw.noise_std for draw in draws if noisy], dtype=torch.float32),
        noise_seed=torch.tensor([draw.noise_seed for draw in draws if noisy], dtype=torch.int32),
    )


def _stack_elastic_grids(draws: list[AugmentParams]) -> Tensor:
    """float32 N x 2 x gh x gw, zeros where a draw has none."""
    cells = next((draw.elastic_grid.shape[1:] for draw in draws if draw.elastic_grid is not None), (0, 0))
    still = np.zeros((2, *cells), np.float32)
    return torch.from_numpy(np.stack([still if draw.elastic_grid is None else draw.elastic_grid for draw in draws]))


def _stack_blur_kernels(draws: list[AugmentParams]) -> Tensor:
    """float32 N x R: the weights of the centre, of its two neighbours each, of theirs, and so on."""
    kernels = [gaussian_kernel(draw.blur_sigma) for draw in draws]
    longest = max(len(kernel) for kernel in kernels)
    if longest == 1:
        return torch.zeros(len(draws), 0)
    padded = [np.pad(kernel[len(kernel) // 2 :], (0, (longest - len(kernel)) // 2)) for kernel in kernels]
    return torch.tensor(np.stack(padded), dtype=torch.float32)


def gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    """A normalised kernel of odd length, 3.5 sigma to each side: albumentations' `create_gaussian_kernel_1d`."""
    reach = int(sigma * 3.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-9)) ** 2)
    return np.asarray(weights / weights.sum())


def crop_to_source_window(
    image: RGB, labels: Labels, draw: AugmentParams, crop: tuple[int, int]
) -> tuple[RGB, Labels, AugmentParams]:
    """The upright window of an image that its draw reads, as views, and the draw for it: less to send to a GPU.

    RGB uint8 H x W x 3 and labels uint8 H x W; `crop` is (height, width). The result of the draw stays what it was.
    """
    reach = 0.0 if draw.elastic_grid is None else CUBIC_OVERSHOOT * float(np.abs(draw.elastic_grid).max())
    height, width = crop
    x, y = np.array([-reach, width - 1 + reach]), np.array([-reach, height - 1 + reach])
    corners = np.stack([*np.meshgrid(x, y), np.ones((2, 2))]).reshape(3, 4)
    read = draw.matrix @ corners - np.array(draw.window_corner)[:, None]
    limits = np.array(draw.size[::-1])
    # One pixel for the neighbours that bilinear interpolation reads, one for float32's rounding. A crop that lies
    # outside altogether still gets a pixel, since no tensor likes to be empty.
    first = np.clip(np.floor(read.min(axis=1)) - 2, 0, limits - 1).astype(int)
    last = np.clip(np.ceil(read.max(axis=1)) + 3, first + 1, limits).astype(int)
    window = slice(first[1], last[1]), slice(first[0], last[0])
    corner = draw.window_corner[0] + int(first[0]), draw.window_corner[1] + int(first[1])
    return image[window], labels[window], draw._replace(size=labels[window].shape, window_corner=corner)


def pad_and_stack(
    items: list[tuple[RGB, Labels, AugmentParams]], crop: tuple[int, int]
) -> tuple[Tensor, Tensor, BatchedAugmentParams]:
    """A batch of images that may differ in size: each lies in the upper left of the largest height and width.

    Returns: images uint8 N x H x W x 3, labels uint8 N x H x W, and the draws that `batch.apply` takes with them.
    """
    height, width = (max(labels.shape[axis] for _, labels, _ in items) for axis in (0, 1))
    images = torch.zeros((len(items), height, width, 3), dtype=torch.uint8)
    masks = torch.full((len(items), height, width), IGNORE_INDEX, dtype=torch.uint8)
    for place, (image, labels, _) in enumerate(items):
        inside = place, slice(labels.shape[0]), slice(labels.shape[1])
        images.numpy()[inside] = image
        masks.numpy()[inside] = labels
    return images, masks, stack_params([draw for *_, draw in items], crop)
