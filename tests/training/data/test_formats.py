import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.errors import ConfigError, DataError, ImageTooLargeError
from models.spec import IGNORE_INDEX
from tests.training import make_layouts
from tests.training.make_layouts import SPLITS, UNSPLIT_COUNT, write_huge_image, write_pair
from training.data import FORMATS, has_split, load_split, recognize_dataset
from training.data.splits import assign_split, assign_splits
from training.data.synthetic import CLASSES, generate_dataset, generate_scene


def make_flat(root: Path) -> None:
    for index in range(UNSPLIT_COUNT):
        write_pair(root, f"image{index}")


def make_split_subfolders(root: Path) -> None:
    for split in SPLITS:
        write_pair(root, f"{split}/{split}0")


def make_split_folders(root: Path) -> None:
    for split in SPLITS:
        write_pair(root, f"{split}0", images=f"{split}/images", masks=f"{split}/masks")


def make_camvid(root: Path) -> None:
    for split in SPLITS:
        write_pair(root, f"{split}0", images=split, masks=f"{split}annot")


def make_cvat_camvid(root: Path) -> None:
    (root / "label_colors.txt").write_text("0 0 0 background\n1 1 1 ball\n")
    for index in range(UNSPLIT_COUNT):
        write_pair(root, f"shot{index}", np.repeat(make_layouts.DIAGONAL[..., None], 3, 2), "default", "defaultannot")


def make_kaggle_camvid(root: Path) -> None:
    (root / "class_dict.csv").write_text("name,r,g,b,class_11\nSky,0,0,0,1\nPole,1,1,1,0\n")
    for split in SPLITS:
        make_layouts.write_image(root / split / f"{split}0.png")
        mask = np.repeat(make_layouts.DIAGONAL[..., None], 3, 2)
        make_layouts.write_mask(root / f"{split}_labels" / f"{split}0_L.png", mask)


def make_mmsegmentation(root: Path) -> None:
    for split in SPLITS:
        write_pair(root, f"{split}/{split}0", images="img_dir", masks="ann_dir")


def make_fiftyone(root: Path) -> None:
    for index in range(UNSPLIT_COUNT):
        write_pair(root, f"image{index}", images="data", masks="labels")


def make_list_of_pairs(root: Path) -> None:
    for split in SPLITS:
        write_pair(root, f"{split}0", images="photos", masks="drawn")
        (root / f"{split}.txt").write_text(f"photos/{split}0.png drawn/{split}0.png\n")


def make_table(root: Path) -> None:
    lines = ["split,image,mask"]
    for split in SPLITS:
        write_pair(root, f"{split}0", images="photos", masks="labels")
        lines.append(f"{split},photos/{split}0.png,labels/{split}0.png")
    (root / "list.csv").write_text("\n".join(lines))


def make_table_without_splits(root: Path) -> None:
    lines = ["mask\tnumber\timage"]
    for index in range(UNSPLIT_COUNT):
        write_pair(root, f"image{index}", images="images", masks="images/masks")
        lines.append(f"images/masks/image{index}.png\t{index}\timages/image{index}.png")
    (root / "list.tsv").write_text("\n".join(lines))


LAYOUTS: dict[str, list[Callable[[Path], None]]] = {
    "table": [make_table, make_table_without_splits, make_list_of_pairs],
    "folder": [make_flat, make_split_subfolders, make_split_folders, make_mmsegmentation, make_fiftyone],
    "camvid": [make_camvid, make_cvat_camvid, make_kaggle_camvid],
    **make_layouts.LAYOUTS,
}


def test_every_format_has_a_layout_here() -> None:
    assert set(LAYOUTS) == set(FORMATS) - {
        "label-studio-png",  # which only says what to export instead
        "hugging-face",  # test_hugging_face.py
        "wfdb",  # test_signal_formats.py
        "signal-folder",
        "nnunet-volumes",  # test_volumes.py
        "volume-folder",
    }


@pytest.mark.parametrize(("format", "layout"), [(name, layout) for name, all_ in LAYOUTS.items() for layout in all_])
def test_its_own_format_is_recognized_and_loads_a_layout(
    format: str, layout: Callable[[Path], None], tmp_path: Path
) -> None:
    layout(tmp_path)
    recognition = recognize_dataset(tmp_path)
    assert (recognition.format, recognition.notes) == (format, ())
    for split in SPLITS:
        dataset = load_split(tmp_path, split)
        assert len(dataset) >= 1
        assert dataset.image(0).shape == (6, 8, 3)
        assert dataset.labels(0).shape == (6, 8)
        assert load_split(tmp_path, split, format).pairs == dataset.pairs
        assert dataset.labels(0).any()
        if format in ("folder", "voc"):  # others have other mask names, or one file for many masks
            assert all(pair.image.stem == pair.mask.stem for pair in dataset.pairs)


