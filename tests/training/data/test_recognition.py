"""Which format is read, what is said about it, and folders that none fits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from tests.training import make_layouts
from tests.training.make_layouts import (
    DIAGONAL,
    HEIGHT,
    SPLITS,
    SQUARE_MASK,
    WIDTH,
    write_image,
    write_mask,
    write_pair,
)
from training.data import load_available_splits, load_split, recognize_dataset
from training.data.tree import list_tree
from training.lint import lint

COLORS = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], np.uint8)


def make_crop_weed(root: Path) -> None:
    """CWFID: colors in annotations, a vegetation mask of 0 and 255 in masks."""
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        write_mask(root / f"images/{index:03}_image.png", noise)
        labels = DIAGONAL + SQUARE_MASK * np.uint8(index % 2)
        write_mask(root / f"annotations/{index:03}_annotation.png", COLORS[labels])
        write_mask(root / f"masks/{index:03}_mask.png", np.uint8(255) * (labels == 0))


def test_crop_and_weed_are_read_from_the_folder_with_more_classes(tmp_path: Path) -> None:
    make_crop_weed(tmp_path)
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["black", "green", "red"]
    index = next(i for i, pair in enumerate(dataset.pairs) if int(pair.name[:3]) % 2)
    assert (dataset.labels(index) == DIAGONAL + SQUARE_MASK).all()
    assert any("annotations is read and" in note and "masks is not" in note for note in dataset.notes)
    assert any("3 colors" in note and "255,0,0" in note for note in dataset.notes)


def test_the_mask_folder_with_the_colors_of_the_class_file_is_read(tmp_path: Path) -> None:
    make_crop_weed(tmp_path)
    (tmp_path / "classes.csv").write_text("soil,0,0,0\ncrop,0,255,0\nweed,255,0,0\n")
    assert [entry.name for entry in load_split(tmp_path, "train").classes] == ["soil", "crop", "weed"]
    assert lint(tmp_path).errors == []


def test_a_field_of_view_is_not_the_truth(tmp_path: Path) -> None:
    """DRIVE: `mask` is the same circle in every image, `1st_manual` the vessels."""
    for index in range(12):
        write_image(tmp_path / f"images/{index}_training.tif")
        vessels = np.uint8(255) * np.random.default_rng(index).integers(0, 2, (HEIGHT, WIDTH), np.uint8)
        write_mask(tmp_path / f"mask/{index}_training_mask.gif", np.uint8(255) * SQUARE_MASK)
        write_mask(tmp_path / f"1st_manual/{index}_manual1.gif", vessels)
    assert load_split(tmp_path, "train").pairs[0].mask.parent.name == "1st_manual"
    for path in (tmp_path / "1st_manual").iterdir():
        path.unlink()
    assert "all masks are equal" in {finding.kind for finding in lint(tmp_path).findings}


def test_masks_of_instances_are_read_only_if_there_are_no_others(tmp_path: Path) -> None:
    """iSAID: colors of instances and colors of classes, in folders that fit equally well."""
    for index in range(4):
        write_image(tmp_path / f"images/P{index}.png")
        many = np.random.default_rng(index).integers(0, 3, (HEIGHT, WIDTH, 3), np.uint8)
        write_mask(tmp_path / f"Instance_masks/P{index}_instance_id_RGB.png", many)
        write_mask(tmp_path / f"Semantic_masks/P{index}_instance_color_RGB.png", COLORS[DIAGONAL])
    assert load_split(tmp_path, "train").pairs[0].mask.parent.name == "Semantic_masks"


def test_overlapping_objects_are_merged_with_the_smaller_on_top(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / f"images/a{index}.jpg")
        write_mask(tmp_path / f"masks/a{index}_sky.png", np.uint8(255) * np.ones((HEIGHT, WIDTH), np.uint8))
        write_mask(tmp_path / f"masks/a{index}_bird.png", np.uint8(255) * SQUARE_MASK)
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["background", "bird", "sky"]
    assert (dataset.labels(0) == np.where(SQUARE_MASK, 1, 2)).all()


def test_objects_of_different_sizes_are_an_error_of_the_lint(tmp_path: Path) -> None:
    make_layouts.make_object_masks(tmp_path)
    write_mask(tmp_path / "stage1/id3/masks/object1.png", np.ones((2, 2), np.uint8))
    details = [finding.detail for finding in lint(tmp_path).errors]
    assert len(details) == 1
    assert "object1.png" in details[0]
    assert "2 x 2" in details[0]


def test_equal_evidence_is_a_finding_that_names_both(tmp_path: Path) -> None:
    make_layouts.make_coco(tmp_path)
    make_layouts.make_voc(tmp_path)
    recognition = recognize_dataset(tmp_path)
    assert {recognition.format, *recognition.others} >= {"voc", "coco"}
    assert recognize_dataset(tmp_path, "coco").format == "coco"


def test_few_pairs_are_a_finding(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    for index in range(9):
        write_image(tmp_path / f"images/other{index}.png")
    (note,) = recognize_dataset(tmp_path).notes
    assert "only 1 of 10 images" in note


def test_a_folder_in_a_folder_is_read_with_a_note(tmp_path: Path) -> None:
    for index in range(4):
        write_pair(tmp_path / "outer/inner", f"a{index}")
    dataset = load_split(tmp_path, "train")
    assert any("inner is read, the only folder in" in note for note in dataset.notes)


def test_the_message_names_the_folder_to_give_instead(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for index in range(4):
            write_pair(tmp_path / name, f"a{index}")
    with pytest.raises(DataError, match=r"one has one: give that folder"):
        load_split(tmp_path, "train")
    with pytest.raises(DataError, match=rf"above it has one: give {tmp_path}/one"):
        load_split(tmp_path / "one/images", "train")
    assert len(load_split(tmp_path / "one", "train")) == 3


def test_what_no_format_fits_is_counted_by_suffix(tmp_path: Path) -> None:
    write_image(tmp_path / "scans/a.png")
    write_image(tmp_path / "scans/b.png")
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth/a.nii.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(
        DataError,
        match=r"scans: 2 \.png; truth: 1 \.nii\.gz.*\.nii\.gz files .* not read together with images; save their",
    ):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [(("SHA256SUMS", "spec.json"), "is a bundle"), (("run.json", "config.yaml"), "is the run folder")],
)
def test_folders_of_maskserve_are_no_data_sets(files: tuple[str, str], message: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).touch()
    write_image(tmp_path / "probes" / "0.png")
    if "bundle" in message:
        write_mask(tmp_path / "probes" / "0.labels.png", SQUARE_MASK)
    with pytest.raises(DataError, match=f"{message}.*, not a data set; give the folder of images and masks"):
        load_split(tmp_path, "train")


def test_text_in_utf_16_is_read(tmp_path: Path) -> None:
    """As Windows' PowerShell writes it."""
    for name in ("a", "b", "c"):
        write_image(tmp_path / "pictures" / f"{name}.png")
        write_mask(tmp_path / "labels" / f"{name}.png", SQUARE_MASK)
    lines = "\r\n".join(
        f"pictures/{name}.png,labels/{name}.png,{split}" for name, split in zip("abc", SPLITS, strict=True)
    )
    (tmp_path / "list.csv").write_text(f"image,mask,split\r\n{lines}\r\n", encoding="utf-16")
    (tmp_path / "classes.csv").write_text("ground\r\nbox\r\n", encoding="utf-16")
    (pair,) = (dataset := load_split(tmp_path, "val")).pairs
    assert pair.image.name == "b.png" and [entry.name for entry in dataset.classes] == ["ground", "box"]


