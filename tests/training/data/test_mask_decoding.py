"""From mask files to labels: raw values, mask encodings, and what is inferred from the training masks."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from models.errors import DataError, ImageError
from models.spec import IGNORE_INDEX
from tests.training.make_layouts import encode_gray_png
from training.data import SegmentationDataset, load_split, load_splits
from training.data.mask_decoding import MaskEncoding, RawMask, read_raw_mask
from training.lint import lint
from training.metrics.confusion import ConfusionMatrix

SHAPE = (6, 8)
STRIPES = np.repeat([[0, 0, 1, 1, 2, 2, 0, 1]], 6, axis=0).astype(np.uint8)
BINARY = (STRIPES == 1).astype(np.uint8)
COLORS = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 255]], np.uint8)
CLASS_FILE_TEXT = "name,r,g,b\nground,10,20,30\ncar,200,0,0\nsky,0,0,255\n"


def make_dataset(root: Path, *masks: np.ndarray | Image.Image, classes: str = "", suffix: str = ".png") -> Path:
    """Write six training and two validation images, with these masks in turn."""
    for split, count in (("train", 6), ("val", 2)):
        for index in range(count):
            mask = masks[index % len(masks)]
            image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(count * 10 + index).integers(0, 256, (image.height, image.width, 3))
            Image.fromarray(noise.astype(np.uint8)).save(root / "images" / split / f"{split}{index}.png")
            image.save(root / "masks" / split / f"{split}{index}{suffix}")
    if classes:
        (root / "classes.csv").write_text(classes)
    return root


def class_names(dataset: SegmentationDataset) -> list[str]:
    return [entry.name for entry in dataset.classes]


@pytest.mark.parametrize(
    ("bits", "row", "expected"),
    [
        (1, [0b01100000], [0, 1, 1, 0]),
        (2, [0b00011011], [0, 1, 2, 3]),
        (4, [0x01, 0x2F], [0, 1, 2, 15]),
        (8, [0, 1, 2, 255], [0, 1, 2, 255]),
        (16, [0, 1, 1, 0, 0, 255, 0xEA, 0x60], [1, 256, 255, 60000]),
    ],
)
def test_gray_values_are_unchanged_at_any_depth(bits: int, row: list[int], expected: list[int], tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(encode_gray_png(bits, (4, 3), [bytes(row)] * 3))
    mask = read_raw_mask(tmp_path / "mask.png")
    assert mask.kind == "gray"
    assert mask.array.tolist() == [expected] * 3


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_whole_numbers_in_wide_types_are_read(dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 3, 70000]], dtype)).save(tmp_path / "mask.tif")
    assert read_raw_mask(tmp_path / "mask.tif").array.tolist() == [[0, 3, 70000]]


@pytest.mark.parametrize("value", [0.5, np.nan, -1.0, np.inf])
def test_values_that_are_not_labels_are_an_error(value: float, tmp_path: Path) -> None:
    Image.fromarray(np.array([[value, 1.0]], np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match=r"mask\.tif: .*(fractional|-1|inf)"):
        read_raw_mask(tmp_path / "mask.tif")


def test_palette_files_keep_indices_and_colors(tmp_path: Path) -> None:
    image = Image.fromarray(STRIPES)
    image.putpalette(COLORS.ravel().tolist())
    image.save(tmp_path / "mask.png", bits=2)
    values = read_raw_mask(tmp_path / "mask.png")
    assert values.kind == "palette"
    assert (values.array == STRIPES).all()
    assert values.palette[:3] == (0x0A141E, 0xC80000, 0x0000FF)


@pytest.mark.parametrize("format", ["png", "tif", "bmp"])
def test_colors_are_read_in_rgb_order(format: str, tmp_path: Path) -> None:
    Image.fromarray(COLORS[STRIPES]).save(tmp_path / f"mask.{format}")
    values = read_raw_mask(tmp_path / f"mask.{format}")
    assert values.kind == "color"
    assert values.array.tolist() == np.array([0x0A141E, 0xC80000, 0x0000FF])[STRIPES].tolist()


def test_fully_transparent_pixels_are_black_and_partial_transparency_is_dropped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[9, 8, 7, 0], [9, 8, 7, 1], [9, 8, 7, 255]]], np.uint8)).save(tmp_path / "rgba.png")
    assert read_raw_mask(tmp_path / "rgba.png").array.tolist() == [[0, 0x090807, 0x090807]]
    Image.fromarray(np.array([[[9, 0], [9, 128]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert read_raw_mask(tmp_path / "la.png").array.tolist() == [[0, 0x090909]]


def test_a_mask_with_an_exif_orientation_is_rotated(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(STRIPES).save(tmp_path / "mask.png", exif=exif)
    assert (read_raw_mask(tmp_path / "mask.png").array == np.rot90(STRIPES, -1)).all()


def test_errors_name_unreadable_masks(tmp_path: Path) -> None:
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "mask.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"mask\.png"):
            read_raw_mask(tmp_path / "mask.png")
    Image.new("CMYK", (2, 2)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match="CMYK"):
        read_raw_mask(tmp_path / "mask.tif")


def test_mmseg_1609_masks_of_0_and_255_are_two_classes_with_a_note(tmp_path: Path) -> None:
    """open-mmlab/mmsegmentation #1609: 255 was ignored, IoU was 0, and there was no message."""
    root = make_dataset(tmp_path, BINARY * 255)
    dataset = load_split(root, "train")
    assert class_names(dataset) == ["background", "foreground"]
    assert (dataset.labels(0) == BINARY).all()
    assert "0 and 255" in " ".join(dataset.notes)
    assert "ignored" in " ".join(dataset.notes)
    confusion = ConfusionMatrix(2)
    confusion.add(dataset.labels(0), BINARY)
    assert confusion.miou() == 1
    assert not lint(root).errors


