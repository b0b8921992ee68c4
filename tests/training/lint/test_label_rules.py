"""Masks that are not what they seem: instance numbers, classes under other errors, masks that cannot be read."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.make_layouts import write_image, write_mask, write_pair
from training.data import load_split
from training.data.infer_classes import UnknownClassesError
from training.lint import lint

SIZE = (64, 48)  # width x height


def instance_mask(count: int) -> np.ndarray:
    """Numbered squares."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    for number in range(count):
        row, column = divmod(number, 6)
        mask[row * 8 + 1 : row * 8 + 6, column * 10 + 1 : column * 10 + 7] = number + 1
    return mask


@pytest.mark.parametrize("counts", [(12, 12, 12, 12), (5, 9, 7, 12)])
def test_instance_numbers_are_a_warning(counts: tuple[int, ...], tmp_path: Path) -> None:
    for index, count in enumerate(counts):
        write_image(tmp_path / f"images/a{index}.png", SIZE)
        write_mask(tmp_path / f"masks/a{index}.png", instance_mask(count))
    kinds = {finding.kind for finding in lint(tmp_path).findings}
    assert "instance numbers" in kinds
    (tmp_path / "classes.csv").write_text("".join(f"thing {label}\n" for label in range(13)))
    assert "instance numbers" not in {finding.kind for finding in lint(tmp_path).findings}


def test_classes_on_several_regions_are_not_instance_numbers(tmp_path: Path) -> None:
    for index in range(4):
        write_image(tmp_path / f"images/a{index}.png", SIZE)
        mask = np.maximum(instance_mask(12), np.roll(instance_mask(12), 28, axis=0))
        write_mask(tmp_path / f"masks/a{index}.png", mask)
    assert "instance numbers" not in {finding.kind for finding in lint(tmp_path).findings}


def test_classes_of_masks_with_another_error_are_not_called_absent(tmp_path: Path) -> None:
    for index in range(4):
        write_image(tmp_path / f"images/a{index}.png", (128, 96))
        write_mask(tmp_path / f"masks/a{index}.png", instance_mask(3))
    kinds = {finding.kind for finding in lint(tmp_path).findings}
    assert "size mismatch" in kinds
    assert "absent class" not in kinds


def test_the_lint_names_the_masks_that_cannot_be_read(tmp_path: Path) -> None:
    """Without a readable mask no class is known, but the files are named all the same."""
    for index in range(4):
        write_pair(tmp_path, f"a{index}")
        Image.new("L", (8, 6)).save(
            tmp_path / f"masks/a{index}.tif", save_all=True, append_images=[Image.new("L", (8, 6))] * 3
        )
        (tmp_path / f"masks/a{index}.png").unlink()
    report = lint(tmp_path)
    details = [finding.detail for finding in report.errors if finding.kind == "unreadable file"]
    assert len(details) == 4
    assert all("4 full-size pages" in detail for detail in details)
    with pytest.raises(UnknownClassesError, match="maskserve data lint"):
        load_split(tmp_path, "train")


def test_labels_that_start_at_1_have_no_class_0(tmp_path: Path) -> None:
    """Oxford-IIIT Pets: 1 pet, 2 background, 3 border."""
    for index in range(4):
        write_image(tmp_path / f"images/a{index}.png", SIZE)
        write_mask(tmp_path / f"annotations/trimaps/a{index}.png", np.tile(np.uint8([1, 2, 3, 3]), (48, 16)))
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["class1", "class2", "class3"]
    assert np.bincount(dataset.labels(0).ravel()).tolist() == [768, 768, 1536]
    assert any("never 0" in note for note in dataset.notes)
    held_out = load_split(tmp_path, "val").pairs[0].mask
    write_mask(held_out, np.tile(np.uint8([0, 1, 2, 3]), (48, 16)))  # must not become the label of 1
    (error,) = lint(tmp_path).errors
    assert (error.kind, "the labels 0 on" in error.detail) == ("label out of range", True)


def test_the_lines_proposed_for_sparse_labels_work(tmp_path: Path) -> None:
    values = np.uint8([0, 1, 2, 3, 4, 5, 100, 200])
    for index in range(4):
        write_image(tmp_path / f"images/a{index}.png", SIZE)
        write_mask(tmp_path / f"masks/a{index}.png", np.tile(values, (48, 8)))
    (error,) = [finding.detail for finding in lint(tmp_path).errors]
    lines = re.findall("`(.*?)`", error[error.index("`name,value`") :])
    (tmp_path / "classes.csv").write_text("\n".join(lines))
    dataset = load_split(tmp_path, "train")
    assert dataset.classes[-1].name == "class200"
    assert np.bincount(dataset.labels(0).ravel()).tolist() == [384] * 8
    write_mask(tmp_path / "masks/a0.png", np.full((48, 64), 6, np.uint8))  # a value of no class, though labels reach 7
    assert [finding.kind for finding in lint(tmp_path).errors] == ["label out of range"]
