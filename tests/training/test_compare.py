"""`compare`: paired differences, what can be compared, and errors that say what to run."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from models.errors import ConfigError, RunError
from models.inference.segmenter import Segmenter
from models.spec import ClassInfo, InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.training.fake_dataset import make_fake_dataset, make_metrics, predict_red
from training.compare import NOT_SIGNIFICANT, align_images, compare, paired_differences, read_evaluation
from training.evaluate import evaluate_split, tally_volume_metrics
from training.metrics.bootstrap import PerImageCounts
from training.metrics.confusion import ConfusionMatrix
from training.metrics.volumes import measure_case
from training.run_folder import ImageList, RunMetadata, write_run_metadata


def write_evaluation(folder: Path, wrong: float, images: int = 24, classes: int = 3, **changes: Any) -> Path:
    """A run folder with an evaluation of about that fraction of wrong pixels; images differ in difficulty alike."""

    def sample(index: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(index)
        target = np.zeros((40, 60), np.uint8)
        target[random.integers(5, 15) : random.integers(20, 35), random.integers(5, 20) : random.integers(30, 55)] = 1
        difficulty = random.uniform(0, 1) * (random.random(target.shape) < 0.5)
        red = np.where(random.random(target.shape) < wrong + 0.3 * difficulty, 1 - target, target)
        return np.repeat(red[..., None].astype(np.uint8) * 255, 3, axis=2), target

    samples = make_fake_dataset(images, sample, classes)
    segmenter = Segmenter(predict_red, InputRule(rule="native"))
    matrix, tally = evaluate_split(segmenter, samples, QUIET_CONSOLE)
    # Here other images stand for another model; in an evaluation the digest is of image and ground truth.
    assert len(set(tally.digests)) == images
    tally.images = [replace(image, digest=image.name) for image in tally.images]
    target = folder / "evaluation"
    target.mkdir(parents=True)
    make_metrics(matrix, tally, samples.classes, **changes).save(target / "metrics.json")
    return folder


def compare_output(*runs: Path) -> str:
    stream = io.StringIO()
    compare(list(runs), False, Console(file=stream, width=200))
    return stream.getvalue()


def line_of(output: str, name: str, index: int = 0) -> str:
    """The line of a metric in the first or the second table."""
    return [line for line in output.splitlines() if line.startswith(name)][index]


def test_metrics_side_by_side_and_a_significant_difference(tmp_path: Path) -> None:
    runs = write_evaluation(tmp_path / "worse", 0.2), write_evaluation(tmp_path / "better", 0.1)
    output = compare_output(*runs)
    worse, better = (read_evaluation(run).metrics for run in runs)
    assert worse.miou is not None and better.miou is not None and better.intervals.miou is not None
    row = line_of(output, "mIoU")
    assert f"{worse.miou:.4f}" in row and f"{better.miou:.4f}" in row
    assert f"{better.intervals.miou[0]:.3f}..{better.intervals.miou[1]:.3f}" in row
    difference = line_of(output, "mIoU", 1)
    assert difference.split()[1] == f"{better.miou - worse.miou:+.4f}" and NOT_SIGNIFICANT not in difference
    assert "Difference from worse" in output and "IoU class 2" in output and "absent" in output


def test_best_value_is_bold(tmp_path: Path) -> None:
    stream = io.StringIO()
    runs = [write_evaluation(tmp_path / "worse", 0.2), write_evaluation(tmp_path / "better", 0.1)]
    compare(runs, False, Console(file=stream, width=200, force_terminal=True, color_system="standard"))
    row = line_of(stream.getvalue(), "mIoU")
    assert row.count("\x1b[1m") == 1 and f"\x1b[1m{read_evaluation(runs[1]).metrics.miou:.4f}" in row


def test_run_compared_with_itself_has_no_significant_difference(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "a", 0.2)
    output = compare_output(run, run)
    assert "+0.0000 [+0.0000..+0.0000] not significant" in output
    assert f"{run} (1)" in output and f"{run} (2)" in output


def test_pairing_finds_a_difference_between_overlapping_intervals(tmp_path: Path) -> None:
    """The intervals overlap, because images differ more than runs do; the paired one leaves out 0."""
    first = read_evaluation(write_evaluation(tmp_path / "a", 0.11))
    second = read_evaluation(write_evaluation(tmp_path / "b", 0.10))
    assert first.metrics.intervals.miou and second.metrics.intervals.miou
    assert first.metrics.intervals.miou[1] > second.metrics.intervals.miou[0]
    assert align_images(first, second)
    difference = paired_differences(first, second).miou
    assert difference.interval is not None and difference.value is not None and difference.significant
    low, high = difference.interval
    assert 0 < low < difference.value < high

    def miou(counts: np.ndarray) -> float:
        hits, target, prediction = counts[:, 0].sum(axis=0)[:, :2]
        return float(np.mean(hits / (target + prediction - hits)))

    random, independent = np.random.default_rng(7), []
    for _ in range(1000):
        chosen = random.integers(24, size=24)
        independent.append(miou(second.per_image.counts[chosen]) - miou(first.per_image.counts[chosen]))
    assert [low, high] == pytest.approx(np.percentile(independent, [2.5, 97.5]), abs=0.15 * (high - low))


def change_images(run: Path, change: Any) -> None:
    """Apply a change to the `per_image` of a run's metrics.json."""
    file = run / "evaluation/metrics.json"
    metrics = json.loads(file.read_text())
    change(metrics["per_image"])
    file.write_text(json.dumps(metrics))