def test_splits_cover_all_images_and_are_disjoint(tmp_path: Path) -> None:
    make_flat(tmp_path)
    names = [{pair.name for pair in load_split(tmp_path, split).pairs} for split in SPLITS]
    assert len(set.union(*names)) == sum(map(len, names)) == UNSPLIT_COUNT


def test_an_image_keeps_its_split_when_others_are_added(tmp_path: Path) -> None:
    make_flat(tmp_path)
    before = {pair.name for pair in load_split(tmp_path, "train").pairs}
    write_pair(tmp_path, "another")
    assert before <= {pair.name for pair in load_split(tmp_path, "train").pairs}


def test_hash_split_fractions() -> None:
    splits = [assign_split(f"name{index}") for index in range(5000)]
    assert 0.78 < splits.count("train") / 5000 < 0.82
    assert 0.08 < splits.count("val") / 5000 < 0.12


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    for index in range(20):
        write_pair(tmp_path, f"train/p{index}")
    train, val = (load_split(tmp_path, split).pairs for split in ("train", "val"))
    assert len(train) + len(val) == 20
    assert 0 < len(val) < 8
    with pytest.raises(DataError, match=r"no split test; it has train"):
        load_split(tmp_path, "test")


def test_unlabeled_camvid_pixels_are_ignored(tmp_path: Path) -> None:
    labels = np.full((6, 8), 3, np.uint8)
    labels[0] = 11
    for split in ("train", "val"):
        write_pair(tmp_path, "a", labels, images=split, masks=f"{split}annot")
    loaded = load_split(tmp_path, "train").labels(0)
    assert (loaded[0] == IGNORE_INDEX).all()
    assert (loaded[1:] == 3).all()


def class_list(root: Path) -> list[tuple[str, tuple[int, int, int]]]:
    return [(entry.name, entry.rgb) for entry in load_split(root, "train").classes]


def test_classes_are_numbered_without_a_class_file_and_without_colors_get_defaults(tmp_path: Path) -> None:
    make_flat(tmp_path)
    assert [name for name, _ in class_list(tmp_path)] == ["class0", "class1"]
    (tmp_path / "classes.csv").write_text("sky\nroad\ntree\n", encoding="utf-8-sig")
    assert class_list(tmp_path) == [("sky", (0, 0, 0)), ("road", (128, 0, 0)), ("tree", (0, 128, 0))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road,1,2\ncar,1,2\n", "line 1: 'road,1,2' has 3 columns; expected `name` or `name,r,g,b`"),
        ("road,1,2,3,4\ncar,1,2,3,4\n", "line 1: .* has 5 columns"),
        ("name,r,g,b\nroad,1,2,300\ncar,4,5,6\n", "line 2: 'road,1,2,300' has no valid color"),
        ("road,a,b,c\ncar,1,2,3\n", "line 1: 'road,a,b,c' has no valid color"),
        ("road,-1,0,0\ncar,1,2,3\n", "line 1: .* has no valid color"),
        ("road,1,2,3\ncar\n", "'car' has no color, but other classes have one"),
        ("road,1,2,3\ncar,1,2,3\n", "'car' and 'road' have the same color 1,2,3"),
        ("road\ncar\nroad\n", "'road' occurs twice"),
        ("road\n", "has 1 classes; expected 2 to 255"),
        ("", "has 0 classes"),
        ("".join(f"c{label}\n" for label in range(256)), "has 256 classes"),
        (",1,2,3\ncar,4,5,6\n", "line 1: ',1,2,3' has no name"),
        ('road\n"car\n', "line 2: invalid CSV"),
        ("Stra\xdfe\nsky\n", "UTF-8"),
    ],
)
def test_invalid_class_files(text: str, message: str, tmp_path: Path) -> None:
    write_pair(tmp_path, "train/a")
    (tmp_path / "classes.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"classes\.csv.*{message}"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(
    "text",
    [
        "name,r,g,b\nroad,1,2,3\ncar,4,5,6\n",
        "name;r;g;b\nroad;1;2;3\ncar;4;5;6\n",
        "Name\tR\tG\tB\nroad\t1\t2\t3\ncar\t4\t5\t6",
        "road, 1, 2, 3\r\n\r\n car,4,5,6\r\n",
        '"road",1,2,3,\n"car",4,5,6,\n,,,,\n',
    ],
    ids=["commas", "semicolons", "tabs", "spaces", "empty spreadsheet cells"],
)
def test_dialects_of_class_files(text: str, tmp_path: Path) -> None:
    write_pair(tmp_path, "train/a")
    (tmp_path / "classes.csv").write_text(text)
    assert class_list(tmp_path) == [("road", (1, 2, 3)), ("car", (4, 5, 6))]


