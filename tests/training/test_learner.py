import math
from pathlib import Path

import pytest
import torch
from torch import nn

from models.architectures import build
from models.errors import RunError
from tests.bundles import SILENT
from training.config import TrainConfig
from training.learner import Guard, Learner, averaged, seed_draws
from training.losses import Criterion
from training.machine import enough_memory
from training.settings import load_config
from training.state import LAST, read
from training.train import train

SMALL = ["encoder=tu-lcnet_035", "epochs=2", "batch=4", "workers=0", "crop=64,64", "tensorboard=false", "precision=f32"]


def test_the_auxiliary_head_is_learned_by_its_share() -> None:
    torch.manual_seed(0)
    network = build("fcn", 3, aux=True, dropout=0.0).eval()
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8)
    criterion = Criterion()
    main, aux = (criterion(logits, labels) for logits in network.training_logits(pictures.permute(0, 3, 1, 2)))
    for share in (0.0, 0.4, 1.0):
        total = Learner(network, criterion, TrainConfig(aux=True, aux_weight=share)).eval()(pictures, labels)
        assert total.item() == pytest.approx((main + share * aux).item(), rel=1e-5)


def test_frozen_norms_keep_their_statistics_and_the_others_do_not() -> None:
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    labels = torch.zeros(2, 64, 64, dtype=torch.uint8)
    for frozen in (True, False):
        network = build("fcn", 3, encoder="tu-lcnet_035")
        before = {name: value.clone() for name, value in network.named_buffers()}
        learner = Learner(network, Criterion(), TrainConfig(freeze_norms=frozen)).train()
        learner(pictures, labels)
        same = all(torch.equal(value, before[name]) for name, value in network.named_buffers())
        assert same == frozen
        assert network.body.dropout.training


def test_averaged_weights_follow_the_formula() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = averaged(network, decay=0.5)  # type: ignore[arg-type]
    assert average is not None
    expected = 0.0
    for step in range(8):
        with torch.no_grad():
            network[0].weight.fill_(step)
        network(torch.randn(4, 2))
        average.update_parameters(network)
        share = 1 if step == 0 else 1 - min(0.5, (1 + step) / (10 + step))
        expected += share * (step - expected)
        assert average.module[0].weight.mean().item() == pytest.approx(expected, rel=1e-5)
    assert average.module[1].num_batches_tracked == 8
    assert averaged(network, decay=0.0) is None  # type: ignore[arg-type]


def test_draws_are_those_of_the_place_alone() -> None:
    drawn = []
    for place in ((0, 3, 1, 0), (0, 3, 1, 0), (0, 3, 1, 1), (0, 4, 1, 0), (1, 3, 1, 0)):
        seed_draws(*place)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]
    assert len({tuple(values) for values in drawn}) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named_with_its_step_and_files(bad: float) -> None:
    guard = Guard(TrainConfig(lr=0.5))
    for step, loss in enumerate([1.0] * 9 + [0.8, 5.0, 40.0], start=-7):
        guard.watch(step, 0.25, ["a", "b"], torch.tensor(loss))
    guard.watch(5, 0.25, ["street/07", "street/12"], torch.tensor(bad))
    with pytest.raises(RunError) as caught:
        guard.watch(6, 0.25, ["c"], torch.tensor(1.0))
    sentence = str(caught.value)
    assert f"The loss is {bad} at step 5, lr 0.25, on street/07, street/12." in sentence
    assert "It had gone from 0.8 to 40: the learning rate is likely too high: lower lr=0.5" in sentence


def test_a_loss_that_breaks_from_one_step_to_the_next_points_at_the_pictures() -> None:
    guard = Guard(TrainConfig(precision="bf16"))
    for step in range(1, 12):
        guard.watch(step, 0.1, ["a"], torch.tensor(0.7))
    guard.watch(12, 0.1, ["b"], torch.tensor(math.nan))
    with pytest.raises(RunError, match=r"look at these pictures and masks first; else set precision=f32"):
        guard.settle()


def test_a_training_that_runs_away_stops_and_keeps_its_last_good_checkpoint(shapes: Path, tmp_path: Path) -> None:
    words = [*SMALL, "optimizer=sgd", "momentum=0", "warmup=0", "lr=1e30", "save_minutes=0"]
    with pytest.raises(
        RunError, match=r"learning rate is likely too high: lower lr=1e.30.* last good checkpoint is kept"
    ):
        train(shapes, tmp_path / "run", load_config(None, words), console=SILENT)
    kept = read(tmp_path / "run" / LAST)
    assert kept["step"] > 0
    assert all(value.isfinite().all() for value in kept["network"].values())


def test_weights_that_are_no_numbers_are_never_kept() -> None:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, math.inf)
    with pytest.raises(RunError, match="Weights are no longer numbers"):
        Guard(TrainConfig()).before_a_save(layer)


def test_out_of_memory_names_what_to_lower(shapes: Path, tmp_path: Path) -> None:
    """Refused for real by the system: a crop of 120 GB."""
    lower = r"Out of memory with batch=4 crops of 200000 x 200000 .*batch=2 accumulate=2"
    with pytest.raises(RunError, match=lower):
        train(shapes, tmp_path / "run", load_config(None, [*SMALL, "crop=200000,200000"]), console=SILENT)


@pytest.mark.parametrize(
    "error",
    [MemoryError("x"), torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("can't allocate memory: 3")],
)
def test_each_library_has_its_word_for_no_memory(error: Exception) -> None:
    with pytest.raises(RunError, match="lower crop=32,64"), enough_memory(TrainConfig(batch=1), (32, 64)):
        raise error


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="shape"), enough_memory(TrainConfig(), (32, 64)):
        raise RuntimeError("shape mismatch")
