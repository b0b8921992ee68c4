"""The plan: the fingerprint of the data, the rules, and that a planned training runs."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from models.errors import BundleError, ConfigError
from models.spec import IGNORE_INDEX, ClassInfo
from training.config_io import load_config
from training.data.synthetic import generate_dataset
from training.engine.checkpoint import read_checkpoint
from training.lint import LabelStats, LintReport, lint
from training.plan import make_plan
from training.plan.budget import (
    ENCODER_LADDER,
    StepProfiler,
    choose_batch,
    choose_caching,
    choose_duration,
    choose_encoder,
    choose_workers,
    shrink_batch_to_fit,
)
from training.plan.fingerprint import DatasetFingerprint
from training.plan.plan_io import plan_warnings, print_plan, save_plan
from training.plan.profiling import MachineProfile, activation_bytes_per_image, measure_step_seconds
from training.plan.rules import (
    MAX_CROP_AREA,
    Plan,
    choose_augmentation,
    choose_crop,
    choose_input_rule,
    choose_loss,
    choose_optimiser,
)
from training.run_folder import LAST_CHECKPOINT, read_run_metadata
from training.train import plan_training, train

CPU = MachineProfile("cpu", "2 CPU cores", 2, 8 * 2**30, False)
GPU = MachineProfile("cuda", "a GPU", 16, 80 * 2**30, True)
SILENT = Console(quiet=True)
SMALL = {"encoder": "tu-test_resnet", "head": "linear"}


def measure_mask(labels: np.ndarray) -> LabelStats:
    """The statistics of a mask as the lint measures them, in the simplest way."""
    height, width = labels.shape
    edge = np.zeros(labels.shape, bool)
    for ahead, behind in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = labels[ahead] != labels[behind]
        edge[ahead] |= differs
        edge[behind] |= differs
    present = np.unique(labels)
    rows, columns = (np.s_[: height // 2], np.s_[height // 2 :]), (np.s_[: width // 2], np.s_[width // 2 :])
    quarters = [[[(labels[r, c] == label).sum() for c in columns] for r in rows] for label in present]
    edges = [(edge & (labels == label)).sum() for label in present]
    return LabelStats((height, width), present.astype(np.int64), np.array(quarters), np.array(edges))


def make_report(masks: list[np.ndarray], classes: int = 2, val: int = 4) -> LintReport:
    report = LintReport([ClassInfo(name=f"class{label}", rgb=(label, 0, 0)) for label in range(classes)])
    report.image_counts = {"train": len(masks), "val": val}
    report.train_label_stats = [measure_mask(mask) for mask in masks]
    return report


def strip_masks(size: tuple[int, int], width: int, count: int = 20, across: bool = False) -> list[np.ndarray]:
    """Masks with one strip of class 1 each at a random position; vertical, or horizontal (`across`)."""
    random, masks = np.random.default_rng(0), []
    for _ in range(count):
        mask = np.zeros(size, np.uint8)
        start = random.integers(1, size[0 if across else 1] - width - 1)
        mask[(np.s_[start : start + width], np.s_[:])[:: 1 if across else -1]] = 1
        masks.append(mask)
    return masks


def plan_for_masks(
    masks: list[np.ndarray], machine: MachineProfile = CPU, classes: int = 2, **overrides: object
) -> Plan:
    """A plan of the rules that need no measurement."""
    return plan_for_fingerprint(DatasetFingerprint.from_report(make_report(masks, classes)), machine, **overrides)


def plan_for_fingerprint(fingerprint: DatasetFingerprint, machine: MachineProfile, **overrides: object) -> Plan:
    plan = Plan(dict(overrides))
    choose_input_rule(plan, fingerprint, machine)
    choose_crop(plan, fingerprint, machine)
    choose_augmentation(plan, fingerprint)
    choose_loss(plan, fingerprint)
    choose_batch(plan, fingerprint, machine)
    choose_optimiser(plan)
    return plan


@pytest.mark.parametrize("width", [2, 4, 9, 30])
def test_class_width_of_strips(width: int) -> None:
    fingerprint = DatasetFingerprint.from_report(make_report(strip_masks((100, 120), width)))
    assert fingerprint.class_widths[1] == pytest.approx(width)
    assert fingerprint.min_class_width == fingerprint.median_class_width == pytest.approx(width)
    assert fingerprint.pixel_fractions[1] == pytest.approx(width / 120)
    assert fingerprint.median_size == (100, 120)


def test_ignored_pixels_and_absent_classes_in_the_fingerprint() -> None:
    masks = strip_masks((60, 80), 6)
    for mask in masks:
        mask[:, :10] = IGNORE_INDEX
    fingerprint = DatasetFingerprint.from_report(make_report(masks, classes=3))
    assert fingerprint.pixel_fractions.sum() == pytest.approx(1)
    assert np.isnan(fingerprint.class_widths[2])
    assert fingerprint.image_fractions[2] == 0


def stacked_masks(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    masks = [np.zeros((60, 80), np.uint8) for _ in range(count)]
    for mask in masks:
        mask[random.integers(20, 40) :] = 1
    return masks


def test_vertical_asymmetry_forbids_vertical_flips() -> None:
    assert DatasetFingerprint.from_report(make_report(stacked_masks(20))).vertically_asymmetric
    assert plan_for_masks(stacked_masks(20))["vflip"] == 0
    assert plan_for_masks(stacked_masks(20))["input"] == "fit"
    scattered = strip_masks((360, 400), 6, across=True)
    assert not DatasetFingerprint.from_report(make_report(scattered)).vertically_asymmetric
    assert plan_for_masks(scattered)["vflip"] == 0.5
    assert plan_for_masks(scattered)["input"] == "native"


def test_few_images_are_assumed_to_be_upright() -> None:
    plan = plan_for_masks(strip_masks((360, 400), 6, count=2, across=True))
    assert "too few images to tell" in plan.settings["input"].reason
    assert "too few images to tell" in plan.settings["vflip"].reason
    assert DatasetFingerprint.from_report(
        make_report(strip_masks((60, 80), 6, count=3, across=True))
    ).vertically_asymmetric


def test_horizontal_asymmetry_forbids_flips() -> None:
    masks = [mask.T.copy() for mask in stacked_masks(20)]
    assert DatasetFingerprint.from_report(make_report(masks)).horizontally_asymmetric
    plan = plan_for_masks(masks)
    assert plan["flip"] == 0
    assert "left or right half" in plan.settings["flip"].reason
    assert plan_for_masks(stacked_masks(20))["flip"] == 0.5


@pytest.mark.parametrize(("grows", "rule"), [(True, "fit"), (False, "native")])
def test_objects_that_grow_with_their_images_get_the_rule_fit(grows: bool, rule: str) -> None:
    masks = []
    for factor in (1, 2, 3, 4) * 6:
        masks += strip_masks((60 * factor, 80 * factor), 4 * factor if grows else 6, count=1, across=True)
        masks[-1] = np.roll(masks[-1], len(masks) * 7 * factor, axis=0)
    fingerprint = DatasetFingerprint.from_report(make_report(masks))
    assert fingerprint.width_exponent == pytest.approx(1.0 if grows else 0.0, abs=0.2)
    assert plan_for_masks(masks)["input"] == rule


def test_side_enlarges_small_images_and_reduces_large_ones() -> None:
    small, large = strip_masks((60, 80), 6, across=True), strip_masks((600, 2000), 5)
    assert (plan_for_masks(small)["input"], plan_for_masks(small)["side"]) == ("fit", 160)
    assert plan_for_masks(small, GPU)["side"] == 160
    assert plan_for_masks(strip_masks((200, 240), 6, across=True))["side"] == 384
    assert (plan_for_masks(large, input="fit")["side"], plan_for_masks(large, GPU, input="fit")["side"]) == (512, 1024)


def test_wide_objects_get_a_lower_scale() -> None:
    random, masks = np.random.default_rng(0), []
    for _ in range(12):
        mask = np.zeros((1500, 2000), np.uint8)
        mask[random.integers(0, 700) :][:800, random.integers(0, 900) :][:, :1000] = 1
        masks.append(mask)
    plan = plan_for_masks(masks)
    assert plan["input"] == "fit"
    assert plan["side"] == 384
    assert "thinnest class is still" in plan.settings["side"].reason


def test_rare_class_gets_class_balanced_crops() -> None:
    often, seldom = strip_masks((400, 600), 5), strip_masks((400, 600), 5)
    for mask in seldom[2:]:
        mask[:] = 0
    assert plan_for_masks(often)["class_balanced_crops"] == 0
    assert plan_for_masks(seldom)["class_balanced_crops"] > 0
    assert "random crops" in plan_for_masks(seldom).settings["class_balanced_crops"].reason


def test_overrides_are_kept_and_used_by_later_rules() -> None:
    plan = plan_for_masks(strip_masks((400, 600), 5), crop=[64, 96], lr=0.5, input="fit", side=320)
    assert (plan["crop"], plan["lr"], plan["side"]) == ((64, 96), 0.5, 320)
    assert plan.settings["lr"].reason == "your setting"
    assert plan_for_masks(strip_masks((400, 600), 5), weights="imagenet")["head_lr"] == 10


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 6000)), min_size=1, max_size=12),
    classes=st.integers(2, 255),
    gpu=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_any_fingerprint_gives_a_valid_plan(sizes: list[tuple[int, int]], classes: int, gpu: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    report = make_report([], classes)
    for height, width in sizes:
        labels = np.unique(random.choice([*range(classes), IGNORE_INDEX], 3))
        quarters = random.integers(0, height * width + 1, (len(labels), 2, 2))
        edges = random.integers(0, quarters.sum(axis=(1, 2)) + 1)
        report.train_label_stats.append(LabelStats((height, width), labels, quarters, edges))
    report.image_counts = {"train": len(sizes), "val": 1}
    machine, fingerprint = GPU if gpu else CPU, DatasetFingerprint.from_report(report)
    plan = plan_for_fingerprint(fingerprint, machine)
    choose_duration(plan, fingerprint, StepProfiler(classes, machine), 0.5)
    config = plan.config()
    assert config.crop is not None
    height, width = config.crop
    assert height % 32 == width % 32 == 0
    assert height * width <= MAX_CROP_AREA[machine.device] or min(height, width) == 32
    assert config.batch >= 2
    assert all(setting.reason for setting in plan.settings.values())


class FakeProfiler(StepProfiler):
    """A profiler of a given speed: each encoder of the ladder takes twice as long as the one before."""

    def __init__(self, first: float) -> None:
        super().__init__(2, CPU)
        self.base_seconds = first

    def step_seconds(self, plan: Plan) -> float | None:
        return self.base_seconds * 2 ** ENCODER_LADDER.index(plan["encoder"])


@pytest.mark.parametrize(
    ("first", "minutes", "rung"), [(0.2, 20, 1), (0.2, 1, 0), (0.001, 20, 4), (0.01, 15, 2), (9, None, 1)]
)
def test_encoder_grows_with_the_time(first: float, minutes: float | None, rung: int) -> None:
    plan = Plan({"minutes": minutes} if minutes else {})
    choose_batch(plan, DatasetFingerprint.from_report(make_report(strip_masks((100, 120), 5))), CPU)
    choose_encoder(plan, FakeProfiler(first))
    assert plan["encoder"] == ENCODER_LADDER[rung]


def test_batch_too_large_for_memory_is_halved_and_accumulated() -> None:
    plan = Plan({**SMALL, "crop": [64, 64], "precision": "f32"})
    machine = MachineProfile("cpu", "a small machine", 2, 0, False)
    choose_batch(plan, DatasetFingerprint.from_report(make_report(strip_masks((100, 120), 5))), machine)
    per_image = activation_bytes_per_image(plan.config(), 2, (64, 64))
    larger = MachineProfile("cpu", "a small machine", 2, int(per_image * 4 / 0.6) + 1000, False)
    assert shrink_batch_to_fit(plan, StepProfiler(2, larger)) > 0
    assert (plan["batch"], plan["accumulate"]) == (4, 2)
    assert "free memory" in plan.settings["batch"].reason
    with pytest.raises(ConfigError, match=r"does not fit into the 0\.0 GiB"):
        shrink_batch_to_fit(plan, StepProfiler(2, machine))


def test_activation_bytes_equal_those_of_a_real_step() -> None:
    """Compared with the tensors that a real step of two images saves."""
    import torch

    from training.plan.profiling import _untrained_network

    config = load_config(None, ["encoder=resnet18", "dropout=0"])
    network = _untrained_network(config, 3).train()
    sizes: dict[int, int] = {}
    parameters = {value.untyped_storage().data_ptr() for value in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network.training_logits(torch.zeros(2, 3, 96, 96))
    real = sum(sizes.values()) / 2
    weights = sum(value.nbytes for value in network.parameters()) / 2
    counted = activation_bytes_per_image(config, 3, (96, 96)) - 16 * 3 * 96 * 96
    assert counted - weights <= real * 1.05
    assert counted >= real * 0.95
    del outputs


@pytest.mark.parametrize(
    ("device", "read_seconds", "cached", "workers", "seconds"),
    [
        ("cpu", 0.002, False, 1, 1.014),
        ("cpu", 0.5, False, 4, 2.01),
        ("cpu", 0.5, True, 4, 1.01),
        ("cuda", 0.05, False, 1, 1.0),
        ("cuda", 0.5, False, 3, 1.01),
        ("cuda", 2, False, 3, 4.01),
    ],
)
def test_workers_keep_up_with_the_steps(
    device: str, read_seconds: float, cached: bool, workers: int, seconds: float
) -> None:
    plan = Plan({"batch": 8})
    profiler = StepProfiler(2, MachineProfile(device, "a machine of 4 cores", 4, 2**33, True), read_seconds, cached)
    assert profiler.add_read_time(1.0, 8) == pytest.approx(seconds)
    choose_workers(plan, profiler, seconds)
    assert plan["workers"] == workers


def test_workers_are_per_device() -> None:
    plan = Plan({"batch": 64, "devices": 8})
    choose_workers(plan, StepProfiler(2, MachineProfile("cuda", "eight GPUs", 16, 2**33, True), 0.1), 0.1)
    assert plan["workers"] == 1


def test_slow_images_are_cached_if_the_disk_has_space() -> None:
    for read_seconds, space, cached in ((0.0001, 10**9, False), (0.1, 10**9, True), (0.1, 10, False)):
        plan = Plan({})
        choose_caching(plan, 1000, lambda num_bytes, space=space: num_bytes <= space, read_seconds)
        assert plan["cache_decoded"] is cached


def test_plan_for_less_than_one_epoch_is_warned_of() -> None:
    fingerprint = DatasetFingerprint.from_report(make_report(strip_masks((100, 120), 5)))
    for minutes, warned in ((1, False), (0.05, True)):
        plan, profiler = Plan({"minutes": minutes, "batch": 8}), StepProfiler(2, CPU)
        choose_duration(plan, fingerprint, profiler, 10.0 if warned else 1.0)
        warnings = plan_warnings(plan)
        assert bool(warnings) == warned, warnings
    assert "epochs fit into minutes=0.05" in warnings[0] and "for 10 epochs" in warnings[0]
    profiler.busy_fraction = 0.4
    choose_duration(plan, fingerprint, profiler, 0.01)
    assert "Other programs had the processor for 40% of the time" in plan_warnings(plan)[-1]


@pytest.mark.parametrize("size", [(1, 4096), (32, 4096), (4096, 20)])
def test_long_and_narrow_images_keep_their_size(size: tuple[int, int]) -> None:
    """Resized to fit, hardly a pixel of the short side would remain. One row has no upper half, although all is in it."""
    masks = strip_masks(size, 200, across=size[0] > size[1])
    plan = plan_for_masks(masks)
    assert plan["input"] == "native"
    assert f"long and narrow, {size[1]} x {size[0]}" in plan.settings["input"].reason
    assert plan["crop"][0] >= 32 and plan["crop"][1] >= 32
    if size[0] < 16:
        assert not DatasetFingerprint.from_report(make_report(masks)).vertically_asymmetric


def test_images_used_once_are_not_cached() -> None:
    fingerprint = DatasetFingerprint.from_report(make_report(strip_masks((100, 120), 5)))
    for minutes, cached in ((0.5, True), (0.05, False)):
        plan = Plan({"minutes": minutes, "batch": 8})
        choose_caching(plan, 1000, lambda num_bytes: True, 0.1)
        choose_duration(plan, fingerprint, StepProfiler(2, CPU), 1.0)
        assert plan["cache_decoded"] is cached


def test_epochs_limit_a_training_with_minutes() -> None:
    plan = Plan({"minutes": 60, "epochs": 3, "batch": 8})
    choose_duration(
        plan, DatasetFingerprint.from_report(make_report(strip_masks((100, 120), 5))), StepProfiler(2, CPU), 0.1
    )
    assert plan["warmup"] == 0  # of 6 steps
    assert plan["validate_every"] == 1
    assert "about 3.0 epochs" in plan.settings["minutes"].reason


def test_elapsed_minutes_are_subtracted() -> None:
    fingerprint = DatasetFingerprint.from_report(make_report(strip_masks((100, 120), 5)))
    plans = []
    for spent in (0, 600):
        plan = Plan({"minutes": 20, "batch": 8})
        choose_duration(plan, fingerprint, StepProfiler(2, CPU, start_time=time.monotonic() - spent), 0.5)
        plans.append(plan["validate_every"])
    assert plans[0] == pytest.approx(2 * plans[1], abs=2)


def test_side_implies_fit_and_none_is_no_override() -> None:
    plan = plan_for_masks(strip_masks((360, 400), 6, across=True), side=320)
    assert plan["input"] == "fit"
    assert plan.settings["input"].reason == "you set a side"
    assert plan_for_masks(strip_masks((360, 400), 6, across=True), side=None, crop=None)["input"] == "native"


def test_sgd_has_its_own_learning_rate_and_weight_decay() -> None:
    plan = plan_for_masks(strip_masks((360, 400), 6), optimizer="sgd")
    assert (plan["lr"], plan["weight_decay"]) == (0.02, 5e-4)


def test_median_size_has_the_aspect_ratio_of_an_image() -> None:
    masks = strip_masks((40, 80), 6) + [np.ascontiguousarray(mask.T) for mask in strip_masks((40, 80), 6)]
    assert max(DatasetFingerprint.from_report(make_report(masks)).median_size) == 80
    assert DatasetFingerprint.from_report(make_report(strip_masks((40, 80), 6))).median_size == (40, 80)


class LimitedMemoryProfiler(FakeProfiler):
    """A profiler on a machine whose memory fits no encoder above the index `largest`."""

    def __init__(self, first: float, largest: int) -> None:
        super().__init__(first)
        self.largest = largest

    def step_seconds(self, plan: Plan) -> float | None:
        return super().step_seconds(plan) if ENCODER_LADDER.index(plan["encoder"]) <= self.largest else None


def test_encoder_too_large_for_memory_is_not_chosen() -> None:
    plan = Plan({"minutes": 20})
    choose_batch(plan, DatasetFingerprint.from_report(make_report(strip_masks((100, 120), 5))), CPU)
    choose_encoder(plan, LimitedMemoryProfiler(0.001, 2))
    assert (plan["encoder"], plan["batch"], plan["accumulate"]) == (ENCODER_LADDER[2], 8, 1)
    assert "memory" in plan.settings["encoder"].reason


def test_step_is_timed(tmp_path: Path) -> None:
    config = load_config(None, ["encoder=tu-test_resnet", "head=linear", "batch=2"])
    start = time.perf_counter()
    seconds = measure_step_seconds(config, 3, (64, 64), 2, "cpu", "f32")
    assert seconds is not None
    assert 0 < seconds < time.perf_counter() - start


@pytest.fixture
def small_dataset(tmp_path: Path) -> Path:
    generate_dataset(tmp_path / "few", counts={"train": 12, "val": 4, "test": 2}, size=(96, 128))
    return tmp_path / "few"


def test_plan_file_is_a_config_with_a_reason_per_line(small_dataset: Path, tmp_path: Path) -> None:
    plan = make_plan(lint(small_dataset), {**SMALL, "minutes": 1})
    save_plan(plan, tmp_path / "new" / "plan.yaml")
    text = (tmp_path / "new" / "plan.yaml").read_text()
    assert load_config(tmp_path / "new" / "plan.yaml", []) == plan.config()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert {line.split(":")[0] for line in lines} == set(yaml.safe_load(text)) == set(plan.settings)
    assert all(len(line.split("  # ")[1]) > 5 for line in lines)
    printed = io.StringIO()
    print_plan(plan, Console(width=100, file=printed))
    assert all(name in printed.getvalue() for name in plan.settings)
    planned = {
        "input",
        "encoder",
        "crop",
        "batch",
        "accumulate",
        "minutes",
        "class_weights",
        "loss",
        "precision",
        "workers",
    }
    assert planned <= set(plan.settings)


def test_planned_training_runs_and_its_minutes_include_planning(small_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start, settings = time.monotonic(), {**SMALL, "minutes": 0.1, "tensorboard": False, "validate_every": 3}
    planned = plan_training(small_dataset, out / "plan.yaml", settings, SILENT, start)
    before = time.monotonic() - start
    train(small_dataset, out, planned.config, console=SILENT, log_mode="quiet", planned=planned, start_time=start)
    assert read_checkpoint(out / LAST_CHECKPOINT)["seconds"] > before > 0  # the minutes begin with the planning
    assert load_config(out / "config.yaml", []) == planned.config
    assert read_run_metadata(out).crop == planned.config.crop
    assert (out / "checkpoints" / "best.ckpt").exists()


def test_initial_weights_decide_the_architecture(bundle: Path, small_dataset: Path) -> None:
    plan = make_plan(lint(small_dataset), {"weights": str(bundle), "epochs": 1})
    assert plan.settings["encoder"].reason == "from the bundle of initial weights"
    with pytest.raises(BundleError):
        (small_dataset / "spec.json").write_text("{}")
        make_plan(lint(small_dataset), {"weights": str(small_dataset)})
