"""`data remap` and `data split`."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskserve.cli.app import app
from models.errors import ConfigError, DataError
from models.imaging.decode import read_image
from models.spec import IGNORE_INDEX, ClassInfo
from tests.training import make_layouts
from tests.training.make_layouts import SPLITS
from training.data import load_available_splits, load_split, resolve_format
from training.data.synthetic import generate_dataset
from training.data.tools.remap import parse_rules, remap_dataset
from training.data.tools.split import ImageGroup, split_dataset, split_folds, stratified_split
from training.lint import lint

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
CLASSES = [ClassInfo(name=name, rgb=(label, 0, 0)) for label, name in enumerate("abcd")]
STRIPES = np.repeat([[0, 0, 1, 1, 2, 2, 3, 3]], 6, axis=0).astype(np.uint8)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    generate_dataset(tmp_path / "shapes", counts={"train": 6, "val": 3, "test": 2}, size=(48, 64))
    return tmp_path / "shapes"


def write_pair(root: Path, name: str, mask: np.ndarray, seed: int) -> None:
    for kind in ("images", "masks"):
        (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*mask.shape[:2], 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / f"images/{name}.png")
    Image.fromarray(mask).save(root / f"masks/{name}.png")


@pytest.mark.parametrize(
    ("rules", "names", "labels"),
    [
        ([], "abcd", [0, 1, 2, 3]),
        (["2=255"], "abd", [0, 1, IGNORE_INDEX, 2]),
        (["c=void", "3=void"], "ab", [0, 1, IGNORE_INDEX, IGNORE_INDEX]),
        (["b,c=d"], "ad", [0, 1, 1, 1]),
        (["d=0"], "abc", [0, 1, 2, 0]),
        (["0=1", "1=0"], "abcd", [1, 0, 2, 3]),
        (["b,d=plants"], ["a", "plants", "c"], [0, 1, 2, 1]),
        (["a=road"], ["road", "b", "c", "d"], [0, 1, 2, 3]),
        (["a=b", "b=a,b"], ["b", "a,b", "c", "d"], [0, 1, 2, 3]),
    ],
)
def test_rules(rules: list[str], names: list[str], labels: list[int]) -> None:
    mapping = parse_rules(rules, CLASSES)
    assert [entry.name for entry in mapping.classes] == list(names)
    assert mapping.lookup_table[:4].tolist() == labels
    assert mapping.lookup_table[IGNORE_INDEX] == IGNORE_INDEX
    assert (mapping.lookup_table[4:IGNORE_INDEX] == -1).all()
    assert len({entry.rgb for entry in mapping.classes}) == len(mapping.classes)


def test_rules_for_void_and_labels_without_a_class() -> None:
    mapping = parse_rules(["void=rest", "200=a", "7=void"], CLASSES)
    assert [entry.name for entry in mapping.classes] == ["a", "b", "c", "d", "rest"]
    assert (mapping.lookup_table[IGNORE_INDEX], mapping.lookup_table[200], mapping.lookup_table[7]) == (
        4,
        0,
        IGNORE_INDEX,
    )


def test_rules_to_a_class_file() -> None:
    new_classes = [ClassInfo(name=name, rgb=(0, label, 0)) for label, name in enumerate(["d", "rest", "a"])]
    mapping = parse_rules(["b=rest", "c=void"], CLASSES, new_classes)
    assert mapping.classes == new_classes
    assert mapping.lookup_table[:4].tolist() == [2, 1, IGNORE_INDEX, 0]
    assert parse_rules(["b=1", "c=0"], CLASSES, new_classes).lookup_table[:4].tolist() == [2, 1, 0, 0]
    with pytest.raises(ConfigError, match="has no class c; add a rule c=NAME"):
        parse_rules(["b=rest"], CLASSES, new_classes)
    with pytest.raises(ConfigError, match="'tree' is not in the class file"):
        parse_rules(["b=tree", "c=void"], CLASSES, new_classes)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("road", "Invalid rule"),
        ("=a", "Invalid rule"),
        ("a=", "Invalid rule"),
        ("tree=a", "'tree' is neither a class nor a label; the classes are a, b, c, d"),
        ("aa=b", "'aa' is neither .*; did you mean a\\?"),
        ("256=a", "'256' is neither a class"),
        ("a=9", "no class 9"),
        ("a,b,c=d", "leave 1 classes"),
        ("b=void", "another rule maps b to c"),
    ],
)
def test_invalid_rules(rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rules(["b=c", rule] if "another rule" in message else [rule], CLASSES)


def test_remap_keeps_images_splits_and_other_labels(shapes: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    remap_dataset(shapes, tmp_path / "new", ["disc=void", "star,ring=round"], progress=lambda *call: calls.append(call))
    assert calls[-1] == (11, 11)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "shapes"]
    table = np.array([0, IGNORE_INDEX, 1, 2, 3, 3])
    for name in SPLITS:
        before, after = load_split(shapes, name), load_split(tmp_path / "new", name)
        assert [entry.name for entry in after.classes] == ["ground", "square", "triangle", "round"]
        assert [pair.name for pair in after.pairs] == [pair.name for pair in before.pairs]
        for index in range(len(before)):
            assert (after.labels(index) == table[before.labels(index)]).all()
            assert os.path.samefile(before.pairs[index].image, after.pairs[index].image)
            with Image.open(after.pairs[index].mask) as mask:
                assert mask.mode == "P"
    assert not lint(tmp_path / "new").errors


def test_images_are_copied_without_hard_links(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links")

    monkeypatch.setattr(os, "link", refuse)
    remap_dataset(shapes, tmp_path / "new")
    source, copy = shapes / "images/val/val_0000.jpg", tmp_path / "new/images/val/val_0000.jpg"
    assert not os.path.samefile(source, copy)
    assert source.read_bytes() == copy.read_bytes()


@pytest.mark.parametrize(
    "layout",
    [make_layouts.make_cvat_voc, make_layouts.make_cityscapes, make_layouts.make_coco, make_layouts.make_panoptic],
)
def test_any_layout_can_be_converted_to_a_folder(layout: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    layout(tmp_path / "old")
    remap_dataset(tmp_path / "old", tmp_path / "new")
    assert resolve_format(tmp_path / "new") == "folder"
    for name in SPLITS:
        before, after = load_split(tmp_path / "old", name), load_split(tmp_path / "new", name)
        assert before.classes == after.classes
        assert len(before) == len(after)
        for index in (0, len(before) - 1):
            np.testing.assert_array_equal(before.labels(index), after.labels(index))
            np.testing.assert_array_equal(before.image(index), after.image(index))


def test_ignored_pixels_stay_ignored_when_two_classes_are_left(tmp_path: Path) -> None:
    """The new masks have only 0 and 255, which otherwise means foreground."""
    for index in range(4):
        write_pair(tmp_path / "old", f"{index}", STRIPES, index)
    remap_dataset(tmp_path / "old", tmp_path / "new", ["0,1=rest", "2=void", "class3=void", "9=thing"])
    after = load_split(tmp_path / "new", "train")
    assert [entry.name for entry in after.classes] == ["rest", "thing"]
    assert (after.labels(0) == np.where(STRIPES > 1, IGNORE_INDEX, 0)).all()


def test_a_label_without_a_class_stops_remap_and_leaves_no_files(shapes: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 48), 77).save(shapes / "masks/val/val_0001.png")
    with pytest.raises(DataError, match=r"val_0001\.png: the label 77.*77=void"):
        remap_dataset(shapes, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    remap_dataset(shapes, tmp_path / "new", ["77=void"])
    assert (load_split(tmp_path / "new", "val").labels(1) == IGNORE_INDEX).all()
    with pytest.raises(DataError, match="new already exists"):
        remap_dataset(shapes, tmp_path / "new")


def test_nearest_recovers_masks_saved_as_jpeg(shapes: Path, tmp_path: Path) -> None:
    """Every pixel gets a class; only the blur at outlines is lost."""
    original = [load_split(shapes, "train").labels(index) for index in range(6)]
    for file in sorted((shapes / "masks").rglob("*.png")):
        with Image.open(file) as mask:
            mask.convert("RGB").save(file.with_suffix(".jpg"), quality=90, subsampling=0)
        file.unlink()
    assert lint(shapes).errors
    remap_dataset(shapes, tmp_path / "new", nearest=True)
    assert not lint(tmp_path / "new").errors
    recovered = load_split(tmp_path / "new", "train")
    assert np.mean([(recovered.labels(index) == original[index]).mean() for index in range(6)]) > 0.97


def test_nearest_of_two_gray_values(tmp_path: Path) -> None:
    shape = np.zeros((64, 64), np.uint8)
    shape[20:50, 13:43] = 255
    for index in range(4):
        write_pair(tmp_path / "old", f"{index}", shape, index)
        Image.fromarray(shape).save(tmp_path / f"old/masks/{index}.jpg", quality=60)
        (tmp_path / f"old/masks/{index}.png").unlink()
    remap_dataset(tmp_path / "old", tmp_path / "new", nearest=True)
    assert (load_split(tmp_path / "new", "train").labels(0) == shape // 255).all()


def read_table(table: Path) -> list[dict[str, str]]:
    with table.open() as stream:
        return list(csv.DictReader(stream, delimiter="," if table.suffix == ".csv" else "\t"))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sequences of three images; class 3 occurs in three of them. Read-only."""
    folder = tmp_path_factory.mktemp("sequences")
    for index in range(30):
        mask = STRIPES if index // 3 in (2, 5, 8) else STRIPES % 3
        write_pair(folder, f"seq{index // 3}_{index % 3}", mask, index)
    return folder


