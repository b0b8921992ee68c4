"""From mask files to labels: what files hold, what that means, and what is found out about it."""

import pickle
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError, ImageError
from models.spec import IGNORE_INDEX
from training.data import SegmentationDataset, load_split, load_splits
from training.data.mask_decoding import MaskEncoding, RawMask, read_raw_mask
from training.lint import lint
from training.metrics.confusion import ConfusionMatrix

SHAPE = (6, 8)
STRIPES = np.repeat([[0, 0, 1, 1, 2, 2, 0, 1]], 6, axis=0).astype(np.uint8)
BINARY = (STRIPES == 1).astype(np.uint8)
COLOURS = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 255]], np.uint8)
CLASS_FILE_TEXT = "name,r,g,b\nground,10,20,30\ncar,200,0,0\nsky,0,0,255\n"


def make_dataset(root: Path, *masks: np.ndarray | Image.Image, classes: str = "", suffix: str = ".png") -> Path:
    """Six images to train on and two each to validate and test on; the masks by turns."""
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for index in range(count):
            mask = masks[index % len(masks)]
            image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(len(list(root.rglob("*")))).integers(0, 256, (image.height, image.width, 3))
            Image.fromarray(noise.astype(np.uint8)).save(root / "images" / split / f"{split}{index}.png")
            image.save(root / "masks" / split / f"{split}{index}{suffix}")
    if classes:
        (root / "classes.csv").write_text(classes)
    return root


def class_names(samples: SegmentationDataset) -> list[str]:
    return [entry.name for entry in samples.classes]


def encode_gray_png(bits: int, rows: list[bytes], width: int) -> bytes:
    """A grey PNG of so many bits a sample."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "row", "wanted"),
    [
        (1, [0b01100000], [0, 1, 1, 0]),
        (2, [0b00011011], [0, 1, 2, 3]),
        (4, [0x01, 0x2F], [0, 1, 2, 15]),
        (8, [0, 1, 2, 255], [0, 1, 2, 255]),
        (16, [0, 1, 1, 0, 0, 255, 0xEA, 0x60], [1, 256, 255, 60000]),
    ],
)
def test_grey_is_as_written_at_any_depth(bits: int, row: list[int], wanted: list[int], tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(encode_gray_png(bits, [bytes(row)] * 3, 4))
    values = read_raw_mask(tmp_path / "mask.png")
    assert values.kind == "grey"
    assert values.array.tolist() == [wanted] * 3


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_samples_are_read_where_they_are_whole_numbers(dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 3, 70000]], dtype)).save(tmp_path / "mask.tif")
    assert read_raw_mask(tmp_path / "mask.tif").array.tolist() == [[0, 3, 70000]]


@pytest.mark.parametrize("samples", [[[0.5, 1.0]], [[np.nan, 1.0]], [[-1.0, 1.0]], [[np.inf, 1.0]]])
def test_samples_that_are_no_labels_are_named(samples: list[list[float]], tmp_path: Path) -> None:
    Image.fromarray(np.array(samples, np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match=r"mask\.tif: .*(fractions|-1|inf)"):
        read_raw_mask(tmp_path / "mask.tif")


def test_palettes_keep_places_and_colours(tmp_path: Path) -> None:
    image = Image.fromarray(STRIPES)
    image.putpalette(COLOURS.ravel().tolist())
    image.save(tmp_path / "mask.png", bits=2)
    values = read_raw_mask(tmp_path / "mask.png")
    assert values.kind == "palette"
    assert (values.array == STRIPES).all()
    assert values.palette[:3] == (0x0A141E, 0xC80000, 0x0000FF)


@pytest.mark.parametrize("format", ["png", "tif", "bmp"])
def test_colours_are_read_in_their_order(format: str, tmp_path: Path) -> None:
    Image.fromarray(COLOURS[STRIPES]).save(tmp_path / f"mask.{format}")
    values = read_raw_mask(tmp_path / f"mask.{format}")
    assert values.kind == "colour"
    assert values.array.tolist() == np.array([0x0A141E, 0xC80000, 0x0000FF])[STRIPES].tolist()


def test_what_is_transparent_throughout_is_black_and_other_transparency_says_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[9, 8, 7, 0], [9, 8, 7, 1], [9, 8, 7, 255]]], np.uint8)).save(tmp_path / "rgba.png")
    assert read_raw_mask(tmp_path / "rgba.png").array.tolist() == [[0, 0x090807, 0x090807]]
    Image.fromarray(np.array([[[9, 0], [9, 128]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert read_raw_mask(tmp_path / "la.png").array.tolist() == [[0, 0x090909]]


def test_a_mask_with_an_orientation_is_turned_as_it_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(STRIPES).save(tmp_path / "mask.png", exif=exif)
    assert (read_raw_mask(tmp_path / "mask.png").array == np.rot90(STRIPES, -1)).all()


def test_unreadable_masks_are_named(tmp_path: Path) -> None:
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "mask.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"mask\.png"):
            read_raw_mask(tmp_path / "mask.png")
    Image.new("CMYK", (2, 2)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match="CMYK"):
        read_raw_mask(tmp_path / "mask.tif")


def test_mmseg_1609_masks_of_0_and_255_are_two_classes_and_it_is_said(tmp_path: Path) -> None:
    """open-mmlab/mmsegmentation #1609: 255 was ignored, IoU was 0, and nothing told why."""
    root = make_dataset(tmp_path, BINARY * 255)
    samples = load_split(root, "train")
    assert class_names(samples) == ["background", "foreground"]
    assert (samples.labels(0) == BINARY).all()
    assert "0 and 255" in " ".join(samples.notes)
    assert "void" in " ".join(samples.notes)
    confusion = ConfusionMatrix(2)
    confusion.add(samples.labels(0), BINARY)
    assert confusion.miou() == 1
    assert not lint(root).errors


