import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from models.spec import IGNORE_INDEX
from training.lint import lint
from training.lint.html_report import write_html_report
from training.lint.json_report import lint_json
from training.lint.label_noise import KIND, ClassQuality, check_label_noise, compare, suspect_pixels

SIDE = 100


def masks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mask with a square, a prediction that is the same, and full confidence."""
    target = np.zeros((SIDE, SIDE), np.uint8)
    target[20:60, 20:60] = 1
    return target, target.copy(), np.ones((SIDE, SIDE), np.float32)


def test_a_shifted_border_is_not_suspect() -> None:
    target, _, _ = masks()
    assert not suspect_pixels(target, np.roll(target, 2, axis=1)).any()
    assert suspect_pixels(target, np.roll(target, 8, axis=1)).sum() >= 2 * 40 * 4


def test_a_missing_thin_object_is_suspect() -> None:
    target, prediction, _ = masks()
    target[:, 80:82] = 2
    suspect = suspect_pixels(target, prediction)
    assert suspect[:, 80:82].all() and suspect.sum() == 2 * SIDE
    assert suspect_pixels(prediction, target)[:, 80:82].all()  # and one that the mask lacks


def test_quality_weighs_suspect_pixels_by_confidence() -> None:
    target, prediction, confidence = masks()
    prediction[20:60, 20:60] = 2
    confidence[:] = 0.75
    target[:10] = IGNORE_INDEX
    classes = [ClassQuality() for _ in range(3)]
    single = compare(target, prediction, confidence, classes, "a")
    lowest = 1 - 0.75 * 1600 / (1600 + 0.01 * 9000)
    assert single.class_quality == {0: 1.0, 1: pytest.approx(lowest), 2: pytest.approx(lowest)}
    assert single.quality == pytest.approx(lowest) and single.suspect_fraction == pytest.approx(1600 / 9000)
    assert single.region is not None and single.region.box == (20, 20, 40, 40) and single.region.pixels == 1600
    assert (single.region.label, single.region.predicted) == (1, 2)
    assert [(each.labeled, each.pixels, each.suspect_weight) for each in classes] == [
        (7400, 7400, 0), (1600, 1600, 1200), (0, 1600, 1200),
    ]  # fmt: skip
    assert classes[1].predicted == {2: 1200.0} and classes[1].worst == [(pytest.approx(lowest), "a")]


def test_a_missing_small_object_weighs_more_than_as_many_pixels_of_a_large_one() -> None:
    target, prediction, confidence = masks()
    target[80:90, 80:90] = 2
    classes = [ClassQuality() for _ in range(3)]
    without_small = compare(target, prediction, confidence, classes, "a").quality
    target[80:90, 80:90] = 0
    target[60:64, 20:45] = 1
    assert without_small < 0.6 < 0.9 < compare(target, prediction, confidence, classes, "b").quality


def test_ignored_pixels_are_never_suspect() -> None:
    target, prediction, _ = masks()
    target[20:60, 20:60] = IGNORE_INDEX
    assert not suspect_pixels(target, prediction).any()


@pytest.fixture(scope="module")
def relabeled(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with the network's own predictions as masks, one of them with a wrong rectangle."""
    from models.bundle import open_bundle
    from models.inference.segmenter import Segmenter
    from tests.fixtures_bundles import synthetic_image

    root = tmp_path_factory.mktemp("relabeled")
    segmenter = Segmenter.load(open_bundle(tiny_bundle))
    for split, count in (("train", 8), ("val", 2)):
        for name in ("images", "masks"):
            (root / name / split).mkdir(parents=True)
        for index in range(count):
            image = synthetic_image(120, 160, index)
            labels = segmenter.segment(image).labels
            if (split, index) == ("train", 3):
                labels[30:80, 40:100] = (labels[30:80, 40:100] + 1) % len(segmenter_classes(tiny_bundle))
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(root / "masks" / split / f"{index}.png")
    (root / "classes.csv").write_text("".join(f"{name}\n" for name in segmenter_classes(tiny_bundle)))
    return root


def segmenter_classes(bundle: Path) -> list[str]:
    return [entry["name"] for entry in json.loads((bundle / "spec.json").read_text())["classes"]]


def test_the_wrong_mask_is_first_in_findings_page_and_json(relabeled: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    report = lint(relabeled)
    report.label_quality = check_label_noise(report, relabeled, tiny_bundle)
    suspects = [finding for finding in report.findings if finding.kind == KIND]
    assert suspects[0].locations == (("train", 3),) and "x 40 to 100, y 30 to 80" in suspects[0].detail
    assert len(suspects) == 1  # the others are what the network predicts
    found = lint_json(report)["label_quality"]
    assert found["images"] == 10 and found["suspects"][0]["name"] == "3"
    assert 0 < found["suspects"][0]["quality"] < 1
    assert found["suspects"][0]["largest_region"]["pixels"] > 0
    worst = [image["name"] for each in found["classes"] for image in each["worst_images"]]
    assert worst and set(worst) == {"3"}
    write_html_report(tmp_path / "page.html", report, relabeled)
    page = (tmp_path / "page.html").read_text()
    assert 'id="label-quality"' in page
    section = page[page.index('id="label-quality"') :]
    assert [title in section for title in ("prediction", "disagreement", "Suspects, worst first: 1")] == [True] * 3


def test_a_bundle_of_other_classes_is_refused(dataset: Path, tiny_bundle: Path) -> None:
    report = lint(dataset)
    with pytest.raises(DataError, match="the bundle class 0"):
        check_label_noise(report, dataset, tiny_bundle)
