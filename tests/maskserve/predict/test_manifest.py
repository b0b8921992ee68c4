"""What the manifest says, and what it refuses."""

import json
import os
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
from maskserve.predict.manifest import JsonlManifest
from maskserve.predict.outputs import FolderStore
from maskserve.predict.runner import resolve_model
from models.bundle import open_bundle
from models.errors import ConfigError, DataError, RunError
from models.outputs.options import OutputOptions
from tests.maskserve.predict_helpers import read_masks, read_rows, run_predict, write_images
from tests.service.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "in", 6)
    return tmp_path / "in"


def test_the_manifest_says_what_the_mask_does(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "out", options=OutputOptions(classes=("class 1", "class 2")))
    table = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [row["path"] for row in table] == [row["path"] for row in read_rows(tmp_path / "out")]
    for row in table:
        labels = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
        assert (row["height"], row["width"]) == labels.shape
        assert row["model"] == f"small@{open_bundle(bundle).hash[:12]}"
        assert row["milliseconds"] > 0 and row["error"] is None
        shares = {entry["label"]: entry["fraction"] for entry in row["classes"]}
        assert set(shares) == set(np.unique(labels).tolist()) - {255} <= {1, 2}
        for label, share in shares.items():
            assert share == pytest.approx((labels == label).mean(), abs=1e-6)


