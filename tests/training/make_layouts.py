"""Writes tiny data sets in the layout of each tool: images of 8 x 6 pixels, with class 1 on a diagonal or in a square."""

import json
import struct
import zlib
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
SQUARE_MASK = np.zeros((HEIGHT, WIDTH), np.uint8)  # 1 in the square
SQUARE_MASK[1:4, 2:6] = 1
SPLITS = ("train", "val", "test")
UNSPLIT_COUNT = 12  # images of a data set without splits; from 10 on the hash fills all three


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Write a gray image; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path)
    return path


def write_mask(path: Path, values: np.ndarray) -> None:
    """Write a gray mask, uint8 H x W, or a color mask, uint8 H x W x 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write_pair(
    root: Path, name: str, labels: np.ndarray = DIAGONAL, images: str = "images", masks: str = "masks"
) -> None:
    """Write a gray image NAME.png and its mask."""
    write_image(root / images / f"{name}.png")
    write_mask(root / masks / f"{name}.png", labels)


def encode_gray_png(bits: int, size: tuple[int, int], rows: Sequence[bytes]) -> bytes:
    """A gray PNG with this many bits per sample; `size` is (width, height). Rows may be missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", *size, bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write_huge_image(path: Path) -> None:
    """Write the header of a PNG of 20,000 x 20,000 pixels, over the limit of the decoder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_gray_png(1, (20_000, 20_000), []))


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
    """CVAT's export of a task: colors, no splits."""
    names = [f"frame_{number:06}" for number in range(UNSPLIT_COUNT)]
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
    """The content of a COCO file; without `annotations`, each image has the square."""
    squares = [{"image_id": 100 + index, "category_id": 1, "segmentation": [SQUARE]} for index in range(len(names))]
    return {
        "images": [
            {"id": 100 + index, "file_name": name, "height": HEIGHT, "width": WIDTH} for index, name in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {"id": index, "iscrowd": 0, **entry}
            for index, entry in enumerate(squares if annotations is None else annotations)
        ],
        **more,
    }


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def make_coco(root: Path) -> None:
    """The layout of COCO, with captions and keypoints in the same folder."""
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
    names = [f"frame_{number:06}.jpg" for number in range(UNSPLIT_COUNT)]
    for name in names:
        write_image(root / "images" / name)
    write_json(root / "annotations" / "instances_default.json", coco_content(names))


def make_cvat_coco_project(root: Path) -> None:
    for subset in ("Train", "Validation", "Test"):
        write_image(root / "images" / subset / "frame.jpg")
        write_json(root / "annotations" / f"instances_{subset}.json", coco_content(["frame.jpg"]))


def make_label_studio(root: Path) -> None:
    names = [f"{number:08x}-shot.jpg" for number in range(UNSPLIT_COUNT)]
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
    """Write a data set with these annotations, by default on image 100, and load its training split."""
    for name in names:
        write_image(root / "images" / name)
    entries = [{"image_id": 100, "category_id": 1, **entry} for entry in annotations]
    write_json(root / "annotations" / "instances_train.json", coco_content(names, entries, **more))
    write_json(root / "annotations" / "instances_val.json", coco_content(names, entries, **more))
    return load_split(root, "train")


def make_labelme(root: Path) -> None:
    for index in range(UNSPLIT_COUNT):
        write_image(root / f"shot{index}.jpg")
        shape = {"label": "cat", "points": [[2, 1], [6, 4]], "shape_type": "rectangle", "group_id": None}
        content = {"version": "5.4", "shapes": [shape], "imagePath": f"shot{index}.jpg", "imageData": None}
        write_json(root / f"shot{index}.json", content | {"imageHeight": HEIGHT, "imageWidth": WIDTH})


def make_yolo(root: Path, images: str = "images/{}", labels: str = "labels/{}") -> None:
    row = " ".join(f"{value / side}" for value, side in zip(SQUARE, [WIDTH, HEIGHT] * 4, strict=True))
    for split in SPLITS:
        write_image(root / images.format(split) / f"{split}_1.jpg")
        write_lines(root / labels.format(split) / f"{split}_1.txt", f"1 {row}")
    (root / "data.yaml").write_text("names: [dog, cat]\n")


def make_yolo_by_split(root: Path) -> None:
    make_yolo(root, "{}/images", "{}/labels")


