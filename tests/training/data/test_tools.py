"""Data sets made of others: `data remap` and `data split`."""

import csv
import os
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
from training.data import load_split, resolve_format
from training.data.synthetic import generate_dataset
from training.data.tools.remap import parse_rules, remap_dataset
from training.data.tools.split import ImageGroup, split_dataset, stratified_split
from training.lint import lint

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
CLASSES = [ClassInfo(name=name, rgb=(place, 0, 0)) for place, name in enumerate("abcd")]
STRIPES = np.repeat([[0, 0, 1, 1, 2, 2, 3, 3]], 6, axis=0).astype(np.uint8)
SPLITS = ("train", "val", "test")


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
    recipe = parse_rules(rules, CLASSES)
    assert [entry.name for entry in recipe.classes] == list(names)
    assert recipe.lookup_table[:4].tolist() == labels
    assert recipe.lookup_table[IGNORE_INDEX] == IGNORE_INDEX
    assert (recipe.lookup_table[4:IGNORE_INDEX] == -1).all()
    assert len({entry.rgb for entry in recipe.classes}) == len(recipe.classes)


def test_void_and_labels_of_no_class_can_be_sent_somewhere() -> None:
    recipe = parse_rules(["void=rest", "200=a", "7=void"], CLASSES)
    assert [entry.name for entry in recipe.classes] == ["a", "b", "c", "d", "rest"]
    assert (recipe.lookup_table[IGNORE_INDEX], recipe.lookup_table[200], recipe.lookup_table[7]) == (4, 0, IGNORE_INDEX)


