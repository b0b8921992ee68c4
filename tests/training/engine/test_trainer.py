import csv
import json
import math
import re
import shutil
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.architectures import build
from models.errors import ConfigError
from models.spec import ClassInfo, InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from training.config import TrainConfig
from training.config_io import load_config
from training.data import load_split
from training.data.loader import build_train_loader, build_val_loader, iterate_batches
from training.data.synthetic import generate_dataset
from training.engine.checkpoint import read_checkpoint
from training.engine.loggers import ProgressLogger
from training.engine.losses import Criterion
from training.engine.model_factory import architecture_options, load_network, make_torch_segmenter
from training.engine.schedule import PaceEstimate, TrainingDuration
from training.engine.trainer import Trainer
from training.evaluate import evaluate_split
from training.lint import LintReport
from training.metrics.confusion import ConfusionMatrix
from training.metrics.learning import learning_warnings
from training.reports.line_chart import read_charts
from training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, ImageList, RunMetadata, read_run_metadata
from training.train import choose_resize_and_crop, describe_end, plan_training, train

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


def make_trainer(data: Path, out: Path, *overrides: str) -> Trainer:
    """A trainer of a small network; its run folder is empty."""
    config = load_config(None, [*SMALL_RUN, "tensorboard=false", *overrides])
    samples = load_split(data, "train")
    rule, crop = InputRule(rule="native"), config.crop or (32, 32)
    run = RunMetadata(
        data=data, classes=samples.classes, input=rule, crop=crop, precision="f32", images=ImageList.from_names([])
    )
    torch.manual_seed(0)
    network = build(config.architecture, len(samples.classes), **architecture_options(config))
    duration = TrainingDuration(len(samples), 4, config)
    return Trainer(Fabric(accelerator="cpu"), config, run, network, Criterion.from_config(config), duration, out)


