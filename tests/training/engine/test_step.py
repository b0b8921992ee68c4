import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.architectures import build
from models.errors import ConfigError, RunError
from tests.fixtures_bundles import QUIET_CONSOLE
from training.config import TrainConfig
from training.config_io import load_config
from training.engine.checkpoint import read_checkpoint
from training.engine.losses import Criterion
from training.engine.runtime import translate_errors
from training.engine.step import LossMonitor, NetworkWithLoss, make_ema_network, seed_torch, update_ema
from training.run_folder import LAST_CHECKPOINT
from training.train import train

SMALL_RUN = [
    "encoder=tu-lcnet_035",
    "epochs=2",
    "batch=4",
    "workers=0",
    "crop=64,64",
    "tensorboard=false",
    "precision=f32",
]


def refuses_huge_allocations() -> bool:
    """Whether the system refuses to allocate 160 GB, as Linux does by default."""
    policy = Path("/proc/sys/vm/overcommit_memory")
    return policy.exists() and policy.read_text().strip() != "1" and os.sysconf("SC_PHYS_PAGES") * 4096 < 100e9


def test_auxiliary_loss_is_weighted() -> None:
    torch.manual_seed(0)
    network = build("fcn", 3, encoder="tu-lcnet_035", aux=True, dropout=0.0).eval()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8)
    criterion = Criterion()
    main, aux = (criterion(logits, labels) for logits in network.training_logits(images.permute(0, 3, 1, 2)))
    for weight in (0.0, 0.4, 1.0):
        total = NetworkWithLoss(network, criterion, TrainConfig(aux=True, aux_weight=weight)).eval()(images, labels)
        assert total.item() == pytest.approx((main + weight * aux).item(), rel=1e-5)


def test_only_frozen_norms_keep_their_statistics() -> None:
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    labels = torch.zeros(2, 64, 64, dtype=torch.uint8)
    for frozen in (True, False):
        network = build("fcn", 3, encoder="tu-lcnet_035")
        before = {name: value.clone() for name, value in network.named_buffers()}
        learner = NetworkWithLoss(network, Criterion(), TrainConfig(freeze_norms=frozen)).train()
        learner(images, labels)
        same = all(torch.equal(value, before[name]) for name, value in network.named_buffers())
        assert same == frozen
        assert network.body.dropout.training


def test_averaged_weights_follow_the_formula() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average: Any = make_ema_network(network, decay=0.5)  # type: ignore[arg-type]
    with torch.no_grad():
        average[0].weight.fill_(7.0)
    expected, running = 7.0, torch.zeros(2)
    for step in range(12):
        with torch.no_grad():
            network[0].weight.fill_(step)
        network(torch.randn(4, 2))
        update_ema(average, network, 0.5, step)  # type: ignore[arg-type]
        weight = 1 - min(0.5, (1 + step) / (10 + step))
        expected += weight * (step - expected)
        running += weight * (network[1].running_mean - running)
        assert average[0].weight.mean().item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(average[1].running_mean, running)
    assert average[1].num_batches_tracked == 12
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert make_ema_network(network, decay=0.0) is None  # type: ignore[arg-type]


