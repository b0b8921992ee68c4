"""Runs that are interrupted and resume: in the end every image has one row and one mask."""

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


def interrupt_run(monkeypatch: pytest.MonkeyPatch, bundle: Path, folder: Path, out: Path, after: int) -> None:
    """A run that stops with an error after `after` images."""
    original = ImageTask.__call__

    def limited(task: ImageTask, image: InputImage) -> ManifestRow:
        if len(read_rows(out)) >= after:
            raise RunError("interrupted")
        return original(task, image)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="interrupted"):
        patch.setattr(ImageTask, "__call__", limited)
        run_predict(bundle, folder, out=out)


def test_a_run_resumes(bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_predict(bundle, folder, out=tmp_path / "whole")
    interrupt_run(monkeypatch, bundle, folder, tmp_path / "out", 2)
    before = read_rows(tmp_path / "out")
    assert 2 <= len(before) < 6
    complete, printed = run_predict(bundle, folder, out=tmp_path / "out")
    assert complete and f"6 of 6 images segmented, {len(before)} of them by earlier runs" in printed
    assert read_rows(tmp_path / "out")[: len(before)] == before
    assert sorted(row["path"] for row in read_rows(tmp_path / "out")) == sorted(map(str, folder.rglob("*.png")))
    assert read_masks(tmp_path / "out") == read_masks(tmp_path / "whole")


def test_ctrl_c_prints_the_progress(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.StringIO()
    original = maskserve.predict.runner.as_completed

    def interrupted(running: list[Future[None]]) -> Iterator[Future[None]]:
        yield from original(running)
        raise KeyboardInterrupt

    monkeypatch.setattr(maskserve.predict.runner, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(PredictConfig(str(bundle), str(tmp_path / "out")), [str(folder)], Console(file=printed, width=400))
    assert "Stopped after 6 of 6 images; the same command resumes." in printed.getvalue()


def test_a_complete_run_loads_no_engine(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "out")
    complete, printed = run_predict(bundle, folder, out=tmp_path / "out", engine="abacus")
    assert complete and "running" not in printed


def test_new_images_are_added(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run_predict(bundle, folder, out=tmp_path / "out")
    write_images(folder, 8)
    complete, _ = run_predict(bundle, folder, out=tmp_path / "out")
    assert complete and len(read_rows(tmp_path / "out")) == 8
    assert pq.read_table(tmp_path / "out" / "manifest.parquet").num_rows == 8


@pytest.mark.parametrize("step", ["written", "appended", "line cut off"])
def test_a_kill_between_the_steps_of_an_image_is_recovered(
    step: str, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    """Makes the files that a kill after each step would leave."""
    run_predict(bundle, folder, out=tmp_path / "whole")
    out = tmp_path / "out"
    config = PredictConfig(str(bundle), str(out))
    manifest = JsonlManifest(FolderStore(out), config.manifest_header(resolve_model(config)[1]))
    row = ImageTask(config)(InputImage(InputRoot(str(folder)), "deep/0000.png"))
    assert not (out / "deep/0000.png").exists() and len(list((out / STAGING_FOLDER).iterdir())) == 1
    if step != "written":
        manifest.append(row)
    os.close(manifest.fd)
    if step == "line cut off":
        with (out / "manifest.jsonl").open("ab") as file:
            file.write(b'{"path":"' + str(folder).encode())
    complete, printed = run_predict(bundle, folder, out=out)
    assert complete and ("by earlier runs" in printed) == (step != "written")
    assert read_masks(out) == read_masks(tmp_path / "whole")
    assert sorted(row["path"] for row in read_rows(out)) == sorted(map(str, folder.rglob("*.png")))
    if step != "written":
        assert read_rows(out)[0]["milliseconds"] == row.milliseconds  # it was not segmented again


def test_kill_9(bundle: Path, tmp_path: Path) -> None:
    kill_and_resume(bundle, tmp_path, 200)


@pytest.mark.slow
def test_kill_9_several_times(bundle: Path, tmp_path: Path) -> None:
    kill_and_resume(bundle, tmp_path, 900, kills=2)


def kill_and_resume(bundle: Path, tmp_path: Path, count: int, kills: int = 1) -> None:
    write_images(tmp_path / "in", count, (24, 32))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "maskserve", "predict", bundle, tmp_path / "in", "--out", out]
    command += ["--engine", "onnxruntime"]
    for kill in range(1, kills + 1):
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while child.poll() is None and manifest_lines(out) < kill * count // (kills + 1):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "the run ended before the kill"
    before = [line for line in (out / "manifest.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    complete, printed = run_predict(bundle, tmp_path / "in", out=out, engine="onnxruntime")
    assert complete and f"{count} of {count} images segmented, {len(before) - 1} of them by earlier runs" in printed
    assert (out / "manifest.jsonl").read_text().startswith("".join(before))
    assert sorted(row["path"] for row in read_rows(out)) == sorted(map(str, (tmp_path / "in").rglob("*.png")))
    assert sorted(read_masks(out)) == sorted(row["mask"] for row in read_rows(out))
    for name, mask in read_masks(out).items():
        assert mask.endswith(b"IEND\xaeB`\x82"), name


def manifest_lines(out: Path) -> int:
    return (out / "manifest.jsonl").read_bytes().count(b"\n") if (out / "manifest.jsonl").exists() else 0


def test_a_failed_image_is_retried_only_on_request(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "0001.png").write_bytes(b"nothing")
    complete, printed = run_predict(bundle, folder, out=tmp_path / "out")
    assert not complete and "5 of 6 images segmented" in printed
    (failed,) = [row for row in read_rows(tmp_path / "out") if "error" in row]
    assert failed["path"] == f"{folder}/0001.png" and "mask" not in failed
    assert failed["error"].startswith(f"{folder}/0001.png: ") and failed["error"] in printed
    write_images(folder, 2)  # repairs it
    complete, printed = run_predict(bundle, folder, out=tmp_path / "out")
    assert not complete and "1 failed in earlier runs: --retry-errors retries them" in printed
    complete, printed = run_predict(bundle, folder, out=tmp_path / "out", retry_errors=True)
    assert complete and "6 of 6 images segmented, 5 of them by earlier runs" in printed
    assert sorted(row["path"] for row in read_rows(tmp_path / "out")) == sorted(map(str, folder.rglob("*.png")))
    assert not [row for row in read_rows(tmp_path / "out") if "error" in row]


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Limits the size of this process's files in bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "format"), [(400, "png"), (1500, "parquet"), (3000, "npy")])
def test_a_full_disk_stops_the_run_and_leaves_no_partial_file(
    size: int, format: str, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    run_predict(bundle, folder, out=tmp_path / "whole", format=format)
    out = tmp_path / "out"
    with (
        limit_file_size(size),
        pytest.raises(RunError, match=r"cannot be written .*the same command resumes"),
    ):
        run_predict(bundle, folder, out=out, format=format)
    if out.exists():
        assert (out / "manifest.jsonl").read_bytes().endswith(b"}\n")
        assert read_masks(out).items() <= read_masks(tmp_path / "whole").items()
    assert run_predict(bundle, folder, out=out, format=format)[0]
    assert read_masks(out) == read_masks(tmp_path / "whole")
    assert len(read_rows(out)) == 6


def test_a_run_without_results_leaves_no_files(bundle: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        run_predict(bundle, folder, out=tmp_path / "out", engine="abacus")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError):
        run_predict(bundle, folder, out=tmp_path / "empty", precision="f7")
    assert run_predict(bundle, folder, out=tmp_path / "empty")[0]
