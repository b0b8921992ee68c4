"""Validation of spec.json."""

from typing import Any

import pytest
from pydantic import ValidationError

from models.spec import (
    FORMAT_VERSION,
    IGNORE_INDEX,
    Architecture,
    BundleSpec,
    ClassInfo,
    InputRule,
    default_rgb,
    palette,
)

CLASSES = [ClassInfo(name="ground", rgb=(1, 2, 3)), ClassInfo(name="sky", rgb=(4, 5, 6))]


def make_spec(**changes: Any) -> BundleSpec:
    fields = {"name": "x", "classes": CLASSES, "input": InputRule(rule="native"), "architecture": {"name": "fcn"}}
    return BundleSpec.model_validate(fields | changes)


@pytest.mark.parametrize(
    "fields",
    [
        {"rule": "native"},
        {"rule": "fit", "side": 16},
        {"rule": "fit", "side": 2048},
        {"rule": "exact", "size": (520, 693)},
        {"rule": "exact", "size": (1, 1)},
    ],
)
def test_input_rules(fields: dict[str, Any]) -> None:
    rule = InputRule(**fields)
    assert (rule.rule, rule.side, rule.size) == (fields["rule"], fields.get("side"), fields.get("size"))
    assert InputRule.model_validate_json(rule.model_dump_json()) == rule


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rule": "fit"},
        {"rule": "fit", "side": None},
        {"rule": "fit", "side": 15},
        {"rule": "fit", "side": 20.5},
        {"rule": "native", "side": 480},
        {"rule": "exact"},
        {"rule": "exact", "size": None},
        {"rule": "exact", "size": 480},
        {"rule": "exact", "size": (480,)},
        {"rule": "exact", "size": (480, 0)},
        {"rule": "exact", "size": (480, 360.5)},
        {"rule": "exact", "side": 480},
        {"rule": "exact", "size": (480, 360), "side": 480},
        {"rule": "fit", "size": (480, 360)},
        {"rule": "fit", "side": 480, "size": (480, 360)},
        {"rule": "native", "size": (480, 360)},
        {"rule": "stretch", "side": 480},
        {"rule": "native", "sides": 480},
    ],
)
def test_invalid_input_rules(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InputRule(**fields)


def test_unknown_keys_are_refused() -> None:
    for kind, fields in (
        (ClassInfo, {"name": "a", "rgb": (0, 0, 0)}),
        (InputRule, {"rule": "native"}),
        (Architecture, {"name": "fcn"}),
        (BundleSpec, make_spec().model_dump()),
    ):
        assert kind.model_validate(fields)
        with pytest.raises(ValidationError, match="color"):
            kind.model_validate(fields | {"color": "red"})


@pytest.mark.parametrize("rgb", [(256, 0, 0), (0, -1, 0), (0, 0), (0, 0, 0, 0), (0.5, 0, 0), "red"])
def test_invalid_colors(rgb: object) -> None:
    with pytest.raises(ValidationError, match="rgb"):
        ClassInfo.model_validate({"name": "a", "rgb": rgb})


@pytest.mark.parametrize("count", [0, 1, 256])
def test_2_to_255_classes(count: int) -> None:
    with pytest.raises(ValidationError, match="classes"):
        make_spec(classes=CLASSES[:1] * count)


@pytest.mark.parametrize("count", [2, 21, 255])
def test_a_palette_has_256_colors(count: int) -> None:
    classes = [ClassInfo(name=str(label), rgb=default_rgb(label)) for label in range(count)]
    colors = palette(classes)
    assert colors == make_spec(classes=classes).palette()
    assert len(colors) == 256
    assert colors[:count] == [default_rgb(label) for label in range(count)]
    assert set(colors[count:]) == {(0, 0, 0)}


def test_default_colors_are_those_of_voc() -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {label: default_rgb(label) for label in known} == known
    assert len({default_rgb(label) for label in range(256)}) == 256


def test_a_spec_is_frozen_and_round_trips_through_json() -> None:
    first = make_spec(
        input=InputRule(rule="fit", side=480), metrics={"val": {"miou": 0.5}}, parity={"openvino": {"f32": 1.0}}
    )
    assert BundleSpec.model_validate_json(first.model_dump_json()) == first
    assert (first.format_version, first.ignore_index) == (FORMAT_VERSION, IGNORE_INDEX)
    with pytest.raises(ValidationError, match="frozen"):
        first.name = "y"  # type: ignore[misc]


def test_a_bias_is_of_a_class() -> None:
    assert make_spec(calibration={"bias": {"sky": 0.5}, "temperature": 2}).calibration is not None
    with pytest.raises(ValidationError, match="bias for crack, and the classes are ground, sky"):
        make_spec(calibration={"bias": {"crack": 0.5}})
