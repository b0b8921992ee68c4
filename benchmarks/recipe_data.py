"""The data sets of `benchmarks/recipes.py`, each a folder with the splits train, val and test.

When recipes are chosen, `test` is a part of the training images that is held out; with `final` it is the real test split.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.spec import ClassInfo
from training.data.class_file import class_table
from training.data.synthetic import add_light_and_noise, background_color, generate_dataset, texture
from training.data.tree import CLASS_FILE

HELD_OUT_SEQUENCE = "0006R0"  # of CamVid: its validation images are of a sequence that is also in the training split
HELD_OUT_CRACKS = 4  # every fourth training image
COUNTS = {"train": 200, "val": 40, "test": 40}  # of drawn sets
Scene = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # RGB H x W x 3, labels H x W
BACKGROUND = ClassInfo(name="background", rgb=(0, 0, 0))


def camvid(data: Path, target: Path, final: bool) -> None:
    """Links to the images of the SegNet tutorial's CamVid."""
    for split in ("train", "val", "test"):
        for image in sorted((data / "camvid" / ("train" if split == "test" and not final else split)).iterdir()):
            held_out = image.name.startswith(HELD_OUT_SEQUENCE)
            if not final and split != "val" and held_out != (split == "test"):
                continue
            mask = image.parent.with_name(f"{image.parent.name}annot") / f"{image.stem}.png"
            for file, folder in ((image, split), (mask, f"{split}annot")):
                (target / folder).mkdir(parents=True, exist_ok=True)
                (target / folder / file.name).symlink_to(file.resolve())


def crackforest(data: Path, target: Path, final: bool) -> None:
    """CrackForest; the labels 2 and 3, which its authors do not explain, are ignored."""
    rows = [line.split("\t") for line in (data / "crackforest" / "list.tsv").read_text().splitlines()[1:]]
    if not final:
        rows = [row for row in rows if row[0] != "test"]
        for row in [row for row in rows if row[0] == "train"][::HELD_OUT_CRACKS]:
            row[0] = "test"
    write_classes(target, [BACKGROUND, ClassInfo(name="crack", rgb=(255, 0, 0))])
    for split, image, mask in rows:
        labels = np.asarray(Image.open(data / "crackforest" / mask))
        save(target, split, Path(image).stem, None, np.where(labels > 1, 255, labels).astype(np.uint8))
        (target / "images" / split / Path(image).name).symlink_to((data / "crackforest" / image).resolve())


def shapes(data: Path, target: Path, final: bool) -> None:
    """The shapes of `maskserve data shapes`."""
    generate_dataset(target, seed=1 + final, counts=COUNTS)


def thin(data: Path, target: Path, final: bool) -> None:
    """Curved lines of 1 to 3 pixels on textured ground, and stains that are none."""
    draw_set(target, [BACKGROUND, ClassInfo(name="line", rgb=(255, 0, 0))], draw_lines, 100 + final)


def small(data: Path, target: Path, final: bool) -> None:
    """Dozens of objects of three classes, 6 to 14 pixels wide, on a field of 480 x 640."""
    classes = [
        ClassInfo(name=name, rgb=rgb)
        for name, rgb in (("disc", (255, 0, 0)), ("box", (0, 255, 0)), ("ring", (0, 0, 255)))
    ]
    draw_set(target, [BACKGROUND, *classes], draw_field, 200 + final)


DATASETS: dict[str, Callable[[Path, Path, bool], None]] = {
    "camvid": camvid,
    "crackforest": crackforest,
    "shapes": shapes,
    "thin": thin,
    "small": small,
}


def draw_set(target: Path, classes: list[ClassInfo], draw: Callable[[np.random.Generator], Scene], seed: int) -> None:
    """Write a drawn data set."""
    write_classes(target, classes)
    for number, (split, count) in enumerate(COUNTS.items()):
        for index in range(count):
            save(target, split, f"{split}_{index:04d}", *draw(np.random.default_rng((seed, number, index))))


def write_classes(target: Path, classes: list[ClassInfo]) -> None:
    """Write the class file into a new folder."""
    target.mkdir(parents=True)
    with (target / CLASS_FILE).open("w", newline="") as stream:
        csv.writer(stream).writerows(class_table(classes))


def save(target: Path, split: str, name: str, image: NDArray[np.uint8] | None, labels: NDArray[np.uint8]) -> None:
    """Write an image (None: its folder only) and its mask."""
    for folder in ("images", "masks"):
        (target / folder / split).mkdir(parents=True, exist_ok=True)
    if image is not None:
        Image.fromarray(image).save(target / "images" / split / f"{name}.jpg", quality=92)
    Image.fromarray(labels).save(target / "masks" / split / f"{name}.png")


def draw_lines(random: np.random.Generator) -> Scene:
    """One image of `thin`, 320 x 480."""
    size = 320, 480
    ground = background_color(random)
    image, labels = texture(random, size, ground, contrast=25), np.zeros(size, np.uint8)
    for _ in range(random.integers(2, 6)):  # stains
        center, axes = random.uniform((0, 0), size[::-1]).astype(int), random.integers(8, 40, 2)
        shade = (ground * random.uniform(0.6, 0.9)).tolist()
        cv2.ellipse(image, center.tolist(), axes.tolist(), float(random.uniform(0, 180)), 0, 360, shade, -1)
    for _ in range(random.integers(1, 4)):
        steps = random.normal(0, 0.25, 60).cumsum() + random.uniform(0, 2 * np.pi)
        course = np.stack([np.cos(steps), np.sin(steps)], axis=1).cumsum(axis=0) * 8 + random.uniform(
            (0, 0), size[::-1]
        )
        points, width = np.round(course).astype(np.int32)[:, None], int(random.integers(1, 4))
        cv2.polylines(image, [points], False, (ground * random.uniform(0.4, 0.75)).tolist(), width)
        cv2.polylines(labels, [points], False, 1, width)
    return add_light_and_noise(random, image), labels


def draw_field(random: np.random.Generator) -> Scene:
    """One image of `small`, 480 x 640; the classes differ in form, not in color."""
    size = 480, 640
    image, labels = texture(random, size, background_color(random), contrast=25), np.zeros(size, np.uint8)
    for _ in range(random.integers(30, 80)):
        label, radius = int(random.integers(1, 4)), int(random.integers(3, 8))
        x, y = random.integers(radius, (size[1] - radius, size[0] - radius)).tolist()
        color = random.uniform(0, 255, 3).tolist()
        for canvas, value in ((image, color), (labels, label)):
            if label == 2:
                cv2.rectangle(canvas, (x - radius, y - radius), (x + radius, y + radius), value, -1)
            else:
                cv2.circle(canvas, (x, y), radius, value, -1 if label == 1 else 2)
    return add_light_and_noise(random, image), labels