def test_two_named_classes_keep_their_names(tmp_path: Path) -> None:
    samples = load_split(make_dataset(tmp_path, BINARY * 255, classes="road\ncrack\n"), "val")
    assert class_names(samples) == ["road", "crack"]
    assert (samples.labels(0) == BINARY).all()


def test_with_three_classes_255_stays_void(tmp_path: Path) -> None:
    samples = load_split(make_dataset(tmp_path, BINARY * 255, classes="a\nb\nc\n"), "train")
    assert samples.notes == ()
    assert (samples.labels(0) == BINARY * IGNORE_INDEX).all()


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
def test_other_ways_to_save_two_classes(mask: np.ndarray | Image.Image, tmp_path: Path) -> None:
    samples = load_split(make_dataset(tmp_path, mask), "train")
    assert len(samples.classes) == 2
    assert (samples.labels(0) == BINARY).all()


def test_0_1_and_255_are_two_classes_and_void(tmp_path: Path) -> None:
    mask = np.where(STRIPES == 2, 255, STRIPES).astype(np.uint8)
    samples = load_split(make_dataset(tmp_path, mask), "train")
    assert class_names(samples) == ["class0", "class1"]
    assert (samples.labels(0) == mask).all()


def test_mmseg_1572_masks_in_colours_are_read_by_the_class_file(tmp_path: Path) -> None:
    """open-mmlab/mmsegmentation #1572: RGB masks ended in an assertion about shapes."""
    samples = load_split(make_dataset(tmp_path, COLOURS[STRIPES], classes=CLASS_FILE_TEXT), "train")
    assert class_names(samples) == ["ground", "car", "sky"]
    assert all((samples.labels(index) == STRIPES).all() for index in range(6))


def test_masks_in_colours_without_a_class_file_say_which_colours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0,0,255; 10,20,30; 200,0,0.*classes\.csv"):
        load_split(make_dataset(tmp_path, COLOURS[STRIPES]), "train")


def test_a_colour_of_no_class_is_named(tmp_path: Path) -> None:
    strange = COLOURS[STRIPES].copy()
    strange[2, 3] = (1, 2, 3)
    samples = load_split(make_dataset(tmp_path, COLOURS[STRIPES], strange, classes=CLASS_FILE_TEXT), "train")
    with pytest.raises(DataError, match=r"train1\.png: .*1,2,3.*no class"):
        samples.labels(1)
    assert samples.mask_encoding.decode_value(0x010203, "colour") is None


def test_jpeg_masks_in_colours_are_told_to_be_png(tmp_path: Path) -> None:
    big = np.kron(STRIPES, np.ones((9, 9), np.uint8))
    samples = load_split(make_dataset(tmp_path, COLOURS[big], classes=CLASS_FILE_TEXT, suffix=".jpg"), "train")
    with pytest.raises(DataError, match="JPEG changes colours"):
        samples.labels(0)


def test_grey_jpeg_masks_of_two_values_are_seen_to_be_that(tmp_path: Path) -> None:
    shape = np.zeros((64, 64), np.uint8)
    shape[20:50, 13:43] = 255
    samples = load_split(make_dataset(tmp_path, shape, suffix=".jpg"), "train")
    assert len(samples.classes) == 2
    assert "--nearest" in samples.notes[0]
    assert samples.labels(0)[30, 30] == 1