def make_renamed_pair(root: Path, image: str, mask: str) -> Path:
    """Write twelve pairs, and one with these file names."""
    make_flat(root)
    write_pair(root, "odd")
    (root / "images/odd.png").rename(root / "images" / image)
    (root / "masks/odd.png").rename(root / "masks" / mask)
    return root


def mask_names_by_image(root: Path) -> dict[str, str]:
    """File name of the mask by file name of the image."""
    return {pair.image.name: pair.mask.name for split in SPLITS for pair in load_split(root, split).pairs}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("IMG_1.PNG", "img_1.png"),
        ("Stra\u00dfe.png", "STRASSE.png"),
        ("u\u0308ber.png", "\u00fcber.png"),
        ("\u00c9t\u00e9.png", "e\u0301te\u0301.png"),
        ("a.b.png", "A.b.png"),
    ],
    ids=["case", "sharp s", "NFD and NFC", "both", "a dot"],
)
def test_names_that_differ_in_case_or_unicode_form_match(image: str, mask: str, tmp_path: Path) -> None:
    assert mask_names_by_image(make_renamed_pair(tmp_path, image, mask))[image] == mask


def test_an_exact_name_wins_over_a_similar_one(tmp_path: Path) -> None:
    make_renamed_pair(tmp_path, "IMG.png", "IMG.png")
    write_pair(tmp_path, "img")
    found = mask_names_by_image(tmp_path)
    assert (found["IMG.png"], found["img.png"]) == ("IMG.png", "img.png")


