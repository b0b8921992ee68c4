import csv
import json
from pathlib import Path

import pytest

from models.errors import ConfigError
from models.spec import InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from training.config import TrainConfig
from training.config_io import load_config
from training.engine.checkpoint import read_checkpoint
from training.engine.schedule import TrainingDuration
from training.lint import LintReport
from training.run_folder import LAST_CHECKPOINT
from training.train import choose_resize_and_crop, train

SMALL_RUN = [
    "encoder=tu-lcnet_035",
    "batch=4",
    "workers=0",
    "crop=64,64",
    "precision=f32",
    "warmup=2",
    "lr=0.002",
    "optimizer=adamw",
]


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("images", "words", "per_epoch", "steps"),
    [
        (100, {"batch": 8}, 12, 480),
        (100, {"batch": 8, "accumulate": 3}, 4, 160),
        (3, {"batch": 8, "epochs": 5}, 1, 5),
        (100, {"batch": 8, "minutes": 3}, 12, None),
        (100, {"batch": 8, "minutes": 3, "epochs": 2}, 12, 24),
    ],
)
def test_a_training_lasts_as_asked(images: int, words: dict[str, float], per_epoch: int, steps: int | None) -> None:
    span = TrainingDuration(images, 0, TrainConfig.model_validate(words))
    assert (span.steps_per_epoch, span.max_steps) == (per_epoch, steps)


def test_a_limit_in_minutes_shortens_the_schedule_and_leaves_time_to_validate() -> None:
    span = TrainingDuration(100, 40, TrainConfig(batch=10, epochs=10, minutes=1))
    assert span.progress(50, 0, 0) == 0.5
    assert span.progress(50, 60, 0) == span.progress(100, 0, 0) == 1
    assert span.progress(20, 40, 10) == 40 / 50
    assert span.progress(0, 50, 10) == 1
    assert span.progress(0, 15, 1000) == 0.5  # however long a validation takes, half of the time is for training
    assert span.validation_cost == 2


def test_a_time_limit_within_the_first_epoch_ends_with_a_finished_schedule(shapes: Path, tmp_path: Path) -> None:
    words = [*SMALL_RUN, "minutes=0.08", "epochs=100000", "validate_every=1000"]
    run = train(shapes, tmp_path / "run", load_config(None, words), console=QUIET_CONSOLE)
    assert len(read_metrics(run)) == 1
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] > 0
    assert float(read_metrics(run)[0]["lr"]) < 0.002


def test_minutes_alone_set_no_number_of_epochs(shapes: Path, tmp_path: Path) -> None:
    assert TrainingDuration(100, 10, TrainConfig(minutes=1)).max_steps is None
    run = train(shapes, tmp_path / "run", load_config(None, [*SMALL_RUN, "minutes=0.1"]), console=QUIET_CONSOLE)
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] > 0


def test_patience_ends_a_run_that_gets_no_better(shapes: Path, tmp_path: Path) -> None:
    words = [*SMALL_RUN, "epochs=30", "patience=2", "optimizer=sgd", "lr=1e-12", "warmup=0"]
    run = train(shapes, tmp_path / "run", load_config(None, words), console=QUIET_CONSOLE)
    assert 3 <= len(read_metrics(run)) < 30
    ranked = [float(row["miou"]) for row in read_metrics(run)]
    assert ranked.index(max(ranked)) == len(ranked) - 3


def test_validation_comes_as_often_as_asked(shapes: Path, tmp_path: Path) -> None:
    run = train(
        shapes, tmp_path / "run", load_config(None, [*SMALL_RUN, "epochs=5", "validate_every=2"]), console=QUIET_CONSOLE
    )
    assert [row["epoch"] for row in read_metrics(run)] == ["2", "4", "5"]


def test_json_is_an_object_a_line(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(shapes, tmp_path / "run", load_config(None, [*SMALL_RUN, "epochs=2"]), console=QUIET_CONSOLE, log_mode="json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["epoch"]) for line in lines] == [("validation", 1), ("validation", 2)]
    assert lines[1]["miou"] == pytest.approx(float(read_metrics(tmp_path / "run")[1]["miou"]))


def test_quiet_is_silent(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(
        shapes, tmp_path / "run", load_config(None, [*SMALL_RUN, "epochs=1"]), console=QUIET_CONSOLE, log_mode="quiet"
    )
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_tensorboard_gets_curves_samples_and_the_confusion_matrix(shapes: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(shapes, tmp_path / "run", load_config(None, [*SMALL_RUN, "epochs=2"]), console=QUIET_CONSOLE)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/step", "loss/epoch", "lr", "validation/miou", "validation/iou_disc"} <= set(tags["scalars"])
    assert "confusion" in tags["images"]
    assert len([tag for tag in tags["images"] if tag.startswith("samples/")]) == 4
    assert [event.step for event in events.Scalars("validation/miou")] == [8, 16]


def test_by_the_batch_a_training_learns_as_well(shapes: Path, tmp_path: Path) -> None:
    words = [*SMALL_RUN, "epochs=3", "augment=gpu", "rotate=10", "blur=1", "noise=5", "elastic=0.03", "hue=0.05"]
    run = train(shapes, tmp_path / "run", load_config(None, words), console=QUIET_CONSOLE)
    assert float(read_metrics(run)[-1]["loss"]) < float(read_metrics(run)[0]["loss"])


@pytest.mark.parametrize(
    ("words", "sizes", "rule", "crop"),
    [
        ({}, [(360, 480)] * 3, InputRule(rule="fit", side=480), (352, 480)),
        ({"side": 240}, [(360, 480)], InputRule(rule="fit", side=240), (192, 256)),
        ({}, [(3000, 4000)], InputRule(rule="fit", side=1024), (512, 512)),
        ({"input": "native"}, [(100, 90), (200, 180), (300, 300)], InputRule(rule="native"), (192, 192)),
        ({"crop": (64, 64)}, [(360, 480)], InputRule(rule="fit", side=480), (64, 64)),
    ],
)
def test_scale_follows_from_the_images(
    words: dict[str, object], sizes: list[tuple[int, int]], rule: InputRule, crop: tuple[int, int]
) -> None:
    assert choose_resize_and_crop(TrainConfig.model_validate(words), LintReport([], train_image_sizes=sizes)) == (
        rule,
        crop,
    )


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch=8 cannot be divided among devices=3"):
        load_config(None, ["devices=3", "batch=8"])
