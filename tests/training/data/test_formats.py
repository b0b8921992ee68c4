import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import ConfigError, DataError, ImageTooLargeError
from models.spec import IGNORE_INDEX
from tests.training import make_layouts
from training.data import FORMATS, has_split, load_split
from training.data.splits import assign_split, assign_splits
from training.data.synthetic import CLASSES, generate_dataset, generate_scene

ROOT = Path(__file__).parents[3]


def write_pair(
    root: Path, name: str, labels: np.ndarray | None = None, images: str = "images", masks: str = "masks"
) -> None:
    """A grey image `name` of 8 x 6 and its mask."""
    labels = np.eye(6, 8, dtype=np.uint8) if labels is None else labels
    for folder in (root / images, root / masks):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "grey").save(root / images / f"{name}.png")
    Image.fromarray(labels).save(root / masks / f"{name}.png")


def make_flat(root: Path) -> None:
    for index in range(60):
        write_pair(root, f"image{index}")


def make_split_subfolders(root: Path) -> None:
    for split in ("train", "val", "test"):
        write_pair(root, f"{split}/{split}0")


def make_split_folders(root: Path) -> None:
    for split in ("train", "val", "test"):
        write_pair(root, f"{split}0", images=f"{split}/images", masks=f"{split}/masks")


def make_camvid(root: Path) -> None:
    for split in ("train", "val", "test"):
        write_pair(root, f"{split}0", images=split, masks=f"{split}annot")


def make_table(root: Path) -> None:
    lines = ["split,image,mask"]
    for split in ("train", "val", "test"):
        write_pair(root, f"{split}0", images="images", masks="labels")
        lines.append(f"{split},images/{split}0.png,labels/{split}0.png")
    (root / "list.csv").write_text("\n".join(lines))


def make_table_without_splits(root: Path) -> None:
    lines = ["mask\tnumber\timage"]
    for index in range(60):
        write_pair(root, f"image{index}", images="images", masks="images/masks")
        lines.append(f"images/masks/image{index}.png\t{index}\timages/image{index}.png")
    (root / "list.tsv").write_text("\n".join(lines))


LAYOUTS: dict[str, list[Callable[[Path], None]]] = {
    "table": [make_table, make_table_without_splits],
    "folder": [make_flat, make_split_subfolders, make_split_folders],
    "camvid": [make_camvid],
    **make_layouts.LAYOUTS,
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
        samples = load_split(tmp_path, split, format if named else "auto")
        assert len(samples) >= 1
        assert samples.image(0).shape == (6, 8, 3)
        assert samples.labels(0).shape == (6, 8)
        if format in ("folder", "camvid", "voc"):  # the others name a mask otherwise, or hold many in one file
            assert all(pair.image.stem == pair.mask.stem for pair in samples.pairs)


@pytest.mark.parametrize(("format", "layout"), [(name, layout) for name, all_ in LAYOUTS.items() for layout in all_])
def test_a_layout_is_recognised_by_its_own_format_alone(
    format: str, layout: Callable[[Path], None], tmp_path: Path
) -> None:
    layout(tmp_path)
    assert [name for name, module in FORMATS.items() if module.recognises(tmp_path)] == [format]


def test_splits_share_no_image_and_lose_none(tmp_path: Path) -> None:
    make_flat(tmp_path)
    names = [{pair.name for pair in load_split(tmp_path, split).pairs} for split in ("train", "val", "test")]
    assert len(set.union(*names)) == sum(map(len, names)) == 60


def test_an_image_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    make_flat(tmp_path)
    before = {pair.name for pair in load_split(tmp_path, "train").pairs}
    write_pair(tmp_path, "another")
    assert before <= {pair.name for pair in load_split(tmp_path, "train").pairs}


def test_the_hash_splits_in_the_shares_that_it_promises() -> None:
    splits = [assign_split(f"name{index}") for index in range(5000)]
    assert 0.78 < splits.count("train") / 5000 < 0.82
    assert 0.08 < splits.count("val") / 5000 < 0.12


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    for index in range(60):
        write_pair(tmp_path, f"train/p{index}")
    train, val = (load_split(tmp_path, split).pairs for split in ("train", "val"))
    assert len(train) + len(val) == 60
    assert 0 < len(val) < 20


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "train/a")
    with pytest.raises(DataError, match=r"no split test; it has train"):
        load_split(tmp_path, "test")