def test_two_named_classes_keep_their_names(tmp_path: Path) -> None:
    dataset = load_split(make_dataset(tmp_path, BINARY * 255, classes="road\ncrack\n"), "val")
    assert class_names(dataset) == ["road", "crack"]
    assert (dataset.labels(0) == BINARY).all()


def test_with_three_classes_255_is_ignored(tmp_path: Path) -> None:
    dataset = load_split(make_dataset(tmp_path, BINARY * 255, classes="a\nb\nc\n"), "train")
    assert dataset.notes == ()
    assert (dataset.labels(0) == BINARY * IGNORE_INDEX).all()


@pytest.mark.parametrize(
    "mask",
    [
        BINARY * 128,
        np.repeat((BINARY * 255)[..., None], 3, axis=2),
        np.dstack([np.repeat((BINARY * 255)[..., None], 3, axis=2), np.full(SHAPE, 255, np.uint8)]),
        np.repeat(BINARY[..., None], 3, axis=2),
        BINARY == 1,
        Image.fromarray(BINARY * 255).convert("P"),
    ],
    ids=["0 and 128", "RGB 0 and 255", "RGBA 0 and 255", "RGB 0 and 1", "1 bit", "palette 0 and 255"],
)
def test_encodings_of_two_classes(mask: np.ndarray | Image.Image, tmp_path: Path) -> None:
    dataset = load_split(make_dataset(tmp_path, mask), "train")
    assert len(dataset.classes) == 2
    assert (dataset.labels(0) == BINARY).all()


def test_0_1_and_255_are_two_classes_and_ignored(tmp_path: Path) -> None:
    mask = np.where(STRIPES == 2, 255, STRIPES).astype(np.uint8)
    dataset = load_split(make_dataset(tmp_path, mask), "train")
    assert class_names(dataset) == ["class0", "class1"]
    assert (dataset.labels(0) == mask).all()


