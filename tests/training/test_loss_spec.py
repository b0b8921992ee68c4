"""The parser of loss expressions, and class weights."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from training.config import TrainConfig
from training.engine.losses import LOSSES, compute_class_weights
from training.loss_spec import LOSS_NAMES, LossTerm, parse_loss


def test_parser_knows_all_losses() -> None:
    assert tuple(LOSSES) == LOSS_NAMES
    assert parse_loss(" 0.5*ohem + lovasz ") == (LossTerm(0.5, "ohem"), LossTerm(1.0, "lovasz"))
    assert parse_loss("1e-1*ce") == (LossTerm(0.1, "ce"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks a name"),
        ("ce+", "lacks a name"),
        ("0.5*", "lacks a name"),
        ("lovas", "did you mean lovasz"),
        ("0.5*ohem+hinge", r"'hinge' is not known. Losses are ce, ohem, dice, focal, tversky, lovasz"),
        ("x*ce", "'x' in the loss 'x\\*ce' is not a number"),
        ("-1*ce", "not above 0"),
        ("nan*ce", "not above 0"),
        ("ce+ce", "has ce twice"),
    ],
)
def test_wrong_loss_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(loss=text)


def test_config_imports_no_torch() -> None:
    code = "import sys, training.config; print('torch' in sys.modules, 'segmentation_models_pytorch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_class_weights_follow_the_papers() -> None:
    counts = np.array([700, 200, 100, 0])
    median, enet = compute_class_weights("median", counts), compute_class_weights("enet", counts)
    assert compute_class_weights("none", counts) is None
    assert median is not None and median.tolist() == pytest.approx([0.2 / 0.7, 1.0, 2.0, 0.0])
    assert enet is not None and enet.tolist() == pytest.approx(
        [1 / math.log(1.02 + frequency) for frequency in (0.7, 0.2, 0.1)] + [0]
    )
    assert median.dtype == enet.dtype == torch.float32


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_class_weights_are_finite_and_0_for_absent_classes(counts: list[int]) -> None:
    for name in ("median", "enet"):
        weights: Any = compute_class_weights(name, np.array(counts, dtype=np.int64))
        assert weights.isfinite().all()
        assert [weight > 0 for weight in weights.tolist()] == [count > 0 for count in counts]