def test_order_of_the_images_does_not_matter(tmp_path: Path) -> None:
    runs = write_evaluation(tmp_path / "a", 0.2), write_evaluation(tmp_path / "b", 0.1)
    before = compare_output(*runs)
    change_images(runs[1], lambda images: images.reverse())
    assert compare_output(*runs) == before


def test_different_images_or_masks_are_not_paired(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", 0.2)
    output = compare_output(
        first, write_evaluation(tmp_path / "b", 0.2, images=20), write_evaluation(tmp_path / "c", 0.1)
    )
    assert "b was evaluated on different images or masks than a: no paired comparison." in output
    assert "Difference from a" in output and "c was" not in output

    def change_first_count(images: list[Any]) -> None:
        images[0]["counts"][0][2] += 1

    change_images(tmp_path / "c", change_first_count)
    assert "c was evaluated on different images or masks" in compare_output(first, tmp_path / "c")
    changed, old = write_evaluation(tmp_path / "d", 0.1), write_evaluation(tmp_path / "e", 0.1)
    change_images(changed, lambda images: images[3].update(digest="other pixels under the same name"))
    assert "d was evaluated on different images or masks" in compare_output(first, changed)
    change_images(old, lambda images: [image.pop("digest") for image in images])  # of an older maskserve
    assert "different images" not in compare_output(first, old)


def test_different_splits_or_classes_are_an_error(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", 0.2)
    with pytest.raises(RunError, match=r"their split differ, test and val; evaluate both on the same\."):
        compare_output(first, write_evaluation(tmp_path / "b", 0.2, split="val"))
    with pytest.raises(RunError, match="their classes differ, class 0, class 1, class 2 and class 0, class 1;"):
        compare_output(first, write_evaluation(tmp_path / "c", 0.2, classes=2))
    with pytest.raises(ConfigError, match="needs two or more runs, and got 1"):
        compare_output(first)


def test_run_without_an_evaluation_is_an_error_with_the_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"does not exist; run: maskserve evaluate .*run/bundle DATA"):
        read_evaluation(run)
    run.mkdir()
    metadata = RunMetadata(
        data=Path("data/mine"),
        classes=[ClassInfo(name="a", rgb=(0, 0, 0))],
        input=InputRule(rule="native"),
        crop=(64, 64),
        precision="f32",
        images=ImageList(count=1, sha256=""),
    )
    write_run_metadata(metadata, run)
    with pytest.raises(RunError, match=r"run: maskserve export .*run, then maskserve evaluate .*run/bundle data/mine$"):
        read_evaluation(run)
    (run / "bundle").mkdir()
    (run / "bundle/SHA256SUMS").touch()
    with pytest.raises(RunError, match=r"run: maskserve evaluate .*run/bundle data/mine$"):
        read_evaluation(run)
    with pytest.raises(RunError, match=r"run: maskserve evaluate .*run/bundle DATA$"):
        read_evaluation(run / "bundle")


def test_evaluation_is_found_by_run_folder_file_and_bundle(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", 0.2)
    (run / "bundle").mkdir()
    (run / "bundle/SHA256SUMS").touch()
    file = run / "evaluation/metrics.json"
    for name in (run, run / "evaluation", file, run / "bundle"):
        assert read_evaluation(name).file.samefile(file)


def test_evaluation_of_an_earlier_bundle_is_an_error(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", 0.2)
    (run / "bundle").mkdir()
    (run / "bundle/SHA256SUMS").write_text("of another export")
    for name in (run, run / "bundle"):
        with pytest.raises(RunError, match=r"is of another bundle than .*bundle, which changed since; run: maskserve"):
            read_evaluation(name)


@pytest.mark.parametrize("images", [1, 3])
def test_few_images_show_no_significant_difference(tmp_path: Path, images: int) -> None:
    output = compare_output(
        write_evaluation(tmp_path / "worse", 0.4, images), write_evaluation(tmp_path / "better", 0.0, images)
    )
    assert NOT_SIGNIFICANT in line_of(output, "mIoU", 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is not JSON"),
        ("{'a'", "it is not JSON"),
        ("[]", "not JSON|valid dictionary"),
        ('{"miou": 0.5}', "miou: it is missing|pixel_accuracy: it is missing"),
        ('{"miou": "good"}', "miou: expected a number"),
    ],
)
def test_file_of_another_version_is_an_error(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RunError, match=f"is no evaluation by this version of maskserve: .*({reason}).*Evaluate"):
        read_evaluation(tmp_path)


def test_file_with_a_key_of_another_version_or_an_unknown_class_is_an_error(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", 0.2, images=2)
    file = run / "evaluation/metrics.json"
    metrics = json.loads(file.read_text())
    file.write_text(json.dumps({**metrics, "by_picture": []}))
    with pytest.raises(RunError, match="by_picture: it is unknown"):
        read_evaluation(run)
    metrics["per_image"][0]["counts"][0][0] = 7
    file.write_text(json.dumps(metrics))
    with pytest.raises(RunError, match="counts pixels of a class that it does not list"):
        read_evaluation(run)


def test_json_holds_metrics_and_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare([write_evaluation(tmp_path / "a", 0.2), write_evaluation(tmp_path / "b", 0.1)], True, QUIET_CONSOLE)
    first, second = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))["runs"]
    assert (first["name"], second["name"]) == ("a", "b")
    assert first["difference"] is None and "per_image" not in first
    difference = second["difference"]["miou"]
    assert difference["value"] == pytest.approx(second["miou"] - first["miou"], abs=2e-6)
    absent = second["difference"]["per_class_iou"]["class 2"]
    assert absent == {"value": None, "interval": None, "significant": False}
    for name in ("per_class_precision", "per_class_recall"):
        value = second[name]["class 1"] - first[name]["class 1"]
        assert second["difference"][name]["class 1"]["value"] == pytest.approx(value, abs=2e-6) and value > 0.05


def test_precision_recall_and_foreground_are_compared(tmp_path: Path) -> None:
    """Without a class named background there is no foreground mean, and no row for it."""
    runs = write_evaluation(tmp_path / "a", 0.2), write_evaluation(tmp_path / "b", 0.1)
    output = compare_output(*runs)
    metrics = read_evaluation(runs[1]).metrics
    for name, rate in (
        ("precision class 1", metrics.per_class_precision),
        ("recall class 1", metrics.per_class_recall),
    ):
        assert line_of(output, name).split()[-1] == f"{rate['class 1']:.3f}"
        assert line_of(output, name, 1).split()[3].startswith("+0.")
    assert line_of(output, "precision class 2").split()[3:] == ["-", "-"]  # never predicted
    assert "foreground" not in output
    for run in runs:
        file = run / "evaluation/metrics.json"
        named = json.loads(file.read_text().replace("class 0", "background"))
        file.write_text(json.dumps(named | {"foreground_miou": 0.5}))
    assert line_of(compare_output(*runs), "foreground mIoU").split()[2] == "0.5000"


def write_volume_evaluation(folder: Path, missed: int, cases: int = 12) -> Path:
    """The evaluation of cubes of which as many slices are missed; in the first cases the second class is missed wholly."""
    classes = [ClassInfo(name=name, rgb=(0, 0, label)) for label, name in enumerate(("background", "organ", "lesion"))]
    matrix, tally = ConfusionMatrix(3), PerImageCounts(3)
    for index in range(cases):
        target = np.zeros((14, 12, 16), np.uint8)
        target[1 : 9 + index % 4, 2:9, 1:8], target[3:9, 4:8, 10:14] = 1, 2
        prediction = target.copy()
        prediction[: 1 + missed] = 0
        prediction[3 : 3 + missed] = 0
        if index < 4:
            prediction[prediction == 2] = 0
        single = ConfusionMatrix(3)
        single.add(target, prediction)
        matrix += single
        case = measure_case(target, prediction, 3, (2.0, 1.0, 1.0))
        edges = np.zeros((3, 3), np.int64)
        tally.add(f"case{index}", single.class_counts, edges, str(index), group=f"patient{index // 2}", case=case)
    metrics = make_metrics(matrix, tally, classes, axes="DHW", volumes=tally_volume_metrics(tally, classes, 2.0))
    (folder / "evaluation").mkdir(parents=True)
    metrics.save(folder / "evaluation/metrics.json")
    return folder


def test_volumes_are_compared_by_case(tmp_path: Path) -> None:
    worse, better = write_volume_evaluation(tmp_path / "worse", 2), write_volume_evaluation(tmp_path / "better", 1)
    first, second = read_evaluation(worse), read_evaluation(better)
    assert align_images(first, second)
    found = paired_differences(first, second).volumes
    assert found is not None and first.metrics.volumes and second.metrics.volumes
    dices = [
        np.array([[image.case.dice[label] for image in one.per_image.images if image.case] for label in (1, 2)])
        for one in (first, second)
    ]
    assert found.dice.value == pytest.approx((dices[1] - dices[0]).mean(), abs=1e-6)
    organ = found.per_class["organ"]["dice"]
    assert organ.significant and organ.interval is not None and organ.value is not None
    by_patient = (dices[1] - dices[0])[0].reshape(6, 2).mean(axis=1)  # of patients, not of cases
    random = np.random.default_rng(1)
    independent = [by_patient[random.integers(6, size=6)].mean() for _ in range(4000)]
    assert organ.interval == pytest.approx(tuple(np.percentile(independent, [2.5, 97.5])), abs=0.002)
    # HD95 of the lesion has a value in the cases of four patients: too few for an interval.
    assert found.per_class["lesion"]["hd95"].interval is None
    output = compare_output(worse, better)
    assert "paired by group" in output
    assert f"{second.metrics.volumes.dice:.4f} [" in line_of(output, "mean Dice, by case")
    assert line_of(output, "Dice organ", 1).split()[2] == f"{organ.value:+.4f}"
    error = second.metrics.volumes.per_class["organ"]["volume_error"].mean
    assert error is not None and f"{error:+.3f}" in line_of(output, "volume error organ, ml")
    metrics = json.loads((better / "evaluation/metrics.json").read_text())
    metrics["volumes"]["tolerance_mm"] = 1
    (better / "evaluation/metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(RunError, match="their tolerances differ, 2 mm and 1 mm"):
        compare_output(worse, better)
