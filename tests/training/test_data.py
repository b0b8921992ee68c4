import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import ConfigError, DataError
from models.spec import VOID
from tests.training import layouts
from training.data import FORMATS, load
from training.data.shapes import CLASSES, draw, scene
from training.data.splits import hashed_split

ROOT = Path(__file__).parents[2]


def put(root: Path, name: str, labels: np.ndarray | None = None, images: str = "images", masks: str = "masks") -> None:
    """A grey picture `name` of 8 x 6 and its mask."""
    labels = np.eye(6, 8, dtype=np.uint8) if labels is None else labels
    for folder in (root / images, root / masks):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "grey").save(root / images / f"{name}.png")
    Image.fromarray(labels).save(root / masks / f"{name}.png")


def flat(root: Path) -> None:
    for index in range(60):
        put(root, f"picture{index}")


def split_below(root: Path) -> None:
    for split in ("train", "val", "test"):
        put(root, f"{split}/{split}0")


def split_above(root: Path) -> None:
    for split in ("train", "val", "test"):
        put(root, f"{split}0", images=f"{split}/images", masks=f"{split}/masks")


def camvid(root: Path) -> None:
    for split in ("train", "val", "test"):
        put(root, f"{split}0", images=split, masks=f"{split}annot")


def table(root: Path) -> None:
    lines = ["split,image,mask"]
    for split in ("train", "val", "test"):
        put(root, f"{split}0", images="pictures", masks="labels")
        lines.append(f"{split},pictures/{split}0.png,labels/{split}0.png")
    (root / "list.csv").write_text("\n".join(lines))


def table_without_splits(root: Path) -> None:
    lines = ["mask\tnumber\timage"]
    for index in range(60):
        put(root, f"picture{index}", images="pictures", masks="pictures/masks")
        lines.append(f"pictures/masks/picture{index}.png\t{index}\tpictures/picture{index}.png")
    (root / "list.tsv").write_text("\n".join(lines))


LAYOUTS: dict[str, list[Callable[[Path], None]]] = {
    "table": [table, table_without_splits],
    "folder": [flat, split_below, split_above],
    "camvid": [camvid],
    **layouts.LAYOUTS,
}


def test_every_format_has_a_layout_here() -> None:
    assert set(LAYOUTS) == set(FORMATS)


@pytest.mark.parametrize(("format", "layout"), [(name, layout) for name, all_ in LAYOUTS.items() for layout in all_])
@pytest.mark.parametrize("named", [True, False])
def test_a_layout_is_recognised_and_read(
    format: str, layout: Callable[[Path], None], named: bool, tmp_path: Path
) -> None:
    layout(tmp_path)
    for split in ("train", "val", "test"):
        samples = load(tmp_path, split, format if named else "auto")
        assert len(samples) >= 1
        assert samples.picture(0).shape == (6, 8, 3)
        assert samples.labels(0).shape == (6, 8)
        if format in ("folder", "camvid", "voc"):  # the others name a mask otherwise, or hold many in one file
            assert all(pair.image.stem == pair.mask.stem for pair in samples.pairs)


@pytest.mark.parametrize(("format", "layout"), [(name, layout) for name, all_ in LAYOUTS.items() for layout in all_])
def test_a_layout_is_recognised_by_its_own_format_alone(
    format: str, layout: Callable[[Path], None], tmp_path: Path
) -> None:
    layout(tmp_path)
    assert [name for name, module in FORMATS.items() if module.recognises(tmp_path)] == [format]


def test_splits_share_no_picture_and_lose_none(tmp_path: Path) -> None:
    flat(tmp_path)
    names = [{pair.name for pair in load(tmp_path, split).pairs} for split in ("train", "val", "test")]
    assert len(set.union(*names)) == sum(map(len, names)) == 60


def test_a_picture_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    flat(tmp_path)
    before = {pair.name for pair in load(tmp_path, "train").pairs}
    put(tmp_path, "another")
    assert before <= {pair.name for pair in load(tmp_path, "train").pairs}