def label_studio_region(label: str = "cat") -> dict[str, Any]:
    """A polygon around the square, in percent."""
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]
    value = {"points": points, "polygonlabels": [label]}
    return {"type": "polygonlabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}


def make_label_studio_tasks(root: Path) -> None:
    tasks = []
    for index in range(UNSPLIT_COUNT):
        write_image(root / "images" / f"shot{index}.jpg")
        annotations = [{"id": 1, "result": [label_studio_region()]}]
        path = f"/data/upload/1/0123abcd-shot{index}.jpg"
        tasks.append({"id": index, "data": {"image": path}, "annotations": annotations})
    write_json(root / "project-1-at-2024-01-01.json", tasks)


def make_label_studio_min(root: Path) -> None:
    tasks = []
    for index in range(UNSPLIT_COUNT):
        write_image(root / "images" / f"shot{index}.jpg")
        region = label_studio_region()
        tasks.append({"image": f"/data/upload/1/shot{index}.jpg", "tag": [{**region["value"], **region}], "id": index})
    write_json(root / "result.json", tasks)


CVAT_POLYGON = '<polygon label="cat" points="2,1;6,1;6,4;2,4" z_order="0"></polygon>'


def write_cvat(root: Path, *shapes: str, count: int = UNSPLIT_COUNT, head: str = "") -> None:
    """CVAT's XML with the same shapes for each image."""
    images = []
    for index in range(count):
        write_image(root / "images" / f"shot{index}.jpg")
        images.append(
            f'<image id="{index}" name="shot{index}.jpg" width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>'
        )
    labels = "<label><name>cat</name><color>#ff0000</color></label>"
    text = f"<annotations><meta><job><labels>{labels}</labels></job></meta>{''.join(images)}</annotations>"
    (root / "annotations.xml").write_text(f'<?xml version="1.0"?>{head}{text}')


def make_cvat_images(root: Path) -> None:
    write_cvat(root, CVAT_POLYGON)


def make_same_folder(root: Path) -> None:
    for index in range(UNSPLIT_COUNT):
        write_image(root / f"shot_{index}.jpg")
        write_mask(root / f"shot_{index}_mask.png", DIAGONAL)


def make_satellite(root: Path) -> None:
    """DeepGlobe: the images have an ending too."""
    for index in range(UNSPLIT_COUNT):
        write_image(root / f"{index}_sat.jpg")
        write_mask(root / f"{index}_mask.png", DIAGONAL)


def make_roboflow_masks(root: Path) -> None:
    for split in ("train", "valid", "test"):
        write_image(root / split / f"{split}_jpg.rf.1.jpg")
        write_mask(root / split / f"{split}_jpg.rf.1_mask.png", DIAGONAL)
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n")


def make_object_masks(root: Path) -> None:
    """Data Science Bowl 2018: a mask per object."""
    for index in range(UNSPLIT_COUNT):
        write_image(root / "stage1" / f"id{index}" / "images" / f"id{index}.png")
        for part, row in enumerate((0, 3)):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[row : row + 2, :3] = 255
            write_mask(root / "stage1" / f"id{index}" / "masks" / f"object{part}.png", mask)


def make_class_masks(root: Path) -> None:
    for index in range(UNSPLIT_COUNT):
        write_image(root / "images" / f"shot{index}.jpg")
        for part, name in enumerate(("hair", "skin")):
            write_mask(root / "masks" / f"shot{index}_{name}.png", np.uint8(255) * (part == SQUARE_MASK))


def make_numbered_masks(root: Path) -> None:
    for index in range(UNSPLIT_COUNT):
        write_image(root / "images" / f"shot{index}.jpg")
        for part in range(2):
            write_mask(root / "masks" / f"shot{index}_{part}.png", np.uint8(255) * (DIAGONAL if part else SQUARE_MASK))


def make_nnunet(root: Path) -> None:
    names = [f"{split}_1" for split in SPLITS]
    for name in names:
        end = "Ts" if name.startswith("test") else "Tr"
        write_image(root / f"images{end}" / f"{name}_0000.png")
        write_mask(root / f"labels{end}" / f"{name}.png", DIAGONAL)
    write_json(root / "dataset.json", {"labels": {"background": 0, "cat": 1}, "numTraining": 2, "file_ending": ".png"})
    write_json(root / "splits_final.json", [{"train": ["train_1"], "val": ["val_1"]}])


def write_supervisely(root: Path, *objects: dict[str, Any], splits: Sequence[str] = SPLITS) -> None:
    classes = [
        {"title": "cat", "shape": "any", "color": "#FF0000"},
        {"title": "dog", "shape": "any", "color": "#00FF00"},
    ]
    write_json(root / "meta.json", {"classes": classes, "tags": []})
    for split in splits:
        write_image(root / split / "img" / f"{split}.jpg")
        size = {"height": HEIGHT, "width": WIDTH}
        write_json(root / split / "ann" / f"{split}.jpg.json", {"size": size, "objects": list(objects)})


def make_supervisely(root: Path) -> None:
    points = {"exterior": [[2, 1], [5, 1], [5, 3], [2, 3]], "interior": []}  # pixels that belong to the object
    write_supervisely(root, {"classTitle": "cat", "geometryType": "polygon", "points": points})


LAYOUTS = {
    "supervisely": [make_supervisely],
    "nnunet": [make_nnunet],
    "labelme": [make_labelme],
    "yolo": [make_yolo, make_yolo_by_split],
    "label-studio": [make_label_studio_tasks, make_label_studio_min],
    "cvat": [make_cvat_images],
    "same-folder": [make_same_folder, make_satellite, make_roboflow_masks],
    "mask-parts": [make_object_masks, make_class_masks, make_numbered_masks],
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
