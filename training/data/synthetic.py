"""The *shapes* data set, drawn in code from a seed: something real to train on where no data set is at hand.

Discs, squares, triangles, stars and rings of varying size, colour, texture and rotation lie over one another on a
textured ground; bars of ground hide parts of them, light falls off across the image, and noise covers it all. Each
class leans towards a hue, as things do in the world, but the hues of neighbours overlap and the ground takes any of
them: colour helps, and outlines decide.
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

Colour = NDArray[np.float64]  # red, green, blue, 0..255
Points = NDArray[np.float64]  # K x 2 corners (x, y) around the origin, at most 1 away from it

CLASSES = [
    ClassInfo(name="ground", rgb=(70, 70, 70)),
    ClassInfo(name="disc", rgb=(230, 80, 70)),
    ClassInfo(name="square", rgb=(70, 130, 230)),
    ClassInfo(name="triangle", rgb=(90, 190, 90)),
    ClassInfo(name="star", rgb=(245, 200, 60)),
    ClassInfo(name="ring", rgb=(180, 90, 210)),
]
IMAGE_SIZE = (144, 192)  # (height, width) of an image
SPLIT_COUNTS = {"train": 600, "val": 60, "test": 60}


def generate_dataset(
    target: Path, seed: int = 0, counts: dict[str, int] | None = None, size: tuple[int, int] = IMAGE_SIZE
) -> None:
    """Draw the data set into an empty folder, laid out as `training/data/formats/folder.py` reads it.

    Raises: DataError where the folder holds something already.
    """
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is not empty; give a new folder, or take that one away first.")
    for number, (split, count) in enumerate((counts or SPLIT_COUNTS).items()):
        for folder in ("images", "masks"):
            (target / folder / split).mkdir(parents=True)
        for index in range(count):
            image, labels = generate_scene(np.random.default_rng((seed, number, index)), size)
            name = f"{split}_{index:04d}"
            Image.fromarray(image).save(target / "images" / split / f"{name}.jpg", quality=92)
            to_palette_image(labels, CLASSES).save(target / "masks" / split / f"{name}.png")
    with (target / "classes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("name", "r", "g", "b"), *((entry.name, *entry.rgb) for entry in CLASSES)])


def generate_scene(random: np.random.Generator, size: tuple[int, int] = IMAGE_SIZE) -> tuple[RGB, Labels]:
    """One image, RGB uint8 H x W x 3, and its labels, uint8 H x W."""
    height, width = size
    image = texture(random, size, background_color(random), contrast=25)
    labels = np.zeros(size, np.uint8)
    for _ in range(random.integers(3, 7)):
        label = int(random.integers(1, len(CLASSES)))
        radius = min(size) * random.uniform(0.15, 0.4)
        centre = random.uniform((0, 0), (width, height))
        inside = shape_mask(label, centre, radius, random.uniform(0, 2 * np.pi), size)
        image[inside] = texture(random, size, shape_colour(random, label), contrast=40)[inside]
        labels[inside] = label
    for _ in range(random.integers(0, 3)):
        bar = np.zeros(size, np.uint8)
        ends = random.uniform((0, 0), (width, height), (2, 2)).astype(int)
        cv2.line(bar, ends[0].tolist(), ends[1].tolist(), 1, thickness=int(random.integers(3, 8)))
        image[bar == 1] = texture(random, size, background_color(random), contrast=10)[bar == 1]
        labels[bar == 1] = 0
    return add_light_and_noise(random, image), labels


def shape_mask(label: int, centre: Points, radius: float, angle: float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where a shape lies: bool H x W. `centre` is (x, y) in pixels, `angle` in radians."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    filled = np.zeros(size, np.uint8)
    for fill, corners in enumerate(SHAPE_OUTLINES[CLASSES[label].name](), start=1):
        points = corners @ turn.T * radius + centre
        cv2.fillPoly(filled, [np.round(points).astype(np.int32)], fill % 2)  # the second outline cuts a hole
    return np.asarray(filled == 1)


def regular_polygon(corners: int, radius: float = 1.0) -> Points:
    """A regular polygon."""
    angles = np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def star() -> Points:
    """A star of five points."""
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


def shape_colour(random: np.random.Generator, label: int) -> Colour:
    """A strong colour around the class's hue: the standard deviation is a fifth of the way to the next class."""
    step = 1 / (len(CLASSES) - 1)
    hue = (label - 1) * step + random.normal(0, step / 5)
    return np.array(colorsys.hsv_to_rgb(hue % 1, random.uniform(0.45, 1), random.uniform(0.45, 0.95))) * 255


def background_color(random: np.random.Generator) -> Colour:
    """A paler colour of any hue."""
    return np.array(colorsys.hsv_to_rgb(random.uniform(), random.uniform(0, 0.45), random.uniform(0.25, 0.85))) * 255


def texture(random: np.random.Generator, size: tuple[int, int], colour: Colour, contrast: float) -> RGB:
    """A colour under stripes, checks or clouds; RGB uint8 H x W x 3."""
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
    values = colour + contrast * random.uniform(0.2, 1) * pattern[:, :, None]
    return np.asarray(values.clip(0, 255), np.uint8)


def add_light_and_noise(random: np.random.Generator, image: RGB) -> RGB:
    """Light that falls off in one direction, a lens that is a little soft, and a sensor's noise."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    angle = random.uniform(0, 2 * np.pi)
    light = 1 + 0.3 * (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5))
    values = cv2.GaussianBlur(image.astype(np.float32) * light[:, :, None].astype(np.float32), (0, 0), 0.6)
    values += random.normal(0, random.uniform(3, 10), image.shape)
    return np.asarray(values.clip(0, 255), np.uint8)