def test_mmseg_1572_color_masks_are_decoded_by_the_class_file(tmp_path: Path) -> None:
    """open-mmlab/mmsegmentation #1572: RGB masks ended in an assertion about shapes."""
    dataset = load_split(make_dataset(tmp_path, COLORS[STRIPES], classes=CLASS_FILE_TEXT), "train")
    assert class_names(dataset) == ["ground", "car", "sky"]
    assert all((dataset.labels(index) == STRIPES).all() for index in range(6))


def test_a_few_exact_colors_are_classes_without_a_class_file_and_the_note_lists_them(tmp_path: Path) -> None:
    dataset = load_split(make_dataset(tmp_path, COLORS[STRIPES]), "train")
    assert class_names(dataset) == ["blue", "color_10_20_30", "color_200_0_0"]
    (note,) = dataset.notes
    assert "0,0,255; 10,20,30; 200,0,0" in note
    names = "".join(
        f"c{index},{color}\n" for index, color in enumerate(note.rstrip(".").rpartition(": ")[2].split("; "))
    )
    (tmp_path / "classes.csv").write_text(names)  # as the note advises
    named = load_split(tmp_path, "train")
    assert named.notes == ()
    assert (named.labels(0) == dataset.labels(0)).all()


def test_many_colors_without_a_class_file_are_an_error_that_lists_them(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*STRIPES.shape, 3), np.uint8)
    with pytest.raises(DataError, match=r"the masks are in color \(.*; \.\.\.\).*classes\.csv"):
        load_split(make_dataset(tmp_path, noise), "train")


def test_a_color_without_a_class_is_an_error(tmp_path: Path) -> None:
    unknown = COLORS[STRIPES].copy()
    unknown[2, 3] = (1, 2, 3)
    dataset = load_split(make_dataset(tmp_path, COLORS[STRIPES], unknown, classes=CLASS_FILE_TEXT), "train")
    with pytest.raises(DataError, match=r"train1\.png: .*1,2,3.*no class"):
        dataset.labels(1)
    assert dataset.mask_encoding.decode_value(0x010203, "color") is None


def test_the_error_for_jpeg_color_masks_recommends_png(tmp_path: Path) -> None:
    big = np.kron(STRIPES, np.ones((9, 9), np.uint8))
    dataset = load_split(make_dataset(tmp_path, COLORS[big], classes=CLASS_FILE_TEXT, suffix=".jpg"), "train")
    with pytest.raises(DataError, match="JPEG changes colors"):
        dataset.labels(0)


def test_gray_jpeg_masks_of_two_values_are_two_classes(tmp_path: Path) -> None:
    shape = np.zeros((64, 64), np.uint8)
    shape[20:50, 13:43] = 255
    dataset = load_split(make_dataset(tmp_path, shape, suffix=".jpg"), "train")
    assert len(dataset.classes) == 2
    assert "--nearest" in dataset.notes[0]
    assert dataset.labels(0)[30, 30] == 1


def test_black_without_a_class_is_ignored_with_a_note(tmp_path: Path) -> None:
    mask = COLORS[STRIPES].copy()
    mask[0] = 0
    dataset = load_split(make_dataset(tmp_path, mask, classes=CLASS_FILE_TEXT), "train")
    assert (dataset.labels(0)[0] == IGNORE_INDEX).all()
    assert (dataset.labels(0)[1:] == STRIPES[1:]).all()
    assert "Black" in dataset.notes[0]


def test_gray_labels_saved_as_rgb_are_read_with_named_classes(tmp_path: Path) -> None:
    dataset = load_split(make_dataset(tmp_path, np.repeat(STRIPES[..., None], 3, axis=2), classes="a\nb\nc\n"), "train")
    assert (dataset.labels(0) == STRIPES).all()


def palette_image(order: list[int]) -> Image.Image:
    """The stripes with the palette in this order."""
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[STRIPES])
    image.putpalette(COLORS[order].ravel().tolist())
    return image