def test_camvid_unlabelled_is_void(tmp_path: Path) -> None:
    labels = np.full((6, 8), 3, np.uint8)
    labels[0] = 11
    for split in ("train", "val"):
        write_pair(tmp_path, "a", labels, images=split, masks=f"{split}annot")
    read = load_split(tmp_path, "train").labels(0)
    assert (read[0] == IGNORE_INDEX).all()
    assert (read[1:] == 3).all()


def test_classes_are_named_by_a_file_or_numbered(tmp_path: Path) -> None:
    make_flat(tmp_path)
    assert [entry.name for entry in load_split(tmp_path, "train").classes] == ["class0", "class1"]
    (tmp_path / "classes.csv").write_text("name,r,g,b\nroad,1,2,3\ncar,4,5,6\n")
    assert [(entry.name, entry.rgb) for entry in load_split(tmp_path, "train").classes] == [
        ("road", (1, 2, 3)),
        ("car", (4, 5, 6)),
    ]
    (tmp_path / "classes.csv").write_text("road\ncar\ntree\n")
    assert [entry.name for entry in load_split(tmp_path, "train").classes] == ["road", "car", "tree"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("road,1,2\ncar,1,2\n", "line 1: 'road,1,2' has 3 columns; wanted is `name` or `name,r,g,b`"),
        ("road,1,2,3,4\ncar,1,2,3,4\n", "line 1: .* has 5 columns"),
        ("name,r,g,b\nroad,1,2,300\ncar,4,5,6\n", "line 2: 'road,1,2,300' has no colour"),
        ("road,a,b,c\ncar,1,2,3\n", "line 1: 'road,a,b,c' has no colour"),
        ("road,-1,0,0\ncar,1,2,3\n", "line 1: .* has no colour"),
        ("road,1,2,3\ncar\n", "'car' has no colour, but others have"),
        ("road,1,2,3\ncar,1,2,3\n", "'car' has its colour as 'road' too: 1,2,3"),
        ("road\ncar\nroad\n", "'road' has its name twice"),
        ("road\n", "names 1 classes; wanted are 2 to 255"),
        ("", "names 0 classes"),
        ("".join(f"c{label}\n" for label in range(256)), "names 256 classes"),
        (",1,2,3\ncar,4,5,6\n", "line 1: ',1,2,3' has no name"),
        ('road\n"car\n', "line 2: is no line of a CSV"),
    ],
)
def test_a_wrong_class_file_is_told_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    make_flat(tmp_path)
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataError, match=rf"classes\.csv.*{sentence}"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(
    "text",
    [
        "name;r;g;b\nroad;1;2;3\ncar;4;5;6\n",
        "Name\tR\tG\tB\nroad\t1\t2\t3\ncar\t4\t5\t6",
        "road, 1, 2, 3\r\n\r\n car,4,5,6\r\n",
        '"road",1,2,3,\n"car",4,5,6,\n,,,,\n',
    ],
    ids=["semicolons", "tabs", "blanks", "a spreadsheet's empty cells"],
)
def test_class_files_as_people_write_them(text: str, tmp_path: Path) -> None:
    make_flat(tmp_path)
    (tmp_path / "classes.csv").write_text(text)
    classes = [(entry.name, entry.rgb) for entry in load_split(tmp_path, "train").classes]
    assert classes == [("road", (1, 2, 3)), ("car", (4, 5, 6))]