def test_a_log_gets_a_line_now_and_then_and_the_first_errors(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskserve.predict.runner, "LOG_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(maskserve.predict.runner, "MAX_PRINTED_ERRORS", 3)
    (tmp_path / "in").mkdir()
    for place in range(6):
        (tmp_path / "in" / f"{place}.png").write_bytes(b"nothing")
    done, said = run_predict(bundle, tmp_path / "in", out=tmp_path / "out")
    assert not done and said.count("error:") == 3 and "more errors stand in the manifest alone" in said
    assert "6 of 6 images, " in said and "/s\n" in said


def test_masks_as_run_lengths_are_the_masks(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "json", format="json")
    run_predict(bundle, folder, out=tmp_path / "table", format="parquet")
    assert read_masks(tmp_path / "table") == {}
    table = pq.read_table(tmp_path / "table" / "manifest.parquet").to_pylist()
    assert len(table) == 6
    for row in table:
        place = Path(row["path"]).relative_to(folder).with_suffix(".json")
        answer = json.loads((tmp_path / "json" / place).read_text())
        wanted = [(one["label"], one["name"], one["rle"]["counts"]) for one in answer["classes"]]
        assert [(one["label"], one["name"], one["rle"]) for one in row["classes"]] == wanted
        assert row["mask"] is None and (row["height"], row["width"]) == (60, 90)


def test_without_the_extra_the_lines_are_the_manifest(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pyarrow", "ray", "rasterio", "fsspec"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run_predict(bundle, folder, out=tmp_path / "out")[0]
    assert len(read_rows(tmp_path / "out")) == 6
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    for asked, sentence in (
        ({"format": "parquet"}, r"Parquet needs pyarrow, which is not installed: install maskserve with .* \[batch\]"),
        ({"format": "geotiff"}, r"GeoTIFF needs rasterio, .* \[geo\]"),
        ({"ray": "local"}, r"Ray needs ray, .* \[batch\]"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            run_predict(bundle, folder, out=tmp_path / "other", **asked)
    with pytest.raises(ConfigError, match=r"memory://a needs a package that is not here .*install the extra \[batch\]"):
        run_predict(bundle, "memory://a", out=tmp_path / "other")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"format": "npy"},
            "holds masks of format 'png', and now 'npy' is asked for. Ask as before, or choose another",
        ),
        (
            {"options": OutputOptions(classes=("class 1",))},
            "holds masks of classes unset, and now class 1 is asked for",
        ),
        ({"precision": "f32"}, "holds masks of precision 'auto', and now 'f32'"),
    ],
)
def test_other_masks_are_not_mixed_in(
    asked: dict[str, object], sentence: str, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    run_predict(bundle, folder, out=tmp_path / "out")
    before = read_masks(tmp_path / "out")
    with pytest.raises(RunError, match=sentence):
        run_predict(bundle, folder, out=tmp_path / "out", **asked)
    assert read_masks(tmp_path / "out") == before


def test_another_bundle_is_other_masks(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "out")
    other = write_tiny_bundle(tmp_path / "other", classes=5)
    with pytest.raises(RunError, match=r"holds masks of model 'small@[0-9a-f]{64}', and now 'small@"):
        run_predict(other, folder, out=tmp_path / "out")


def test_what_is_not_ours_is_left_alone(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0001.png").write_text("mine")
    with pytest.raises(
        RunError, match=r"out is not empty and has no manifest.jsonl of an earlier run: nothing is overwr"
    ):
        run_predict(bundle, folder, out=tmp_path / "out")
    assert read_masks(tmp_path / "out") == {"0001.png": b"mine"}
    run_predict(bundle, folder / "0001.png", out=tmp_path / "ours")
    (tmp_path / "ours" / "0003.png").write_text("mine")
    with pytest.raises(RunError, match=r"0003.png is not of this run and will not be overwritten"):
        run_predict(bundle, folder, out=tmp_path / "ours")
    assert (tmp_path / "ours" / "0003.png").read_text() == "mine"


def test_two_images_of_one_name(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (more := tmp_path / "more").mkdir()
    (more / "0001.jpg").write_bytes((folder / "0001.png").read_bytes())
    with pytest.raises(DataError, match=r"0001.png and .*0001.jpg would both become 0001.png"):
        run_predict(bundle, folder, more, out=tmp_path / "out")
    run_predict(bundle, folder, out=tmp_path / "out")
    with pytest.raises(RunError, match=r"0001.jpg would become 0001.png, which is another image's"):
        run_predict(bundle, more, out=tmp_path / "out")
    done, _ = run_predict(bundle, folder, more, folder / "0001.png", out=tmp_path / "table", format="parquet")
    assert done and len(read_rows(tmp_path / "table")) == 7  # there no file is shared


def test_two_runs_at_once_are_refused(bundle: Path, folder: Path, tmp_path: Path) -> None:
    job = PredictConfig(str(bundle), str(tmp_path / "out"))
    manifest = JsonlManifest(FolderStore(tmp_path / "out"), job.manifest_header(resolve_model(job)))
    with pytest.raises(RunError, match="another run writes there; wait for its end"):
        run_predict(bundle, folder, out=tmp_path / "out")
    manifest.close(complete=False)
    assert run_predict(bundle, folder, out=tmp_path / "out")[0]


def test_the_folder_is_ours_until_the_table_is_written(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = maskserve.predict.manifest.write_parquet, []

    def writing(file: Path, table: Any) -> None:
        with pytest.raises(RunError, match="another run writes there") as told:
            run_predict(bundle, folder, out=tmp_path / "out")
        refused.append(told)
        write(file, table)

    monkeypatch.setattr(maskserve.predict.manifest, "write_parquet", writing)
    assert run_predict(bundle, folder, out=tmp_path / "out")[0] and refused
    assert pq.read_table(tmp_path / "out" / "manifest.parquet").num_rows == len(read_rows(tmp_path / "out"))


def test_a_table_that_lacks_rows_is_no_more(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """A run adds an image and is killed after its row: the next has nothing to do but the table."""
    out = tmp_path / "out"
    run_predict(bundle, folder, out=out)
    write_images(folder, len(read_rows(out)) + 1)
    job = PredictConfig(str(bundle), str(out))
    manifest = JsonlManifest(FolderStore(out), job.manifest_header(resolve_model(job)))
    (new,) = {str(file) for file in folder.rglob("*.png")} - {row["path"] for row in read_rows(out)}
    manifest.append(ImageTask(job)(InputImage(InputRoot(str(folder)), Path(new).relative_to(folder).as_posix())))
    os.close(manifest.fd)
    assert run_predict(bundle, folder, out=out)[0]
    assert pq.read_table(out / "manifest.parquet").num_rows == len(read_rows(out)) == len(read_masks(out))


def test_errors_are_dropped_of_what_is_asked_for_alone(bundle: Path, folder: Path, tmp_path: Path) -> None:
    bad = [folder / "bad.png", folder / "deep" / "bad too.png"]
    for file in bad:
        file.write_bytes(b"nothing")
    assert not run_predict(bundle, folder, out=tmp_path / "out")[0]
    before = read_rows(tmp_path / "out")
    with pytest.raises(RunError, match="holds masks of format 'png', and now 'npy'"):
        run_predict(bundle, folder, out=tmp_path / "out", format="npy", retry_errors=True)
    assert read_rows(tmp_path / "out") == before
    bad[0].write_bytes((folder / "0001.png").read_bytes())
    done, said = run_predict(bundle, bad[0], out=tmp_path / "out", retry_errors=True)
    assert not done and "1 could not be labelled before" in said
    failed = [row["path"] for row in read_rows(tmp_path / "out") if "error" in row]
    assert failed == [str(bad[1])] and len(read_rows(tmp_path / "out")) == len(before)


def test_masks_that_cannot_lie_where_they_would(bundle: Path, folder: Path, tmp_path: Path) -> None:
    for name, words in {
        "0001.png/x.jpg": r"0001.png would become 0001.png, and .*x.jpg 0001.png/x.png below it",
        ".unfinished/x.jpg": "would become .unfinished/x.png, which cannot be",
        f"{'x' * 251}.jpg": "which cannot be: the name is kept or too long",
    }.items():
        other = tmp_path / f"in {len(name)}"
        (other / name).parent.mkdir(parents=True)
        (other / name).write_bytes((folder / "0001.png").read_bytes())
        with pytest.raises(DataError, match=words):
            run_predict(bundle, folder, other, out=tmp_path / "out", format="json" if len(name) > 250 else "png")
        assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_utf8(bundle: Path, folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (folder / "0001.png").rename(folder / name)
    except OSError as error:
        pytest.skip(f"this file system takes none: {error}")
    assert run_predict(bundle, folder, out=tmp_path / "out")[0]
    assert (tmp_path / "out" / name).is_file()
    table = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [row["mask"] for row in table if "caf" in row["path"]] == [r"caf\udce9.png"]
    assert "before" in run_predict(bundle, folder, out=tmp_path / "out")[1]


def test_a_manifest_that_is_not_ours(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_text("notes\n")
    with pytest.raises(RunError, match=r"manifest.jsonl is no manifest of ours"):
        run_predict(bundle, folder, out=tmp_path / "out")
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == "notes\n"
