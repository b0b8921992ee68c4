"""Data sets in small, laid out as the tools lay them out: pictures of 8 x 6, the class 1 on a diagonal or in a square."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data import load
from training.data.dataset import Samples

WIDTH, HEIGHT = 8, 6
DIAGONAL = np.eye(HEIGHT, WIDTH, dtype=np.uint8)
SQUARE = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]  # columns 2 to 5, rows 1 to 3
WHOLE = [0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]
INSIDE = np.zeros((HEIGHT, WIDTH), np.uint8)  # where the square is
INSIDE[1:4, 2:6] = 1
SPLITS = ("train", "val", "test")


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A grey picture of a size (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path)
    return path


def mask(path: Path, values: np.ndarray) -> None:
    """A grey mask of H x W values, or one in colours, H x W x 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def lines(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def voc(root: Path) -> None:
    for split in SPLITS:
        picture(root / "JPEGImages" / f"{split}_1.jpg")
        mask(root / "SegmentationClass" / f"{split}_1.png", DIAGONAL)
        lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", f"{split}_1")


def voc_devkit(root: Path) -> None:
    voc(root / "VOCdevkit" / "VOC2012")


def voc_of_cvat(root: Path) -> None:
    """As CVAT exports a task: colours, and no splits."""
    names = [f"frame_{number:06}" for number in range(60)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n")
    for name in names:
        picture(root / "JPEGImages" / f"{name}.jpg")
        mask(root / "SegmentationClass" / f"{name}.png", DIAGONAL[:, :, None] * np.array([128, 64, 128], np.uint8))
    lines(root / "ImageSets" / "Segmentation" / "default.txt", *names)


def cityscapes(root: Path, ids: np.ndarray = DIAGONAL * 7, kind: str = "labelIds", masks: str = "gtFine") -> None:
    for split in SPLITS:
        picture(root / "leftImg8bit" / split / "ulm" / f"ulm_{split}_000019_leftImg8bit.png")
        mask(root / masks / split / "ulm" / f"ulm_{split}_000019_{masks}_{kind}.png", ids)


def cityscapes_of_train_ids(root: Path) -> None:
    cityscapes(root, DIAGONAL, "labelTrainIds")


def content(
    names: Sequence[str], annotations: Sequence[dict[str, Any]] | None = None, **more: Any
) -> dict[str, list[dict[str, Any]]]:
    """A COCO file of pictures; on each the square, where no annotations are given."""
    drawn = [{"image_id": 100 + place, "category_id": 1, "segmentation": [SQUARE]} for place in range(len(names))]
    return {
        "images": [
            {"id": 100 + place, "file_name": name, "height": HEIGHT, "width": WIDTH} for place, name in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {"id": place, "iscrowd": 0, **entry}
            for place, entry in enumerate(drawn if annotations is None else annotations)
        ],
        **more,
    }


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def coco(root: Path) -> None:
    """As COCO has it, where captions and keypoints lie beside."""
    for split in SPLITS:
        picture(root / f"{split}2017" / f"{split}_1.jpg")
        write(root / "annotations" / f"instances_{split}2017.json", content([f"{split}_1.jpg"]))
        write(root / "annotations" / f"captions_{split}2017.json", {"images": [], "annotations": []})
        write(root / "annotations" / f"person_keypoints_{split}2017.json", content([f"{split}_1.jpg"]))


def coco_below_images(root: Path) -> None:
    for split in SPLITS:
        picture(root / "images" / f"{split}2014" / f"{split}_1.jpg")
        write(root / "annotations" / f"stuff_{split}2014.json", content([f"{split}_1.jpg"]))


def panoptic(root: Path) -> None:
    for split in SPLITS:
        picture(root / f"{split}2017" / f"{split}_1.jpg")
        ids = DIAGONAL[:, :, None] * np.array([1, 2, 3], np.uint8)
        mask(root / "annotations" / f"panoptic_{split}2017" / f"{split}_1.png", ids)
        segments = [{"id": 1 + 2 * 256 + 3 * 65536, "category_id": 90, "iscrowd": 0}]
        entry = {"image_id": 100, "file_name": f"{split}_1.png", "segments_info": segments}
        write(root / "annotations" / f"panoptic_{split}2017.json", content([f"{split}_1.jpg"], [entry]))


def coco_of_cvat(root: Path) -> None:
    names = [f"frame_{number:06}.jpg" for number in range(60)]
    for name in names:
        picture(root / "images" / name)
    write(root / "annotations" / "instances_default.json", content(names))


def coco_of_cvat_project(root: Path) -> None:
    for subset in ("Train", "Validation", "Test"):
        picture(root / "images" / subset / "frame.jpg")
        write(root / "annotations" / f"instances_{subset}.json", content(["frame.jpg"]))


def label_studio(root: Path) -> None:
    names = [f"{number:08x}-shot.jpg" for number in range(60)]
    for name in names:
        picture(root / "images" / name)
    write(root / "result.json", content([f"..\\..\\label-studio\\media\\upload\\4\\{name}" for name in names]))


def roboflow(root: Path) -> None:
    for split in ("train", "valid", "test"):
        picture(root / split / "shot_jpg.rf.1.jpg")
        groups = [{"id": 0, "name": "people", "supercategory": "none"}]
        groups += [{"id": 1, "name": "person", "supercategory": "people"}, {"id": 2, "name": "dog"}]
        write(root / split / "_annotations.coco.json", content(["shot_jpg.rf.1.jpg"], categories=groups))


def opened(root: Path, *annotations: dict[str, Any], names: tuple[str, ...] = ("a.jpg",), **more: Any) -> Samples:
    """The training split of a data set of these annotations, on the picture 100 where they do not say."""
    for name in names:
        picture(root / "images" / name)
    entries = [{"image_id": 100, "category_id": 1, **entry} for entry in annotations]
    write(root / "annotations" / "instances_train.json", content(names, entries, **more))
    write(root / "annotations" / "instances_val.json", content(names, entries, **more))
    return load(root, "train")


LAYOUTS = {
    "voc": [voc, voc_devkit, voc_of_cvat],
    "cityscapes": [cityscapes, cityscapes_of_train_ids],
    "coco": [coco, coco_below_images, panoptic, coco_of_cvat, coco_of_cvat_project, label_studio, roboflow],
}