def test_ambiguous_names_are_an_error(tmp_path: Path) -> None:
    make_renamed_pair(tmp_path, "Img.png", "IMG.png")
    shutil.copy(tmp_path / "masks/IMG.png", tmp_path / "masks/img.png")
    with pytest.raises(DataError, match="IMG and img both match Img"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize("ending", ["_mask", "-mask", "_label", "_seg", "_gt", "_GT"])
def test_mask_name_endings_are_stripped_if_no_name_matches(ending: str, tmp_path: Path) -> None:
    make_flat(tmp_path)
    for file in (tmp_path / "masks").iterdir():
        file.rename(file.with_stem(file.stem + ending))
    found = mask_names_by_image(tmp_path)
    assert len(found) == UNSPLIT_COUNT
    assert found["image7.png"] == f"image7{ending}.png"


def test_mask_name_endings_are_kept_if_other_names_match(tmp_path: Path) -> None:
    root = make_renamed_pair(tmp_path, "odd.png", "odd_mask.png")
    unmatched = [path.name for split in SPLITS for path in load_split(root, split).unmatched_images]
    assert unmatched == ["odd.png"]


@pytest.mark.parametrize(
    ("images", "masks"), [("imgs", "labels"), ("Images", "Masks"), ("image", "annotations"), ("img", "mask")]
)
@pytest.mark.parametrize("split", ["", "train/", "Training/"])
def test_alternative_folder_names(images: str, masks: str, split: str, tmp_path: Path) -> None:
    for index in range(3):
        write_pair(tmp_path / "below", f"{split}p{index}", images=images, masks=masks)
        write_pair(tmp_path / "above", f"p{index}", images=f"{split}{images}", masks=f"{split}{masks}")
    for root in (tmp_path / "below", tmp_path / "above"):
        splits = [name for name in SPLITS if has_split(root, name)]
        assert sum(len(load_split(root, name)) for name in splits) == 3
        assert load_split(root, "train").labels(0).any()


def test_two_folders_for_one_split_are_an_error(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        write_pair(tmp_path, f"{split}/a")
    with pytest.raises(DataError, match=r"val and .*valid are both for the split val"):
        load_split(tmp_path, "train")


def test_text_files_in_labels_are_not_masks(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", masks="labels")
    (tmp_path / "labels/a.png").unlink()
    (tmp_path / "labels/a.txt").write_text("cat at the top left")
    with pytest.raises(DataError, match="no supported layout"):
        load_split(tmp_path, "train")


def test_masks_without_an_image_are_listed(tmp_path: Path) -> None:
    make_flat(tmp_path)
    (tmp_path / "images/image3.png").unlink()
    assert [path.name for path in load_split(tmp_path, "train").unmatched_masks] == ["image3.png"]


def test_an_image_without_a_mask_is_in_the_split_of_its_hash(tmp_path: Path) -> None:
    """Its name is the path below the image folder, as for a pair."""
    for index in range(20):
        write_pair(tmp_path, f"street/p{index}")
    before = {pair.name: split for split in SPLITS for pair in load_split(tmp_path, split).pairs}
    names = [next(name for name in before if before[name] == split == assign_split(name)) for split in SPLITS]
    for name in names:
        (tmp_path / f"masks/{name}.png").unlink()
    after = {
        path.relative_to(tmp_path / "images").with_suffix("").as_posix(): split
        for split in SPLITS
        for path in load_split(tmp_path, split).unmatched_images
    }
    assert after == {name: before[name] for name in names}


@pytest.mark.parametrize("count", range(2, 13))
def test_small_data_sets_have_train_and_val(count: int) -> None:
    for trial in range(6):
        names = [f"{trial}/image{index}" for index in range(count)]
        splits = assign_splits(names)
        assert sorted(splits) == sorted(names)
        assert {"train", "val"} <= set(splits.values())
        assert count < 10 or "test" in splits.values()
        assert set(assign_splits(names, train_val_only=True).values()) >= {"train", "val"}


def test_the_splits_of_a_small_folder_cover_it(tmp_path: Path) -> None:
    for index in range(3):
        write_pair(tmp_path, f"p{index}")
    splits = [split for split in SPLITS if has_split(tmp_path, split)]
    assert splits[:2] == ["train", "val"]
    assert sum(len(load_split(tmp_path, split)) for split in splits) == 3


def test_growing_data_sets_move_at_most_two_images() -> None:
    names = [f"image{index}" for index in range(200)]
    assert assign_splits(names) == {name: assign_split(name) for name in names}
    for count in range(2, 60):
        splits = assign_splits(names[:count])
        assert sum(splits[name] != assign_split(name) for name in splits) <= 2


def test_a_single_image_has_no_val(tmp_path: Path) -> None:
    write_pair(tmp_path, "alone")
    assert len(load_split(tmp_path, "train")) == 1
    assert not has_split(tmp_path, "val")
    with pytest.raises(DataError, match="has one image with a mask; expected at least two"):
        load_split(tmp_path, "val")


def test_images_of_one_pixel_and_beyond_the_limit_load_until_they_are_read(tmp_path: Path) -> None:
    for name in ("one", "huge"):
        write_pair(tmp_path, f"train/{name}", np.ones((1, 1), np.uint8))
    write_pair(tmp_path, "train/plain")
    write_pair(tmp_path, "val/plain")
    for kind in ("images", "masks"):
        write_huge_image(tmp_path / kind / "train/huge.png")
    dataset = load_split(tmp_path, "train")
    index = {pair.name: number for number, pair in enumerate(dataset.pairs)}
    with pytest.raises(ImageTooLargeError, match=r"huge\.png: .*400,000,000 pixels"):
        dataset.image(index["huge"])
    assert dataset.labels(index["one"]).tolist() == [[1]]


def test_two_images_with_one_name_are_an_error(tmp_path: Path) -> None:
    make_flat(tmp_path)
    shutil.copy(tmp_path / "images/image0.png", tmp_path / "images/image0.jpg")
    with pytest.raises(DataError, match="same name"):
        load_split(tmp_path, "train")


def test_folders_without_any_match_are_an_error(tmp_path: Path) -> None:
    write_pair(tmp_path, "1")
    (tmp_path / "masks/1.png").rename(tmp_path / "masks/001.png")
    with pytest.raises(DataError, match=r"none of 1 images has a mask.*images/1\.png and .*masks/001\.png"):
        load_split(tmp_path, "train")


def test_other_folders_are_an_error_that_shows_the_simplest_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        load_split(tmp_path, "train")
    (tmp_path / "notes.txt").write_text("no data set")
    with pytest.raises(DataError, match=r"no supported layout .*images/NAME\.jpg"):
        load_split(tmp_path, "train")
    with pytest.raises(DataError, match="is not a folder"):
        load_split(tmp_path / "none", "train")
    with pytest.raises(ConfigError, match="folder"):
        load_split(tmp_path, "train", "pascal")
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    with pytest.raises(DataError, match=r"images: empty; masks: empty"):
        load_split(tmp_path, "train")


def test_shapes_are_reproducible_by_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_dataset(tmp_path / name, seed=5, counts={"train": 2, "val": 1, "test": 1})
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 9
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert (generate_scene(np.random.default_rng(1))[0] != generate_scene(np.random.default_rng(2))[0]).any()


def test_shapes_have_every_class_and_load_as_generated(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 12, "val": 1})
    dataset = load_split(tmp_path / "s", "train")
    assert dataset.classes == CLASSES
    present = np.unique(np.concatenate([dataset.labels(index).ravel() for index in range(12)]))
    assert present.tolist() == list(range(len(CLASSES)))
    image, labels = generate_scene(np.random.default_rng((0, 0, 0)))
    assert (dataset.labels(0) == labels).all()
    assert np.abs(dataset.image(0).astype(int) - image).mean() < 8


def test_shapes_do_not_overwrite_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="not empty"):
        generate_dataset(tmp_path)


def test_the_hash_of_a_name_ignores_its_unicode_form_and_accepts_any_bytes() -> None:
    assert assign_split("u\u0308ber") == assign_split("\u00fcber")
    assert assign_split(b"stra\xdfe".decode(errors="surrogateescape")) in SPLITS