def test_black_that_no_class_has_is_void_and_it_is_said(tmp_path: Path) -> None:
    mask = COLOURS[STRIPES].copy()
    mask[0] = 0
    samples = load_split(make_dataset(tmp_path, mask, classes=CLASS_FILE_TEXT), "train")
    assert (samples.labels(0)[0] == IGNORE_INDEX).all()
    assert (samples.labels(0)[1:] == STRIPES[1:]).all()
    assert "Black" in samples.notes[0]


def test_grey_labels_saved_as_rgb_are_read_beside_named_classes(tmp_path: Path) -> None:
    samples = load_split(make_dataset(tmp_path, np.repeat(STRIPES[..., None], 3, axis=2), classes="a\nb\nc\n"), "train")
    assert (samples.labels(0) == STRIPES).all()


def palette_image(order: list[int]) -> Image.Image:
    """The stripes as a tool saves them that orders its palette as it likes."""
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[STRIPES])
    image.putpalette(COLOURS[order].ravel().tolist())
    return image


def test_palettes_of_other_orders_are_read_by_their_colours(tmp_path: Path) -> None:
    samples = load_split(
        make_dataset(tmp_path, palette_image([2, 0, 1]), palette_image([1, 2, 0]), classes=CLASS_FILE_TEXT), "train"
    )
    assert all((samples.labels(index) == STRIPES).all() for index in range(6))
    assert samples.mask_encoding.decode_value(0, "palette", 0x0000FF) == 2


def test_palettes_whose_colours_are_no_classes_stay_places(tmp_path: Path) -> None:
    image = Image.fromarray(STRIPES)
    image.putpalette([1, 1, 1, 2, 2, 2, 200, 0, 0])
    samples = load_split(make_dataset(tmp_path, image, classes=CLASS_FILE_TEXT), "train")
    assert (samples.labels(0) == STRIPES).all()


def test_a_line_named_void_is_no_class(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "grey", STRIPES, classes="ground\nvoid\nsky\n")
    wanted = np.array([0, IGNORE_INDEX, 1])[STRIPES]
    assert class_names(load_split(root, "train")) == ["ground", "sky"]
    assert (load_split(root, "train").labels(0) == wanted).all()
    coloured = CLASS_FILE_TEXT.replace("car", "Void")
    samples = load_split(make_dataset(tmp_path / "colour", COLOURS[STRIPES], classes=coloured), "train")
    assert (samples.labels(0) == wanted).all()


def test_classes_do_not_depend_on_the_split(tmp_path: Path) -> None:
    root = make_dataset(tmp_path, STRIPES)
    for file in (root / "masks/val").iterdir():
        Image.fromarray(STRIPES * 7).save(file)
    splits = load_splits(root, ["train", "val", "test"])
    assert {tuple(class_names(samples)) for samples in splits.values()} == {("class0", "class1", "class2")}
    assert class_names(load_split(root, "val")) == ["class0", "class1", "class2"]


def test_reading_for_the_meaning_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    load_split(make_dataset(tmp_path, STRIPES), "val", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (np.zeros(SHAPE, np.uint8), "one class alone"),
        (STRIPES.astype(np.uint16) * 1000, "up to 2,000, but labels go from 0 to 254"),
    ],
)
def test_masks_in_which_no_classes_can_be_found(mask: np.ndarray, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence):
        load_split(make_dataset(tmp_path, mask), "train")


def test_masks_of_which_none_can_be_read(tmp_path: Path) -> None:
    root = make_dataset(tmp_path, STRIPES)
    for file in (root / "masks/train").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the training masks can be read"):
        load_split(root, "train")


def test_labels_agree_with_label_on_every_value() -> None:
    random = np.random.default_rng(0)
    for meaning in (
        MaskEncoding(((3, 1), (9, IGNORE_INDEX))),
        MaskEncoding((), ((0x0A141E, 2), (0, IGNORE_INDEX)), True, True),
    ):
        for kind, high in (("grey", 256), ("grey", 300), ("palette", 4), ("colour", 2)):
            array = random.integers(0, high, (5, 7))
            if kind == "colour":
                array = np.array([0x0A141E, 0])[array]
            dtype = np.uint8 if high <= 256 and kind != "colour" else np.uint32
            values = RawMask(array.astype(dtype), kind, (0, 0x0A141E, 0, 0x050505) if kind == "palette" else ())
            wanted = [
                meaning.decode_value(value, kind, values.palette[value] if values.palette else None)
                for value in values.array.ravel().tolist()
            ]
            if any(label is None or label > IGNORE_INDEX for label in wanted):
                with pytest.raises(DataError, match=r"a\.png"):
                    meaning.decode(values, Path("a.png"))
            else:
                assert meaning.decode(values, Path("a.png")).ravel().tolist() == wanted


