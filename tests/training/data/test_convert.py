"""`data convert`: what is written is read back with the same label of every pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import ConfigError, DataError
from models.spec import IGNORE_INDEX
from training.data import load_available_splits, recognize_dataset
from training.data.tools.convert import TARGETS, convert_dataset
from training.data.tools.remap import remap_dataset
from training.lint import lint

CLASSES = "background,0,0,0\nball,200,0,0\nbox,0,0,200\nrare thing,0,200,0\n"
SPLITS = {"train": 4, "val": 2, "test": 2}


def make_labels(seed: int) -> np.ndarray:
    """Regions with holes, single pixels and touching corners."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((24, 36), np.uint8)
    labels[3:20, 4:24] = 1
    labels[6:12, 8:16] = 0
    labels[8:10, 10:14] = 2
    labels[14:18, 20:33] = 2
    return np.where(rng.random(labels.shape) < 0.06, rng.integers(0, 3, labels.shape), labels).astype(np.uint8)


def make_dataset(root: Path, names: str = CLASSES, ignored: bool = False) -> Path:
    for split, count in SPLITS.items():
        for index in range(count):
            rng = np.random.default_rng(index + 100 * len(split))
            labels = make_labels(index)
            if ignored:
                labels[:2] = IGNORE_INDEX
            for kind, array, suffix in (
                ("images", rng.integers(0, 255, (24, 36, 3), np.uint8), "jpg"),
                ("masks", labels, "png"),
            ):
                file = root / kind / split / "night" / f"{split}{index}.{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    (root / "classes.csv").write_text(names)
    return root


def named_pixels(root: Path) -> dict[tuple[str, str], list[list[str]]]:
    """The class name of every pixel, by split and image."""
    found = {}
    for split, dataset in load_available_splits(root).items():
        names = np.array([entry.name for entry in dataset.classes] + [""] * 256, dtype=object)
        names[IGNORE_INDEX] = "ignored"
        for index, pair in enumerate(dataset.pairs):
            found[split, pair.name.rsplit("__", 1)[-1].rsplit("/", 1)[-1]] = names[dataset.labels(index)].tolist()
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_pixel_comes_back(target: str, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    report = convert_dataset(tmp_path / "data", tmp_path / "out", target)
    assert report.counts == SPLITS
    recognition = recognize_dataset(tmp_path / "out")
    assert (recognition.format, recognition.notes) == (target, ())
    assert named_pixels(tmp_path / "out") == named_pixels(tmp_path / "data")
    assert lint(tmp_path / "out").errors == []
    classes = [entry.name for entry in load_available_splits(tmp_path / "out")["train"].classes]
    assert classes == ["background", "ball", "box", "rare thing"]


def test_every_pixel_comes_back_through_all_formats(tmp_path: Path) -> None:
    """Each writer must take what each reader gives."""
    source = make_dataset(tmp_path / "data")
    expected = named_pixels(source)
    for target in ("coco", "voc", "yolo", "labelme", "label-studio", "cvat", "nnunet", "folder"):
        convert_dataset(source, tmp_path / target, target)
        source = tmp_path / target
    assert named_pixels(source) == expected
    assert {entry.name for entry in load_available_splits(source)["train"].classes} >= {"background", "ball", "box"}


@pytest.mark.parametrize("target", ["folder", "voc", "coco", "nnunet"])
def test_ignored_pixels_come_back(target: str, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", ignored=True)
    convert_dataset(tmp_path / "data", tmp_path / "out", target)
    assert named_pixels(tmp_path / "out") == named_pixels(tmp_path / "data")


@pytest.mark.parametrize("target", ["yolo", "labelme", "label-studio", "cvat"])
def test_ignored_pixels_are_refused_where_they_would_be_lost(target: str, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", ignored=True)
    with pytest.raises(DataError, match=rf"has ignored pixels, which {target} cannot store.*255=background"):
        convert_dataset(tmp_path / "data", tmp_path / "out", target)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    remap_dataset(tmp_path / "data", tmp_path / "mapped", ["255=background"])  # as the message says
    assert convert_dataset(tmp_path / "mapped", tmp_path / "out", target).counts == SPLITS


@pytest.mark.parametrize("target", ["yolo", "labelme", "cvat", "coco"])
def test_a_first_class_that_is_no_background_is_kept(target: str, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", CLASSES.replace("background", "sky"))
    convert_dataset(tmp_path / "data", tmp_path / "out", target)
    assert named_pixels(tmp_path / "out") == named_pixels(tmp_path / "data")


def test_unknown_targets_and_existing_folders_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    with pytest.raises(ConfigError, match="did you mean yolo"):
        convert_dataset(tmp_path / "data", tmp_path / "out", "yolov8")
    with pytest.raises(DataError, match="already exists"):
        convert_dataset(tmp_path / "data", tmp_path / "data", "coco")


def test_rotated_images_are_written_upright(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    file = tmp_path / "data/images/val/night/val0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(file).copy().save(file, exif=exif)
    before = load_available_splits(tmp_path / "data")["val"].image(0)
    convert_dataset(tmp_path / "data", tmp_path / "out", "yolo")
    dataset = load_available_splits(tmp_path / "out")["val"]
    assert dataset.pairs[0].image.suffix == ".png"
    assert (dataset.image(0) == before).all()


def test_nnunet_channels_in_several_files_are_an_error(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    convert_dataset(tmp_path / "data", tmp_path / "out", "nnunet")
    image = next((tmp_path / "out/imagesTr").iterdir())
    image.with_name(image.name.replace("_0000", "_0001")).write_bytes(image.read_bytes())
    with pytest.raises(DataError, match="are channels of one image"):
        load_available_splits(tmp_path / "out")
