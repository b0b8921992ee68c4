"""Class files under the names and in the forms that tools write."""

from pathlib import Path

import numpy as np
import pytest

from models.errors import DataError
from tests.training import make_layouts
from tests.training.make_layouts import HEIGHT, WIDTH, write_image, write_mask
from training.data import load_split
from training.lint import lint

LABELS = np.tile(np.uint8([0, 1, 2, 2]), (HEIGHT, WIDTH // 4))
COLORS = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 255]], np.uint8)


def make_dataset(root: Path, name: str, text: str, masks: np.ndarray = LABELS, encoding: str = "utf-8") -> Path:
    for index in range(3):
        write_image(root / f"images/a{index}.png")
        write_mask(root / f"masks/a{index}.png", masks)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(text.encode(encoding))
    return root


@pytest.mark.parametrize(
    "text",
    [
        "These are the labels of the project.\nground\nball\nbox\n",
        "ground ball box\nPlease use box for anything that has corners and was not moved by hand\n",
    ],
)
def test_sentences_are_not_classes(text: str, tmp_path: Path) -> None:
    make_dataset(tmp_path, "labels.txt", text)
    report = lint(tmp_path)
    assert [entry.name for entry in report.classes] == ["class0", "class1", "class2"]
    assert "labels.txt" in report.not_read
    (tmp_path / "classes.txt").write_text("earth, sky and all the rest of it\nball\nbox (a big one of wood)\n")
    assert lint(tmp_path).classes[0].name == "earth, sky and all the rest of it"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "ground\nball\nbox\n"),
        ("Classes.csv", "ground\r\nball\r\nbox\r\n"),
        ("class_names.txt", "ground\nball\nbox"),
        ("labels.txt", "\ufeff0 ground\n1 ball\n2 box\n"),
        ("labels.txt", "0: ground\n1: ball\n2: box\n"),
        ("masks/classes.txt", "ground\nball\nbox\n"),
        ("id2label.json", '{"0": "ground", "2": "box", "1": "ball"}'),
        ("id2label.json", '{"ground": 0, "ball": 1, "box": 2}'),
        ("classes.json", '["ground", "ball", "box"]'),
        ("classes.json", '[{"id": 0, "name": "ground"}, {"id": 1, "name": "ball"}, {"id": 2, "name": "box"}]'),
        (
            "label_classes.json",
            '[{"png_index": 2, "id": 7, "class_name": "box"}, {"png_index": 1, "class_name": "ball"},'
            '{"png_index": 0, "class_name": "ground"}]',
        ),
        ("classes.csv", "class\nground\nball\nbox\n"),
        ("classes.csv", "Label\nground\nball\nbox\n"),
        ("classes.csv", "id,name\n0,ground\n1,ball\n2,box\n"),
        ("classes.csv", "name;value\nbox;2\nground;0\nball;1\n"),
        ("_classes.csv", "Pixel Value, Class\n0, ground\n1, ball\n2, box\n"),
        ("classes.csv", "class,r,g,b\nground,0,0,0\nball,1,1,1\nbox,2,2,2\n"),
    ],
)
def test_names_are_read_in_label_order(name: str, text: str, tmp_path: Path) -> None:
    dataset = load_split(make_dataset(tmp_path, name, text), "train")
    assert [entry.name for entry in dataset.classes] == ["ground", "ball", "box"]
    assert (dataset.labels(0) == LABELS).all()
    assert lint(tmp_path).not_read == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("label_colors.txt", "10 20 30 ground\n200 0 0 ball\n0 0 255 box\n"),
        ("label_colors.txt", "# r g b\n10\t20\t30\t\tground\n200\t0\t0\t\tball\n0\t0\t255\t\tbox\n"),
        ("class_dict.csv", "name,r,g,b,class_11\nground,10,20,30,1\nball,200,0,0,0\nbox,0,0,255,1\n"),
        ("classes.csv", "name,red,green,blue\nground,10,20,30\nball,200,0,0\nbox,0,0,255\n"),
        ("labels.txt", "ground 10 20 30\nball 200 0 0\nbox 0 0 255\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nground:10,20,30::\nball:200,0,0::\nbox:0,0,255::\n"),
    ],
)
def test_colors_are_read(name: str, text: str, tmp_path: Path) -> None:
    dataset = load_split(make_dataset(tmp_path, name, text, COLORS[LABELS]), "train")
    assert [(entry.name, entry.rgb) for entry in dataset.classes] == [
        ("ground", (10, 20, 30)), ("ball", (200, 0, 0)), ("box", (0, 0, 255))
    ]  # fmt: skip
    assert (dataset.labels(0) == LABELS).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.json", "{", "invalid JSON"),
        ("id2label.json", '{"0": {}}', "not a list of classes"),
        ("classes.csv", "id,name\n0,a\n0,b\n", "two classes have the value 0"),
        ("classes.csv", "id,name\nx,a\n1,b\n", "line 2: 'x' is no pixel value"),
        ("label_colors.txt", "0 0 999 a\n1 1 1 b\n", "line 1: .* has no valid color"),
    ],
)
def test_a_broken_class_file_is_an_error_that_names_it(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        load_split(make_dataset(tmp_path, name, text), "train")


def test_the_class_names_of_labelme2voc_are_read(tmp_path: Path) -> None:
    """They were taken for VOC's: `ball` was an aeroplane."""
    make_layouts.make_voc(tmp_path)
    assert any("they are the 21 of PASCAL VOC" in note for note in load_split(tmp_path, "train").notes)
    (tmp_path / "class_names.txt").write_text("_background_\nball\n")
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["_background_", "ball"]
    assert not any("PASCAL VOC" in note for note in dataset.notes)


def test_the_pngs_of_old_labelme2voc_lie_beside_its_npy_files(tmp_path: Path) -> None:
    for index in range(4):
        write_image(tmp_path / f"JPEGImages/a{index}.jpg")
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        np.save(tmp_path / f"SegmentationClass/a{index}.npy", LABELS.astype(np.int32))
        write_mask(tmp_path / f"SegmentationClassPNG/a{index}.png", LABELS)
    (tmp_path / "class_names.txt").write_text("_background_\nball\nbox")
    assert load_split(tmp_path, "train").pairs[0].mask.suffix == ".png"
    assert (load_split(tmp_path, "train").labels(0) == LABELS).all()


@pytest.mark.parametrize("classes", [False, True])
def test_the_line_proposed_for_black_works(classes: bool, tmp_path: Path) -> None:
    """CVAT's label map without the background, as the note says, and with a classes.csv beside it."""
    make_layouts.make_cvat_voc(tmp_path)
    file = tmp_path / "labelmap.txt"
    file.write_text("road:128,64,128::\ncar:1,2,3::\n")
    (note,) = [note for note in load_split(tmp_path, "train").notes if "Black" in note]
    assert f"a line `name:0,0,0::` to {file}" in note
    if classes:
        (tmp_path / "classes.csv").write_text("background,0,0,0\nroad,128,64,128\ncar,1,2,3\n")
    else:
        file.write_text(f"background:0,0,0::\n{file.read_text()}")
    dataset = load_split(tmp_path, "train")
    assert dataset.notes == ()
    assert (dataset.labels(0) == make_layouts.DIAGONAL).all()


def test_ade20k_has_150_classes_and_ignores_0(tmp_path: Path) -> None:
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{value}\t0.1\t9\t9\tthing {value}, also" for value in range(1, 151))]
    for split in ("training", "validation"):
        write_image(tmp_path / f"images/{split}/{split}.jpg")
        write_mask(
            tmp_path / f"annotations/{split}/{split}.png", np.tile(np.uint8([0, 1, 2, 150]), (HEIGHT, WIDTH // 4))
        )
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    dataset = load_split(tmp_path, "train")
    assert len(dataset.classes) == 150
    assert dataset.classes[149].name == "thing 150, also"
    assert np.unique(dataset.labels(0)).tolist() == [0, 1, 149, 255]


def test_copies_of_a_class_file_are_read_and_must_be_equal(tmp_path: Path) -> None:
    make_layouts.make_roboflow_masks(tmp_path)
    copies = sorted(tmp_path.glob("*/_classes.csv"))
    assert len(copies) > 1
    assert lint(tmp_path).not_read == ""
    copies[-1].write_text("Pixel Value, Class\n0, cat\n1, background\n")
    with pytest.raises(DataError, match="have different classes; correct one"):
        lint(tmp_path)


def test_hasty_lists_no_background(tmp_path: Path) -> None:
    text = (
        '[{"png_index": 1, "class_name": "ball", "color": "#4df3ceff"}, '
        '{"png_index": 2, "class_name": "box", "color": "#4c4ffcff"}]'
    )
    dataset = load_split(make_dataset(tmp_path, "label_classes.json", text), "train")
    assert [entry.name for entry in dataset.classes] == ["background", "ball", "box"]
    assert (dataset.labels(0) == LABELS).all()
