"""A run that is stopped, killed or out of disk space anywhere resumes to the same bits."""

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import ConfigError, RunError
from tests.fixtures_bundles import QUIET_CONSOLE
from training.config import TrainConfig
from training.config_io import load_config, load_resume_config, save_config
from training.data import load_split
from training.data.loader import Batch
from training.data.synthetic import generate_dataset
from training.engine.checkpoint import read_checkpoint, write_checkpoint
from training.engine.model_factory import load_network, make_torch_segmenter
from training.engine.trainer import Trainer
from training.metrics.confusion import ConfusionMatrix
from training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, read_run_metadata, write_run_metadata
from training.train import train

ROOT = Path(__file__).parents[3]
STEPS = 6  # two epochs of three
# Everything that a resume could forget: dropout, averaged weights, momentum, accumulation, a worker that reads ahead.
OVERRIDES = [
    "encoder=tu-lcnet_035", "epochs=2", "batch=2", "accumulate=2", "workers=1", "optimizer=adamw", "lr=0.002", "warmup=2",
    "crop=32,64", "ema=0.9", "dropout=0.5", "grad_clip=1", "rotate=20", "deterministic=true", "precision=f32", "save_minutes=0",
]  # fmt: skip


class SimulatedKill(BaseException):
    """Caught by no product code, as a kill."""


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "shapes"
    generate_dataset(folder, counts={"train": 12, "val": 3}, size=(48, 64))
    return folder


@pytest.fixture(scope="module")
def uninterrupted_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        small_dataset, tmp_path_factory.mktemp("whole") / "run", load_config(None, OVERRIDES), console=QUIET_CONSOLE
    )


def read_metrics(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns of measured time."""
    with (run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{key: value for key, value in row.items() if key not in ("images_per_second", "minutes")} for row in rows]


def assert_same(run: Path, other: Path) -> None:
    assert read_metrics(run) == read_metrics(other)
    first, second = read_checkpoint(run / LAST_CHECKPOINT), read_checkpoint(other / LAST_CHECKPOINT)
    assert first["step"] == second["step"] == STEPS
    for part in ("network", "ema_network"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part]), part
    for index, values in first["optimizer"]["state"].items():
        assert all(torch.equal(value, second["optimizer"]["state"][index][name]) for name, value in values.items())
    for name in ("best_miou", "validations_since_best", "loss_sum", "loss_count"):
        assert first[name] == second[name], name
    best, other_best = read_checkpoint(run / BEST_CHECKPOINT), read_checkpoint(other / BEST_CHECKPOINT)
    assert best["step"] == other_best["step"]
    assert all(torch.equal(value, other_best["network"][name]) for name, value in best["network"].items())


def resume_run(data: Path, run: Path, *overrides: str) -> Path:
    return train(data, run, load_resume_config(run, None, list(overrides)), resume=True, console=QUIET_CONSOLE)


def kill_at_step(step: int, patch: pytest.MonkeyPatch, after: bool = False) -> None:
    """Kill the training before step number `step`, or `after` it changed the weights and before anything is saved."""
    train_step = Trainer.train_step

    def killed_step(trainer: Trainer, batches: Iterator[Batch]) -> Any:
        is_last = trainer.state.step == step
        if is_last and not after:
            raise SimulatedKill
        result = train_step(trainer, batches)
        if is_last:
            raise SimulatedKill
        return result

    patch.setattr(Trainer, "train_step", killed_step)


def test_two_runs_are_equal_to_the_bit(small_dataset: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
    """mmseg #255: two equal runs differed by 0.7 mIoU."""
    assert_same(
        train(small_dataset, tmp_path / "run", load_config(None, OVERRIDES), console=QUIET_CONSOLE), uninterrupted_run
    )


@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 4, 5))])
def test_run_killed_at_any_step_resumes_exactly(
    small_dataset: Path, uninterrupted_run: Path, tmp_path: Path, step: int
) -> None:
    """mmseg #1800: the learning rate jumped at a resume."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SimulatedKill):
        kill_at_step(step, patch, after=step % 2 == 1)
        train(small_dataset, run, load_config(None, OVERRIDES), console=QUIET_CONSOLE)
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == step
    assert_same(resume_run(small_dataset, run), uninterrupted_run)


def test_run_killed_between_saves_repeats_the_steps_since(
    small_dataset: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = [word for word in OVERRIDES if not word.startswith("save_minutes")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SimulatedKill):
        kill_at_step(5, patch)
        train(small_dataset, run, load_config(None, overrides), console=QUIET_CONSOLE)
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == 3
    assert_same(resume_run(small_dataset, run), uninterrupted_run)


@pytest.mark.slow
def test_run_killed_twice_resumes_exactly(small_dataset: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 4):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SimulatedKill):
            kill_at_step(step, patch)
            train(small_dataset, run, load_config(None, OVERRIDES), console=QUIET_CONSOLE) if step == 1 else resume_run(
                small_dataset, run
            )
    assert_same(resume_run(small_dataset, run), uninterrupted_run)


def train_in_subprocess(data: Path, run: Path, code: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run `code`, then train by the command line, in a subprocess; an empty config avoids the plan."""
    (data / "no-plan.yaml").touch()
    script = f"{code}\nimport sys\nsys.argv[0] = 'maskserve'\nfrom maskserve.cli.app import main\nmain()"
    arguments = ["train", str(data), *overrides, "--config", str(data / "no-plan.yaml"), "--out", str(run)]
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )


