"""From a file's sample to the network's input: channels by name or order, types, missing pixels, statistics, display."""

import numpy as np
import pytest

from models.errors import ChannelsError, ConfigError
from models.readers.composite import preview, to_rgb
from models.readers.prepare import prepare_sample
from models.readers.statistics import StatisticsAccumulator, sample_statistics
from models.sample import Sample
from models.spec import InputRule, Scaling

VALUES = np.random.default_rng(0).integers(100, 4000, (9, 11, 4)).astype(np.uint16)
NAMES = ("red", "green", "blue", "nir")


def rule(*channels: str, dtype: str = "uint16", kind: str = "window", **options: object) -> InputRule:
    ranges = {} if kind == "zscore" else {"low": (100,) * len(channels), "high": (4100,) * len(channels)}
    scaling = {"kind": kind, "low": (), "high": (), **ranges}
    return InputRule.model_validate(
        {"rule": "native", "channels": channels, "dtype": dtype, "scaling": scaling, **options}
    )


def test_channels_are_found_by_name_in_any_case_and_order() -> None:
    prepared = prepare_sample(Sample(VALUES, channels=NAMES), rule("NIR", "red"))
    assert np.array_equal(prepared.values, VALUES[:, :, [3, 0]])
    assert prepared.values.flags.c_contiguous and prepared.valid is None


def test_channels_without_names_are_taken_in_order() -> None:
    unnamed = Sample(VALUES, channels=("band1", "band2", "band3", "band4"))
    assert prepare_sample(unnamed, rule(*NAMES)).values is VALUES  # no copy
    assert np.array_equal(
        prepare_sample(Sample(VALUES, channels=NAMES), rule("b1", "b2", "3", "band 4")).values, VALUES
    )


THREE, GRAY = Sample(VALUES[:, :, :3]), Sample(VALUES[:, :, :1], channels=("gray",))
OTHER = Sample(VALUES, channels=("red", "green", "blue", "swir"))


@pytest.mark.parametrize("sample", [THREE, OTHER, GRAY], ids=["three", "another name", "gray"])
def test_other_channels_are_an_error_that_says_what_the_network_takes(sample: Sample) -> None:
    with pytest.raises(ChannelsError, match=r"this model takes 4 channels of uint16 \(red, green, blue, nir\)"):
        prepare_sample(sample, rule(*NAMES))


def test_another_type_is_an_error_but_for_floats() -> None:
    with pytest.raises(ChannelsError, match="samples of uint8; this model takes 4 channels of uint16"):
        prepare_sample(Sample(VALUES.astype(np.uint8), channels=NAMES), rule(*NAMES))
    assert prepare_sample(Sample(VALUES, channels=NAMES), rule(*NAMES, dtype="float32")).dtype == "float32"


def test_missing_pixels_are_marked_and_filled() -> None:
    values = VALUES.copy()
    values[0] = 0  # in all channels
    values[1, :, 0] = 0  # in one: a value
    for sample, wanted in (
        (Sample(values, channels=NAMES, nodata=0), rule(*NAMES)),
        (Sample(values, channels=NAMES), rule(*NAMES, nodata=0)),
    ):
        prepared = prepare_sample(sample, wanted)
        assert prepared.valid is not None and not prepared.valid[0].any() and prepared.valid[1:].all()
        assert (prepared.values[0] == 2100).all() and np.array_equal(prepared.values[1:], values[1:])
    assert prepare_sample(Sample(values, channels=NAMES, nodata=1e30), rule(*NAMES)).valid is None  # out of range


def test_nan_and_infinity_are_missing() -> None:
    values = VALUES.astype(np.float32)
    values[0, 0, 1], values[0, 1, 2], values[0, 2] = np.nan, np.inf, 1e30
    prepared = prepare_sample(Sample(values, channels=NAMES, nodata=1e30), rule(*NAMES, dtype="float32"))
    assert prepared.valid is not None and np.flatnonzero(~prepared.valid).tolist() == [0, 1, 2]
    assert np.isfinite(prepared.values).all()


def test_statistics_are_those_of_the_valid_pixels_however_they_are_added() -> None:
    valid = np.random.default_rng(1).random(VALUES.shape[:2]) < 0.7
    mean, scale = sample_statistics(VALUES, valid)
    assert mean == pytest.approx(VALUES[valid].mean(axis=0), rel=1e-6)
    assert scale == pytest.approx(VALUES[valid].std(axis=0), rel=1e-5)
    sums = StatisticsAccumulator(4)
    for top in range(0, 9, 2):
        sums.add(VALUES[top : top + 2], valid[top : top + 2])
    assert np.array_equal(sums.result(), np.stack([mean, scale]))
    assert sample_statistics(np.full((3, 3, 1), 7, np.uint8)).tolist() == [[7], [1]]  # constant


def test_zscore_statistics_leave_nodata_out_and_fill_it_with_the_mean() -> None:
    values = VALUES.copy()
    values[0] = 0
    prepared = prepare_sample(Sample(values, channels=NAMES, nodata=0), rule(*NAMES, kind="zscore"))
    assert prepared.statistics is not None
    assert prepared.statistics[0] == pytest.approx(VALUES[1:].reshape(-1, 4).mean(axis=0))
    assert np.array_equal(prepared.values[0, 0], prepared.statistics[0].astype(np.uint16))


@pytest.mark.parametrize("mark", [-9999.0, 1e30, float("nan")])
def test_missing_pixels_do_not_darken_a_preview(mark: float) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
    expected = preview(Sample(values, channels=("gray",)))
    values = np.concatenate([np.full((8, 8, 1), mark, np.float32), values])
    assert (preview(Sample(values, channels=("gray",), nodata=mark))[8:] == expected).all()


def test_a_composite_shows_the_chosen_bands_over_their_range() -> None:
    wanted = rule(*NAMES)
    composite = to_rgb(VALUES, wanted, ("nir", "red", "green"))
    expected = ((VALUES[:, :, 3].astype(float) - 100) / 4000 * 255 + 0.5).astype(np.uint8)
    assert np.abs(composite[:, :, 0].astype(int) - expected).max() <= 1
    assert (to_rgb(VALUES, wanted, ("nir",)) == composite[:, :, :1]).all()
    with pytest.raises(ConfigError, match="no channel 'swir'"):
        to_rgb(VALUES, wanted, ("swir",))
    with pytest.raises(ConfigError, match="bands names 2 channels"):
        to_rgb(VALUES, wanted, ("nir", "red"))


def test_a_photograph_is_shown_as_it_is() -> None:
    photograph = VALUES[:, :, :3].astype(np.uint8)
    assert to_rgb(photograph, InputRule(rule="native")) is photograph


def test_a_rule_checks_its_ranges() -> None:
    with pytest.raises(ValueError, match="2 ranges for 4 channels"):
        InputRule(rule="native", channels=NAMES, scaling=Scaling(low=(0, 0), high=(1, 1)))
    with pytest.raises(ValueError, match="name twice"):
        rule("nir", "NIR")
