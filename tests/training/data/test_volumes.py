"""Data sets of volumes: layouts, splits, channels, classes; what the lint finds in them."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from models.readers import nifti
from models.readers.orientation import to_file_grid
from models.spec import InputRule, Scaling, Spacing
from training.data import load_available_splits, load_split, recognize_dataset
from training.data.synthetic_volumes import CLASSES, generate_volumes
from training.lint import lint
from training.lint.inspection import inspect_dataset
from training.lint.stats import dataset_stats
from training.lint.thumbnails import finding_panes

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def write(file: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(nifti.write(array, affine))


def make_case(folder: Path, name: str, seed: int, channels: int = 1) -> None:
    random = np.random.default_rng(seed)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:4, 2:5, 3:6], labels[5, 6, 7] = 1, 2
    for channel in range(channels):
        values = (random.normal(100, 10, labels.shape) + 50 * labels).astype(np.int16)
        suffix = f"_{channel:04d}" if channels > 1 else ""
        write(folder / "imagesTr" / f"{name}{suffix}.nii.gz", values)
    write(folder / "labelsTr" / f"{name}.nii.gz", labels)


def make_msd(folder: Path, channels: int = 1, cases: int = 12, **description: object) -> Path:
    for number in range(cases):
        make_case(folder, f"case_{number:02d}", number, channels)
    names = {"0": "T1", "1": "T2"} if channels == 2 else {"0": "MRI"}
    content = {"modality": names, "labels": {"0": "background", "1": "one", "2": "two"}, **description}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def kinds(report: object) -> set[tuple[str, str]]:
    return {(finding.level, finding.kind) for finding in report.findings}  # type: ignore[attr-defined]


def test_msd_layout_with_two_channels_and_splits_of_a_table(tmp_path: Path) -> None:
    folder = make_msd(tmp_path, channels=2)
    rows = [
        f"case_{number:02d},{'test' if number % 4 == 0 else 'val' if number == 1 else 'train'},p{number // 2}"
        for number in range(12)
    ]
    (folder / "splits.csv").write_text("\n".join(["record,split,patient", *rows]))
    splits = load_available_splits(folder)
    assert {split: len(each) for split, each in splits.items()} == {"train": 8, "val": 1, "test": 3}
    assert [pair.name for pair in splits["test"].pairs] == ["case_00", "case_04", "case_08"]
    assert [entry.name for entry in splits["train"].classes] == ["background", "one", "two"]
    assert recognize_dataset(folder).format == "nnunet-volumes"
    sample, labels = splits["val"].sample_and_labels(0)
    assert sample.channels == ("T1", "T2") and sample.values.shape == (8, 7, 6, 2) == (*labels.shape, 2)
    for channel in range(2):
        stored = nibabel.load(folder / "imagesTr" / f"case_01_{channel:04d}.nii.gz").get_fdata()
        assert (to_file_grid(sample.values, sample.frame.grid)[..., channel] == stored).all()
    assert (
        to_file_grid(labels, sample.frame.grid) == nibabel.load(folder / "labelsTr/case_01.nii.gz").get_fdata()
    ).all()
    assert ("error", "same patient in two splits") in kinds(lint(folder))


def test_sample_and_labels_are_read_at_the_spacing_of_the_rule(tmp_path: Path) -> None:
    dataset = load_split(make_msd(tmp_path), "train")
    rule = InputRule(
        rule="native", axes="DHW", channels=("MRI",), dtype="float32", scaling=Scaling(kind="zscore", low=(), high=()),
        spacing=Spacing(values=(1.0, 1.0, 1.0), unit="mm"),
    )  # fmt: skip
    planned = load_split(tmp_path, "train").__class__(**{**dataset.__dict__, "input": rule})
    sample, labels = planned.sample_and_labels(0)
    assert sample.size == labels.shape == (16, 7, 6) and sample.dtype == "float32" and sample.statistics is not None
    own, own_labels = planned.record_and_labels(0)
    assert own.size == own_labels.shape == (8, 7, 6)
    assert np.bincount(labels.ravel())[1] == 2 * np.bincount(own_labels.ravel())[1]


def test_splits_without_a_table_are_those_of_nnunet_or_of_the_hash(tmp_path: Path) -> None:
    folder = make_msd(tmp_path)
    names = [f"case_{number:02d}" for number in range(12)]
    by_hash = {split: {pair.name for pair in each.pairs} for split, each in load_available_splits(folder).items()}
    assert set.union(*by_hash.values()) == set(names) and sum(map(len, by_hash.values())) == 12
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[:8], "val": names[8:]}]))
    assert [pair.name for pair in load_split(folder, "val").pairs] == names[8:]


def test_folders_of_volumes_and_of_slices(tmp_path: Path) -> None:
    for number in range(4):
        make_case(tmp_path / "a", f"case{number}", number)
    (tmp_path / "a/imagesTr").rename(tmp_path / "a/images")
    (tmp_path / "a/labelsTr").rename(tmp_path / "a/labels")
    first = load_split(tmp_path / "a", "train")
    assert recognize_dataset(tmp_path / "a").format == "volume-folder"
    assert first.axes == "DHW" and [entry.name for entry in first.classes] == ["class0", "class1", "class2"]
    for case in range(3):
        for depth in range(1, 12):
            for kind, value in (("images", 10 * depth + case), ("masks", depth > 6)):
                file = tmp_path / "b" / kind / f"case{case}" / f"{depth}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((9, 8), value, np.uint8)).save(file)
    stack = load_split(tmp_path / "b", "train", "volume-folder")
    sample, labels = stack.sample_and_labels(0)
    assert sample.values[:, 0, 0, 0].tolist() == [10 * depth + int(stack.pairs[0].name[-1]) for depth in range(1, 12)]
    assert labels[:, 0, 0].tolist() == [0] * 6 + [1] * 5
    for number in range(3):
        make_case(tmp_path / "c", f"n{number}", number)
        (tmp_path / f"c/labelsTr/n{number}.nii.gz").rename(tmp_path / f"c/n{number}_seg.nii.gz")
        (tmp_path / f"c/imagesTr/n{number}.nii.gz").rename(tmp_path / f"c/n{number}.nii.gz")
    assert {pair.mask.name for pair in load_split(tmp_path / "c", "train").pairs} <= {
        f"n{number}_seg.nii.gz" for number in range(3)
    }


def test_generated_set_is_read_and_its_shapes_are_alike_in_brightness(tmp_path: Path) -> None:
    generate_volumes(tmp_path, 0, {"train": 3, "val": 1, "test": 1})
    dataset = load_split(tmp_path, "train")
    assert tuple(entry.name for entry in dataset.classes) == CLASSES and len(dataset) == 3
    sample, labels = dataset.sample_and_labels(0)
    assert sample.size == (32, 40, 40) and sample.spacing.values == pytest.approx((1.5, 1, 1))
    values = sample.values[..., 0].astype(float)
    means = [values[labels == label].mean() for label in range(4) if (labels == label).any()]
    assert means[0] < 0.85 * min(means[1:]) and max(means[1:]) < 1.2 * min(means[1:])
    assert not lint(tmp_path).errors


def break_grid(folder: Path) -> None:
    write(folder / "labelsTr/case_00.nii.gz", np.ones((6, 7, 8), np.uint8), np.diag([-1.0, -1.0, 2.5, 1.0]))


def break_shape(folder: Path) -> None:
    write(folder / "labelsTr/case_00.nii.gz", np.ones((6, 7, 9), np.uint8))


def break_labels(folder: Path) -> None:
    write(folder / "labelsTr/case_00.nii.gz", np.full((6, 7, 8), 7, np.uint8))


def break_fractions(folder: Path) -> None:
    write(folder / "labelsTr/case_00.nii.gz", np.full((6, 7, 8), 0.5, np.float32))


def break_values(folder: Path) -> None:
    values = np.full((6, 7, 8), 100, np.float32)
    values[0] = np.nan
    write(folder / "imagesTr/case_00.nii.gz", values)


def break_scale(folder: Path) -> None:
    write(folder / "imagesTr/case_00.nii.gz", np.arange(336, dtype=np.float32).reshape(6, 7, 8) * 1e4)


def break_orientation(folder: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        image = nibabel.as_closest_canonical(nibabel.load(folder / name / "case_00.nii.gz"))
        write(folder / name / "case_00.nii.gz", np.asarray(image.dataobj), image.affine)


def break_copy(folder: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        content = (folder / name / "case_00.nii.gz").read_bytes()
        (folder / name / "case_01.nii.gz").write_bytes(content)


def break_file(folder: Path) -> None:
    file = folder / "imagesTr/case_00.nii.gz"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (break_grid, {("error", "labels on another grid")}),
        (break_shape, {("error", "labels on another grid")}),
        (break_labels, {("error", "label out of range")}),
        (break_fractions, {("error", "unreadable file")}),
        (break_values, {("warning", "missing voxels"), ("warning", "constant volume")}),
        (break_scale, {("warning", "different scales of volumes")}),
        (break_orientation, {("note", "mixed orientations")}),
        (break_copy, {("warning", "same volume twice"), ("error", "same volume in two splits")}),
        (break_file, {("error", "unreadable file")}),
    ],
)
def test_lint_finds_what_is_wrong(change: object, expected: set[tuple[str, str]], tmp_path: Path) -> None:
    folder = make_msd(tmp_path)
    before = kinds(lint(folder))
    assert not {level for level, _ in before} & {"error"} and not before & expected
    change(folder)  # type: ignore[operator]
    found = kinds(lint(folder)) - before
    assert found & expected and found <= expected


def test_case_without_one_of_its_channels_is_named(tmp_path: Path) -> None:
    folder = make_msd(tmp_path, channels=2)
    (folder / "imagesTr/case_03_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case_03 has 1 file of channels; expected 2 \(T1, T2\)"):
        load_split(folder, "train")


def test_inspection_statistics_and_report_show_volumes(tmp_path: Path) -> None:
    folder = make_msd(tmp_path / "data")
    break_shape(folder)
    break_scale(folder)
    lines = inspect_dataset(folder, sheet=tmp_path / "sheet.png")
    assert any("nnunet-volumes" in line for line in lines)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.ptp(np.asarray(sheet)[:200], axis=(0, 1)).min() > 100
    report = lint(folder)
    stats = dataset_stats(report)
    train = stats["splits"]["train"]
    assert train["sizes"]["median"] == [8, 7, 6] and train["formats"] == {"LPS int16": 8, "LPS float32": 1}
    panes = [pane for finding in report.findings if finding.locations for pane in finding_panes(report, finding)]
    assert len(panes) >= 3 and all(pane.photo for pane in panes)
