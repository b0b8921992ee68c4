"""Components of a class in a volume, against scipy, and the rules of a bundle in the one function that segments volumes."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from models.inference.components import apply_component_rules, find_components
from models.inference.segmenter import Segmenter
from models.inference.volumes import segment_volume
from models.sample import Sample
from models.spec import IGNORE_INDEX, BundleSpec, ComponentRule, InputRule, Scaling, Spacing

RULE = InputRule(
    rule="native", axes="DHW", channels=("t1",), dtype="float32", divisor=1,
    scaling=Scaling(kind="fixed", low=(0.0,), high=(9.0,)), spacing=Spacing(values=(2.0, 1.0, 1.0), unit="mm"),
)  # fmt: skip


@pytest.mark.parametrize(
    "density", [0.15, 0.31, 0.6]
)  # 0.31: where one component begins to run through the whole volume
def test_components_are_those_of_scipy(density: float) -> None:
    random = np.random.default_rng(0)
    labels = (random.random((9, 14, 11)) < density).astype(np.uint8) * 3
    labels[4], labels[7] = 0, 3  # a slice without any, and a full one
    found = find_components(labels, 3)
    expected, count = ndimage.label(labels == 3)  # 6-connected
    assert len(np.unique(found.component)) == count
    sizes = np.sort(np.bincount(expected.ravel())[1:])
    first_of_each = found.component == np.arange(len(found.component))
    np.testing.assert_array_equal(np.sort(found.sizes[first_of_each]), sizes)
    threshold = int(np.median(sizes)) + 1
    apply_component_rules(labels, {3: ComponentRule(min_volume=threshold)}, 1.0)
    np.testing.assert_array_equal(labels == 3, np.append(0, np.bincount(expected.ravel())[1:])[expected] >= threshold)


def predict_rounded(values: np.ndarray, logits: bool) -> tuple[np.ndarray, np.ndarray]:
    """A network: the value of a voxel is its class."""
    labels = np.rint(values[..., 0]).astype(np.uint8)
    return labels, (labels[:, None] == np.arange(4)[:, None, None, None]).astype(np.float32)


def test_rules_of_the_bundle_are_applied_in_ml_on_the_grid_of_the_file() -> None:
    labels = np.zeros((12, 20, 20), np.uint8)
    labels[1:5, 1:6, 1:6] = 1  # 100 voxels of 2 mm3: 0.2 ml
    labels[5:8, 6:9, 6:9] = 1  # 0.054 ml, touches the first at a corner
    labels[8:10, 1:6, 12:17] = 2  # 0.1 ml
    labels[3:5, 12:17, 12:16] = 2  # 0.08 ml
    labels[0, 18, 18], labels[0, 19, 18] = 3, 1
    valid = np.ones(labels.shape, np.bool_)
    valid[11] = False
    sample = Sample(labels[..., None].astype(np.float32), "DHW", ("t1",), RULE.spacing, valid=valid)
    segmenter = Segmenter(predict_rounded, RULE)
    labels[11] = IGNORE_INDEX
    np.testing.assert_array_equal(segment_volume(segmenter, sample).labels, labels)

    segmenter.component_rules = {1: ComponentRule(keep_largest=True), 2: ComponentRule(min_volume=0.1)}
    expected = labels.copy()
    expected[5:8, 6:9, 6:9], expected[3:5, 12:17, 12:16], expected[0, 19, 18] = 0, 0, 0
    np.testing.assert_array_equal(segment_volume(segmenter, sample).labels, expected)

    # In a file of slices twice as far apart, with half as many voxels, a volume is as large.
    thick = Sample(sample.values[::2], "DHW", ("t1",), Spacing(values=(4.0, 1.0, 1.0), unit="mm"), valid=valid[::2])
    found = segment_volume(segmenter, thick).labels
    assert (found == 2).sum() in (25, 50) and not (found[:, 12:17] == 2).any()


def test_a_rule_is_of_a_class_and_of_the_axes_of_the_bundle() -> None:
    content = {
        "name": "a",
        "classes": [{"name": "background", "rgb": [0, 0, 0]}, {"name": "liver", "rgb": [1, 0, 0]}],
        "input": RULE.model_dump(),
        "architecture": {"name": "unet"},
    }
    spec = BundleSpec.model_validate({**content, "postprocess": {"liver": {"keep_largest": True}}})
    assert spec.component_rules() == {1: ComponentRule(keep_largest=True)} and spec.event_rules() == {}
    assert BundleSpec.model_validate_json(spec.model_dump_json()) == spec
    for postprocess, message in (
        ({"livr": {"keep_largest": True}}, "a rule for livr, and the classes are liver"),
        ({"liver": {"min_duration": 1}}, "rules that are not for volumes"),
    ):
        with pytest.raises(ValidationError, match=message):
            BundleSpec.model_validate({**content, "postprocess": postprocess})
