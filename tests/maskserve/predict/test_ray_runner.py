"""The run on Ray: a cluster of this machine's own, started and ended here. Ray takes some ten seconds to start."""

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
from tests.service.tiny_bundle import write_tiny_bundle
from tests.test_no_telemetry import AUDIT_HOOK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of many kinds
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "small")


def actor_pids(pid: int) -> list[int]:
    """Our actors in the cluster that this process has started: Ray gives them the name of what they do."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "MapWorker(MapBatches(PredictActor))" in " ".join(one.cmdline()):
                found.append(one.pid)
    return found


def test_ray_gives_what_one_process_gives_also_where_a_worker_dies(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 600, (40, 60))
    (tmp_path / "in" / "0001.png").write_bytes(b"nothing")
    run_predict(bundle, tmp_path / "in", out=tmp_path / "here")
    killed: list[int] = []

    def kill_one() -> None:
        manifest = tmp_path / "there" / "manifest.jsonl"
        while not manifest.exists() or manifest.read_bytes().count(b"\n") < 50:
            time.sleep(0.05)
        killed.extend(actor_pids(os.getpid())[:1])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    done, said = run_predict(bundle, tmp_path / "in", out=tmp_path / "there", ray="local", actors=2)
    assert killed and not done and "599 of 600 images segmented" in said
    assert read_masks(tmp_path / "there") == read_masks(tmp_path / "here")
    assert sorted(row["path"] for row in read_rows(tmp_path / "there")) == sorted(
        row["path"] for row in read_rows(tmp_path / "here")
    )
    done, said = run_predict(bundle, tmp_path / "in", out=tmp_path / "there", ray="local")
    assert "599 of 600 images segmented, 599 of them before" in said


KILLER = """
import os, pathlib
read = pathlib.Path.read_bytes
def read_or_die(path):
    if path.name == "killer.png":
        os.kill(os.getpid(), 9)
    return read(path)
pathlib.Path.read_bytes = read_or_die
"""


def test_an_image_that_its_worker_dies_of_gets_its_row_and_costs_no_other(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 40)
    (tmp_path / "in" / "0021.png").rename(tmp_path / "in" / "killer.png")
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    words = [sys.executable, "-m", "maskserve", "predict", bundle, tmp_path / "in", "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([*words, "--ray", "local", "--actors", "2"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Deprecat" not in done.stderr, done.stderr
    assert "killer.png: the worker that is at it dies each time" in done.stderr
    assert "39 of 40 images segmented" in done.stderr
    found = read_rows(tmp_path / "out")
    assert len(found) == 40 and [Path(row["path"]).name for row in found if "error" in row] == ["killer.png"]
    assert len(read_masks(tmp_path / "out")) == 39


def test_what_stops_an_actor_is_the_sentence_of_one_process(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    with pytest.raises(EngineError, match="The engine 'abacus' is not known"):
        run_predict(bundle, tmp_path / "in", out=tmp_path / "out", ray="local", actors=1, engine="abacus")
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    with pytest.raises(
        RunError, match=r"Ray cannot be reached at 127.0.0.1:\d+ \(Connection refused\); is the cluster"
    ):
        run_predict(bundle, tmp_path / "in", out=tmp_path / "out", ray=f"127.0.0.1:{free_port()}")


def test_ray_calls_nobody(bundle: Path, tmp_path: Path) -> None:
    """In the processes of the cluster too: those of Python heed sitecustomize."""
    write_images(tmp_path / "in", 2)
    calls = tmp_path / "calls"
    (tmp_path / "sitecustomize.py").write_text(
        AUDIT_HOOK.replace("sys.stderr.write(", f"open({str(calls)!r}, 'a').write(")
    )
    words = [sys.executable, "-m", "maskserve", "predict", bundle, tmp_path / "in", "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([*words, "--ray", "local", "--actors", "1"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "out")) == 2
    called = calls.read_text().splitlines() if calls.exists() else []
    assert not [line for line in called if not is_local_address(line.split()[-1])]


def is_local_address(address: str) -> bool:
    """Whether it is one of this machine's: nobody can listen at another's."""
    try:
        socket.create_server((address, 0)).close()
    except OSError:
        return False
    return True
