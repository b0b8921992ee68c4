"""Runs that end before their time, and go on: every image has one row and one mask, whatever happened between."""

import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

import maskserve.predict.runner
from maskserve.predict.config import PredictConfig
from maskserve.predict.image_task import ImageTask
from maskserve.predict.inputs import InputImage, InputRoot
from maskserve.predict.manifest import JsonlManifest, ManifestRow
from maskserve.predict.outputs import STAGING_FOLDER, FolderStore
from maskserve.predict.runner import resolve_model, run
from models.errors import EngineError, RunError
from service.server_process import ROOT
from tests.maskserve.predict_helpers import read_masks, read_rows, run_predict, write_images
from tests.service.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "in", 6)
    return tmp_path / "in"


def interrupt_run(monkeypatch: pytest.MonkeyPatch, bundle: Path, folder: Path, out: Path, after: int) -> None:
    """A run that ends with an error of the whole once so many images are labelled."""
    whole = ImageTask.__call__

    def limited(work: ImageTask, image: InputImage) -> ManifestRow:
        if len(read_rows(out)) >= after:
            raise RunError("enough")
        return whole(work, image)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="enough"):
        patch.setattr(ImageTask, "__call__", limited)
        run_predict(bundle, folder, out=out)


def test_a_run_goes_on_where_it_stopped(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_predict(bundle, folder, out=tmp_path / "whole")
    interrupt_run(monkeypatch, bundle, folder, tmp_path / "out", 2)
    before = read_rows(tmp_path / "out")
    assert 2 <= len(before) < 6
    done, said = run_predict(bundle, folder, out=tmp_path / "out")
    assert done and f"6 of 6 images segmented, {len(before)} of them before" in said
    assert read_rows(tmp_path / "out")[: len(before)] == before
    assert sorted(row["path"] for row in read_rows(tmp_path / "out")) == sorted(map(str, folder.rglob("*.png")))
    assert read_masks(tmp_path / "out") == read_masks(tmp_path / "whole")


def test_ctrl_c_says_how_far_it_came(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    whole = maskserve.predict.runner.as_completed

    def pressed(running: list[Future[None]]) -> Iterator[Future[None]]:
        yield from whole(running)
        raise KeyboardInterrupt

    monkeypatch.setattr(maskserve.predict.runner, "as_completed", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(PredictConfig(str(bundle), str(tmp_path / "out")), [str(folder)], Console(file=said, width=400))
    assert "Stopped after 6 of 6 images; the same command goes on from there." in said.getvalue()


def test_a_run_that_is_done_opens_no_engine(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "out")
    done, said = run_predict(bundle, folder, out=tmp_path / "out", engine="abacus")
    assert done and "running" not in said


def test_new_images_are_added(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "out")
    write_images(folder, 8)
    done, _ = run_predict(bundle, folder, out=tmp_path / "out")
    assert done and len(read_rows(tmp_path / "out")) == 8
    assert pq.read_table(tmp_path / "out" / "manifest.parquet").num_rows == 8


@pytest.mark.parametrize("moment", ["put", "appended", "torn"])
def test_each_moment_at_which_a_kill_may_come_is_mended(
    moment: str, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    """What a kill leaves between the steps of an image, made by going no further."""
    run_predict(bundle, folder, out=tmp_path / "whole")
    out = tmp_path / "out"
    job = PredictConfig(str(bundle), str(out))
    manifest = JsonlManifest(FolderStore(out), job.manifest_header(resolve_model(job)))
    row = ImageTask(job)(InputImage(InputRoot(str(folder)), "deep/0000.png"))
    assert not (out / "deep/0000.png").exists() and len(list((out / STAGING_FOLDER).iterdir())) == 1
    if moment != "put":
        manifest.append(row)
    os.close(manifest.fd)
    if moment == "torn":
        with (out / "manifest.jsonl").open("ab") as file:
            file.write(b'{"path":"' + str(folder).encode())
    done, said = run_predict(bundle, folder, out=out)
    assert done and ("before" in said) == (moment != "put")
    assert read_masks(out) == read_masks(tmp_path / "whole")
    assert sorted(one["path"] for one in read_rows(out)) == sorted(map(str, folder.rglob("*.png")))
    if moment != "put":
        assert read_rows(out)[0]["milliseconds"] == row.milliseconds  # it was not labelled again


def test_kill_9(bundle: Path, tmp_path: Path) -> None:
    kill_and_resume(bundle, tmp_path, 400)


@pytest.mark.slow
def test_kill_9_again_and_again(bundle: Path, tmp_path: Path) -> None:
    kill_and_resume(bundle, tmp_path, 2000, kills=4)


def kill_and_resume(bundle: Path, tmp_path: Path, count: int, kills: int = 1) -> None:
    write_images(tmp_path / "in", count, (24, 32))
    out = tmp_path / "out"
    words = [sys.executable, "-m", "maskserve", "predict", bundle, tmp_path / "in", "--out", out]
    words += ["--engine", "onnxruntime"]
    for kill in range(1, kills + 1):
        child = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
        while child.poll() is None and manifest_lines(out) < kill * count // (kills + 1):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it was done before"
    before = [line for line in (out / "manifest.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    done, said = run_predict(bundle, tmp_path / "in", out=out, engine="onnxruntime")
    assert done and f"{count} of {count} images segmented, {len(before) - 1} of them before" in said
    assert (out / "manifest.jsonl").read_text().startswith("".join(before))
    assert sorted(row["path"] for row in read_rows(out)) == sorted(map(str, (tmp_path / "in").rglob("*.png")))
    assert sorted(read_masks(out)) == sorted(row["mask"] for row in read_rows(out))
    for place, mask in read_masks(out).items():
        assert mask.endswith(b"IEND\xaeB`\x82"), place


def manifest_lines(out: Path) -> int:
    return (out / "manifest.jsonl").read_bytes().count(b"\n") if (out / "manifest.jsonl").exists() else 0


def test_a_bad_image_has_its_reason_and_is_not_tried_again(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "0001.png").write_bytes(b"nothing")
    done, said = run_predict(bundle, folder, out=tmp_path / "out")
    assert not done and "5 of 6 images segmented" in said
    (failed,) = [row for row in read_rows(tmp_path / "out") if "error" in row]
    assert failed["path"] == f"{folder}/0001.png" and "mask" not in failed
    assert failed["error"].startswith(f"{folder}/0001.png: ") and failed["error"] in said
    write_images(folder, 2)  # it is mended
    done, said = run_predict(bundle, folder, out=tmp_path / "out")
    assert not done and "1 could not be labelled before: --retry-errors tries them again" in said
    done, said = run_predict(bundle, folder, out=tmp_path / "out", retry_errors=True)
    assert done and "6 of 6 images segmented, 5 of them before" in said
    assert sorted(row["path"] for row in read_rows(tmp_path / "out")) == sorted(map(str, folder.rglob("*.png")))
    assert not [row for row in read_rows(tmp_path / "out") if "error" in row]


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """As on a disk that becomes full: no file of this process may be larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "format"), [(400, "png"), (1500, "parquet"), (3000, "npy")])
def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(
    size: int, format: str, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    run_predict(bundle, folder, out=tmp_path / "whole", format=format)
    out = tmp_path / "out"
    with (
        limit_file_size(size),
        pytest.raises(RunError, match=r"cannot be written .*the same command goes on from here"),
    ):
        run_predict(bundle, folder, out=out, format=format)
    if out.exists():
        assert (out / "manifest.jsonl").read_bytes().endswith(b"}\n")
        assert read_masks(out).items() <= read_masks(tmp_path / "whole").items()
    assert run_predict(bundle, folder, out=out, format=format)[0]
    assert read_masks(out) == read_masks(tmp_path / "whole")
    assert len(read_rows(out)) == 6


def test_nothing_is_left_of_a_run_that_came_to_nothing(bundle: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        run_predict(bundle, folder, out=tmp_path / "out", engine="abacus")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError):
        run_predict(bundle, folder, out=tmp_path / "empty", precision="f7")
    assert run_predict(bundle, folder, out=tmp_path / "empty")[0]
