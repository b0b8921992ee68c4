"""Data sets in small, laid out as the tools lay them out: images of 8 x 6, the class 1 on a diagonal or in a square."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data import load_split
from training.data.dataset import SegmentationDataset

WIDTH, HEIGHT = 8, 6
DIAGONAL = np.eye(HEIGHT, WIDTH, dtype=np.uint8)
SQUARE = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]  # columns 2 to 5, rows 1 to 3
FULL_IMAGE = [0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]
SQUARE_MASK = np.zeros((HEIGHT, WIDTH), np.uint8)  # where the square is
SQUARE_MASK[1:4, 2:6] = 1
SPLITS = ("train", "val", "test")


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A grey image of a size (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path)
    return path


def write_mask(path: Path, values: np.ndarray) -> None:
    """A grey mask of H x W values, or one in colours, H x W x 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write_lines(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def make_voc(root: Path) -> None:
    for split in SPLITS:
        write_image(root / "JPEGImages" / f"{split}_1.jpg")
        write_mask(root / "SegmentationClass" / f"{split}_1.png", DIAGONAL)
        write_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", f"{split}_1")


def make_voc_devkit(root: Path) -> None:
    make_voc(root / "VOCdevkit" / "VOC2012")


def make_cvat_voc(root: Path) -> None:
    """As CVAT exports a task: colours, and no splits."""
    names = [f"frame_{number:06}" for number in range(60)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n")
    for name in names:
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_mask(
            root / "SegmentationClass" / f"{name}.png", DIAGONAL[:, :, None] * np.array([128, 64, 128], np.uint8)
        )
    write_lines(root / "ImageSets" / "Segmentation" / "default.txt", *names)


def make_cityscapes(root: Path, ids: np.ndarray = DIAGONAL * 7, kind: str = "labelIds", masks: str = "gtFine") -> None:
    for split in SPLITS:
        write_image(root / "leftImg8bit" / split / "ulm" / f"ulm_{split}_000019_leftImg8bit.png")
        write_mask(root / masks / split / "ulm" / f"ulm_{split}_000019_{masks}_{kind}.png", ids)


def make_cityscapes_train_ids(root: Path) -> None:
    make_cityscapes(root, DIAGONAL, "labelTrainIds")


def coco_content(
    names: Sequence[str], annotations: Sequence[dict[str, Any]] | None = None, **more: Any
) -> dict[str, list[dict[str, Any]]]:
    """A COCO file of images; on each the square, where no annotations are given."""
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


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def make_coco(root: Path) -> None:
    """As COCO has it, where captions and keypoints lie beside."""
    for split in SPLITS:
        write_image(root / f"{split}2017" / f"{split}_1.jpg")
        write_json(root / "annotations" / f"instances_{split}2017.json", coco_content([f"{split}_1.jpg"]))
        write_json(root / "annotations" / f"captions_{split}2017.json", {"images": [], "annotations": []})
        write_json(root / "annotations" / f"person_keypoints_{split}2017.json", coco_content([f"{split}_1.jpg"]))


def make_coco_below_images(root: Path) -> None:
    for split in SPLITS:
        write_image(root / "images" / f"{split}2014" / f"{split}_1.jpg")
        write_json(root / "annotations" / f"stuff_{split}2014.json", coco_content([f"{split}_1.jpg"]))


def make_panoptic(root: Path) -> None:
    for split in SPLITS:
        write_image(root / f"{split}2017" / f"{split}_1.jpg")
        ids = DIAGONAL[:, :, None] * np.array([1, 2, 3], np.uint8)
        write_mask(root / "annotations" / f"panoptic_{split}2017" / f"{split}_1.png", ids)
        segments = [{"id": 1 + 2 * 256 + 3 * 65536, "category_id": 90, "iscrowd": 0}]
        entry = {"image_id": 100, "file_name": f"{split}_1.png", "segments_info": segments}
        write_json(root / "annotations" / f"panoptic_{split}2017.json", coco_content([f"{split}_1.jpg"], [entry]))


def make_cvat_coco(root: Path) -> None:
    names = [f"frame_{number:06}.jpg" for number in range(60)]
    for name in names:
        write_image(root / "images" / name)
    write_json(root / "annotations" / "instances_default.json", coco_content(names))


def make_cvat_coco_project(root: Path) -> None:
    for subset in ("Train", "Validation", "Test"):
        write_image(root / "images" / subset / "frame.jpg")
        write_json(root / "annotations" / f"instances_{subset}.json", coco_content(["frame.jpg"]))


def make_label_studio(root: Path) -> None:
    names = [f"{number:08x}-shot.jpg" for number in range(60)]
    for name in names:
        write_image(root / "images" / name)
    write_json(
        root / "result.json", coco_content([f"..\\..\\label-studio\\media\\upload\\4\\{name}" for name in names])
    )


def make_roboflow(root: Path) -> None:
    for split in ("train", "valid", "test"):
        write_image(root / split / "shot_jpg.rf.1.jpg")
        groups = [{"id": 0, "name": "people", "supercategory": "none"}]
        groups += [{"id": 1, "name": "person", "supercategory": "people"}, {"id": 2, "name": "dog"}]
        write_json(root / split / "_annotations.coco.json", coco_content(["shot_jpg.rf.1.jpg"], categories=groups))


def load_coco_annotations(
    root: Path, *annotations: dict[str, Any], names: tuple[str, ...] = ("a.jpg",), **more: Any
) -> SegmentationDataset:
    """The training split of a data set of these annotations, on the image 100 where they do not say."""
    for name in names:
        write_image(root / "images" / name)
    entries = [{"image_id": 100, "category_id": 1, **entry} for entry in annotations]
    write_json(root / "annotations" / "instances_train.json", coco_content(names, entries, **more))
    write_json(root / "annotations" / "instances_val.json", coco_content(names, entries, **more))
    return load_split(root, "train")


LAYOUTS = {
    "voc": [make_voc, make_voc_devkit, make_cvat_voc],
    "cityscapes": [make_cityscapes, make_cityscapes_train_ids],
    "coco": [
        make_coco,
        make_coco_below_images,
        make_panoptic,
        make_cvat_coco,
        make_cvat_coco_project,
        make_label_studio,
        make_roboflow,
    ],
}