def test_a_class_file_from_a_spreadsheet_is_read_and_a_foreign_one_named(tmp_path: Path) -> None:
    make_flat(tmp_path)
    (tmp_path / "classes.csv").write_text("sky\nroad\n", encoding="utf-8-sig")
    assert [entry.name for entry in load_split(tmp_path, "train").classes] == ["sky", "road"]
    (tmp_path / "classes.csv").write_bytes("Straße\nsky\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        load_split(tmp_path, "train")


def make_renamed_pair(root: Path, image: str, mask: str) -> Path:
    """A folder of twelve good pairs, and one whose files go by these names."""
    for index in range(12):
        write_pair(root, f"image{index}")
    write_pair(root, "odd")
    (root / "images/odd.png").rename(root / "images" / image)
    (root / "masks/odd.png").rename(root / "masks" / mask)
    return root


def mask_names_by_image(root: Path) -> dict[str, str]:
    """The mask's file name by the image's."""
    return {
        pair.image.name: pair.mask.name for split in ("train", "val", "test") for pair in load_split(root, split).pairs
    }


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
def test_names_that_differ_in_case_or_unicode_form_pair_up(image: str, mask: str, tmp_path: Path) -> None:
    assert mask_names_by_image(make_renamed_pair(tmp_path, image, mask))[image] == mask


def test_the_exact_name_goes_before_one_that_is_alike(tmp_path: Path) -> None:
    make_renamed_pair(tmp_path, "IMG.png", "IMG.png")
    write_pair(tmp_path, "img")
    found = mask_names_by_image(tmp_path)
    assert (found["IMG.png"], found["img.png"]) == ("IMG.png", "img.png")


def test_names_that_are_alike_twice_are_named(tmp_path: Path) -> None:
    make_renamed_pair(tmp_path, "Img.png", "IMG.png")
    shutil.copy(tmp_path / "masks/IMG.png", tmp_path / "masks/img.png")
    with pytest.raises(DataError, match=r"IMG\.png and .*img\.png could both belong to .*Img\.png"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize("ending", ["_mask", "-mask", "_label", "_seg", "_gt", "_GT"])
def test_usual_endings_of_mask_names_are_known_where_no_name_fits(ending: str, tmp_path: Path) -> None:
    make_flat(tmp_path)
    for file in (tmp_path / "masks").iterdir():
        file.rename(file.with_stem(file.stem + ending))
    found = mask_names_by_image(tmp_path)
    assert len(found) == 60
    assert found["image7.png"] == f"image7{ending}.png"


def test_an_ending_is_part_of_the_name_where_names_fit(tmp_path: Path) -> None:
    root = make_renamed_pair(tmp_path, "odd.png", "odd_mask.png")
    unpaired = [path.name for split in ("train", "val", "test") for path in load_split(root, split).unmatched_images]
    assert unpaired == ["odd.png"]


@pytest.mark.parametrize(
    ("images", "masks"), [("imgs", "labels"), ("Images", "Masks"), ("image", "annotations"), ("img", "mask")]
)
@pytest.mark.parametrize("split", ["", "train/", "Training/"])
def test_other_usual_names_of_the_folders(images: str, masks: str, split: str, tmp_path: Path) -> None:
    for index in range(12):
        write_pair(tmp_path / "below", f"{split}p{index}", images=images, masks=masks)
        write_pair(tmp_path / "above", f"p{index}", images=f"{split}{images}", masks=f"{split}{masks}")
    for root in (tmp_path / "below", tmp_path / "above"):
        there = [name for name in ("train", "val", "test") if has_split(root, name)]
        assert sum(len(load_split(root, name)) for name in there) == 12
        assert load_split(root, "train").labels(0).any()


def test_folders_of_two_names_of_one_split_are_told(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        write_pair(tmp_path, f"{split}/a")
    with pytest.raises(DataError, match=r"val.* and .*valid both claim to be val"):
        load_split(tmp_path, "train")


def test_labels_of_yolo_are_no_masks(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", masks="labels")
    (tmp_path / "labels/a.png").unlink()
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 1 1")
    with pytest.raises(DataError, match="laid out like no data set"):
        load_split(tmp_path, "train")


def test_masks_without_an_image_are_known(tmp_path: Path) -> None:
    make_flat(tmp_path)
    (tmp_path / "images/image3.png").unlink()
    assert [path.name for path in load_split(tmp_path, "train").unmatched_masks] == ["image3.png"]


def test_an_image_without_a_mask_is_in_the_split_that_it_would_be_in(tmp_path: Path) -> None:
    """Its name is the path below the images' folder, as a pair's is."""
    for index in range(40):
        write_pair(tmp_path, f"street/p{index}")
    before = {pair.name: split for split in ("train", "val", "test") for pair in load_split(tmp_path, split).pairs}
    for name in ("street/p3", "street/p17", "street/p30", "street/p38"):
        (tmp_path / f"masks/{name}.png").unlink()
    after = {
        path.relative_to(tmp_path / "images").with_suffix("").as_posix(): split
        for split in ("train", "val", "test")
        for path in load_split(tmp_path, split).unmatched_images
    }
    assert after == {name: before[name] for name in ("street/p3", "street/p17", "street/p30", "street/p38")}


@pytest.mark.parametrize("count", range(2, 13))
def test_few_images_leave_neither_train_nor_val_empty(count: int, tmp_path: Path) -> None:
    for trial in range(6):
        names = [f"{trial}/image{index}" for index in range(count)]
        splits = assign_splits(names)
        assert sorted(splits) == sorted(names)
        assert {"train", "val"} <= set(splits.values())
        assert count < 10 or "test" in splits.values()
        assert set(assign_splits(names, train_val_only=True).values()) >= {"train", "val"}
    for index in range(count):
        write_pair(tmp_path, f"p{index}")
    there = [split for split in ("train", "val", "test") if has_split(tmp_path, split)]
    assert sum(len(load_split(tmp_path, split)) for split in there) == count


def test_a_set_that_grows_keeps_its_images_where_the_hash_has_them() -> None:
    names = [f"image{index}" for index in range(200)]
    assert assign_splits(names) == {name: assign_split(name) for name in names}
    for count in range(2, 60):
        few = assign_splits(names[:count])
        moved = [name for name in few if few[name] != assign_split(name)]
        assert len(moved) <= 2


def test_one_image_is_told_to_be_too_few(tmp_path: Path) -> None:
    write_pair(tmp_path, "alone")
    assert len(load_split(tmp_path, "train")) == 1
    assert not has_split(tmp_path, "val")
    with pytest.raises(DataError, match="holds one image with a mask; wanted are two or more"):
        load_split(tmp_path, "val")


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    with pytest.raises(DataError, match=r"images holds no image; wanted are files ending in"):
        load_split(tmp_path, "train")


def test_an_image_of_one_pixel_and_a_huge_one_are_one_set(tmp_path: Path) -> None:
    """20,000 x 20,000 is past the decoder's limit: it is told by name when it is read, and the set opens."""
    for index in range(12):
        write_pair(tmp_path, f"p{index}")
    write_pair(tmp_path, "one", np.ones((1, 1), np.uint8))
    Image.new("1", (1, 1)).save(tmp_path / "images/one.png")
    for kind in ("images", "masks"):
        Image.new("1", (20_000, 20_000)).save(tmp_path / kind / "huge.png")
    splits = [load_split(tmp_path, split) for split in ("train", "val", "test")]
    (samples,) = [samples for samples in splits if any(pair.name == "huge" for pair in samples.pairs)]
    place = [pair.name for pair in samples.pairs].index("huge")
    with pytest.raises(ImageTooLargeError, match=r"huge\.png: .*400,000,000 pixels"):
        samples.image(place)
    (samples,) = [samples for samples in splits if any(pair.name == "one" for pair in samples.pairs)]
    assert samples.labels([pair.name for pair in samples.pairs].index("one")).tolist() == [[1]]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    make_flat(tmp_path)
    shutil.copy(tmp_path / "images/image0.png", tmp_path / "images/image0.jpg")
    with pytest.raises(DataError, match="same name"):
        load_split(tmp_path, "train")


def test_names_that_never_meet_are_shown(tmp_path: Path) -> None:
    write_pair(tmp_path, "1")
    (tmp_path / "masks/1.png").rename(tmp_path / "masks/001.png")
    with pytest.raises(DataError, match=r"none of 1 images has a mask.*images/1\.png and .*masks/001\.png"):
        load_split(tmp_path, "train")


def test_what_is_no_data_set_is_told_how_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        load_split(tmp_path, "train")
    (tmp_path / "notes.txt").write_text("no data set")
    with pytest.raises(DataError, match="laid out like no data set"):
        load_split(tmp_path, "train")
    with pytest.raises(DataError, match="is no folder"):
        load_split(tmp_path / "none", "train")
    with pytest.raises(ConfigError, match="folder"):
        load_split(tmp_path, "train", "yolo")


def test_shapes_are_a_function_of_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_dataset(tmp_path / name, seed=5, counts={"train": 2, "val": 1, "test": 1})
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 9
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert (generate_scene(np.random.default_rng(1))[0] != generate_scene(np.random.default_rng(2))[0]).any()


def test_shapes_have_every_class_and_their_masks_come_back(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 12, "val": 1, "test": 1})
    samples = load_split(tmp_path / "s", "train")
    assert samples.classes == CLASSES
    seen = np.unique(np.concatenate([samples.labels(index).ravel() for index in range(12)]))
    assert seen.tolist() == list(range(len(CLASSES)))
    image, labels = generate_scene(np.random.default_rng((0, 0, 0)))
    assert (samples.labels(0) == labels).all()
    assert np.abs(samples.image(0).astype(int) - image).mean() < 8


def test_shapes_overwrite_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="not empty"):
        generate_dataset(tmp_path)