def test_random_numbers_depend_only_on_the_seed_numbers() -> None:
    samples = []
    for numbers in ((0, 3, 1, 0), (0, 3, 1, 0), (0, 3, 1, 1), (0, 4, 1, 0), (1, 3, 1, 0)):
        seed_torch(*numbers)
        samples.append(torch.rand(3).tolist())
    assert samples[0] == samples[1]
    assert len({tuple(values) for values in samples}) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_loss_is_reported_with_step_and_images(bad: float, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    monitor = LossMonitor(TrainConfig(lr=0.5), tmp_path / "last.ckpt")
    for step, loss in enumerate([1.0] * 9 + [0.8, 5.0, 40.0], start=-7):
        monitor.record(step, 0.25, ["a", "b"], torch.tensor(loss))
    monitor.record(5, 0.25, ["street/07", "street/12"], torch.tensor(bad))
    with pytest.raises(RunError) as caught:
        monitor.record(6, 0.25, ["c"], torch.tensor(1.0))
    message = str(caught.value)
    assert f"The loss is {bad} at step 5, lr 0.25, on street/07, street/12." in message
    assert "The loss rose from 0.8 to 40 before. The learning rate is probably too high" in message
    assert "train again with lr below 0.5" in message
    assert message.endswith("last.ckpt was saved before this step.")


def test_sudden_nan_suggests_to_check_the_images(tmp_path: Path) -> None:
    monitor = LossMonitor(TrainConfig(precision="bf16"), tmp_path / "none.ckpt")
    for step in range(1, 12):
        monitor.record(step, 0.1, ["a"], torch.tensor(0.7))
    monitor.record(12, 0.1, ["b"], torch.tensor(math.nan))
    with pytest.raises(
        RunError, match=r"check these images and masks first; otherwise train again with precision=f32\.$"
    ):
        monitor.flush()


def test_loss_is_returned_one_step_later_with_its_own_step(tmp_path: Path) -> None:
    monitor = LossMonitor(TrainConfig(), tmp_path / "none.ckpt")
    assert monitor.record(1, 0.1, ["a"], torch.tensor(2.0)) is None
    assert monitor.record(2, 0.2, ["a"], torch.tensor(3.0)) == (1, 0.1, 2.0)
    assert monitor.flush() == (2, 0.2, 3.0)
    assert monitor.flush() is None


def test_diverging_training_stops_and_keeps_its_last_good_checkpoint(shapes: Path, tmp_path: Path) -> None:
    overrides = [*SMALL_RUN, "optimizer=sgd", "momentum=0", "warmup=0", "lr=1e30", "save_minutes=0"]
    with pytest.raises(RunError, match=r"learning rate is probably too high.*last.ckpt was saved before this step"):
        train(shapes, tmp_path / "run", load_config(None, overrides), console=QUIET_CONSOLE)
    kept = read_checkpoint(tmp_path / "run" / LAST_CHECKPOINT)
    assert kept["step"] > 0
    assert all(value.isfinite().all() for value in kept["network"].values())


def test_non_finite_weights_are_never_saved() -> None:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, math.inf)
    with pytest.raises(RunError, match="A weight of the network is NaN or infinite"):
        LossMonitor(TrainConfig(), Path("none.ckpt")).check_before_save(layer)


@pytest.mark.skipif(not refuses_huge_allocations(), reason="this system promises memory that it does not have")
def test_out_of_memory_names_the_settings_to_lower(shapes: Path, tmp_path: Path) -> None:
    """The system refuses a crop of 120 GB."""
    message = r"Out of memory with batch=4 crops of 200000 x 200000 .*batch=2 accumulate=2"
    with pytest.raises(RunError, match=message):
        train(shapes, tmp_path / "run", load_config(None, [*SMALL_RUN, "crop=200000,200000"]), console=QUIET_CONSOLE)


@pytest.mark.parametrize(
    "error",
    [MemoryError("x"), torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("can't allocate memory: 3")],
)
def test_out_of_memory_errors_of_all_libraries_are_recognized(error: Exception) -> None:
    with pytest.raises(RunError, match="smaller crop than 32,64"), translate_errors(TrainConfig(batch=1), (32, 64)):
        raise error


def test_missing_deterministic_algorithm_names_the_setting() -> None:
    error = RuntimeError("adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set")
    with pytest.raises(ConfigError, match="set deterministic=false"), translate_errors(TrainConfig(), (32, 64)):
        raise error


def test_sync_batch_norm_keeps_activations() -> None:
    """torch's own conversion removes the ReLU from timm's BatchNormAct2d."""
    from timm.layers.norm_act import convert_sync_batchnorm

    for encoder in ("resnet18", "tu-lcnet_035", "tu-regnetx_002"):
        network = build("fcn", 3, encoder=encoder).eval()
        images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
        with torch.inference_mode():
            before = network(images)[1]
            converted = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            assert any(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules())
            assert torch.equal(converted(images)[1], before)


def test_other_errors_are_not_translated() -> None:
    with pytest.raises(RuntimeError, match="shape"), translate_errors(TrainConfig(), (32, 64)):
        raise RuntimeError("shape mismatch")