def test_the_hash_splits_in_the_shares_that_it_promises() -> None:
    splits = [hashed_split(f"name{index}") for index in range(5000)]
    assert 0.78 < splits.count("train") / 5000 < 0.82
    assert 0.08 < splits.count("val") / 5000 < 0.12


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    for index in range(60):
        put(tmp_path, f"train/p{index}")
    train, val = (load(tmp_path, split).pairs for split in ("train", "val"))
    assert len(train) + len(val) == 60
    assert 0 < len(val) < 20


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    put(tmp_path, "train/a")
    with pytest.raises(DataError, match=r"no split test; it has train"):
        load(tmp_path, "test")


def test_camvid_unlabelled_is_void(tmp_path: Path) -> None:
    labels = np.full((6, 8), 3, np.uint8)
    labels[0] = 11
    for split in ("train", "val"):
        put(tmp_path, "a", labels, images=split, masks=f"{split}annot")
    read = load(tmp_path, "train").labels(0)
    assert (read[0] == VOID).all()
    assert (read[1:] == 3).all()


def test_classes_are_named_by_a_file_or_numbered(tmp_path: Path) -> None:
    flat(tmp_path)
    assert [entry.name for entry in load(tmp_path, "train").classes] == ["class0", "class1"]
    (tmp_path / "classes.csv").write_text("name,r,g,b\nroad,1,2,3\ncar,4,5,6\n")
    assert [(entry.name, entry.rgb) for entry in load(tmp_path, "train").classes] == [
        ("road", (1, 2, 3)),
        ("car", (4, 5, 6)),
    ]
    (tmp_path / "classes.csv").write_text("road\ncar\ntree\n")
    assert [entry.name for entry in load(tmp_path, "train").classes] == ["road", "car", "tree"]


@pytest.mark.parametrize(
    "text", ["road,1,2\ncar\n", "road,1,2,300\ncar\n", "road,a,b,c\ncar\n", "road\n", "road\nroad\n"]
)
def test_a_wrong_class_file_is_named(text: str, tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataError, match=r"classes\.csv"):
        load(tmp_path, "train")


def test_a_class_file_from_a_spreadsheet_is_read_and_a_foreign_one_named(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "classes.csv").write_text("sky\nroad\n", encoding="utf-8-sig")
    assert [entry.name for entry in load(tmp_path, "train").classes] == ["sky", "road"]
    (tmp_path / "classes.csv").write_bytes("Straße\nsky\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        load(tmp_path, "train")


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    flat(tmp_path)
    shutil.copy(tmp_path / "images/picture0.png", tmp_path / "images/picture0.jpg")
    with pytest.raises(DataError, match="same name"):
        load(tmp_path, "train")


def test_what_is_no_data_set_is_told_how_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="laid out like no data set"):
        load(tmp_path, "train")
    with pytest.raises(DataError, match="is no folder"):
        load(tmp_path / "none", "train")
    with pytest.raises(ConfigError, match="folder"):
        load(tmp_path, "train", "yolo")


def test_shapes_are_a_function_of_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw(tmp_path / name, seed=5, counts={"train": 2, "val": 1, "test": 1})
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 9
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert (scene(np.random.default_rng(1))[0] != scene(np.random.default_rng(2))[0]).any()


def test_shapes_have_every_class_and_their_masks_come_back(tmp_path: Path) -> None:
    draw(tmp_path / "s", counts={"train": 12, "val": 1, "test": 1})
    samples = load(tmp_path / "s", "train")
    assert samples.classes == CLASSES
    seen = np.unique(np.concatenate([samples.labels(index).ravel() for index in range(12)]))
    assert seen.tolist() == list(range(len(CLASSES)))
    picture, labels = scene(np.random.default_rng((0, 0, 0)))
    assert (samples.labels(0) == labels).all()
    assert np.abs(samples.picture(0).astype(int) - picture).mean() < 8


def test_shapes_overwrite_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="not empty"):
        draw(tmp_path)