def test_palettes_in_another_order_are_decoded_by_their_colors(tmp_path: Path) -> None:
    dataset = load_split(
        make_dataset(tmp_path, palette_image([2, 0, 1]), palette_image([1, 2, 0]), classes=CLASS_FILE_TEXT), "train"
    )
    assert all((dataset.labels(index) == STRIPES).all() for index in range(6))
    assert dataset.mask_encoding.decode_value(0, "palette", 0x0000FF) == 2


def test_palettes_without_class_colors_are_decoded_by_their_indices(tmp_path: Path) -> None:
    image = Image.fromarray(STRIPES)
    image.putpalette([1, 1, 1, 2, 2, 2, 200, 0, 0])
    dataset = load_split(make_dataset(tmp_path, image, classes=CLASS_FILE_TEXT), "train")
    assert (dataset.labels(0) == STRIPES).all()


def test_a_line_named_void_is_ignored(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "gray", STRIPES, classes="ground\nvoid\nsky\n")
    expected = np.array([0, IGNORE_INDEX, 1])[STRIPES]
    assert class_names(load_split(root, "train")) == ["ground", "sky"]
    assert (load_split(root, "train").labels(0) == expected).all()
    colored = CLASS_FILE_TEXT.replace("car", "Void")
    dataset = load_split(make_dataset(tmp_path / "color", COLORS[STRIPES], classes=colored), "train")
    assert (dataset.labels(0) == expected).all()


def test_classes_do_not_depend_on_the_split(tmp_path: Path) -> None:
    root = make_dataset(tmp_path, STRIPES)
    for file in (root / "masks/val").iterdir():
        Image.fromarray(STRIPES * 7).save(file)
    splits = load_splits(root, ["train", "val"])
    assert {tuple(class_names(dataset)) for dataset in splits.values()} == {("class0", "class1", "class2")}
    assert class_names(load_split(root, "val")) == ["class0", "class1", "class2"]


