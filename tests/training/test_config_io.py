"""Errors of settings are in plain words, without the names of Python types."""

import io

import pytest
from rich.console import Console

from models.errors import ConfigError
from models.spec import ClassInfo, ComponentRule, EventRule
from training.config import SETTING_GROUPS, TrainConfig
from training.config_io import config_from_dict, load_config, postprocess_rules, print_settings

JUNK = ["nonsense", -7, 1e9, [], [1], [1, 2, 3], ["a", "b"], {"a": 1}, 2.5, float("nan"), True, [[1], [2]]]


@pytest.mark.parametrize("name", TrainConfig.model_fields)
def test_a_wrong_setting_is_refused_in_plain_words(name: str) -> None:
    refused = 0
    for value in JUNK:
        try:
            config_from_dict({name: value})
        except ConfigError as error:
            refused += 1
            message = str(error)
            assert name in message or "These settings" in message
            for word in ("Input", "should", "tuple", "valid ", "Tuple", "Dictionary", "Field", "greater", "\\\\"):
                assert word not in message.partition(" is: ")[0], message
    assert refused >= 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("crop=5", "crop is height,width, each at least 32 pixels; of signals at least 32 time steps"),
        ("crop=1,2,3", "crop is depth,height,width, each at least 2 voxels"),
        ("crop=1,2,3,4", "The setting crop=1,2,3,4 is not possible: expected at most 3 values, and got 4"),
        ("flip_axes=HX", "expected axes of D, H, W, each once and in this order, and got 'HX'"),
        ("crop=a,b", "The setting crop=a,b is not possible: expected a whole number"),
        ("flip=2", "The setting flip=2 is not possible: expected at most 1. flip is: probability of a horizontal flip"),
        ("lr=0", "expected more than 0"),
        ("head=fcm", "The setting head=fcm is not possible: expected linear, fcn, d6, aspp or psp"),
        ("aux=perhaps", "The setting aux=perhaps is not possible: expected true or false"),
        ("min_duration=0.02", "min_duration=0.02 is not possible: write CLASS:SECONDS, several with commas"),
        ("min_duration=P:fast", "min_duration=P:fast is not possible: expected a number"),
        ("min_volume=liver:-1", "min_volume=liver:-1 is not possible: a volume is a number of ml, 0 or more"),
        ("max_gap=P:-1", "max_gap=P:-1 is not possible: a duration is a number of seconds, 0 or more"),
        ("format=a\\b", None),
        ("a\\b", r"'a\b' is not a setting"),
        ("a\\d=3", r"The setting 'a\d' is not known"),
    ],
)  # fmt: skip
def test_messages(override: str, message: str | None) -> None:
    if message is None:
        assert load_config(None, [override]).format == "a\\b"
        return
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)


def test_none_is_written_as_it_is_listed() -> None:
    assert load_config(None, ["epochs=none", "crop=none", "weights=none"]) == TrainConfig()


def test_settings_are_listed_in_groups_and_unbroken_at_80_columns() -> None:
    stream = io.StringIO()
    print_settings(Console(file=stream, width=80))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert lines[0] == SETTING_GROUPS["architecture"]
    assert [line for line in lines if line in SETTING_GROUPS.values()] == list(SETTING_GROUPS.values())
    for name in TrainConfig.model_fields:
        assert sum(line.startswith(f"{name}=") for line in lines) == 1
    assert any(line.startswith("scale=0.5,2.0 ") for line in lines)
    assert set(SETTING_GROUPS) <= set(TrainConfig.model_fields)


def test_durations_of_events_by_class() -> None:
    classes = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("background", "P", "1")]
    config = load_config(None, ["min_duration=P:0.02,1:30", "max_gap=P:0.01"])
    rules = postprocess_rules(config, classes, "T")
    assert rules == {"P": EventRule(min_duration=0.02, max_gap=0.01), "1": EventRule(min_duration=30)}
    assert config_from_dict(config.model_dump(mode="json")) == config
    assert postprocess_rules(TrainConfig(), classes, "HW") == {}
    with pytest.raises(ConfigError, match="max_gap is for signals"):
        postprocess_rules(load_config(None, ["max_gap=P:1"]), classes, "HW")
    for name in ("background", "p"):  # what is no event has no duration
        with pytest.raises(
            ConfigError, match=f"'{name}', which is no class of an event; (did you mean P|they are P, 1)"
        ):
            postprocess_rules(load_config(None, [f"min_duration={name}:1"]), classes, "T")


def test_components_of_volumes_by_class() -> None:
    classes = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("background", "liver", "spleen")]
    config = load_config(None, ["keep_largest=liver", "min_volume=liver:5,spleen:0.5"])
    rules = postprocess_rules(config, classes, "DHW")
    assert rules == {"liver": ComponentRule(keep_largest=True, min_volume=5), "spleen": ComponentRule(min_volume=0.5)}
    assert config_from_dict(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match="keep_largest is for volumes, and this data set holds images"):
        postprocess_rules(config, classes, "HW")
    with pytest.raises(
        ConfigError, match="keep_largest names 'livr', which is no class but the background; did you mean liver"
    ):
        postprocess_rules(load_config(None, ["keep_largest=livr"]), classes, "DHW")
