"""The planned input of a network: channels, type and scaling, by what the lint found."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.console import Console
from models.errors import ConfigError
from models.spec import InputRule
from tests.fixtures_channels import CHANNELS, draw_chip, encode_tiff, make_channel_dataset
from training.config import TrainConfig
from training.lint import lint
from training.plan.input_channels import apply_input, check_color_settings, choose_input


def choose(data: Path, **settings: object) -> tuple[InputRule, str]:
    return choose_input(lint(data, use_cache=False), TrainConfig.model_validate(settings))


def test_photographs_stay_photographs(shapes: Path) -> None:
    report = lint(shapes)
    assert choose_input(report, TrainConfig()) == (InputRule(rule="native"), "")
    console = Console(record=True, quiet=True)
    assert apply_input(report, TrainConfig(), console) is report


def test_8_bits_are_fixed_and_16_a_window_of_the_training_images(tmp_path: Path) -> None:
    rule, reason = choose(make_channel_dataset(tmp_path / "a", dtype="uint8"))
    assert rule.scaling.kind == "fixed" and rule.scaling.high == (255,) * 4 and "8 bits" in reason
    rule, reason = choose(make_channel_dataset(tmp_path / "b"))
    chips = np.stack([draw_chip(index)[0] for index in range(12)]).reshape(-1, 4)
    assert rule.scaling.kind == "window"
    assert rule.scaling.low == pytest.approx(np.quantile(chips, 0.005, axis=0), rel=0.15)
    assert rule.scaling.high == pytest.approx(np.quantile(chips, 0.995, axis=0), rel=0.05)
    assert "nir 3" in reason and "uint16 seldom use the whole range" in reason
    assert rule.spacing is not None and rule.spacing.values == (10, 10)


def test_gray_of_16_bits_is_one_channel(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(10):
        values, labels = draw_chip(index, 2)
        Image.fromarray(values[:, :, 1]).save(tmp_path / f"images/{index}.png")
        Image.fromarray(labels).save(tmp_path / f"masks/{index}.png")
    rule, _ = choose(tmp_path)
    assert rule.channels == ("gray",) and rule.dtype == "uint16" and rule.scaling.high[0] < 4000


def test_two_scales_are_each_scaled_by_their_own(tmp_path: Path) -> None:
    make_channel_dataset(tmp_path, dtype="float32")
    for index in range(0, 12, 2):
        (tmp_path / f"images/chip{index}.tif").write_bytes(
            encode_tiff(draw_chip(index, 4, "float32")[0] * 255, CHANNELS)
        )
    rule, reason = choose(tmp_path)
    assert rule.scaling.kind == "zscore" and "different scales" in reason


def test_settings_override_the_plan(tmp_path: Path) -> None:
    data = make_channel_dataset(tmp_path)
    rule, reason = choose(data, channels="NIR,red", sample_range=(0, 5000))
    assert rule.channels == ("nir", "red") and rule.scaling.high == (5000, 5000) and "your setting" in reason
    assert choose(data, scaling="fixed")[0].scaling.high == (65535,) * 4
    assert choose(data, scaling="zscore")[0].scaling.kind == "zscore"
    with pytest.raises(ValueError, match="sample_range is for scaling=fixed"):
        TrainConfig(scaling="window", sample_range=(0, 1))


def test_nodata_of_the_setting_does_not_widen_the_window(tmp_path: Path) -> None:
    make_channel_dataset(tmp_path, dtype="int16")
    for index in range(12):
        values, _ = draw_chip(index, 4, "int16")
        values[:20] = -9999
        (tmp_path / f"images/chip{index}.tif").write_bytes(encode_tiff(values, CHANNELS))
    assert choose(tmp_path)[0].scaling.low[0] == -9999
    rule, reason = choose(tmp_path, nodata=-9999)
    assert rule.nodata == -9999 and rule.scaling.low[0] > -2000 and "Pixels of -9999 are missing data" in reason


def test_color_jitter_that_the_user_asks_for_needs_colors() -> None:
    gray = InputRule(rule="native", channels=("gray",), scaling={"low": (0,), "high": (255,)})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"color_jitter=0\.4 needs the channels red, green and blue"):
        check_color_settings(gray, {"color_jitter": 0.4})
    check_color_settings(gray, {})
    check_color_settings(None, {"color_jitter": 0.4})
