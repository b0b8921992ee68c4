"""The layouts that `data convert` writes. Each is read back by the format of the same name in `formats/`."""

import base64
import io
import json
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from models.imaging.decode import Labels
from models.outputs.png import to_palette_image
from models.outputs.polygons import trace_polygons
from models.outputs.rle import coco_rle_counts
from models.spec import IGNORE_INDEX, ClassInfo


class Writer:
    """Writes one layout: `add` for each image, then `finish`."""

    stores_ignored = False  # whether the layout can say that a pixel is ignored
    needs_png = False  # whether images must be PNG

    def __init__(self, out: Path, classes: list[ClassInfo], objects: list[int]) -> None:
        """`objects`: the labels that are objects in formats of objects: all but the background."""
        self.out, self.classes, self.objects = out, classes, objects
        self.names: dict[str, list[str]] = defaultdict(list)  # by split

    def image_path(self, split: str, name: str, suffix: str) -> Path:
        """Where the image is put."""
        return self.out / "images" / split / f"{name}{suffix}"

    def add(self, split: str, name: str, image: Path, labels: Labels) -> None:
        """Add one image, which is at `image` already, with labels uint8 H x W."""
        self.names[split].append(name)

    def finish(self) -> None:
        """Write the files of the whole data set."""

    def present(self, labels: Labels) -> list[int]:
        """The objects' labels that occur in a mask."""
        found = set(np.unique(labels).tolist())
        return [label for label in self.objects if label in found]


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


