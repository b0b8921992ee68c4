"""The plan: what is read off the data, what follows from it, and that what follows trains."""

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
from models.spec import VOID, ClassInfo
from training.config_io import load_config
from training.data.synthetic import draw
from training.engine.checkpoint import read
from training.engine.model_factory import read_run
from training.lint import Measure, Report, lint
from training.plan import make_plan
from training.plan.budget import (
    LADDER,
    Trials,
    choose_batch,
    choose_encoder,
    choose_keeping,
    choose_length,
    choose_workers,
    fitting,
)
from training.plan.fingerprint import Survey
from training.plan.plan_io import save_plan, show_plan
from training.plan.profiling import Machine, bytes_a_picture, free_memory, seconds_a_step
from training.plan.rules import AREA, Plan, choose_augmentation, choose_crop, choose_loss, choose_optimiser, choose_view
from training.run_folder import LAST
from training.train import plan as plan_training
from training.train import train

CPU = Machine("cpu", "2 CPU cores", 2, 8 * 2**30, False)
GPU = Machine("cuda", "a GPU", 16, 80 * 2**30, True)
SILENT = Console(quiet=True)
SMALL = {"encoder": "tu-test_resnet", "head": "linear"}


def measure(labels: np.ndarray) -> Measure:
    """What the lint measures of a mask, in the plainest way."""
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
    return Measure((height, width), present.astype(np.int64), np.array(quarters), np.array(edges))


def report(masks: list[np.ndarray], classes: int = 2, val: int = 4) -> Report:
    found = Report([ClassInfo(name=f"class{label}", rgb=(label, 0, 0)) for label in range(classes)])
    found.pictures = {"train": len(masks), "val": val}
    found.measures = [measure(mask) for mask in masks]
    return found


def strips(size: tuple[int, int], width: int, count: int = 20, across: bool = False) -> list[np.ndarray]:
    """Masks with one strip of class 1 each, anywhere; upright or lying."""
    random, masks = np.random.default_rng(0), []
    for _ in range(count):
        mask = np.zeros(size, np.uint8)
        at = random.integers(1, size[0 if across else 1] - width - 1)
        mask[(np.s_[at : at + width], np.s_[:])[:: 1 if across else -1]] = 1
        masks.append(mask)
    return masks


def chosen(masks: list[np.ndarray], machine: Machine = CPU, classes: int = 2, **wishes: object) -> Plan:
    """All that is chosen without trying the machine."""
    return chosen_for(Survey.of(report(masks, classes)), machine, **wishes)


def chosen_for(survey: Survey, machine: Machine, **wishes: object) -> Plan:
    plan = Plan(dict(wishes))
    choose_view(plan, survey, machine)
    choose_crop(plan, survey, machine)
    choose_augmentation(plan, survey)
    choose_loss(plan, survey)
    choose_batch(plan, survey, machine)
    choose_optimiser(plan)
    return plan


@pytest.mark.parametrize("width", [2, 4, 9, 30])
def test_the_width_of_strips_is_read_off_their_edges(width: int) -> None:
    survey = Survey.of(report(strips((100, 120), width)))
    assert survey.widths[1] == pytest.approx(width)
    assert survey.thin == survey.typical == pytest.approx(width)
    assert survey.shares[1] == pytest.approx(width / 120)
    assert survey.size == (100, 120)


def test_void_is_no_class_and_an_absent_class_has_no_width() -> None:
    masks = strips((60, 80), 6)
    for mask in masks:
        mask[:, :10] = VOID
    survey = Survey.of(report(masks, classes=3))
    assert survey.shares.sum() == pytest.approx(1)
    assert np.isnan(survey.widths[2])
    assert survey.held[2] == 0