def test_validation_does_not_change_the_network_and_uses_its_running_statistics(
    small_dataset: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(small_dataset, tmp_path, "dropout=0.5")
    network, validation = trainer.state.network, load_split(small_dataset, "val")
    trainer.learner.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    confusion = trainer.validate(build_val_loader(validation, trainer.run.input, trainer.config))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    segmenter, expected = make_torch_segmenter(network.eval(), trainer.run.input), ConfusionMatrix(6)
    for index in range(len(validation)):
        expected.add(validation.labels(index), segmenter.segment(validation.image(index)).labels)
    assert np.abs(confusion.counts - expected.counts).sum() < 0.01 * expected.counts.sum()


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_gradient_is_clipped_to_its_norm(small_dataset: Path, tmp_path: Path, clip: float | None) -> None:
    settings = ["optimizer=sgd", "momentum=0", "weight_decay=0", "lr=1", "head_lr=1", f"grad_clip={clip}"]
    trainer = make_trainer(small_dataset, tmp_path, *settings)
    before = torch.cat([value.detach().flatten().clone() for value in trainer.state.network.parameters()])
    change = (
        (weights_after_a_step(trainer, small_dataset) - before).norm().item()
    )  # of plain SGD: lr times the gradient
    assert change == pytest.approx(clip, rel=0.02) if clip else change > 0.01


def weights_after_a_step(trainer: Trainer, data: Path) -> torch.Tensor:
    """All weights, of one axis, after the first step on the training images."""
    loader = build_train_loader(load_split(data, "train"), trainer.run.input, trainer.run.crop, trainer.config)
    trainer.learner.train()
    with closing(iterate_batches(loader)) as batches:
        trainer.train_step(batches)
    return torch.cat([value.detach().flatten() for value in trainer.state.network.parameters()])


def test_accumulated_step_equals_that_of_the_whole_batch(small_dataset: Path, tmp_path: Path) -> None:
    """With frozen norms, whose statistics depend on the size of a batch."""
    settings = ["optimizer=sgd", "lr=0.1", "dropout=0", "freeze_norms=true", "scale=1,1"]
    whole, parts = (
        weights_after_a_step(make_trainer(small_dataset, tmp_path, *settings, *sizes), small_dataset)
        for sizes in (("batch=4", "accumulate=1"), ("batch=2", "accumulate=2"))
    )
    before = torch.cat([value.flatten() for value in make_trainer(small_dataset, tmp_path).state.network.parameters()])
    assert (parts - whole).norm() < 0.01 * (whole - before).norm()


def test_each_step_averages_the_weights_and_has_its_own_seed(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, seeds = make_trainer(small_dataset, tmp_path, "ema=0.9", "accumulate=2", "batch=2", "seed=5"), set()
    monkeypatch.setattr("training.engine.trainer.seed_torch", lambda *numbers: seeds.add(numbers))
    average = trainer.state.ema_network
    assert average is not None
    before = torch.cat([value.flatten().clone() for value in average.parameters()])
    for _ in range(2):
        after = weights_after_a_step(trainer, small_dataset)
    averaged = torch.cat([value.flatten() for value in average.parameters()])
    assert 0 < (averaged - before).norm() < (after - before).norm()
    assert seeds == {(5, step, part, 0) for step in (0, 1) for part in (1, 2)}


def test_validation_that_would_exceed_the_minutes_is_skipped(small_dataset: Path, tmp_path: Path) -> None:
    """Another validation, and the last one, must fit."""
    trainer = make_trainer(small_dataset, tmp_path, "minutes=1")
    trainer.state.validation_seconds = 8.0
    for seconds, skipped in ((40, False), (50, True)):
        trainer.state.start_time = time.monotonic() - seconds
        assert trainer._sync_status([]).skip_validation is skipped


def test_impossible_monitor_is_refused_before_anything_is_planned(small_dataset: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"monitor='iou_zebra' cannot choose the checkpoint: .* for the classes ground, disc"
    ):
        plan_training(small_dataset, None, {"monitor": "iou_zebra"}, QUIET_CONSOLE)


def test_first_of_equal_validations_is_the_best(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, better = make_trainer(small_dataset, tmp_path, "patience=2"), []
    monkeypatch.setattr(Trainer, "validate", lambda *_: half_right())
    monkeypatch.setattr(trainer.logger, "on_validation", lambda *values: better.append(values[-1]))
    for step in (3, 6, 9):
        trainer.state.step = step
        trainer.learner.eval()  # as a validation leaves it
        trainer._validate_and_save(None, 0.1)  # type: ignore[arg-type]
        assert trainer.learner.training
    assert better == [True, False, False]
    assert read_checkpoint(tmp_path / BEST_CHECKPOINT)["step"] == 3
    assert trainer.resume() == "patience"


def test_monitor_chooses_the_checkpoint_and_is_named(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recall of ground falls while the mIoU rises: the first validation is kept, not the second."""
    trainer = make_trainer(small_dataset, tmp_path, "monitor=recall_ground")
    trainer.run = trainer.run.model_copy(update={"classes": load_split(small_dataset, "val").classes})
    monkeypatch.setattr(Trainer, "validate", lambda *_: recalls.pop(0))
    recalls = [ConfusionMatrix(6), ConfusionMatrix(6)]
    recalls[0].add(np.uint8([[0, 0, 1, 1]]), np.uint8([[0, 0, 0, 0]]))
    recalls[1].add(np.uint8([[0, 0, 1, 1]]), np.uint8([[0, 2, 1, 1]]))
    logger = ProgressLogger(
        tmp_path, trainer.run.classes, trainer.duration, 0, QUIET_CONSOLE, "json", monitor="recall_ground"
    )
    with logger:
        trainer.logger = logger
        for step in (3, 6):
            trainer.state.step = step
            trainer._validate_and_save(None, 0.1)  # type: ignore[arg-type]
    best = read_checkpoint(tmp_path / BEST_CHECKPOINT)
    assert (best["step"], best["score"]) == (3, 1.0)
    assert [row["recall_ground"] for row in read_metrics(tmp_path)] == ["1.0", "0.5"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["monitor"], line["best"]) for line in lines] == [
        ("recall_ground", True),
        ("recall_ground", False),
    ]
    titles = [list(lines) for title, lines, _ in read_charts(tmp_path / "metrics.csv", "recall_ground")]
    assert ["mIoU", "recall_ground (monitor)"] in titles
    end = describe_end(trainer, "epochs")
    assert (end.monitor, end.score) == ("recall_ground", 1.0)


def half_right() -> ConfusionMatrix:
    """Of two classes with as many pixels, half of the second are right."""
    confusion = ConfusionMatrix(6)
    confusion.add(np.uint8([[0, 0, 1, 1]]), np.uint8([[0, 0, 1, 0]]))
    return confusion


@pytest.mark.parametrize(
    ("epochs", "prediction", "expected"),
    [
        (0.5, [0, 0, 0, 0, 1, 2], ["trained for 0.5 epochs.* 40 minutes are about 10 epochs"]),
        (9.0, [0, 0, 0, 0, 1, 2], []),
        (
            9.0,
            [0, 0, 0, 0, 0, 0],
            ["of 0.222 is no better than that of predicting big everywhere", "Never .*: mid, few"],
        ),
        (9.0, [0, 0, 0, 0, 1, 1], ["Never predicted in the best validation: few"]),
    ],
)
def test_run_that_learned_nothing_is_warned_of(epochs: float, prediction: list[int], expected: list[str]) -> None:
    classes = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("big", "mid", "few", "absent")]
    confusion = ConfusionMatrix(4)
    confusion.add(np.uint8([[0, 0, 0, 0, 1, 2]]), np.uint8([prediction]))
    warnings = learning_warnings(epochs, 2.0, confusion.miou(), confusion, classes)
    assert len(warnings) == len(expected)
    for warning, pattern in zip(warnings, expected, strict=True):
        assert re.search(pattern, warning)


def test_pace_that_differs_from_the_plan_is_reported_when_the_steps_have_doubled() -> None:
    duration = TrainingDuration(100, 4, TrainConfig(batch=10, minutes=1))
    pace, reports = PaceEstimate(duration, expected_epochs=2.4), {}
    for step in range(1, 200):  # 210 steps fit into the time, but the first 20 take four times as long
        progress = 0.1 + (4 * min(step, 20) + max(0, step - 20)) / 300
        if epochs := pace.update(step, progress):
            reports[step] = round(epochs, 1)
    assert reports == {17: 6.8, 33: 14.6}
    unplanned = PaceEstimate(duration, math.inf)
    assert not any(unplanned.update(step, step / 200) for step in range(1, 200))


def test_pace_changes_how_often_a_planned_run_validates(small_dataset: Path, tmp_path: Path) -> None:
    trainer, notes = make_trainer(small_dataset, tmp_path, "minutes=1"), []
    trainer.adapt_validation = True
    trainer.logger.on_note = notes.append  # type: ignore[method-assign]
    trainer._adapt_to_pace(100.0)
    assert trainer.duration.validation_interval == 4 * 3
    assert load_config(tmp_path / "config.yaml", []).validate_every == 4
    assert notes == ["At the pace so far, about 100 epochs fit into the time; validates every 4 epochs."]


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