def test_rules_to_a_class_file() -> None:
    wanted = [ClassInfo(name=name, rgb=(0, place, 0)) for place, name in enumerate(["d", "rest", "a"])]
    recipe = parse_rules(["b=rest", "c=void"], CLASSES, wanted)
    assert recipe.classes == wanted
    assert recipe.lookup_table[:4].tolist() == [2, 1, IGNORE_INDEX, 0]
    assert parse_rules(["b=1", "c=0"], CLASSES, wanted).lookup_table[:4].tolist() == [2, 1, 0, 0]
    with pytest.raises(ConfigError, match="no c; say where it goes"):
        parse_rules(["b=rest"], CLASSES, wanted)
    with pytest.raises(ConfigError, match="'tree' is no class of the new class file"):
        parse_rules(["b=tree", "c=void"], CLASSES, wanted)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("road", "is no rule"),
        ("=a", "is no rule"),
        ("a=", "is no rule"),
        ("tree=a", "'tree' is no class and no label; the classes are a, b, c, d"),
        ("256=a", "'256' is no class"),
        ("a=9", "no class 9"),
        ("a,b,c=d", "leave 1 classes"),
        ("b=void", "b goes to c already"),
    ],
)
def test_wrong_rules_are_named(rule: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_rules(["b=c", rule] if "already" in sentence else [rule], CLASSES)


def test_remap_keeps_images_splits_and_all_other_labels(shapes: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    remap_dataset(shapes, tmp_path / "new", ["disc=void", "star,ring=round"], progress=lambda *now: told.append(now))
    assert told[-1] == (11, 11)
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


def test_without_hard_links_images_are_copied(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    remap_dataset(shapes, tmp_path / "new")
    source, copy = shapes / "images/val/val_0000.jpg", tmp_path / "new/images/val/val_0000.jpg"
    assert not os.path.samefile(source, copy)
    assert source.read_bytes() == copy.read_bytes()


@pytest.mark.parametrize(
    "layout",
    [make_layouts.make_cvat_voc, make_layouts.make_cityscapes, make_layouts.make_coco, make_layouts.make_panoptic],
)
def test_every_layout_can_become_a_folder(layout: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    layout(tmp_path / "old")
    remap_dataset(tmp_path / "old", tmp_path / "new")
    assert resolve_format(tmp_path / "new") == "folder"
    for name in SPLITS:
        before, after = load_split(tmp_path / "old", name), load_split(tmp_path / "new", name)
        assert before.classes == after.classes
        assert len(before) == len(after)
        for index in range(len(before)):
            np.testing.assert_array_equal(before.labels(index), after.labels(index))
            np.testing.assert_array_equal(before.image(index), after.image(index))


def test_void_stays_void_where_two_classes_and_no_other_labels_are_left(tmp_path: Path) -> None:
    """The masks hold 0 and 255 alone then, which elsewhere is a foreground."""
    for index in range(4):
        write_pair(tmp_path / "old", f"{index}", STRIPES, index)
    remap_dataset(tmp_path / "old", tmp_path / "new", ["0,1=rest", "2=void", "class3=void", "9=thing"])
    after = load_split(tmp_path / "new", "train")
    assert [entry.name for entry in after.classes] == ["rest", "thing"]
    assert (after.labels(0) == np.where(STRIPES > 1, IGNORE_INDEX, 0)).all()


def test_a_label_of_no_class_stops_it_and_leaves_nothing(shapes: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 48), 77).save(shapes / "masks/val/val_0001.png")
    with pytest.raises(DataError, match=r"val_0001\.png: holds the label 77.*77=void"):
        remap_dataset(shapes, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    remap_dataset(shapes, tmp_path / "new", ["77=void"])
    assert (load_split(tmp_path / "new", "val").labels(1) == IGNORE_INDEX).all()
    with pytest.raises(DataError, match="new is there already"):
        remap_dataset(shapes, tmp_path / "new")


def test_nearest_mends_masks_that_were_saved_as_jpeg(shapes: Path, tmp_path: Path) -> None:
    """The colours come back but for the blur at outlines, and every pixel has a class."""
    truth = [load_split(shapes, "train").labels(index) for index in range(6)]
    for file in sorted((shapes / "masks").rglob("*.png")):
        with Image.open(file) as mask:
            mask.convert("RGB").save(file.with_suffix(".jpg"), quality=90, subsampling=0)
        file.unlink()
    assert lint(shapes).errors
    remap_dataset(shapes, tmp_path / "new", nearest=True)
    assert not lint(tmp_path / "new").errors
    mended = load_split(tmp_path / "new", "train")
    assert np.mean([(mended.labels(index) == truth[index]).mean() for index in range(6)]) > 0.97


def test_nearest_of_two_grey_values(tmp_path: Path) -> None:
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


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """Ten sequences of six images; the class 3 in three sequences alone."""
    for index in range(60):
        mask = STRIPES if index // 6 in (2, 5, 8) else STRIPES % 3
        write_pair(tmp_path / "data", f"seq{index // 6}_{index % 6}", mask, index)
    return tmp_path / "data"


def test_a_split_is_a_table_that_is_read_as_it_was_written(sequences: Path, tmp_path: Path) -> None:
    table, dealt = split_dataset(sequences, tmp_path / "lists" / "a.csv", 0.2, 0.1)
    assert {name: len(pairs) for name, pairs in dealt.items()} == {"train": 42, "val": 12, "test": 6}
    for name, pairs in dealt.items():
        read_back = load_split(table, name)
        assert [pair.image.resolve() for pair in read_back.pairs] == [pair.image.resolve() for pair in pairs]
        assert np.array_equal(read_back.image(0), read_image(pairs[0].image))
    assert not list(tmp_path.rglob("lists/*.png"))


def test_the_seed_deals_and_the_same_seed_deals_alike(sequences: Path, tmp_path: Path) -> None:
    tables = [split_dataset(sequences, tmp_path / f"{place}.tsv", seed=seed)[0] for place, seed in enumerate([0, 0, 1])]
    texts = [table.read_text() for table in tables]
    assert texts[0] == texts[1] != texts[2]


def test_groups_stay_together_and_rare_classes_are_in_every_split(sequences: Path, tmp_path: Path) -> None:
    for seed in range(5):
        table, dealt = split_dataset(sequences, tmp_path / f"s{seed}", 0.2, 0.2, seed, r"^(seq\d+)_")
        assert table.name == "list.tsv"
        groups = [{pair.name.split("_")[0] for pair in pairs} for pairs in dealt.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 10
        assert all(group & {"seq2", "seq5", "seq8"} for group in groups)


def test_equal_images_stay_together(sequences: Path, tmp_path: Path) -> None:
    for index in range(1, 30):
        (sequences / f"images/seq{index // 6}_{index % 6}.png").write_bytes(
            (sequences / "images/seq0_0.png").read_bytes()
        )
    _, dealt = split_dataset(sequences, tmp_path / "s")
    holders = [name for name, pairs in dealt.items() for pair in pairs if pair.name < "seq5"]
    assert len(holders) == 30
    assert len(set(holders)) == 1


def test_no_split_is_empty() -> None:
    units = [ImageGroup((place,), np.array([1, 0])) for place in range(3)]
    for seed in range(5):
        dealt = stratified_split(units, {"train": 0.98, "val": 0.01, "test": 0.01}, seed)
        assert [len(part) for part in dealt.values()] == [1, 1, 1]


def test_the_class_file_comes_along(shapes: Path, tmp_path: Path) -> None:
    table, _ = split_dataset(shapes, tmp_path / "s", test=0)
    assert {row["split"] for row in read_table(table)} == {"train", "val"}
    assert load_split(table, "train").classes == load_split(shapes, "train").classes
    (tmp_path / "other").mkdir()
    (tmp_path / "other/classes.csv").write_text("x\ny\n")
    with pytest.raises(DataError, match="names other classes"):
        split_dataset(shapes, tmp_path / "other")


def test_what_makes_no_split(sequences: Path, tmp_path: Path) -> None:
    for val, test in ((0, 0.1), (0.5, 0.5), (-0.1, 0), (1.5, 0)):
        with pytest.raises(ConfigError, match="leave no split"):
            split_dataset(sequences, tmp_path / "s", val, test)
    for group, sentence in (("(", "no regular expression"), ("frame", "finds nothing in the image name")):
        with pytest.raises(ConfigError, match=sentence):
            split_dataset(sequences, tmp_path / "s", group_pattern=group)
    with pytest.raises(DataError, match="60 images in 1 groups cannot fill 3 splits"):
        split_dataset(sequences, tmp_path / "s", group_pattern="seq")
    make_layouts.make_coco(tmp_path / "coco")
    with pytest.raises(DataError, match=r"laid out as coco.*data remap"):
        split_dataset(tmp_path / "coco", tmp_path / "s")
    split_dataset(sequences, tmp_path / "s")
    with pytest.raises(DataError, match="is there already"):
        split_dataset(sequences, tmp_path / "s")


def test_the_verbs(shapes: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "remap", str(shapes), str(tmp_path / "new"), "disc=void", "star=ring"])
    assert done.exit_code == 0, done.output
    assert "star (4) -> ring (3)" in done.output
    assert "disc (1) -> void (255)" in done.output
    assert "train 6, val 3, test 2" in done.output
    done = CliRunner().invoke(app, ["data", "split", str(tmp_path / "new"), str(tmp_path / "t.tsv"), "--val=0.2"])
    assert done.exit_code == 0, done.output
    assert "train 8, val 2, test 1" in done.output


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is not there")
def test_crackforest_to_two_classes(tmp_path: Path) -> None:
    recipe, opened = remap_dataset(SHARED / "crackforest", tmp_path / "new", ["0=road", "1=crack", "2,3=void"])
    assert [entry.name for entry in recipe.classes] == ["road", "crack"]
    for name, count in (("train", 83), ("val", 12), ("test", 23)):
        after = load_split(tmp_path / "new", name)
        assert len(after) == len(opened[name]) == count
        before = opened[name].labels(0)
        assert (after.labels(0) == np.where(before > 1, IGNORE_INDEX, before)).all()
