"""Runs on a local Ray cluster that the tests start and stop. Starting Ray takes some ten seconds."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from models.errors import EngineError, RunError
from service.server_process import ROOT, free_port
from tests.maskserve.predict_helpers import read_masks, read_rows, run_predict, write_images
from tests.test_no_telemetry import AUDIT_HOOK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray raises many kinds
]


def actor_pids(pid: int) -> list[int]:
    """The actors in the cluster of this process: Ray names their processes after their task."""
    pids = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "MapWorker(MapBatches(PredictActor))" in " ".join(child.cmdline()):
                pids.append(child.pid)
    return pids


def test_ray_gives_the_same_masks_even_if_a_worker_dies(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 600, (40, 60))
    (tmp_path / "in" / "0001.png").write_bytes(b"nothing")
    (tmp_path / "in" / "0003.png").rename(tmp_path / "in" / os.fsdecode(b"b\xfcro.png"))  # not UTF-8
    run_predict(bundle, tmp_path / "in", out=tmp_path / "local")
    killed: list[int] = []

    def kill_one() -> None:
        manifest = tmp_path / "ray" / "manifest.jsonl"
        while not manifest.exists() or manifest.read_bytes().count(b"\n") < 50:
            time.sleep(0.05)
        killed.extend(actor_pids(os.getpid())[:1])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    complete, printed = run_predict(bundle, tmp_path / "in", out=tmp_path / "ray", ray="local", actors=2)
    assert killed and not complete and "599 of 600 images segmented" in printed
    assert read_masks(tmp_path / "ray") == read_masks(tmp_path / "local")
    assert sorted(row["path"] for row in read_rows(tmp_path / "ray")) == sorted(
        row["path"] for row in read_rows(tmp_path / "local")
    )
    _, printed = run_predict(bundle, tmp_path / "in", out=tmp_path / "ray", ray="local")
    assert "599 of 600 images segmented, 599 of them by earlier runs" in printed


KILLER = """
import os, pathlib
read = pathlib.Path.read_bytes
def read_or_die(path):
    if path.name == "killer.png":
        os.kill(os.getpid(), 9)
    return read(path)
pathlib.Path.read_bytes = read_or_die
"""


def test_an_image_that_crashes_its_worker_affects_no_other(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 40)
    (tmp_path / "in" / "0021.png").rename(tmp_path / "in" / "killer.png")
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    command = [sys.executable, "-m", "maskserve", "predict", bundle, tmp_path / "in", "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [*command, "--ray", "local", "--actors", "2"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Deprecat" not in done.stderr, done.stderr
    assert "killer.png: the worker that segments this image dies each time" in done.stderr
    assert "39 of 40 images segmented" in done.stderr
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 40 and [Path(row["path"]).name for row in rows if "error" in row] == ["killer.png"]
    assert len(read_masks(tmp_path / "out")) == 39


def test_the_error_of_an_actor_is_that_of_one_process(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    with pytest.raises(EngineError, match="abacus"):
        run_predict(bundle, tmp_path / "in", out=tmp_path / "out", ray="local", actors=1, engine="abacus")
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_cannot_be_reached(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    with pytest.raises(
        RunError, match=r"Ray cannot be reached at 127.0.0.1:\d+ \(Connection refused\). Is the cluster"
    ):
        run_predict(bundle, tmp_path / "in", out=tmp_path / "out", ray=f"127.0.0.1:{free_port()}")


def test_ray_opens_no_outside_connection(bundle: Path, tmp_path: Path) -> None:
    """Nor do the Python processes of the cluster, which import sitecustomize."""
    write_images(tmp_path / "in", 2)
    calls = tmp_path / "calls"
    (tmp_path / "sitecustomize.py").write_text(
        AUDIT_HOOK.replace("sys.stderr.write(", f"open({str(calls)!r}, 'a').write(")
    )
    command = [sys.executable, "-m", "maskserve", "predict", bundle, tmp_path / "in", "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [*command, "--ray", "local", "--actors", "1"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "out")) == 2
    lines = calls.read_text().splitlines() if calls.exists() else []
    assert not [line for line in lines if not is_local_address(line.split()[-1])]


def is_local_address(address: str) -> bool:
    """Whether an address is of this machine: others cannot be listened on."""
    try:
        socket.create_server((address, 0)).close()
    except OSError:
        return False
    return True
