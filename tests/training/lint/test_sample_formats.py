"""Images that are no photographs: what the lint finds about channels, types, scales, missing pixels and position."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.fixtures_channels import CHANNELS, draw_chip, encode_tiff, make_channel_dataset
from training.lint import LintReport, lint
from training.lint.sample_format_rules import check_sample_formats

Change = Callable[[np.ndarray], np.ndarray]


def findings(report: LintReport) -> dict[tuple[str, str], str]:
    """Details of the findings about samples, by level and kind."""
    return {(finding.level, finding.kind): finding.detail for finding in check_sample_formats(report)}


def lint_changed(
    root: Path,
    change: Change,
    names: tuple[str, ...] = CHANNELS,
    every: bool = False,
    dtype: str = "uint16",
    **options: Any,
) -> dict[tuple[str, str], str]:
    """Twelve chips, of which the third, or every one, was changed."""
    make_channel_dataset(root, 12, CHANNELS, dtype)
    for index in range(12) if every else [3]:
        values = change(draw_chip(index, 4, dtype)[0].copy())
        (root / f"images/chip{index}.tif").write_bytes(encode_tiff(values, names, **options))
    return findings(lint(root, use_cache=False))


def set_rows(value: float, rows: int = 5, channel: int | None = None) -> Change:
    def change(values: np.ndarray) -> np.ndarray:
        values[:rows, :, slice(None) if channel is None else channel] = value
        return values

    return change


def test_12_bits_in_16_are_stretched_and_the_lint_says_so(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, lambda values: values)
    assert list(found) == [("note", "stretched samples")]
    assert {stats.image_format for stats in lint(tmp_path).sample_stats["train"]} == {"TIFF"}
    assert "12 images of 16 bits use 0 to 3,800 of 65,535" in found["note", "stretched samples"]


def test_the_range_of_floats_is_noted(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, lambda values: values * 1.04, dtype="float32")
    assert list(found) == [("note", "stretched samples")]
    assert "12 images of float32 have values from 0.08" in found["note", "stretched samples"]


def test_a_missing_band_is_an_error_with_both_files(tmp_path: Path) -> None:
    detail = lint_changed(tmp_path, lambda values: values[:, :, :3], ())["error", "different channels"]
    assert "chip3.tif has 3 channels of uint16 (band1, band2, band3)" in detail
    assert "have 4 channels of uint16 (red, green, blue, nir); 1 of 12 images differ" in detail


def test_another_type_is_an_error(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, lambda values: values.astype(np.float32))
    assert "4 channels of float32" in found["error", "different channels"]


def test_bands_in_another_order_are_read_by_name(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, lambda values: values[:, :, ::-1], CHANNELS[::-1])
    assert "read by name" in found["note", "different channels"]
    assert ("error", "different channels") not in found


def test_bands_that_all_have_may_be_chosen(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, lambda values: values[:, :, :3], CHANNELS[:3])
    assert "1 of 12 images differ" in found["warning", "different channels"]


def test_two_scales_in_one_set_name_a_file_of_each(tmp_path: Path) -> None:
    detail = lint_changed(tmp_path, lambda values: values * 255, dtype="float32")["warning", "different scales"]
    assert "up to 0.8" in detail and "chip3.tif up to 2" in detail


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, -3.4e38])
def test_nan_infinity_and_marks_are_missing_pixels(value: float, tmp_path: Path) -> None:
    found = lint_changed(tmp_path, set_rows(value, channel=2), dtype="float32")
    assert "chip3.tif has samples that are NaN, infinite or beyond 1e20" in found["warning", "missing pixels"]
    assert ("warning", "different scales") not in found


def test_nodata_without_a_mark_is_suspected(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, lambda values: set_rows(-9999)(values + 2000), every=True, dtype="int16")
    assert "has samples of -9999" in found["warning", "suspected nodata"]


def test_marked_nodata_and_images_without_data(tmp_path: Path) -> None:
    found = lint_changed(tmp_path / "part", set_rows(0), nodata=0)
    assert "chip3.tif marks pixels as missing" in found["note", "nodata"]
    found = lint_changed(tmp_path / "all", set_rows(0, rows=64), nodata=0)
    assert "chip3.tif has no valid pixel" in found["warning", "image without data"]


def test_a_constant_channel_is_named(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, set_rows(700, 64, channel=1), every=True)
    assert found["warning", "constant channel"].startswith("The channel green has the same value in every pixel of all")


def test_a_channel_that_is_constant_in_one_image_is_named(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, set_rows(700, 64, channel=1))
    assert "chip3.tif has the same value in every pixel of green; images" in found["warning", "constant channel"]


def test_a_mark_that_the_file_names_is_no_damage(tmp_path: Path) -> None:
    found = lint_changed(tmp_path, set_rows(1e30), dtype="float32", nodata=1e30)
    assert ("note", "nodata") in found
    assert ("warning", "missing pixels") not in found


@pytest.mark.parametrize(
    ("shift", "crs", "message"),
    [
        (25, "EPSG:32633", "chip3.tif lies up to 2.5 pixels from its image"),
        (0, "EPSG:32632", "chip3.tif is in EPSG:32632, and its image"),
    ],
)
def test_a_mask_that_lies_elsewhere_than_its_image_is_an_error(
    shift: int, crs: str, message: str, tmp_path: Path
) -> None:
    make_channel_dataset(tmp_path, 12)
    for index, shift_there, crs_there in ((2, 0, "EPSG:32633"), (3, shift, crs)):
        (tmp_path / f"masks/chip{index}.png").unlink()
        place = rasterio.Affine(10, 0, 500_000 + shift_there, 0, -10, 5_400_000)
        mask = encode_tiff(draw_chip(index)[1][:, :, None], crs=crs_there, transform=place)
        (tmp_path / f"masks/chip{index}.tif").write_bytes(mask)
    detail = findings(lint(tmp_path, use_cache=False))["error", "georeference differs"]
    assert message in detail


def test_the_formats_are_cached(tmp_path: Path) -> None:
    make_channel_dataset(tmp_path, 10, nodata=0)
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (1e9, 1e9))  # old enough for the cache
    first, second = lint(tmp_path), lint(tmp_path)
    assert first.sample_stats["train"][0].sample_format == second.sample_stats["train"][0].sample_format
    assert findings(first) == findings(second)


def test_usual_images_have_no_such_finding(dataset: Path) -> None:
    assert check_sample_formats(lint(dataset)) == []