def test_a_data_set_two_folders_deeper_is_read_though_there_are_others(tmp_path: Path) -> None:
    for index in range(4):
        write_pair(tmp_path / "export/set", f"a{index}")
    write_image(tmp_path / "figures/overview.png")
    assert any("export/set is read, the only data set" in note for note in load_split(tmp_path, "train").notes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images/a.jpg", b"", "These are images without masks or annotations"),
        ("a.nii.gz", b"\x1f\x8b", r"Volumes need label volumes of the same names: .*images/NAME\.nii\.gz with"),
        ("data.zip", b"PK", r"data\.zip is an archive: give that file"),
        ("via.json", b'{"a": {"region_attributes": {}}}', r"via\.json is of VIA .*; export the annotations as COCO"),
        ("train.csv", b"ImageId,EncodedPixels\n", r"train\.csv has run lengths of masks, which are not read"),
        ("a.mat", b"", r"\.mat files \(MATLAB\) are not read; save them as PNG"),
    ],
)
def test_the_message_says_what_is_known_about_the_files(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_split(tmp_path, "train")


def test_the_full_ade20k_is_refused(tmp_path: Path) -> None:
    for index in range(3):
        for ending in (".jpg", "_seg.png", "_parts_1.png"):
            write_image(tmp_path / f"ADE_train_{index}{ending}")
    with pytest.raises(DataError, match=r"thousands of classes .*ADEChallengeData2016"):
        load_split(tmp_path, "train")


def test_the_table_that_the_message_proposes_works(tmp_path: Path) -> None:
    lines = ["image,mask"]
    for index in range(4):
        write_pair(tmp_path, f"a{index}", images="scans", masks="truth")
        lines.append(f"scans/a{index}.png,truth/a{index}.png")
    with pytest.raises(DataError, match=r"list\.csv: a header `image,mask`"):
        load_split(tmp_path, "train")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert sum(map(len, load_available_splits(tmp_path).values())) == 4


def test_hidden_files_and_folders_are_not_read(tmp_path: Path) -> None:
    for index in range(4):
        write_pair(tmp_path, f"a{index}")
        write_pair(
            tmp_path, f"a{index}-checkpoint", images="images/.ipynb_checkpoints", masks="masks/.ipynb_checkpoints"
        )
        write_pair(tmp_path, f"._a{index}")
    opened = load_available_splits(tmp_path)
    assert sum(map(len, opened.values())) == 4
    assert not any(dataset.unmatched_images for dataset in opened.values())


def test_links_out_of_the_folder_and_circles_are_findings(tmp_path: Path) -> None:
    for index in range(4):
        write_pair(tmp_path / "data", f"a{index}")
    (tmp_path / "data/images").rename(tmp_path / "elsewhere")
    (tmp_path / "data/images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/masks/gone.png").symlink_to(tmp_path / "nothing.png")
    details = {finding.kind: finding.detail for finding in lint(tmp_path / "data").findings}
    assert "elsewhere" in details["link out of the folder"]
    assert list_tree(tmp_path / "data").broken_links == ("images/back", "masks/gone.png")


def test_lists_of_names_define_the_splits(tmp_path: Path) -> None:
    for index in range(10):
        write_pair(tmp_path, f"a{index}", masks="labels")
    (tmp_path / "splits").mkdir()
    for split, text in (("train", "a0\r\na1\r\n"), ("val", "images/a2.png\na3.jpg\n"), ("test", "\ufeffa4\nnone\n")):
        (tmp_path / f"splits/{split}.txt").write_text(text, newline="")
    opened = load_available_splits(tmp_path)
    assert {split: [pair.name for pair in dataset.pairs] for split, dataset in opened.items()} == {
        "train": ["a0", "a1"],
        "val": ["a2", "a3"],
        "test": ["a4"],
    }
    notes = opened["train"].notes
    assert any("5 images are in no split" in note for note in notes)
    assert any("lists 1 images that are not there, such as none" in note for note in notes)
    (tmp_path / "splits/val.txt").write_text("a1\n")
    with pytest.raises(DataError, match=r"val\.txt lists a1, which is also in the list of train"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize("name", ["train_test_split.yaml", "split.json"])
def test_one_file_of_numbers_defines_the_splits(name: str, tmp_path: Path) -> None:
    """CWFID: `train_test_split.yaml` with `train: [1, 2, 5]` for `001_image.png`."""
    for index in range(1, 9):
        write_image(tmp_path / f"images/{index:03}_image.png")
        write_mask(tmp_path / f"masks/{index:03}_mask.png", DIAGONAL)
    lists = '{"train": [1, 2, "003"], "val": [5], "test": [6, 8, 77]}'
    (tmp_path / name).write_text(lists)
    opened = load_available_splits(tmp_path)
    found = {split: [int(pair.name[:3]) for pair in dataset.pairs] for split, dataset in opened.items()}
    assert found == {"train": [1, 2, 3], "val": [5], "test": [6, 8]}
    assert any("lists 1 images that are not there, such as 77" in note for note in opened["train"].notes)


def test_lists_that_name_no_image_are_a_finding(tmp_path: Path) -> None:
    """LandCover.ai: the lists name tiles that a script cuts from the images."""
    for index in range(4):
        write_pair(tmp_path, f"a{index}")
    (tmp_path / "train.txt").write_text("a0_1\na0_2\n")
    assert any(
        "train.txt is not used: it lists 2 names, such as a0_1" in n for n in load_split(tmp_path, "train").notes
    )


def test_names_that_begin_with_their_splits(tmp_path: Path) -> None:
    """GlaS: `train_1.bmp` and `testA_1.bmp` with `testA_1_anno.bmp` in one folder."""
    for name in ("train_1", "train_2", "train_3", "testA_1", "testB_1"):
        write_image(tmp_path / f"{name}.bmp")
        write_mask(tmp_path / f"{name}_anno.png", DIAGONAL)
    assert [pair.name for pair in load_split(tmp_path, "test").pairs] == ["testA_1", "testB_1"]


def test_coco_folders_of_a_year_are_splits(tmp_path: Path) -> None:
    for index in range(6):
        write_pair(tmp_path, f"{'train2017' if index < 4 else 'val2017'}/a{index}", masks="annotations")
    assert [len(dataset) for dataset in load_available_splits(tmp_path).values()] == [4, 2]


def test_images_beside_the_split_folders_are_a_finding(tmp_path: Path) -> None:
    for split in SPLITS:
        write_pair(tmp_path, f"{split}/a")
    write_image(tmp_path / "images/eval/b.png")
    write_image(tmp_path / "images/c.png")
    assert any("2 images are in no split" in note for note in load_split(tmp_path, "train").notes)


def test_a_test_split_without_masks_is_left_out(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path, f"{split}0", images=f"{split}/images", masks=f"{split}/masks")
    write_image(tmp_path / "test/images/t.png")
    report = lint(tmp_path)
    assert report.errors == []
    assert list(report.image_counts) == ["train", "val"]
    assert any("test has 1 images and no masks" in finding.detail for finding in report.findings)
    with pytest.raises(DataError, match="the split test has no image with a mask, but 1 images"):
        load_split(tmp_path, "test")


def test_masks_in_one_folder_for_images_by_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(2):
            write_image(tmp_path / f"images/{split}/{split}{index}.png")
            write_mask(tmp_path / f"masks/{split}{index}.png", DIAGONAL)
    opened = load_available_splits(tmp_path)
    assert {split: len(dataset) for split, dataset in opened.items()} == {"train": 2, "val": 2}
    assert opened["train"].unmatched_masks == ()


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}_image.png", "{}_mask.png"),
        ("image_{}.jpg", "mask_{}.png"),
        ("a{}.jpg", "a{}.jpg.png"),
        ("Image_{}L.jpg", "Image_{}L_1stHO.png"),
        ("x{}_sat.jpg", "x{}_mask.png"),
        ("X{}.JPG", "x{}.png"),
    ],
)
def test_near_names_are_paired(image: str, mask: str, tmp_path: Path) -> None:
    for index in range(12):
        name = f"{index:02}"
        write_image(tmp_path / "images" / image.format(name).replace(".JPG", ".jpg"))
        write_mask(tmp_path / "masks" / mask.format(name), np.full((HEIGHT, WIDTH), index, np.uint8))
    opened = load_available_splits(tmp_path)
    pairs = [pair for dataset in opened.values() for pair in dataset.pairs]
    assert len(pairs) == 12
    for pair in pairs:
        assert f"{int(np.asarray(Image.open(pair.mask))[0, 0]):02}" in pair.image.name


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images_prepped_{}/{}.png", "annotations_prepped_{}/{}.png"),
        ("{}_img/{}.jpg", "{}_lab/{}.png"),
        ("ISIC_Task1-2_{}_Input/x{}.jpg", "ISIC_Task1_{}_GroundTruth/x{}_segmentation.png"),
        ("images/10k/{}/{}.jpg", "labels/sem_seg/masks/{}/{}.png"),
        ("set_{}/seq1/Images/{}.png", "set_{}/seq1/Labels/{}.png"),
        ("{}/img/{}.jpg", "{}/ann/{}.png"),
        ("{}/images/{}.jpg", "{}/v1.2/labels/{}.png"),
        ("set/tiff/{}/{}.tiff", "set/tiff/{}_labels/{}.tif"),
        ("data/Images/img_dir/{}/{}.jpg", "data/Images/ann_dir/{}/{}.png"),
        ("{0}/{0}-org-img/{1}.jpg", "{0}/{0}-label-img/{1}_lab.png"),
        ("{}/image_2/{}.png", "{}/semantic/{}.png"),
        ("{}/Original/{}.jpg", "{}/Ground Truth/{}.png"),
    ],
)
def test_roles_and_splits_in_the_names_of_folders(image: str, mask: str, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            write_image(tmp_path / image.format(split, f"{split}{index}"))
            write_mask(tmp_path / mask.format(split, f"{split}{index}"), np.full((HEIGHT, WIDTH), index, np.uint8))
    opened = load_available_splits(tmp_path)
    assert {split: len(dataset) for split, dataset in opened.items()} == {"train": 4, "val": 2}
    for split, dataset in opened.items():
        for pair in dataset.pairs:
            assert f"{split}{int(np.asarray(Image.open(pair.mask))[0, 0])}" in pair.image.name


def test_folders_of_one_split_may_have_equal_names(tmp_path: Path) -> None:
    """LoveDA: `Train/Rural/images_png/0.png` and `Train/Urban/images_png/0.png`."""
    for split in ("Train", "Val"):
        for value, place in enumerate(("Rural", "Urban")):
            write_image(tmp_path / f"{split}/{place}/images_png/0.png")
            write_mask(tmp_path / f"{split}/{place}/masks_png/0.png", np.full((HEIGHT, WIDTH), value, np.uint8))
    train = load_split(tmp_path, "train")
    assert [pair.name for pair in train.pairs] == ["Train/Rural/0", "Train/Urban/0"]
    assert [int(train.labels(index).max()) for index in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict_seg.csv", "name, r, g, b\nsoil, 0, 0, 0\ncrop, 0, 255, 0\nweed, 255, 0, 0\n"),
        ("label_map.json", '{"soil": [0, 0, 0], "crop": [0, 255, 0], "weed": "#ff0000"}'),
        ("categories.json", '[{"id": 0, "title": "soil", "rgb": [0, 0, 0]}, {"id": 1, "title": "crop", "rgb": [0, 255, 0]},'
         ' {"id": 2, "title": "weed", "rgb": [255, 0, 0]}]'),
        ("classes.yaml", "names:\n  0: {name: soil, color: [0, 0, 0]}\n  1: {name: crop, color: [0, 255, 0]}\n"
         "  2: {name: weed, color: [255, 0, 0]}\n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("outside", [False, True])
def test_class_lists_of_similar_names_also_beside_the_only_folder(
    name: str, text: str, outside: bool, tmp_path: Path
) -> None:
    make_crop_weed(tmp_path / "data")
    (tmp_path / ("." if outside else "data") / name).write_text(text)
    (tmp_path / "data/label_notes.txt").write_text("a.png 1\n")
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["soil", "crop", "weed"]
    index = next(i for i, pair in enumerate(dataset.pairs) if int(pair.name[:3]) % 2)
    assert (dataset.labels(index) == DIAGONAL + SQUARE_MASK).all()
    assert name in {file.name for file in dataset.files}


def test_the_only_data_set_among_other_folders_is_read(tmp_path: Path) -> None:
    for index in range(4):
        write_pair(tmp_path / "set", f"a{index}")
    write_image(tmp_path / "figures/overview.png")
    assert any("set is read, the only data set" in note for note in load_split(tmp_path, "train").notes)


def test_files_that_were_not_read_are_counted(tmp_path: Path) -> None:
    for index in range(4):
        write_pair(tmp_path, f"a{index}")
    write_image(tmp_path / "extra/b.jpg")
    write_image(tmp_path / "extra/c.jpg")
    (tmp_path / "notes.md").touch()
    report = lint(tmp_path)
    assert report.not_read == "extra/: 2 .jpg; notes.md"
    assert "images not read" in {finding.kind for finding in report.findings}


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formats look at one listing: none of them lists or stats the files again."""
    for index in range(40):
        write_pair(tmp_path, f"a{index}")
    calls = []
    original = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: calls.append(path) or original(path))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Path, "rglob", lambda *args: pytest.fail("a format lists the folder again"))
    assert recognize_dataset(tmp_path).format == "folder"
    assert len(calls) < 20


def test_the_split_proposed_for_few_images_works(tmp_path: Path) -> None:
    """Eight images have no test split; `evaluate --split val` is what works."""
    for index in range(8):
        write_pair(tmp_path, f"a{index}")
    with pytest.raises(
        DataError, match=r"8 images without split folders give no image to the split test.*`--split val`"
    ):
        load_split(tmp_path, "test")
    assert len(load_split(tmp_path, "val")) > 0


def test_one_mask_for_images_of_the_same_name_in_two_folders_is_an_error_that_names_all_three(tmp_path: Path) -> None:
    for index in range(3):
        write_mask(tmp_path / f"masks/x{index}.png", DIAGONAL)
        for folder in ("day", "night"):
            write_image(tmp_path / f"images/{folder}/x{index}.png")
    with pytest.raises(
        DataError, match=r"day/x0\.png and .*night/x0\.png have the same name, so .*masks/x0\.png could be"
    ):
        load_split(tmp_path, "train")


def test_files_that_are_no_images_are_counted_where_images_belong(tmp_path: Path) -> None:
    for index in range(3):
        write_mask(tmp_path / f"masks/x{index}.png", DIAGONAL)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/x0.psd").touch()
    with pytest.raises(DataError, match=r"images has no images, but 1 \.psd; expected files ending in"):
        load_split(tmp_path, "train")
