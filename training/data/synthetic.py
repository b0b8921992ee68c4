"""The *shapes* data set, generated from a seed: something to train on without downloading data.

Discs, squares, triangles, stars and rings of varying size, color, texture and rotation overlap on a textured background;
bars of background hide parts of them, light falls off across the image, and there is noise. Each class has a typical hue,
but neighboring hues overlap and the background takes any of them: color helps, outlines decide.
"""

import colorsys
import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import DataError
from models.imaging.decode import RGB, Labels
from models.outputs.png import to_palette_image
from models.spec import ClassInfo
from training.data.class_file import class_table
from training.data.tree import CLASS_FILE

RgbVector = NDArray[np.float64]  # red, green, blue, 0 to 255
Points = NDArray[np.float64]  # K x 2 corners (x, y) around the origin, at a distance of at most 1

CLASSES = [
    ClassInfo(name="ground", rgb=(70, 70, 70)),
    ClassInfo(name="disc", rgb=(230, 80, 70)),
    ClassInfo(name="square", rgb=(70, 130, 230)),
    ClassInfo(name="triangle", rgb=(90, 190, 90)),
    ClassInfo(name="star", rgb=(245, 200, 60)),
    ClassInfo(name="ring", rgb=(180, 90, 210)),
]
IMAGE_SIZE = (144, 192)  # (height, width)
SPLIT_COUNTS = {"train": 600, "val": 60, "test": 60}


def generate_dataset(
    target: Path, seed: int = 0, counts: dict[str, int] | None = None, size: tuple[int, int] = IMAGE_SIZE
) -> None:
    """Write the data set into an empty folder, in the layout of `training/data/formats/folder.py`.

    `counts`: images by split; `size`: (height, width).
    Raises: DataError if the folder is not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is not empty; give a new folder, or delete its files first.")
    for split_index, (split, count) in enumerate((counts or SPLIT_COUNTS).items()):
        for folder in ("images", "masks"):
            (target / folder / split).mkdir(parents=True)
        for index in range(count):
            image, labels = generate_scene(np.random.default_rng((seed, split_index, index)), size)
            name = f"{split}_{index:04d}"
            Image.fromarray(image).save(target / "images" / split / f"{name}.jpg", quality=92)
            to_palette_image(labels, CLASSES).save(target / "masks" / split / f"{name}.png")
    with (target / CLASS_FILE).open("w", newline="") as stream:
        csv.writer(stream).writerows(class_table(CLASSES))


def generate_scene(random: np.random.Generator, size: tuple[int, int] = IMAGE_SIZE) -> tuple[RGB, Labels]:
    """One image, RGB uint8 H x W x 3, and its labels, uint8 H x W; `size` is (height, width)."""
    height, width = size
    image = texture(random, size, background_color(random), contrast=25)
    labels = np.zeros(size, np.uint8)
    for _ in range(random.integers(3, 7)):
        label = int(random.integers(1, len(CLASSES)))
        radius = min(size) * random.uniform(0.15, 0.4)
        center = random.uniform((0, 0), (width, height))
        inside = shape_mask(label, center, radius, random.uniform(0, 2 * np.pi), size)
        image[inside] = texture(random, size, shape_color(random, label), contrast=40)[inside]
        labels[inside] = label
    for _ in range(random.integers(0, 3)):
        bar = np.zeros(size, np.uint8)
        ends = random.uniform((0, 0), (width, height), (2, 2)).astype(int)
        cv2.line(bar, ends[0].tolist(), ends[1].tolist(), 1, thickness=int(random.integers(3, 8)))
        image[bar == 1] = texture(random, size, background_color(random), contrast=10)[bar == 1]
        labels[bar == 1] = 0
    return add_light_and_noise(random, image), labels


def shape_mask(label: int, center: Points, radius: float, angle: float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a shape, bool H x W. `center` is (x, y) in pixels, `angle` in radians."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    filled = np.zeros(size, np.uint8)
    for number, corners in enumerate(SHAPE_OUTLINES[CLASSES[label].name](), start=1):
        points = corners @ rotation.T * radius + center
        cv2.fillPoly(filled, [np.round(points).astype(np.int32)], number % 2)  # the second outline cuts a hole
    return np.asarray(filled == 1)


def regular_polygon(corners: int, radius: float = 1.0) -> Points:
    """The corners of a regular polygon, K x 2."""
    angles = np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def star() -> Points:
    """The corners of a five-pointed star, 10 x 2."""
    points = regular_polygon(10)
    points[1::2] *= 0.5
    return points


SHAPE_OUTLINES: dict[str, Callable[[], list[Points]]] = {
    "disc": lambda: [regular_polygon(48)],
    "square": lambda: [regular_polygon(4)],
    "triangle": lambda: [regular_polygon(3)],
    "star": lambda: [star()],
    "ring": lambda: [regular_polygon(48), regular_polygon(48, 0.5)],
}


def shape_color(random: np.random.Generator, label: int) -> RgbVector:
    """A saturated color around the hue of the class; the standard deviation is a fifth of the distance to the next class."""
    step = 1 / (len(CLASSES) - 1)
    hue = (label - 1) * step + random.normal(0, step / 5)
    return np.array(colorsys.hsv_to_rgb(hue % 1, random.uniform(0.45, 1), random.uniform(0.45, 0.95))) * 255


def background_color(random: np.random.Generator) -> RgbVector:
    """A paler color of any hue."""
    return np.array(colorsys.hsv_to_rgb(random.uniform(), random.uniform(0, 0.45), random.uniform(0.25, 0.85))) * 255


def texture(random: np.random.Generator, size: tuple[int, int], color: RgbVector, contrast: float) -> RGB:
    """A color with stripes, checks or clouds; RGB uint8 H x W x 3."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    angle, period = random.uniform(0, np.pi), random.uniform(5, 14)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = random.integers(3)
    if kind == 0:
        pattern = np.sign(np.sin(2 * np.pi * along / period))
    elif kind == 1:
        pattern = np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
    else:
        coarse = random.normal(0, 1, (height // 8 + 2, width // 8 + 2)).astype(np.float32)
        pattern = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    values = color + contrast * random.uniform(0.2, 1) * pattern[:, :, None]
    return np.asarray(values.clip(0, 255), np.uint8)


def add_light_and_noise(random: np.random.Generator, image: RGB) -> RGB:
    """Add a light gradient, a slightly soft lens, and sensor noise; RGB uint8 H x W x 3."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    angle = random.uniform(0, 2 * np.pi)
    light = 1 + 0.3 * (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5))
    values = cv2.GaussianBlur(image.astype(np.float32) * light[:, :, None].astype(np.float32), (0, 0), 0.6)
    values += random.normal(0, random.uniform(3, 10), image.shape)
    return np.asarray(values.clip(0, 255), np.uint8)