def test_inferring_classes_reports_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_split(make_dataset(tmp_path, STRIPES), "val", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (6, 6)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(SHAPE, np.uint8), "a single class"),
        (STRIPES.astype(np.uint16) * 1000, "up to 2,000, but labels are 0 to 254"),
    ],
)
def test_masks_that_give_no_classes_are_an_error(mask: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_split(make_dataset(tmp_path, mask), "train")


def test_unreadable_training_masks_are_an_error(tmp_path: Path) -> None:
    root = make_dataset(tmp_path, STRIPES)
    for file in (root / "masks/train").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(
        DataError, match="no training mask can be read; `maskserve data lint` names the reason for each"
    ):
        load_split(root, "train")
    report = lint(root, use_cache=False)
    assert "the other errors name the reason for each." in next(
        finding.detail for finding in report.errors if finding.kind == "unknown classes"
    )
    assert sum(finding.kind == "unreadable file" for finding in report.errors) > 0


def test_decode_agrees_with_decode_value() -> None:
    random = np.random.default_rng(0)
    for encoding in (
        MaskEncoding(((3, 1), (9, IGNORE_INDEX))),
        MaskEncoding((), ((0x0A141E, 2), (0, IGNORE_INDEX)), True, True),
    ):
        for kind, high in (("gray", 256), ("gray", 300), ("palette", 4), ("color", 2)):
            array = random.integers(0, high, (5, 7))
            if kind == "color":
                array = np.array([0x0A141E, 0])[array]
            dtype = np.uint8 if high <= 256 and kind != "color" else np.uint32
            values = RawMask(array.astype(dtype), kind, (0, 0x0A141E, 0, 0x050505) if kind == "palette" else ())
            expected = [
                encoding.decode_value(value, kind, values.palette[value] if values.palette else None)
                for value in values.array.ravel().tolist()
            ]
            if any(label is None or label > IGNORE_INDEX for label in expected):
                with pytest.raises(DataError, match=r"a\.png"):
                    encoding.decode(values, Path("a.png"))
            else:
                assert encoding.decode(values, Path("a.png")).ravel().tolist() == expected


def test_an_encoding_is_pickled_without_its_tables() -> None:
    encoding = MaskEncoding(((255, 1),), ((1, 2),))
    encoding.decode(RawMask(STRIPES), Path("a"))
    assert pickle.loads(pickle.dumps(encoding)) == encoding
    assert len(pickle.dumps(encoding)) < 300


def test_a_color_mask_is_decoded() -> None:
    labels = np.kron(np.random.default_rng(0).integers(0, 3, (36, 48)), np.ones((10, 10), int))
    colors = np.array([0x0A141E, 0xC80000, 0x0000FF], np.uint32)
    encoding = MaskEncoding((), tuple((int(color), label) for label, color in enumerate(colors)))
    mask = RawMask(colors[labels], "color")
    assert (encoding.decode(mask, Path("a")) == labels).all()


def antialiased_disc(value: int = 255) -> np.ndarray:
    """A disc with an anti-aliased border, uint8 90 x 120."""
    mask = np.zeros((90, 120), np.uint8)
    cv2.circle(mask, (60, 45), 30, value, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(mask, (3, 3), 0)


def test_values_of_anti_aliased_borders_are_not_classes(tmp_path: Path) -> None:
    report = lint(make_dataset(tmp_path / "binary", antialiased_disc()))
    assert class_names(report.datasets["train"]) == ["background", "foreground"]
    assert {finding.kind for finding in report.errors} == {"label out of range"}
    assert any("anti-aliased" in finding.detail for finding in report.findings)
    named = lint(make_dataset(tmp_path / "named", antialiased_disc(), classes="ground\ncrack\n"))
    assert any("anti-aliased" in finding.detail for finding in named.findings)
    labels = np.repeat(np.arange(12, dtype=np.uint8)[None], 8, axis=0)  # many labels and some ignored pixels are fine
    labels[0] = IGNORE_INDEX
    assert len(load_split(make_dataset(tmp_path / "labels", labels), "train").classes) == 12
    many = [np.random.default_rng(seed).integers(0, 200, SHAPE).astype(np.uint8) for seed in range(6)]
    with pytest.raises(DataError, match="do not look like classes"):
        load_split(make_dataset(tmp_path / "many", *many), "train")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_gray_class_colors_apply_to_gray_and_rgb_masks(mode: str, tmp_path: Path) -> None:
    """White is the first class, and black the second."""
    classes = "name,r,g,b\ncrack,255,255,255\nground,0,0,0\n"
    dataset = load_split(make_dataset(tmp_path, Image.fromarray(BINARY * 255).convert(mode), classes=classes), "train")
    assert (dataset.labels(0) == 1 - BINARY).all()


def test_mixed_0_1_and_0_255_masks_are_a_finding(tmp_path: Path) -> None:
    report = lint(make_dataset(tmp_path, BINARY, BINARY * 255))
    assert [finding.detail for finding in report.findings if finding.kind == "mixed 0/1 and 0/255 masks"] == [
        "4 masks have the value 1, 4 have 255, and none has both: 255 may mean 1, but is ignored."
    ]
    assert not [
        finding for finding in lint(make_dataset(tmp_path / "same", BINARY)).findings if "mixed" in finding.kind
    ]


def test_palettes_that_differ_by_file_are_a_finding(tmp_path: Path) -> None:
    kinds = [
        finding.kind
        for finding in lint(make_dataset(tmp_path, palette_image([0, 1, 2]), palette_image([1, 0, 2]))).findings
    ]
    assert "inconsistent palettes" in kinds
    kinds = [finding.kind for finding in lint(make_dataset(tmp_path / "same", palette_image([0, 1, 2]))).findings]
    assert "inconsistent palettes" not in kinds