def test_a_meaning_travels_to_workers_without_its_tables() -> None:
    meaning = MaskEncoding(((255, 1),), ((1, 2),))
    meaning.decode(RawMask(STRIPES), Path("a"))
    assert pickle.loads(pickle.dumps(meaning)) == meaning
    assert len(pickle.dumps(meaning)) < 300


def test_a_mask_in_colours_gets_its_labels() -> None:
    places = np.kron(np.random.default_rng(0).integers(0, 3, (36, 48)), np.ones((10, 10), int))
    colours = np.array([0x0A141E, 0xC80000, 0x0000FF], np.uint32)
    meaning = MaskEncoding((), tuple((int(colour), label) for label, colour in enumerate(colours)))
    values = RawMask(colours[places], "colour")
    assert (meaning.decode(values, Path("a")) == places).all()


def test_names_in_another_unicode_form_are_one_split() -> None:
    from training.data.splits import assign_split

    name = "straße_für_özil"
    assert assign_split(unicodedata.normalize("NFD", name)) == assign_split(unicodedata.normalize("NFC", name))


def antialiased_disc(value: int = 255) -> np.ndarray:
    """A disc whose border is anti-aliased."""
    import cv2

    mask = np.zeros((90, 120), np.uint8)
    cv2.circle(mask, (60, 45), 30, value, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(mask, (3, 3), 0)


def test_anti_aliased_masks_are_no_two_hundred_classes(tmp_path: Path) -> None:
    report = lint(make_dataset(tmp_path / "binary", antialiased_disc()))
    assert class_names(report.datasets["train"]) == ["background", "foreground"]
    assert {finding.kind for finding in report.errors} == {"label out of range"}
    assert any("anti-aliased" in finding.detail for finding in report.findings)
    named = lint(make_dataset(tmp_path / "named", antialiased_disc(), classes="ground\ncrack\n"))
    assert any("anti-aliased" in finding.detail for finding in named.findings)
    labels = np.repeat(np.arange(12, dtype=np.uint8)[None], 8, axis=0)  # many labels and some void are not that
    labels[0] = IGNORE_INDEX
    assert len(load_split(make_dataset(tmp_path / "labels", labels), "train").classes) == 12
    many = [np.random.default_rng(seed).integers(0, 200, SHAPE).astype(np.uint8) for seed in range(6)]
    with pytest.raises(DataError, match="taken for no classes unseen"):
        load_split(make_dataset(tmp_path / "many", *many), "train")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_colours_of_the_class_file_hold_in_any_mode(mode: str, tmp_path: Path) -> None:
    """White is the first class here, and black the second."""
    classes = "name,r,g,b\ncrack,255,255,255\nground,0,0,0\n"
    samples = load_split(make_dataset(tmp_path, Image.fromarray(BINARY * 255).convert(mode), classes=classes), "train")
    assert (samples.labels(0) == 1 - BINARY).all()


def test_masks_of_0_1_beside_masks_of_0_255_are_told(tmp_path: Path) -> None:
    report = lint(make_dataset(tmp_path, BINARY, BINARY * 255))
    assert [finding.detail for finding in report.findings if finding.kind == "0/1 and 0/255 mixed"] == [
        "5 masks hold 1 and 5 hold 255, and none holds both: 255 may be meant as 1, and is void."
    ]
    assert not [one for one in lint(make_dataset(tmp_path / "void", BINARY)).findings if "mixed" in one.kind]


def test_palettes_of_their_own_are_told(tmp_path: Path) -> None:
    kinds = [
        one.kind for one in lint(make_dataset(tmp_path, palette_image([0, 1, 2]), palette_image([1, 0, 2]))).findings
    ]
    assert "palettes that differ" in kinds
    kinds = [one.kind for one in lint(make_dataset(tmp_path / "same", palette_image([0, 1, 2]))).findings]
    assert "palettes that differ" not in kinds


def test_names_that_are_not_utf8_have_a_split(tmp_path: Path) -> None:
    from training.data.splits import assign_split

    assert assign_split(b"stra\xdfe".decode(errors="surrogateescape")) in ("train", "val", "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        load_split(tmp_path / "empty", "train")
