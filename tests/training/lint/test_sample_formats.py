"""Images whose samples are not 8 bits of gray or RGB: the lint says what is read of them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from training.data.scan.sample_format import SampleFormat
from training.lint import LintReport, lint
from training.lint.sample_format_rules import check_sample_formats

LABELS = np.tile(np.uint8([0, 1]), (48, 20))
GDAL_NODATA = 42113


def make_dataset(
    root: Path, image: Callable[[int], NDArray[np.generic]], suffix: str = ".png", **options: object
) -> Path:
    """Six images with noise and their masks."""
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for index in range(6):
        Image.fromarray(image(index)).save(root / f"images/a{index}{suffix}", **options)
        Image.fromarray(LABELS).save(root / f"masks/a{index}.png")
    return root


def noise(index: int, high: int) -> NDArray[np.int64]:
    return np.random.default_rng(index).integers(0, high + 1, LABELS.shape)


def details(report: LintReport) -> dict[str, str]:
    return {finding.kind: finding.detail for finding in report.findings if finding.level == "warning"}


def test_12_bits_in_16_are_a_finding_with_the_range(tmp_path: Path) -> None:
    detail = details(lint(make_dataset(tmp_path, lambda index: noise(index, 4095).astype(np.uint16))))[
        "dark 16-bit images"
    ]
    assert detail.startswith("6 of 6 images of 16 bits use 0 to 4,09")
    assert "nearly black" in detail


def test_the_advice_for_12_bits_works(tmp_path: Path) -> None:
    report = lint(make_dataset(tmp_path, lambda index: (noise(index, 4095) * 16).astype(np.uint16)))
    assert "dark 16-bit images" not in details(report)
    assert report.datasets["train"].image(0).mean() == pytest.approx(127, abs=4)


def test_floats_that_are_scaled_differently_are_a_finding_with_both_files(tmp_path: Path) -> None:
    make_dataset(tmp_path, lambda index: (noise(index, 255) / 255 * (0.98, 1.02)[index % 2]).astype(np.float32), ".tif")
    detail = details(lint(tmp_path))["float images"]
    assert "from 0.98 (" in detail
    assert "to 1.02 (" in detail
    assert "different factors" in detail


def test_the_format_of_the_samples_is_cached(tmp_path: Path) -> None:
    make_dataset(tmp_path, lambda index: noise(index, 4095).astype(np.uint16))
    for path in tmp_path.rglob("*.png"):
        os.utime(path, (1e9, 1e9))  # old enough for the cache
    first, second = lint(tmp_path), lint(tmp_path)
    assert details(first)["dark 16-bit images"] == details(second)["dark 16-bit images"]
    assert first.sample_stats["train"][0].sample_format == second.sample_stats["train"][0].sample_format


def test_nodata_without_ignored_pixels_is_a_finding(tmp_path: Path) -> None:
    tags = ImageFileDirectory_v2()
    tags[GDAL_NODATA] = "0"
    make_dataset(tmp_path, lambda index: noise(index, 255).astype(np.uint8), ".tif", tiffinfo=tags)
    assert "6 images have nodata (0)" in details(lint(tmp_path))["nodata is not ignored"]
    for path in (tmp_path / "masks").iterdir():  # as the advice says
        labels = LABELS.copy()
        labels[:3] = 255
        Image.fromarray(labels).save(path)
    assert "nodata is not ignored" not in details(lint(tmp_path))


def test_bands_that_are_not_read_as_color_are_findings(tmp_path: Path) -> None:
    report = lint(make_dataset(tmp_path, lambda index: noise(index, 255).astype(np.uint8)))
    stats = report.sample_stats["train"]
    stats[0] = replace(stats[0], sample_format=SampleFormat("uint16", bands=3, planes=True))
    stats[1] = replace(stats[1], sample_format=SampleFormat(bands=4))
    found = [finding.detail for finding in check_sample_formats(report)]
    assert len(found) == 2
    assert "3 bands, one after the other, of which only the first is read" in found[0]
    assert "4 bands; a fourth is read as transparency" in found[1]


def test_usual_images_have_no_such_finding(dataset: Path) -> None:
    assert check_sample_formats(lint(dataset)) == []