def above_and_below(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    masks = [np.zeros((60, 80), np.uint8) for _ in range(count)]
    for mask in masks:
        mask[random.integers(20, 40) :] = 1
    return masks


def test_classes_above_and_below_make_pictures_upright() -> None:
    assert Survey.of(report(above_and_below(20))).upright
    assert chosen(above_and_below(20))["vflip"] == 0
    assert chosen(above_and_below(20))["input"] == "fit"
    scattered = strips((360, 400), 6, across=True)
    assert not Survey.of(report(scattered)).upright
    assert chosen(scattered)["vflip"] == 0.5
    assert chosen(scattered)["input"] == "native"


def test_few_pictures_are_taken_to_be_upright() -> None:
    plan = chosen(strips((360, 400), 6, count=2, across=True))
    assert "too few pictures to tell" in plan.choices["input"].why
    assert "too few pictures to tell" in plan.choices["vflip"].why
    assert Survey.of(report(strips((60, 80), 6, count=3, across=True))).upright


def test_a_class_on_one_side_forbids_mirroring() -> None:
    masks = [mask.T.copy() for mask in above_and_below(20)]
    assert Survey.of(report(masks)).sided
    plan = chosen(masks)
    assert plan["flip"] == 0
    assert "left or right" in plan.choices["flip"].why
    assert chosen(above_and_below(20))["flip"] == 0.5


@pytest.mark.parametrize(("grows", "rule"), [(True, "fit"), (False, "native")])
def test_things_that_grow_with_their_pictures_are_brought_to_one_scale(grows: bool, rule: str) -> None:
    masks = []
    for factor in (1, 2, 3, 4) * 6:
        masks += strips((60 * factor, 80 * factor), 4 * factor if grows else 6, count=1, across=True)
        masks[-1] = np.roll(masks[-1], len(masks) * 7 * factor, axis=0)
    survey = Survey.of(report(masks))
    assert survey.follows == pytest.approx(1.0 if grows else 0.0, abs=0.2)
    assert chosen(masks)["input"] == rule


def test_small_pictures_are_enlarged_and_large_ones_fit_the_machine() -> None:
    small, large = strips((60, 80), 6, across=True), strips((600, 2000), 5)
    assert (chosen(small)["input"], chosen(small)["side"]) == ("fit", 160)
    assert chosen(small, GPU)["side"] == 160
    assert chosen(strips((200, 240), 6, across=True))["side"] == 384
    assert (chosen(large, input="fit")["side"], chosen(large, GPU, input="fit")["side"]) == (512, 1024)


def test_wide_things_are_seen_at_a_lower_scale() -> None:
    random, masks = np.random.default_rng(0), []
    for _ in range(12):
        mask = np.zeros((1500, 2000), np.uint8)
        mask[random.integers(0, 700) :][:800, random.integers(0, 900) :][:, :1000] = 1
        masks.append(mask)
    plan = chosen(masks)
    assert plan["input"] == "fit"
    assert plan["side"] == 384
    assert "thinnest class is still" in plan.choices["side"].why


def test_a_rare_class_on_few_pictures_gets_crops_of_its_own() -> None:
    often, seldom = strips((400, 600), 5), strips((400, 600), 5)
    for mask in seldom[2:]:
        mask[:] = 0
    assert chosen(often)["balance"] == 0
    assert chosen(seldom)["balance"] > 0
    assert "chance" in chosen(seldom).choices["balance"].why


def test_what_was_said_stands_and_is_built_on() -> None:
    plan = chosen(strips((400, 600), 5), crop=[64, 96], lr=0.5, input="fit", side=320)
    assert (plan["crop"], plan["lr"], plan["side"]) == ((64, 96), 0.5, 320)
    assert plan.choices["lr"].why == "as you said"
    assert chosen(strips((400, 600), 5), weights="imagenet")["head_lr"] == 10


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 6000)), min_size=1, max_size=12),
    classes=st.integers(2, 255),
    gpu=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None)