SIGNAL_AT_4 = """
import os, signal
from training.engine.model_factory import load_network, make_torch_segmenter
from training.engine.trainer import Trainer
from training.metrics.confusion import ConfusionMatrix
os.kill_self = lambda _, number: os.kill(os.getpid(), number)
train_step = Trainer.train_step
def killed_step(trainer, batches):
    if trainer.state.step == 4:
        os.{kill}(0, signal.{name})
    return train_step(trainer, batches)
Trainer.train_step = killed_step
"""


@pytest.mark.slow
def test_run_killed_by_sigkill_resumes_exactly(small_dataset: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
    done = train_in_subprocess(
        small_dataset, tmp_path / "run", SIGNAL_AT_4.format(kill="killpg", name="SIGKILL"), *OVERRIDES
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(tmp_path.rglob("*.part"))
    assert_same(resume_run(small_dataset, tmp_path / "run"), uninterrupted_run)


@pytest.mark.parametrize(("kill", "name"), [("killpg", "SIGINT"), ("killpg", "SIGTERM"), ("kill_self", "SIGTERM")])
@pytest.mark.slow
def test_stop_signal_finishes_and_saves_the_step(
    small_dataset: Path, uninterrupted_run: Path, tmp_path: Path, kill: str, name: str
) -> None:
    """The step in progress is saved although no save was due. Ctrl-C reaches the workers too."""
    overrides = [word for word in OVERRIDES if not word.startswith("save_minutes")]
    done = train_in_subprocess(small_dataset, tmp_path / "run", SIGNAL_AT_4.format(kill=kill, name=name), *overrides)
    assert done.returncode == 130, done.stderr
    assert f"Stopped. To resume: maskserve train {small_dataset} --out {tmp_path / 'run'} --resume" in done.stderr
    assert read_checkpoint(tmp_path / "run" / LAST_CHECKPOINT)["step"] == 5
    assert_same(resume_run(small_dataset, tmp_path / "run"), uninterrupted_run)


FULL_DISK = """
import resource
import shutil
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""


@pytest.mark.slow
def test_full_disk_keeps_the_previous_checkpoint(small_dataset: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
    """The system refuses to write more than a megabyte, as ENOSPC does, in the middle of the file."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SimulatedKill):
        kill_at_step(2, patch)
        train(small_dataset, run, load_config(None, OVERRIDES), console=QUIET_CONSOLE)
    before = (run / LAST_CHECKPOINT).read_bytes()
    done = train_in_subprocess(small_dataset, run, FULL_DISK.format(limit=2**20), "--resume")
    assert done.returncode == 1
    assert "last.ckpt cannot be written" in done.stderr and "is kept" in done.stderr
    assert (run / LAST_CHECKPOINT).read_bytes() == before
    assert not list(run.rglob("*.part"))
    assert_same(resume_run(small_dataset, run), uninterrupted_run)


def test_failed_first_checkpoint_leaves_no_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"x.ckpt cannot be written \(File too large\)\. Free disk space"):
            write_checkpoint({"weights": torch.zeros(10_000)}, tmp_path / "x.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"no checkpoint at all"])
def test_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(RunError, match="is damaged, or not a checkpoint"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_checkpoint_executes_no_pickle(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'was_here'}",)

    torch.save({"format": 1, "network": Evil()}, tmp_path / "x.ckpt")
    with pytest.raises(RunError):
        read_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "was_here").exists()


def test_resume_accepts_only_settings_that_may_change(tmp_path: Path) -> None:
    save_config(TrainConfig(lr=0.1), tmp_path / "config.yaml")
    write_checkpoint({}, tmp_path / LAST_CHECKPOINT)
    assert load_resume_config(tmp_path, None, ["batch=4", "accumulate=2"]).batch == 4
    assert load_resume_config(tmp_path, None, ["epochs=99", "workers=0", "lr=0.1"]) == TrainConfig(
        lr=0.1, epochs=99, workers=0
    )
    with pytest.raises(ConfigError) as caught:
        load_resume_config(tmp_path, None, ["lr=0.2", "crop=64,64", "workers=3"])
    message = str(caught.value)
    assert "crop from None to (64, 64), lr from 0.1 to 0.2." in message
    assert "workers from" not in message
    assert "Only these may change: epochs, minutes, patience" in message


def test_best_network_has_the_best_miou_of_the_metrics(small_dataset: Path, uninterrupted_run: Path) -> None:
    """Rendering samples for TensorBoard must not change the network, as batch norms in training mode would."""
    samples = load_split(small_dataset, "val")
    segmenter = make_torch_segmenter(load_network(uninterrupted_run), read_run_metadata(uninterrupted_run).input)
    matrix = ConfusionMatrix(len(samples.classes))
    for index in range(len(samples)):
        matrix.add(samples.labels(index), segmenter.segment(samples.image(index)).labels)
    assert matrix.miou() == pytest.approx(max(float(row["miou"]) for row in read_metrics(uninterrupted_run)), abs=0.002)
    assert list((uninterrupted_run / "tensorboard").iterdir())


def test_tensorboard_does_not_change_the_training(small_dataset: Path, tmp_path: Path) -> None:
    """Without averaged weights, the network that renders samples is the one that is trained."""
    overrides = [word for word in OVERRIDES if not word.startswith("ema")]
    with_samples, plain = (
        train(small_dataset, tmp_path / on, load_config(None, [*overrides, f"tensorboard={on}"]), console=QUIET_CONSOLE)
        for on in ("true", "false")
    )
    first, second = (
        read_checkpoint(with_samples / LAST_CHECKPOINT)["network"],
        read_checkpoint(plain / LAST_CHECKPOINT)["network"],
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_resume_of_a_run_out_of_patience_does_no_step(small_dataset: Path, tmp_path: Path) -> None:
    overrides = [word for word in OVERRIDES if not word.startswith(("epochs", "lr="))]
    run = train(
        small_dataset,
        tmp_path / "run",
        load_config(None, [*overrides, "epochs=9", "lr=1e-12", "patience=1"]),
        console=QUIET_CONSOLE,
    )
    step = read_checkpoint(run / LAST_CHECKPOINT)["step"]
    assert step < 27
    resume_run(small_dataset, run)
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == step


def test_resume_with_other_images_is_refused(small_dataset: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
    data = shutil.copytree(small_dataset, tmp_path / "few")
    run = shutil.copytree(uninterrupted_run, tmp_path / "run")
    write_run_metadata(read_run_metadata(run).model_copy(update={"data": data.resolve()}), run)
    (data / "images/train/train_0003.jpg").unlink()
    with pytest.raises(RunError, match=r"training images of .* have changed since .* \(12 then, 11 now\)"):
        resume_run(data, run)


def test_resume_for_more_epochs_in_smaller_batches(
    small_dataset: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(uninterrupted_run, tmp_path / "run")
    resume_run(small_dataset, run, "batch=4", "accumulate=1", "epochs=3")
    assert [row["epoch"] for row in read_metrics(run)] == ["1", "2", "3"]
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": "x", "classes": [], "input": {}}', "was written by another version of maskserve; train again"),
        ('{"format_version": 2, "data": "x"}', r"was changed: classes: it is missing; train again"),
        ("{", r"cannot be read .*; train again"),
    ],
)
def test_metadata_of_another_version_is_refused(
    uninterrupted_run: Path, tmp_path: Path, content: str, message: str
) -> None:
    run = shutil.copytree(uninterrupted_run, tmp_path / "run")
    (run / "run.json").write_text(content)
    with pytest.raises(RunError, match=rf"run\.json {message}"):
        load_network(run)
