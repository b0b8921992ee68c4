import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.errors import ConfigError
from models.spec import InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from training.config import TrainConfig
from training.config_io import load_config
from training.data import load_split
from training.data.synthetic import generate_dataset
from training.engine.checkpoint import read_checkpoint
from training.engine.model_factory import load_network, make_torch_segmenter
from training.engine.schedule import TrainingDuration
from training.evaluate import evaluate_split
from training.lint import LintReport
from training.run_folder import LAST_CHECKPOINT, read_run_metadata
from training.train import choose_resize_and_crop, train

SMALL_RUN = [
    "encoder=tu-lcnet_035", "batch=4", "workers=0", "crop=32,64", "precision=f32", "warmup=2", "lr=0.002", "optimizer=adamw",
]  # fmt: skip


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_dataset(folder, counts={"train": 12, "val": 4}, size=(48, 64))
    return folder


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("images", "settings", "steps_per_epoch", "max_steps"),
    [
        (100, {"batch": 8}, 12, 480),
        (100, {"batch": 8, "accumulate": 3}, 4, 160),
        (3, {"batch": 8, "epochs": 5}, 1, 5),
        (100, {"batch": 8, "minutes": 3}, 12, None),
        (100, {"batch": 8, "minutes": 3, "epochs": 2}, 12, 24),
    ],
)
def test_duration_in_steps(
    images: int, settings: dict[str, float], steps_per_epoch: int, max_steps: int | None
) -> None:
    duration = TrainingDuration(images, 0, TrainConfig.model_validate(settings))
    assert (duration.steps_per_epoch, duration.max_steps) == (steps_per_epoch, max_steps)


def test_minutes_shorten_the_schedule_and_leave_time_to_validate() -> None:
    duration = TrainingDuration(100, 40, TrainConfig(batch=10, epochs=10, minutes=1))
    assert duration.progress(50, 0, 0) == 0.5
    assert duration.progress(50, 60, 0) == duration.progress(100, 0, 0) == 1
    assert duration.progress(20, 40, 10) == 40 / 50
    assert duration.progress(0, 50, 10) == 1
    assert duration.progress(0, 15, 1000) == 0.5  # at most half of the time is reserved for a validation
    assert duration.validation_cost == 2


def test_minutes_without_epochs_end_with_a_finished_schedule(small_dataset: Path, tmp_path: Path) -> None:
    overrides = [*SMALL_RUN, "minutes=0.06", "validate_every=100000", "tensorboard=false"]
    run = train(small_dataset, tmp_path / "run", load_config(None, overrides), console=QUIET_CONSOLE)
    assert len(read_metrics(run)) == 1
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] > 0
    assert float(read_metrics(run)[0]["lr"]) < 0.002
    assert (run / "checkpoints/best.ckpt").exists()


def test_patience_ends_a_run_silently_with_quiet(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*SMALL_RUN, "epochs=30", "patience=2", "optimizer=sgd", "lr=1e-12", "warmup=0", "tensorboard=false"]
    config = load_config(None, overrides)
    run = train(small_dataset, tmp_path / "run", config, console=QUIET_CONSOLE, log_mode="quiet")
    assert 3 <= len(read_metrics(run)) < 30
    mious = [float(row["miou"]) for row in read_metrics(run)]
    assert mious.index(max(mious)) == len(mious) - 3
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_logs_of_a_run(small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row, a JSON line and TensorBoard events per validation, every `validate_every` epochs and at the end."""
    config = load_config(None, [*SMALL_RUN, "epochs=5", "validate_every=2"])
    run = train(small_dataset, tmp_path / "run", config, console=QUIET_CONSOLE, log_mode="json")
    assert [row["epoch"] for row in read_metrics(run)] == ["2", "4", "5"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["epoch"]) for line in lines] == [("validation", epoch) for epoch in (2, 4, 5)]
    assert lines[1]["miou"] == pytest.approx(float(read_metrics(run)[1]["miou"]))

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/step", "loss/epoch", "lr", "validation/miou", "validation/iou_disc"} <= set(tags["scalars"])
    assert "confusion" in tags["images"]
    assert len([tag for tag in tags["images"] if tag.startswith("samples/")]) == 4
    assert [event.step for event in events.Scalars("validation/miou")] == [6, 12, 15]


def test_validation_measures_what_the_segmenter_predicts(small_dataset: Path, tmp_path: Path) -> None:
    """Images of several sizes, none a multiple of the stride: in a batch, each is padded as in the service."""
    data = shutil.copytree(small_dataset, tmp_path / "odd")
    for index, size in enumerate([(64, 48), (33, 47), (50, 31), (61, 40)]):
        for file in (*data.glob(f"images/val/*{index}.jpg"), *data.glob(f"masks/val/*{index}.png")):
            image = Image.open(file)
            image.crop((0, 0, *size)).save(file, quality=95)
    config = load_config(None, [*SMALL_RUN, "epochs=4", "validate_every=4", "input=native", "tensorboard=false"])
    run = train(data, tmp_path / "run", config, console=QUIET_CONSOLE)
    segmenter = make_torch_segmenter(load_network(run), read_run_metadata(run).input)
    matrix, _ = evaluate_split(segmenter, load_split(data, "val"), QUIET_CONSOLE)
    assert 0 < matrix.miou() < 1
    assert float(read_metrics(run)[0]["miou"]) == pytest.approx(matrix.miou(), abs=1e-4)


def test_augmentation_on_the_device_learns_too(small_dataset: Path, tmp_path: Path) -> None:
    augmentation = ["augment=gpu", "rotate=10", "blur=1", "noise=5", "elastic=0.03", "hue=0.05", "tensorboard=false"]
    config = load_config(None, [*SMALL_RUN, "epochs=8", "validate_every=4", *augmentation])
    first, last = read_metrics(train(small_dataset, tmp_path / "run", config, console=QUIET_CONSOLE))
    assert float(last["loss"]) < float(first["loss"])


@pytest.mark.parametrize(
    ("settings", "sizes", "rule", "crop"),
    [
        ({}, [(360, 480)] * 3, InputRule(rule="fit", side=480), (352, 480)),
        ({"side": 240}, [(360, 480)], InputRule(rule="fit", side=240), (192, 256)),
        ({}, [(3000, 4000)], InputRule(rule="fit", side=1024), (512, 512)),
        ({"input": "native"}, [(100, 90), (200, 180), (300, 300)], InputRule(rule="native"), (192, 192)),
        ({"crop": (64, 64)}, [(360, 480)], InputRule(rule="fit", side=480), (64, 64)),
    ],
)
def test_default_resize_and_crop(
    settings: dict[str, object], sizes: list[tuple[int, int]], rule: InputRule, crop: tuple[int, int]
) -> None:
    report = LintReport([], train_image_sizes=sizes)
    assert choose_resize_and_crop(TrainConfig.model_validate(settings), report) == (rule, crop)


def test_batch_that_cannot_be_divided_among_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch=8 cannot be divided among devices=3"):
        load_config(None, ["devices=3", "batch=8"])
