import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.architectures import ARCHITECTURES, build
from training.config import TrainConfig
from training.engine.optim import lr_factor, make_optimizer, parameter_groups

REPRESENTATIVES = ("fcn", "smp/FPN", "torchvision/lraspp_mobilenet_v3_large")  # one per library


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in REPRESENTATIVES else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_every_parameter_is_in_the_right_group(name: str) -> None:
    with torch.device("meta"):
        network = build(name, 3)
    groups = parameter_groups(network, TrainConfig(lr=0.1, head_lr=10, weight_decay=0.2))
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(network.parameters()))
    assert len(groups) == 4
    for path, parameter in network.named_parameters():
        group = found[id(parameter)]
        in_encoder = path.startswith(("body.encoder.", "body.backbone."))
        assert group["lr"] == pytest.approx(0.1 if in_encoder else 1.0), path
        assert group["weight_decay"] == (0.2 if parameter.ndim > 1 else 0), path


def test_head_lr_is_for_all_parts_but_the_encoder() -> None:
    with torch.device("meta"):
        network = build("fcn", 3, aux=True, upsampling="learned")
    groups = parameter_groups(network, TrainConfig(head_lr=10))
    fast = {id(parameter) for group in groups if group["name"].startswith("head") for parameter in group["params"]}
    paths = {path.split(".")[1] for path, parameter in network.named_parameters() if id(parameter) in fast}
    assert paths == {"head", "score", "skip_scores", "aux_head", "aux_score", "upsample_layers", "final_upsampling"}


def test_frozen_parameters_are_left_out() -> None:
    network = build("fcn", 3)
    network.body.encoder.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(network, TrainConfig())] == [
        "head, decayed",
        "head, not decayed",
    ]


def test_body_without_encoder_has_one_learning_rate() -> None:
    network = build("fcn", 3)
    network.body = torch.nn.Conv2d(3, 3, 1)
    assert {group["lr"] for group in parameter_groups(network, TrainConfig(lr=0.3, head_lr=10))} == {0.3}


def test_optimizer_follows_the_settings() -> None:
    network = build("fcn", 3)
    nesterov = make_optimizer(network, TrainConfig(momentum=0.8))
    plain = make_optimizer(network, TrainConfig(momentum=0.0))
    adamw = make_optimizer(network, TrainConfig(optimizer="adamw", lr=1e-3, head_lr=5))
    assert isinstance(nesterov, torch.optim.SGD) and isinstance(plain, torch.optim.SGD)
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in nesterov.param_groups)
    assert not any(group["nesterov"] for group in plain.param_groups)
    assert isinstance(adamw, torch.optim.AdamW)
    assert sorted({group["lr"] for group in adamw.param_groups}) == pytest.approx([1e-3, 5e-3])


def test_schedule_keeps_the_ratio_of_learning_rates() -> None:
    config = TrainConfig(head_lr=10, warmup=0, power=1.0, lr=0.5)
    optimizer = make_optimizer(build("fcn", 3), config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step / 4, step, config))
    optimizer.step()
    scheduler.step()
    rates = {group["name"].split(",")[0]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"encoder": 0.375, "head": 3.75})


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("poly", [1.0, 0.1 + 0.9 * 0.75**2, 0.1 + 0.9 * 0.25, 0.1, 0.1]),
        ("cosine", [1.0, 0.1 + 0.9 * (2 + 2**0.5) / 4, 0.55, 0.1, 0.1]),
        ("onecycle", [0.1, 0.1 + 0.9 * (2 + 3**0.5) / 4, 0.1 + 0.9 * math.sin(math.pi * 5 / 14) ** 2, 0.1, 0.1]),
        ("constant", [1.0] * 5),
    ],
)
def test_schedules(schedule: str, factors: list[float]) -> None:
    config = TrainConfig.model_validate({"schedule": schedule, "power": 2.0, "lr_min": 0.1, "warmup": 0})
    assert [lr_factor(done, 10**6, config) for done in (0, 0.25, 0.5, 1.0, 1.7)] == pytest.approx(factors)


def test_warmup() -> None:
    config = TrainConfig(warmup=10, power=1.0)
    rates = [lr_factor(step / 100, step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == 0


def test_factor_follows_progress_by_minutes() -> None:
    config = TrainConfig(warmup=0)
    assert lr_factor(1.0, 3, config) == 0
    assert lr_factor(0.9, 3, config) < lr_factor(3 / 1000, 3, config)


@given(
    progress=st.floats(0, 2), step=st.integers(0, 10**6), lr_min=st.floats(0, 1),
    schedule=st.sampled_from(["poly", "cosine", "onecycle", "constant"]),
)  # fmt: skip
def test_factor_is_between_lr_min_and_1(progress: float, step: int, lr_min: float, schedule: str) -> None:
    config = TrainConfig.model_validate({"schedule": schedule, "lr_min": lr_min, "warmup": 0})
    assert lr_min - 1e-12 <= lr_factor(progress, step, config) <= 1 + 1e-12
