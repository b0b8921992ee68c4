"""Two processes train the same network as one: by torchrun and gloo, on the CPU."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import ConfigError
from tests.maskserve.command_line import assert_fails, run_maskserve
from training.config import TrainConfig
from training.data.loader import StepSampler
from training.data.synthetic import generate_dataset
from training.engine.checkpoint import read_checkpoint
from training.engine.runtime import launch_fabric
from training.run_folder import LAST_CHECKPOINT

ROOT = Path(__file__).parents[3]
# Batch norms are frozen, because each process sees half of a batch, and SyncBN needs GPUs.
OVERRIDES = [
    "encoder=tu-lcnet_035", "epochs=2", "batch=4", "workers=0", "optimizer=sgd", "lr=0.01", "warmup=2", "crop=32,64",
    "freeze_norms=true", "dropout=0", "precision=f32", "deterministic=true", "tensorboard=false", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some images are mostly ignored, so that the processes have unequal pixel counts."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("few") / "shapes"
    generate_dataset(folder, counts={"train": 12, "val": 5}, size=(48, 64))
    for index, mask in enumerate(sorted((folder / "masks/train").iterdir())[:6]):
        with Image.open(mask) as opened:
            labels, palette = np.array(opened), opened.getpalette()
        labels[: 8 * index] = 255
        new_mask = Image.fromarray(labels).convert("P")
        new_mask.putdata(labels.ravel().tolist())
        new_mask.putpalette(palette or [])
        new_mask.save(mask)
    return folder


def train_in_subprocess(data: Path, run: Path, *overrides: str) -> Path:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "maskserve", "train", str(data), *OVERRIDES, *overrides, "--out", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Next: maskserve export") == 1  # only one process prints
    return run


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_two_processes_train_the_network_of_one(small_dataset: Path, tmp_path: Path) -> None:
    one, two = (
        train_in_subprocess(small_dataset, tmp_path / "one"),
        train_in_subprocess(small_dataset, tmp_path / "two", "devices=2"),
    )
    first, second = read_checkpoint(one / LAST_CHECKPOINT)["network"], read_checkpoint(two / LAST_CHECKPOINT)["network"]
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-5)
    for expected, row in zip(read_metrics(one), read_metrics(two), strict=True):
        assert float(row["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
        assert float(row["miou"]) == pytest.approx(float(expected["miou"]), abs=1e-3)


def pids_of_run(run: Path) -> list[int]:
    """Processes that have the run folder on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(run).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to list processes")
@pytest.mark.slow
def test_stop_signal_reaches_all_processes_and_the_run_resumes(small_dataset: Path, tmp_path: Path) -> None:
    """SIGTERM, as schedulers send; `test_cli.py` interrupts a training in one process."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "maskserve",
        "train",
        str(small_dataset),
        *OVERRIDES,
        "devices=2",
        "epochs=9999",
        f"--out={run}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        deadline = time.monotonic() + 200
        while not (run / LAST_CHECKPOINT).exists():
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert len(pids_of_run(run)) >= 3
        parent.send_signal(signal.SIGTERM)
        _, errors = parent.communicate(timeout=100)
        assert pids_of_run(run) == []
    finally:
        parent.kill()
        for pid in pids_of_run(run):
            os.kill(pid, signal.SIGKILL)
    assert parent.returncode != 0
    assert errors.count("Stopped. To resume: maskserve train") == 1
    step = read_checkpoint(run / LAST_CHECKPOINT)["step"]
    done = subprocess.run(
        [*command[:-2], f"epochs={step // 3 + 1}", f"--out={run}", "--resume", "--quiet"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == 3 * (step // 3 + 1)


def test_parts_of_all_processes_are_the_batch_of_one() -> None:
    whole = list(StepSampler(10, 4, seed=3, stop=9))
    parts = [list(StepSampler(10, 4, seed=3, stop=9, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert sorted(batch, key=lambda item: item.sequence_number) == sorted(
            [*halves[0], *halves[1]], key=lambda item: item.sequence_number
        )
        assert [len(half) for half in halves] == [2, 2]


def test_torchrun_without_a_config_is_refused(small_dataset: Path, tmp_path: Path) -> None:
    """In one of its processes, which torchrun starts with these variables."""
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    done = run_maskserve("train", small_dataset, *OVERRIDES, "--out", "run", cwd=tmp_path, **ranks)
    assert_fails(done, 2, "several processes need one plan")


def test_torchrun_and_devices_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="devices=1 differs from torchrun's 2 processes"):
        launch_fabric(TrainConfig(), "cpu")
