"""A run that is stopped, killed or out of disk space anywhere resumes to the same bits."""

import contextlib
import csv
import fcntl
import io
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from models.errors import ConfigError, RunError
from models.spec import InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from training.config import TrainConfig
from training.config_io import (
    binding_limit,
    finished_message,
    load_config,
    load_resume_config,
    parse_overrides,
    save_config,
)
from training.data import load_split
from training.data.loader import Batch
from training.data.synthetic import generate_dataset
from training.engine.checkpoint import read_checkpoint, write_checkpoint
from training.engine.model_factory import load_network, make_torch_segmenter
from training.engine.trainer import Trainer
from training.metrics.confusion import ConfusionMatrix
from training.run_folder import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    LOCK_FILE,
    ImageList,
    RunEnd,
    RunMetadata,
    lock_run,
    read_run_metadata,
    write_run_metadata,
)
from training.train import plan_training, train

ROOT = Path(__file__).parents[3]
STEPS = 6  # two epochs of three
# Everything that a resume could forget: dropout, averaged weights, momentum, accumulation, a worker that reads ahead.
OVERRIDES = [
    "encoder=tu-lcnet_035", "epochs=2", "batch=2", "accumulate=2", "workers=1", "optimizer=adamw", "lr=0.002", "warmup=2",
    "crop=32,64", "ema=0.9", "dropout=0.5", "grad_clip=1", "rotate=20", "deterministic=true", "precision=f32", "save_minutes=0",
    "classmix=0.5", "cutmix=0.5", "erasing=0.5", "progressive=0.4", "tensorboard=false",
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
    """The only one with TensorBoard, which must not change a run, and takes seconds."""
    config = load_config(None, [*OVERRIDES, "tensorboard=true"])
    return train(small_dataset, tmp_path_factory.mktemp("whole") / "run", config, console=QUIET_CONSOLE)


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
    for name in ("best_score", "validations_since_best", "loss_sum", "loss_count"):
        assert first[name] == second[name], name
    best, other_best = read_checkpoint(run / BEST_CHECKPOINT), read_checkpoint(other / BEST_CHECKPOINT)
    assert best["step"] == other_best["step"]
    assert all(torch.equal(value, other_best["network"][name]) for name, value in best["network"].items())


def resume_run(data: Path, run: Path, *overrides: str) -> Path:
    config = load_resume_config(run, None, ["tensorboard=false", *overrides])
    return train(data, run, config, resume=True, console=QUIET_CONSOLE)


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


def test_run_killed_in_a_step_resumes_exactly(small_dataset: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
    """mmseg #1800: the learning rate jumped at a resume. Other tests stop at steps 1, 2, 4 and 5."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SimulatedKill):
        kill_at_step(3, patch, after=True)
        train(small_dataset, run, load_config(None, OVERRIDES), console=QUIET_CONSOLE)
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == 3
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
def test_run_killed_twice_resumes_exactly(small_dataset: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
    """In the first epoch by an exception, in the second by SIGKILL, with its workers."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SimulatedKill):
        kill_at_step(1, patch)
        train(small_dataset, run, load_config(None, OVERRIDES), console=QUIET_CONSOLE)
    done = train_in_subprocess(small_dataset, run, SIGNAL_AT_4.format(kill="killpg", name="SIGKILL"), "--resume")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == 4
    assert not list(tmp_path.rglob("*.part"))
    assert_same(resume_run(small_dataset, run), uninterrupted_run)


@pytest.mark.parametrize(("kill", "name"), [("killpg", "SIGINT"), ("kill_self", "SIGTERM")])
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
        with pytest.raises(
            RunError, match=r"best.ckpt cannot be written \(File too large; it takes 0 MB\).* train again: no"
        ):
            write_checkpoint({"weights": torch.zeros(10_000)}, tmp_path / "best.ckpt")
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
    metadata = RunMetadata(
        data=tmp_path, classes=[], input=InputRule(rule="native"), crop=(32, 32), precision="f32",
        images=ImageList.from_names([]),
    )  # fmt: skip
    write_run_metadata(metadata, tmp_path)
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


def test_resume_of_a_finished_run_names_the_limit_and_changes_nothing(
    small_dataset: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    """The settings alone show it, before torch is imported; without them, the checkpoint does."""
    run = shutil.copytree(uninterrupted_run, tmp_path / "run")
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(
        RunError, match=r"trained for 2 epochs .* epochs=1 asks for no more.*--resume epochs=4`.*minutes="
    ):
        load_resume_config(run, None, ["epochs=1"])
    metadata = read_run_metadata(run)
    assert metadata.end is not None and metadata.end.setting == "epochs"
    write_run_metadata(metadata.model_copy(update={"end": None}), run)  # killed before it was written
    for epochs in (1, 2):
        with pytest.raises(RunError, match=f"epochs={epochs} asks for no more: nothing was trained"):
            resume_run(small_dataset, run, f"epochs={epochs}")
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("ended_by", "saved", "now", "setting"),
    [
        ("minutes", {"minutes": 2}, {"minutes": 2}, "minutes"),  # it ended at 1.9, to validate in time
        ("minutes", {"minutes": 2}, {"minutes": 3}, None),
        ("minutes", {"minutes": 2}, {"minutes": 3, "epochs": 5}, "epochs"),
        ("minutes", {"minutes": 2}, {"minutes": 1.5, "epochs": 50}, "minutes"),
        ("epochs", {"epochs": 8}, {"epochs": 9}, None),
        ("epochs", {"epochs": 8}, {"epochs": None, "minutes": 3}, None),
        ("patience", {"patience": 3}, {"patience": 3}, "patience"),
        ("patience", {"patience": 3}, {"patience": 4}, None),
        ("patience", {"patience": 3}, {"patience": None}, None),
    ],
)
def test_limits_that_leave_nothing_to_train(
    ended_by: Any, saved: dict[str, Any], now: dict[str, Any], setting: str | None
) -> None:
    end = RunEnd(setting=ended_by, epochs=8, minutes=1.9)
    before, config = TrainConfig.model_validate(saved), TrainConfig.model_validate(now)
    assert binding_limit(end, before, config) == setting
    if setting:
        assert f"{setting}={now[setting]} asks for no more" in finished_message(Path("run"), end, setting, config)  # type: ignore[arg-type]


def test_steps_that_were_never_validated_do_not_end_a_run(
    small_dataset: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    """Killed shortly before the end in minutes: the resume validates, so that there is a best network."""
    run = shutil.copytree(uninterrupted_run, tmp_path / "run")
    (run / BEST_CHECKPOINT).unlink()
    content = read_checkpoint(run / LAST_CHECKPOINT)
    unvalidated = {"best_score": -1.0, "loss_count": 2, "loss_sum": 1.0, "seconds": 1e6}
    write_checkpoint({**content, **unvalidated}, run / LAST_CHECKPOINT)
    write_run_metadata(read_run_metadata(run).model_copy(update={"end": None}), run)
    resume_run(small_dataset, run, "epochs=None", "minutes=1")
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == STEPS + 1
    end = read_run_metadata(run).end
    assert end is not None and end.setting == "minutes"


def test_resume_says_how_a_longer_schedule_changes_the_learning_rate(
    small_dataset: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    run, output = shutil.copytree(uninterrupted_run, tmp_path / "run"), io.StringIO()
    config = load_resume_config(run, None, ["epochs=3", "tensorboard=false"])
    train(small_dataset, run, config, resume=True, console=Console(file=output, width=200))
    # poly, power 0.9: step 5 of 6 left 1/6, and step 6 of 9 leaves 3/9, of lr=0.002
    assert "schedule now ends at epoch 3: the learning rate rises from 0.0004 to 0.00074" in output.getvalue()


def test_resume_follows_data_that_moved_and_refuses_other_images(
    small_dataset: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(small_dataset, tmp_path / "few")
    run = shutil.copytree(uninterrupted_run, tmp_path / "run")
    resume_run(data, run, "epochs=3")
    assert read_run_metadata(run).data == data.resolve()
    image = data / "images/train/train_0003.jpg"
    original = image.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)  # under the same name
    with pytest.raises(
        RunError, match=rf"\(train\) have changed since the training.* newest file is {image}.*another --out"
    ):
        resume_run(data, run, "epochs=4")
    image.write_bytes(original)  # with another time
    (data / "images/train/train_0003.jpg").unlink()
    with pytest.raises(RunError, match=r"training images of .* are not those .* \(12 then, 11 now"):
        resume_run(data, run, "epochs=4")
    classes = (data / "classes.csv").read_text()
    (data / "classes.csv").write_text(classes.replace("disc", "coin"))
    with pytest.raises(RunError, match=r"classes of .* are not those .*coin"):
        resume_run(data, run, "epochs=4")


def test_second_training_into_one_folder_is_refused(small_dataset: Path, tmp_path: Path) -> None:
    """Another process holds the lock: a second open file conflicts like one."""
    run = tmp_path / "deep" / "run"
    with lock_run(run):
        with lock_run(run):  # the same process
            assert (run / LOCK_FILE).exists()
        descriptor = os.open(run / LOCK_FILE, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert not run.parent.exists()  # created for the lock, and still empty
    run.mkdir(parents=True)
    (run / LOCK_FILE).touch()  # left by a killed process: its lock ended with it
    held = os.open(run / LOCK_FILE, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(RunError, match=r"Another training is writing to .*run\. Wait until it ends"):
        train(small_dataset, run, load_config(None, OVERRIDES), console=QUIET_CONSOLE)
    os.close(held)
    os.close(descriptor)
    with lock_run(run):
        pass
    assert list(run.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_worker_does_not_inherit_the_lock(tmp_path: Path) -> None:
    """A worker may outlive a training that was killed for some seconds."""
    with lock_run(tmp_path):
        inode = (tmp_path / LOCK_FILE).stat().st_ino
        with multiprocessing.get_context("fork").Pool(1) as pool:
            descriptors = pool.apply(list_open_inodes)
        assert inode in list_open_inodes()
        assert inode not in descriptors


def list_open_inodes() -> list[int]:
    inodes = []
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            inodes.append(os.fstat(int(name)).st_ino)
    return inodes


def test_folder_that_cannot_be_written_is_found_before_the_lint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"The run folder .*file/run cannot be written \(Not a directory\)"):
        train(tmp_path / "no data", tmp_path / "file" / "run", load_config(None, OVERRIDES), console=QUIET_CONSOLE)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such file names")
def test_file_names_need_not_be_utf8(tmp_path: Path) -> None:
    """As unpacked from an old archive: the folder, and images that TensorBoard shows."""
    data, run = tmp_path / os.fsdecode(b"d\xfc"), tmp_path / os.fsdecode(b"run\xfc")
    generate_dataset(data, counts={"train": 2, "val": 2}, size=(48, 64))
    for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
        for split in ("train", "val"):
            old = data / folder / split / f"{split}_0001{suffix}"
            old.rename(old.with_name(os.fsdecode(b"b\xfcro") + suffix))
    overrides = [word for word in OVERRIDES if not word.startswith(("ema", "workers"))]
    planned = plan_training(data, run / "plan.yaml", parse_overrides([*overrides, "workers=0"]), QUIET_CONSOLE)
    train(data, run, planned.config, console=QUIET_CONSOLE, planned=planned)
    assert read_run_metadata(run).data == data.resolve()
    assert (run / "samples" / "b\\xfcro.png").exists()
    with pytest.raises(RunError, match="asks for no more"):
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