def test_split_writes_a_table_that_loads_as_returned(sequences: Path, tmp_path: Path) -> None:
    table, assigned = split_dataset(sequences, tmp_path / "lists" / "a.csv", 0.2, 0.1)
    assert {name: len(pairs) for name, pairs in assigned.items()} == {"train": 21, "val": 6, "test": 3}
    for name, pairs in assigned.items():
        loaded = load_split(table, name)
        assert [pair.image.resolve() for pair in loaded.pairs] == [pair.image.resolve() for pair in pairs]
        assert np.array_equal(loaded.image(0), read_image(pairs[0].image))
    assert not list(tmp_path.rglob("lists/*.png"))


def test_splits_are_reproducible_by_the_seed(sequences: Path, tmp_path: Path) -> None:
    tables = [split_dataset(sequences, tmp_path / f"{index}.tsv", seed=seed)[0] for index, seed in enumerate([0, 0, 1])]
    texts = [table.read_text() for table in tables]
    assert texts[0] == texts[1] != texts[2]


def test_groups_stay_together_and_rare_classes_are_in_every_split(sequences: Path, tmp_path: Path) -> None:
    for seed in range(2):
        table, assigned = split_dataset(sequences, tmp_path / f"s{seed}", 0.2, 0.2, seed, r"^(seq\d+)_")
        assert table.name == "list.tsv"
        groups = [{pair.name.split("_")[0] for pair in pairs} for pairs in assigned.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 10
        assert all(group & {"seq2", "seq5", "seq8"} for group in groups)


def test_equal_images_stay_together(sequences: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sequences, tmp_path / "data")
    for index in range(1, 15):
        shutil.copyfile(sequences / "images/seq0_0.png", copy / f"images/seq{index // 3}_{index % 3}.png")
    _, assigned = split_dataset(copy, tmp_path / "s")
    splits = [name for name, pairs in assigned.items() for pair in pairs if pair.name < "seq5"]
    assert len(splits) == 15
    assert len(set(splits)) == 1


def test_no_split_is_empty() -> None:
    groups = [ImageGroup((index,), np.array([1, 0])) for index in range(3)]
    for seed in range(5):
        assigned = stratified_split(groups, {"train": 0.98, "val": 0.01, "test": 0.01}, seed)
        assert [len(part) for part in assigned.values()] == [1, 1, 1]


def test_the_class_file_is_copied(shapes: Path, tmp_path: Path) -> None:
    table, _ = split_dataset(shapes, tmp_path / "s", test=0)
    assert {row["split"] for row in read_table(table)} == {"train", "val"}
    assert load_split(table, "train").classes == load_split(shapes, "train").classes
    (tmp_path / "other").mkdir()
    (tmp_path / "other/classes.csv").write_text("x\ny\n")
    with pytest.raises(DataError, match="has other classes"):
        split_dataset(shapes, tmp_path / "other")


def test_invalid_splits_are_an_error(sequences: Path, tmp_path: Path) -> None:
    for val, test in ((0, 0.1), (0.5, 0.5), (-0.1, 0), (1.5, 0)):
        with pytest.raises(ConfigError, match="expected fractions"):
            split_dataset(sequences, tmp_path / "s", val, test)
    for group, message in (("(", "not a valid regular expression"), ("frame", "does not match the image name")):
        with pytest.raises(ConfigError, match=message):
            split_dataset(sequences, tmp_path / "s", group_pattern=group)
    with pytest.raises(DataError, match="30 images in 1 groups cannot fill 3 splits"):
        split_dataset(sequences, tmp_path / "s", group_pattern="seq")
    make_layouts.make_coco(tmp_path / "coco")
    with pytest.raises(DataError, match=r"has the format coco.*data remap"):
        split_dataset(tmp_path / "coco", tmp_path / "s")
    split_dataset(sequences, tmp_path / "s")
    with pytest.raises(DataError, match="already exists"):
        split_dataset(sequences, tmp_path / "s")


def test_the_subcommands(shapes: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data", "remap", str(shapes), str(tmp_path / "new"), "disc=void", "star=ring"])
    assert result.exit_code == 0, result.output
    assert "star (4) -> ring (3)" in result.output
    assert "disc (1) -> void (255)" in result.output
    assert "train 6, val 3, test 2" in result.output
    result = CliRunner().invoke(app, ["data", "split", str(tmp_path / "new"), str(tmp_path / "t.tsv"), "--val=0.2"])
    assert result.exit_code == 0, result.output
    assert "train 8, val 2, test 1" in result.output


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is missing")
def test_crackforest_to_two_classes(tmp_path: Path) -> None:
    mapping, opened = remap_dataset(SHARED / "crackforest", tmp_path / "new", ["0=road", "1=crack", "2,3=void"])
    assert [entry.name for entry in mapping.classes] == ["road", "crack"]
    for name, count in (("train", 83), ("val", 12), ("test", 23)):
        after = load_split(tmp_path / "new", name)
        assert len(after) == len(opened[name]) == count
        before = opened[name].labels(0)
        assert (after.labels(0) == np.where(before > 1, IGNORE_INDEX, before)).all()


def test_folds_hold_out_every_image_once_and_groups_stay_together(sequences: Path, tmp_path: Path) -> None:
    tables = split_folds(sequences, tmp_path / "folds", 3, 0.2, group_pattern=r"^(seq\d+)_")
    assert [table.name for table in tables] == ["fold0.tsv", "fold1.tsv", "fold2.tsv"]
    held_out = [pair.name for splits in tables.values() for pair in splits["val"]]
    tests = {tuple(pair.name for pair in splits["test"]) for splits in tables.values()}
    assert len(tests) == 1
    everything = {pair.name for dataset in load_available_splits(sequences).values() for pair in dataset.pairs}
    assert sorted([*held_out, *tests.pop()]) == sorted(everything)
    for table, splits in tables.items():
        groups = [{pair.name.split("_")[0] for pair in pairs} for pairs in splits.values()]
        assert not groups[0] & groups[1]
        assert [p.image.resolve() for p in load_split(table, "val").pairs] == [p.image for p in splits["val"]]
    with pytest.raises(ConfigError, match="need a folder"):
        split_folds(sequences, tmp_path / "one.csv", 3)
    with pytest.raises(DataError, match=r"fold0\.tsv already exists"):
        split_folds(sequences, tmp_path / "folds", 3)


def test_a_table_keeps_the_class_file_whatever_its_name(tmp_path: Path) -> None:
    for index in range(6):
        write_pair(tmp_path / "data", f"a{index}", STRIPES % 2, index)
    (tmp_path / "data/masks/class_names.txt").write_text("soil\ncrop\n")
    table, _ = split_dataset(tmp_path / "data", tmp_path / "lists", 0.3, 0)
    assert [entry.name for entry in load_split(table, "train").classes] == ["soil", "crop"]