class VocWriter(Writer):
    """`JPEGImages`, `SegmentationClass`, lists, and CVAT's `labelmap.txt` with the names."""

    stores_ignored = True

    def image_path(self, split: str, name: str, suffix: str) -> Path:
        """All splits are in one folder."""
        return self.out / "JPEGImages" / f"{name}{suffix}"

    def add(self, split: str, name: str, image: Path, labels: Labels) -> None:
        """Write the mask as a palette PNG."""
        super().add(split, name, image, labels)
        file = self.out / "SegmentationClass" / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        to_palette_image(labels, self.classes).save(file)

    def finish(self) -> None:
        """Write the lists and the label map."""
        for split, names in self.names.items():
            _write(self.out / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{name}\n" for name in names))
        lines = (f"{entry.name}:{','.join(map(str, entry.rgb))}::\n" for entry in self.classes)
        _write(self.out / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(lines))


class CocoWriter(Writer):
    """`annotations/instances_SPLIT.json` with one region of run lengths per class; ignored pixels are a crowd."""

    stores_ignored = True

    def __init__(self, out: Path, classes: list[ClassInfo], objects: list[int]) -> None:
        """As `Writer`."""
        super().__init__(out, classes, objects)
        self.images: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.annotations: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def add(self, split: str, name: str, image: Path, labels: Labels) -> None:
        """Add the regions of one image."""
        super().add(split, name, image, labels)
        height, width = labels.shape
        number = len(self.images[split]) + 1
        self.images[split].append({"id": number, "file_name": image.name, "height": height, "width": width})
        counts = coco_rle_counts(labels)
        for label in [*self.present(labels), *([IGNORE_INDEX] if IGNORE_INDEX in counts else [])]:
            rows, columns = np.nonzero((labels == label).any(axis=1))[0], np.nonzero((labels == label).any(axis=0))[0]
            box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
            ignored = label == IGNORE_INDEX
            self.annotations[split].append({
                "id": len(self.annotations[split]) + 1,
                "image_id": number,
                "category_id": self.objects[0] + 1 if ignored else label + 1,
                "iscrowd": int(ignored),
                "area": int((labels == label).sum()),
                "bbox": box,
                "segmentation": {"size": [height, width], "counts": counts[label]},
            })  # fmt: skip

    def finish(self) -> None:
        """Write one file per split."""
        categories = [
            {
                "id": label + 1,
                "name": self.classes[label].name,
                "supercategory": "",
                "color": list(self.classes[label].rgb),
            }
            for label in self.objects
        ]
        for split, images in self.images.items():
            content = {"images": images, "annotations": self.annotations[split], "categories": categories}
            _write(self.out / "annotations" / f"instances_{split}.json", json.dumps(content))


class YoloWriter(Writer):
    """`labels/SPLIT/NAME.txt` with a polygon per region along the edges of pixels, holes joined to it; and `data.yaml`."""

    def add(self, split: str, name: str, image: Path, labels: Labels) -> None:
        """Write the polygons of one image."""
        super().add(split, name, image, labels)
        height, width = labels.shape
        polygons = trace_polygons(labels, len(self.classes))
        lines = []
        for number, label in enumerate(self.objects):
            for outline, *holes in polygons.get(label, []):
                ring = list(outline)
                for hole in holes:  # a seam without width: to the hole, around it, and back
                    ring += [*hole, outline[0]]
                lines.append(f"{number} " + " ".join(f"{x / width:.9g} {y / height:.9g}" for x, y in ring))
        _write(self.out / "labels" / split / f"{name}.txt", "".join(f"{line}\n" for line in lines))

    def finish(self) -> None:
        """Write the names and the folders of the splits."""
        names = {number: self.classes[label].name for number, label in enumerate(self.objects)}
        content = {"path": ".", **{split: f"images/{split}" for split in self.names}, "names": names}
        _write(self.out / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


class LabelmeWriter(Writer):
    """`SPLIT/NAME.json` beside the image, with a mask shape per class; `classes.txt` keeps the order of the classes."""

    def image_path(self, split: str, name: str, suffix: str) -> Path:
        """Beside its JSON file."""
        return self.out / split / f"{name}{suffix}"

    def add(self, split: str, name: str, image: Path, labels: Labels) -> None:
        """Write the shapes of one image."""
        super().add(split, name, image, labels)
        found: list[dict[str, Any]] = []
        for label in self.present(labels):
            inside = labels == label
            rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
            top, bottom, left, right = (int(value) for value in (rows[0], rows[-1], columns[0], columns[-1]))
            buffer = io.BytesIO()
            Image.fromarray(inside[top : bottom + 1, left : right + 1]).save(buffer, "PNG")
            found.append({
                "label": self.classes[label].name, "points": [[left, top], [right, bottom]], "group_id": None, "description": "",
                "shape_type": "mask", "flags": {}, "mask": base64.b64encode(buffer.getvalue()).decode(),
            })  # fmt: skip
        content = {
            "version": "5.4.1", "flags": {}, "shapes": found, "imagePath": image.name, "imageData": None,
            "imageHeight": labels.shape[0], "imageWidth": labels.shape[1],
        }  # fmt: skip
        _write(self.out / split / f"{name}.json", json.dumps(content))

    def finish(self) -> None:
        """Write the class list."""
        _write(self.out / "classes.txt", "".join(f"{entry.name}\n" for entry in self.classes))


class CvatWriter(Writer):
    """`annotations.xml` of "CVAT for images 1.1" with a mask per class; `subset` names the split."""

    def __init__(self, out: Path, classes: list[ClassInfo], objects: list[int]) -> None:
        """As `Writer`."""
        super().__init__(out, classes, objects)
        self.root = ElementTree.Element("annotations")
        ElementTree.SubElement(self.root, "version").text = "1.1"
        listed = ElementTree.SubElement(
            ElementTree.SubElement(ElementTree.SubElement(self.root, "meta"), "job"), "labels"
        )
        for label in objects:
            entry = ElementTree.SubElement(listed, "label")
            ElementTree.SubElement(entry, "name").text = classes[label].name
            ElementTree.SubElement(entry, "color").text = f"#{bytes(classes[label].rgb).hex()}"
        self.count = 0

    def add(self, split: str, name: str, image: Path, labels: Labels) -> None:
        """Add the masks of one image."""
        super().add(split, name, image, labels)
        height, width = labels.shape
        element = ElementTree.SubElement(
            self.root, "image", id=str(self.count), name=f"{split}/{image.name}", subset=split, width=str(width),
            height=str(height),
        )  # fmt: skip
        self.count += 1
        for label in self.present(labels):
            inside = labels == label
            rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
            top, left = int(rows[0]), int(columns[0])
            part = inside[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
            ElementTree.SubElement(
                element, "mask", label=self.classes[label].name, source="file", occluded="0", z_order="0",
                rle=", ".join(map(str, _run_lengths(part.ravel()))), left=str(left), top=str(top),
                width=str(part.shape[1]), height=str(part.shape[0]),
            )  # fmt: skip

    def finish(self) -> None:
        """Write the file."""
        ElementTree.indent(self.root)
        text = ElementTree.tostring(self.root, encoding="unicode")
        _write(self.out / "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


class LabelStudioWriter(Writer):
    """One JSON of tasks with a brush stroke per class; `train.txt`, `val.txt` and `test.txt` list the splits."""

    def __init__(self, out: Path, classes: list[ClassInfo], objects: list[int]) -> None:
        """As `Writer`."""
        super().__init__(out, classes, objects)
        self.tasks: list[dict[str, Any]] = []

    def image_path(self, split: str, name: str, suffix: str) -> Path:
        """All splits are in one folder."""
        return self.out / "images" / f"{name}{suffix}"

    def add(self, split: str, name: str, image: Path, labels: Labels) -> None:
        """Add the strokes of one image."""
        super().add(split, name, image, labels)
        height, width = labels.shape
        number = len(self.tasks) + 1
        result = [
            {
                "id": f"{number}-{label}", "type": "brushlabels", "from_name": "tag", "to_name": "image",
                "original_width": width, "original_height": height, "image_rotation": 0,
                "value": {"format": "rle", "rle": encode_brush(labels == label), "brushlabels": [self.classes[label].name]},
            }
            for label in self.present(labels)
        ]  # fmt: skip
        data = {"image": f"/data/local-files/?d=images/{image.name}"}
        self.tasks.append({"id": number, "data": data, "annotations": [{"id": number, "result": result}]})

    def finish(self) -> None:
        """Write the tasks, the class list and the lists of the splits."""
        _write(self.out / "tasks.json", json.dumps(self.tasks))
        _write(self.out / "classes.txt", "".join(f"{entry.name}\n" for entry in self.classes))
        for split, names in self.names.items():
            _write(self.out / f"{split}.txt", "".join(f"{name}\n" for name in names))


class NnunetWriter(Writer):
    """nnU-Net's 2D data sets: `imagesTr/NAME_0000.png`, `labelsTr/NAME.png`, `dataset.json`, `splits_final.json`."""

    stores_ignored = True
    needs_png = True

    def image_path(self, split: str, name: str, suffix: str) -> Path:
        """Training and validation share a folder."""
        return self.out / ("imagesTs" if split == "test" else "imagesTr") / f"{name}_0000{suffix}"

    def add(self, split: str, name: str, image: Path, labels: Labels) -> None:
        """Write the mask; the ignored label is the number after the last class."""
        super().add(split, name, image, labels)
        file = self.out / ("labelsTs" if split == "test" else "labelsTr") / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.where(labels == IGNORE_INDEX, len(self.classes), labels).astype(np.uint8)).save(file)

    def finish(self) -> None:
        """Write the description and the split."""
        labels = {entry.name: label for label, entry in enumerate(self.classes)}
        content = {
            "channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {**labels, "ignore": len(self.classes)},
            "numTraining": len(self.names["train"]) + len(self.names["val"]), "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
        }  # fmt: skip
        _write(self.out / "dataset.json", json.dumps(content, indent=2))
        _write(self.out / "splits_final.json", json.dumps([{"train": self.names["train"], "val": self.names["val"]}]))


def _run_lengths(flat: np.ndarray) -> list[int]:
    """The lengths of alternate runs, background first."""
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    lengths: list[int] = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask bool H x W as Label Studio's run lengths of RGBA words: see `formats/label_studio.decode_brush`."""
    sizes = (3, 4, 8, 16)
    bits = [f"{mask.size * 4:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in sizes)]
    value = 0
    for length in _run_lengths(mask.ravel()):
        left = length * 4
        while left:
            count = min(left, 1 << sizes[-1])
            kind = next(index for index, size in enumerate(sizes) if count <= 1 << size)
            bits.append(f"1{kind:02b}{count - 1:0{sizes[kind]}b}{value:08b}")
            left -= count
        value = 255 - value
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]
