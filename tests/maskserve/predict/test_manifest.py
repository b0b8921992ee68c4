"""The rows of the manifest, and the outputs that it refuses."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import maskserve.predict.manifest
import maskserve.predict.runner
from maskserve.predict.config import PredictConfig
from maskserve.predict.image_task import ImageTask
from maskserve.predict.inputs import InputImage, InputRoot
from maskserve.predict.manifest import JsonlManifest, ManifestRow, ParquetManifest
from maskserve.predict.outputs import FolderStore, ObjectStore
from maskserve.predict.runner import resolve_model
from models.bundle import open_bundle
from models.errors import ConfigError, DataError, RunError
from models.outputs.options import OutputOptions
from tests.maskserve.predict_helpers import read_masks, read_rows, run_predict, write_images
from tests.service.tiny_bundle import write_tiny_bundle


def test_the_rows_describe_the_masks(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "out", options=OutputOptions(classes=("class 1", "class 2")))
    table = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [row["path"] for row in table] == [row["path"] for row in read_rows(tmp_path / "out")]
    for row in table:
        labels = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
        assert (row["height"], row["width"]) == labels.shape
        assert row["model"] == f"small@{open_bundle(bundle).hash[:12]}"
        assert row["milliseconds"] > 0 and row["error"] is None
        fractions = {entry["label"]: entry["fraction"] for entry in row["classes"]}
        assert set(fractions) == set(np.unique(labels).tolist()) - {255} <= {1, 2}
        for label, fraction in fractions.items():
            assert fraction == pytest.approx((labels == label).mean(), abs=1e-6)


def test_a_log_has_progress_lines_and_the_first_errors(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskserve.predict.runner, "LOG_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(maskserve.predict.runner, "MAX_PRINTED_ERRORS", 3)
    (tmp_path / "in").mkdir()
    for index in range(6):
        (tmp_path / "in" / f"{index}.png").write_bytes(b"nothing")
    complete, printed = run_predict(bundle, tmp_path / "in", out=tmp_path / "out")
    assert not complete and printed.count("error:") == 3 and "further errors are only in the manifest" in printed
    assert "6 of 6 images, " in printed and "/s\n" in printed


def test_run_lengths_in_the_manifest_equal_the_json(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "json", format="json")
    run_predict(bundle, folder, out=tmp_path / "table", format="parquet")
    assert read_masks(tmp_path / "table") == {}
    table = pq.read_table(tmp_path / "table" / "manifest.parquet").to_pylist()
    assert len(table) == 6
    for row in table:
        name = Path(row["path"]).relative_to(folder).with_suffix(".json")
        result = json.loads((tmp_path / "json" / name).read_text())
        expected = [(entry["label"], entry["name"], entry["rle"]["counts"]) for entry in result["classes"]]
        assert [(entry["label"], entry["name"], entry["rle"]) for entry in row["classes"]] == expected
        assert row["mask"] is None and (row["height"], row["width"]) == (60, 90)


def test_without_the_extra_there_is_no_parquet_table(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pyarrow", "ray", "rasterio", "fsspec"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run_predict(bundle, folder, out=tmp_path / "out")[0]
    assert len(read_rows(tmp_path / "out")) == 6
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    for options, message in (
        ({"format": "parquet"}, r"Parquet needs pyarrow, which is not installed: install maskserve with .* \[batch\]"),
        ({"format": "geotiff"}, r"GeoTIFF needs rasterio, .* \[geo\]"),
        ({"ray": "local"}, r"Ray needs ray, .* \[batch\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_predict(bundle, folder, out=tmp_path / "other", **options)
    with pytest.raises(ConfigError, match=r"memory://a needs a package that is not installed .* the extra \[batch\]"):
        run_predict(bundle, "memory://a", out=tmp_path / "other")


def test_masks_of_other_options_are_refused(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "out")
    before = read_masks(tmp_path / "out")
    options: dict[str, Any]
    for options, message in (
        ({"format": "npy"}, "contains masks with format 'png'; this run has 'npy'. Use the same options, or choose"),
        ({"options": OutputOptions(classes=("class 1",))}, "masks with classes unset; this run has class 1"),
        ({"precision": "f32"}, "masks with precision 'auto'; this run has 'f32'"),
    ):
        with pytest.raises(RunError, match=message):
            run_predict(bundle, folder, out=tmp_path / "out", **options)
    other = write_tiny_bundle(tmp_path / "other", classes=5)
    with pytest.raises(RunError, match=r"masks with model 'small@[0-9a-f]{64}'; this run has 'small@"):
        run_predict(other, folder, out=tmp_path / "out")
    assert read_masks(tmp_path / "out") == before


def test_files_of_others_are_not_overwritten(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0001.png").write_text("mine")
    message = "out is not empty and has no manifest.jsonl of an earlier run, so nothing was written"
    with pytest.raises(RunError, match=re.escape(message)):
        run_predict(bundle, folder, out=tmp_path / "out")
    assert read_masks(tmp_path / "out") == {"0001.png": b"mine"}
    run_predict(bundle, folder / "0001.png", out=tmp_path / "ours")
    (tmp_path / "ours" / "0003.png").write_text("mine")
    with pytest.raises(RunError, match=r"0003.png exists and is not in the manifest, so it will not be overwritten"):
        run_predict(bundle, folder, out=tmp_path / "ours")
    assert (tmp_path / "ours" / "0003.png").read_text() == "mine"


def test_two_images_of_one_name(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (more := tmp_path / "more").mkdir()
    (more / "0001.jpg").write_bytes((folder / "0001.png").read_bytes())
    with pytest.raises(DataError, match=r"masks of .*0001.png and .*0001.jpg would both be 0001.png"):
        run_predict(bundle, folder, more, out=tmp_path / "out")
    run_predict(bundle, folder, out=tmp_path / "out")
    with pytest.raises(RunError, match=r"mask of .*0001.jpg would be 0001.png, which is another image's"):
        run_predict(bundle, more, out=tmp_path / "out")
    complete, _ = run_predict(bundle, folder, more, folder / "0001.png", out=tmp_path / "table", format="parquet")
    assert complete and len(read_rows(tmp_path / "table")) == 7  # the format has no mask files


def test_two_runs_at_once_are_refused(bundle: Path, folder: Path, tmp_path: Path) -> None:
    config = PredictConfig(str(bundle), str(tmp_path / "out"))
    manifest = JsonlManifest(FolderStore(tmp_path / "out"), config.manifest_header(resolve_model(config)[1]))
    with pytest.raises(RunError, match=r"Another run is writing to .*out. Wait until it ends"):
        run_predict(bundle, folder, out=tmp_path / "out")
    manifest.close(complete=False)
    assert run_predict(bundle, folder, out=tmp_path / "out")[0]


def test_the_folder_is_locked_until_the_table_is_written(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, errors = maskserve.predict.manifest.write_parquet, []

    def run_during_write(file: Path, rows: Any) -> None:
        with pytest.raises(RunError, match="Another run is writing") as caught:
            run_predict(bundle, folder, out=tmp_path / "out")
        errors.append(caught)
        original(file, rows)

    monkeypatch.setattr(maskserve.predict.manifest, "write_parquet", run_during_write)
    assert run_predict(bundle, folder, out=tmp_path / "out")[0] and errors
    assert pq.read_table(tmp_path / "out" / "manifest.parquet").num_rows == len(read_rows(tmp_path / "out"))


def test_a_table_without_the_last_rows_is_rewritten(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """A run adds an image and is killed after its row: the next run only has to write the table."""
    out = tmp_path / "out"
    run_predict(bundle, folder, out=out)
    write_images(folder, len(read_rows(out)) + 1)
    config = PredictConfig(str(bundle), str(out))
    manifest = JsonlManifest(FolderStore(out), config.manifest_header(resolve_model(config)[1]))
    (new,) = {str(file) for file in folder.rglob("*.png")} - {row["path"] for row in read_rows(out)}
    manifest.append(ImageTask(config)(InputImage(InputRoot(str(folder)), Path(new).relative_to(folder).as_posix())))
    os.close(manifest.fd)
    assert run_predict(bundle, folder, out=out)[0]
    assert pq.read_table(out / "manifest.parquet").num_rows == len(read_rows(out)) == len(read_masks(out))


def test_only_the_requested_images_are_retried(bundle: Path, folder: Path, tmp_path: Path) -> None:
    bad = [folder / "bad.png", folder / "deep" / "bad too.png"]
    for file in bad:
        file.write_bytes(b"nothing")
    assert not run_predict(bundle, folder, out=tmp_path / "out")[0]
    before = read_rows(tmp_path / "out")
    with pytest.raises(RunError, match="masks with format 'png'; this run has 'npy'"):
        run_predict(bundle, folder, out=tmp_path / "out", format="npy", retry_errors=True)
    assert read_rows(tmp_path / "out") == before
    bad[0].write_bytes((folder / "0001.png").read_bytes())
    complete, printed = run_predict(bundle, bad[0], out=tmp_path / "out", retry_errors=True)
    assert not complete and "1 failed in earlier runs" in printed
    failed = [row["path"] for row in read_rows(tmp_path / "out") if "error" in row]
    assert failed == [str(bad[1])] and len(read_rows(tmp_path / "out")) == len(before)


def test_a_failed_rewrite_keeps_the_manifest(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bad.png").write_bytes(b"nothing")
    run_predict(bundle, folder, out=tmp_path / "out")
    before = (tmp_path / "out" / "manifest.jsonl").read_bytes()

    def fail(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match="No space left on device"):
        patch.setattr(os, "fsync", fail)
        run_predict(bundle, folder, out=tmp_path / "out", retry_errors=True)
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.part"))


def test_mask_names_that_are_not_possible(bundle: Path, folder: Path, tmp_path: Path) -> None:
    for name, message in {
        "0001.png/x.jpg": r"0001.png would be 0001.png, and that of .*x.jpg 0001.png/x.png below it",
        ".unfinished/x.jpg": "would be .unfinished/x.png, a reserved name",
        f"{'x' * 251}.jpg": "a name of more than 255 bytes; rename the image",
    }.items():
        other = tmp_path / f"in {len(name)}"
        (other / name).parent.mkdir(parents=True)
        (other / name).write_bytes((folder / "0001.png").read_bytes())
        with pytest.raises(DataError, match=message):
            run_predict(bundle, folder, other, out=tmp_path / "out", format="json" if len(name) > 250 else "png")
        assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf8(bundle: Path, folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (folder / "0001.png").rename(folder / name)
    except OSError as error:
        pytest.skip(f"this file system does not support it: {error}")
    assert run_predict(bundle, folder, out=tmp_path / "out")[0]
    assert (tmp_path / "out" / name).is_file()
    table = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [row["mask"] for row in table if "caf" in row["path"]] == [r"caf\udce9.png"]
    assert "by earlier runs" in run_predict(bundle, folder, out=tmp_path / "out")[1]


def test_another_file_of_the_manifests_name(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_text("notes\n")
    with pytest.raises(RunError, match=r"manifest.jsonl is not a manifest of maskserve predict"):
        run_predict(bundle, folder, out=tmp_path / "out")
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == "notes\n"


def test_a_second_run_in_a_store_is_detected() -> None:
    import fsspec

    store = ObjectStore("memory://two-runs")
    try:
        first, second = (ParquetManifest(store, {"format": "png"}) for _ in range(2))
        first.append(ManifestRow("a"))
        first.close(complete=True)
        second.append(ManifestRow("b"))
        with pytest.raises(RunError, match=r"Another run is writing to memory://two-runs.* the same command resumes"):
            second.close(complete=False)
        third = ParquetManifest(store, {"format": "png"})
        assert third.state.paths == {"a"}
        third.append(ManifestRow("b"))
        third.close(complete=True)
        assert ParquetManifest(store, {"format": "png"}).state.paths == {"a", "b"}
    finally:
        fsspec.filesystem("memory").rm("/two-runs", recursive=True)


def test_control_characters_are_printed_as_escapes(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "\x1b[31mred\n\x9b2J.png").write_bytes(b"nothing")
    (tmp_path / "in" / "x.\x1b]0;title\x07").write_bytes(b"nothing")
    _, printed = run_predict(bundle, tmp_path / "in", out=tmp_path / "out")
    assert r"\x1b[31mred\n\x9b2J.png" in printed and r"1 .\x1b]0;title\x07" in printed
    assert not set(printed) & {"\x1b", "\x9b", "\x07"}
    assert "\x1b[31mred\n\x9b2J.png" in read_rows(tmp_path / "out")[0]["path"]