def test_any_measures_make_a_valid_plan(sizes: list[tuple[int, int]], classes: int, gpu: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    found = report([], classes)
    for height, width in sizes:
        labels = np.unique(random.choice([*range(classes), VOID], 3))
        quarters = random.integers(0, height * width + 1, (len(labels), 2, 2))
        edges = random.integers(0, quarters.sum(axis=(1, 2)) + 1)
        found.measures.append(Measure((height, width), labels, quarters, edges))
    found.pictures = {"train": len(sizes), "val": 1}
    machine, survey = GPU if gpu else CPU, Survey.of(found)
    plan = chosen_for(survey, machine)
    choose_length(plan, survey, Trials(classes, machine), 0.5)
    config = plan.config()
    assert config.crop is not None
    height, width = config.crop
    assert height % 32 == width % 32 == 0
    assert height * width <= AREA[machine.device] or min(height, width) == 32
    assert config.batch >= 2
    assert all(choice.why for choice in plan.choices.values())


class Clock(Trials):
    """Trials of a machine of a given speed: a rung of the ladder takes twice as long as the one before."""

    def __init__(self, first: float) -> None:
        super().__init__(2, CPU)
        self.first = first

    def seconds(self, plan: Plan) -> float | None:
        return self.first * 2 ** LADDER.index(plan["encoder"])


@pytest.mark.parametrize(
    ("first", "minutes", "rung"), [(0.2, 20, 1), (0.2, 1, 0), (0.001, 20, 4), (0.01, 15, 2), (9, None, 1)]
)
def test_the_encoder_grows_with_what_the_time_holds(first: float, minutes: float | None, rung: int) -> None:
    plan = Plan({"minutes": minutes} if minutes else {})
    choose_batch(plan, Survey.of(report(strips((100, 120), 5))), CPU)
    choose_encoder(plan, Clock(first))
    assert plan["encoder"] == LADDER[rung]


def test_a_batch_that_memory_does_not_hold_is_halved_and_accumulated() -> None:
    plan = Plan({**SMALL, "crop": [64, 64], "precision": "f32"})
    machine = Machine("cpu", "a small machine", 2, 0, False)
    choose_batch(plan, Survey.of(report(strips((100, 120), 5))), machine)
    one = bytes_a_picture(plan.config(), 2, (64, 64))
    roomy = Machine("cpu", "a small machine", 2, int(one * 4 / 0.6) + 1000, False)
    assert fitting(plan, Trials(2, roomy)) > 0
    assert (plan["batch"], plan["accumulate"]) == (4, 2)
    assert "free memory" in plan.choices["batch"].why
    with pytest.raises(ConfigError, match=r"does not fit into the 0\.0 GiB"):
        fitting(plan, Trials(2, machine))


def test_what_a_step_keeps_is_counted_as_it_is() -> None:
    """Against the tensors that a real step of two pictures saves."""
    import torch

    from training.plan.profiling import _network

    config = load_config(None, ["encoder=resnet18", "dropout=0"])
    network = _network(config, 3).train()
    sizes: dict[int, int] = {}
    parameters = {value.untyped_storage().data_ptr() for value in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = network.training_logits(torch.zeros(2, 3, 96, 96))
    real = sum(sizes.values()) / 2
    weights = sum(value.nbytes for value in network.parameters()) / 2
    counted = bytes_a_picture(config, 3, (96, 96)) - 16 * 3 * 96 * 96
    assert counted - weights <= real * 1.05
    assert counted >= real * 0.95
    del kept


@pytest.mark.parametrize(
    ("device", "reading", "kept", "workers", "seconds"),
    [
        ("cpu", 0.002, False, 1, 1.014),
        ("cpu", 0.5, False, 4, 2.01),
        ("cpu", 0.5, True, 4, 1.01),
        ("cuda", 0.05, False, 1, 1.0),
        ("cuda", 0.5, False, 3, 1.01),
        ("cuda", 2, False, 3, 4.01),
    ],
)
def test_readers_keep_ahead_of_the_steps(device: str, reading: float, kept: bool, workers: int, seconds: float) -> None:
    plan = Plan({"batch": 8})
    trials = Trials(2, Machine(device, "a machine of 4 cores", 4, 2**33, True), reading, kept)
    assert trials.with_reading(1.0, 8) == pytest.approx(seconds)
    choose_workers(plan, trials, seconds)
    assert plan["workers"] == workers


def test_workers_are_of_each_device() -> None:
    plan = Plan({"batch": 64, "devices": 8})
    choose_workers(plan, Trials(2, Machine("cuda", "eight GPUs", 16, 2**33, True), 0.1), 0.1)
    assert plan["workers"] == 1


def test_slow_pictures_are_kept_where_the_disk_holds_them() -> None:
    for reading, room, keep in ((0.0001, 10**9, False), (0.1, 10**9, True), (0.1, 10, False)):
        plan = Plan({})
        choose_keeping(plan, 1000, lambda wanted, room=room: wanted <= room, reading)
        assert plan["keep"] is keep


def test_what_comes_once_is_not_kept() -> None:
    survey = Survey.of(report(strips((100, 120), 5)))
    for minutes, keep in ((0.5, True), (0.05, False)):
        plan = Plan({"minutes": minutes, "batch": 8})
        choose_keeping(plan, 1000, lambda wanted: True, 0.1)
        choose_length(plan, survey, Trials(2, CPU), 1.0)
        assert plan["keep"] is keep


def test_epochs_end_a_training_that_has_minutes_too() -> None:
    plan = Plan({"minutes": 60, "epochs": 3, "batch": 8})
    choose_length(plan, Survey.of(report(strips((100, 120), 5))), Trials(2, CPU), 0.1)
    assert plan["warmup"] == 0  # of 6 steps
    assert plan["validate_every"] == 1
    assert "about 3.0 epochs" in plan.choices["minutes"].why


def test_minutes_that_are_gone_are_not_planned_with() -> None:
    survey = Survey.of(report(strips((100, 120), 5)))
    plans = []
    for spent in (0, 600):
        plan = Plan({"minutes": 20, "batch": 8})
        choose_length(plan, survey, Trials(2, CPU, started=time.monotonic() - spent), 0.5)
        plans.append(plan["validate_every"])
    assert plans[0] == pytest.approx(2 * plans[1], abs=2)


def test_a_side_that_was_said_is_used_and_nothing_is_no_wish() -> None:
    plan = chosen(strips((360, 400), 6, across=True), side=320)
    assert plan["input"] == "fit"
    assert plan.choices["input"].why == "you said a side"
    assert chosen(strips((360, 400), 6, across=True), side=None, crop=None)["input"] == "native"


def test_sgd_gets_its_own_rate_and_decay() -> None:
    plan = chosen(strips((360, 400), 6), optimizer="sgd")
    assert (plan["lr"], plan["weight_decay"]) == (0.02, 5e-4)


def test_a_middle_picture_has_the_shape_of_some_picture() -> None:
    masks = strips((40, 80), 6) + [np.ascontiguousarray(mask.T) for mask in strips((40, 80), 6)]
    assert max(Survey.of(report(masks)).size) == 80
    assert Survey.of(report(strips((40, 80), 6))).size == (40, 80)


class Tight(Clock):
    """A machine whose memory holds no rung above one."""

    def __init__(self, first: float, largest: int) -> None:
        super().__init__(first)
        self.largest = largest

    def seconds(self, plan: Plan) -> float | None:
        return super().seconds(plan) if LADDER.index(plan["encoder"]) <= self.largest else None


def test_a_rung_that_memory_does_not_hold_is_not_climbed() -> None:
    plan = Plan({"minutes": 20})
    choose_batch(plan, Survey.of(report(strips((100, 120), 5))), CPU)
    choose_encoder(plan, Tight(0.001, 2))
    assert (plan["encoder"], plan["batch"], plan["accumulate"]) == (LADDER[2], 8, 1)
    assert "memory" in plan.choices["encoder"].why


def test_free_memory_is_no_more_than_there_is() -> None:
    assert 2**26 < free_memory() < 2**44


def test_a_step_is_timed(tmp_path: Path) -> None:
    config = load_config(None, ["encoder=tu-test_resnet", "head=linear", "batch=2"])
    begun = time.perf_counter()
    seconds = seconds_a_step(config, 3, (64, 64), 2, "cpu", "f32")
    assert seconds is not None
    assert 0 < seconds < time.perf_counter() - begun


@pytest.fixture
def few(tmp_path: Path) -> Path:
    draw(tmp_path / "few", counts={"train": 12, "val": 4, "test": 2}, size=(96, 128))
    return tmp_path / "few"


def test_the_plan_is_a_config_with_a_reason_a_line(few: Path, tmp_path: Path) -> None:
    plan = make_plan(lint(few), {**SMALL, "minutes": 1})
    save_plan(plan, tmp_path / "new" / "plan.yaml")
    text = (tmp_path / "new" / "plan.yaml").read_text()
    assert load_config(tmp_path / "new" / "plan.yaml", []) == plan.config()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert {line.split(":")[0] for line in lines} == set(yaml.safe_load(text)) == set(plan.choices)
    assert all(len(line.split("  # ")[1]) > 5 for line in lines)
    printed = io.StringIO()
    show_plan(plan, Console(width=100, file=printed))
    assert all(name in printed.getvalue() for name in plan.choices)
    decided = {
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
    assert decided <= set(plan.choices)


def test_a_training_without_a_config_is_planned_and_keeps_its_minutes(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    planned = plan_training(few, out / "plan.yaml", {**SMALL, "minutes": 0.2, "tensorboard": False}, SILENT)
    before = time.monotonic() - planned.started
    train(few, out, planned.config, console=SILENT, log="quiet", planned=planned)
    assert read(out / LAST)["seconds"] > before > 0  # the minutes count from the first look at the data
    assert load_config(out / "config.yaml", []) == planned.config
    assert tuple(read_run(out)["crop"]) == planned.config.crop
    assert (out / "checkpoints" / "best.ckpt").exists()


def test_a_bundle_to_begin_from_decides_the_network(bundle: Path, few: Path) -> None:
    plan = make_plan(lint(few), {"weights": str(bundle), "epochs": 1})
    assert plan.choices["encoder"].why == "of the bundle to begin from"
    with pytest.raises(BundleError):
        (few / "spec.json").write_text("{}")
        make_plan(lint(few), {"weights": str(few)})
