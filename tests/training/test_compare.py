import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from models.errors import ConfigError, RunError
from models.inference.segmenter import Segmenter
from models.spec import InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.training.fake_dataset import make_fake_dataset, predict_red
from training.compare import NOT_SIGNIFICANT, align_images, compare, paired_differences, read_evaluation
from training.evaluate import evaluate_split, write_metrics
from training.metrics.bootstrap import compute_metrics


def write_evaluation(folder: Path, wrong: float, images: int = 24, classes: int = 3, **facts: Any) -> Path:
    """A run folder whose evaluation has about so many wrong pixels; its images are as hard as the others', each in its way."""

    def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(index)
        truth = np.zeros((40, 60), np.uint8)
        truth[random.integers(5, 15) : random.integers(20, 35), random.integers(5, 20) : random.integers(30, 55)] = 1
        hard = random.uniform(0, 1) * (random.random(truth.shape) < 0.5)
        red = np.where(random.random(truth.shape) < wrong + 0.3 * hard, 1 - truth, truth)
        return np.repeat(red[..., None].astype(np.uint8) * 255, 3, axis=2), truth

    samples = make_fake_dataset(images, draw, classes)
    _, tally = evaluate_split(Segmenter(predict_red, InputRule(rule="native")), samples, QUIET_CONSOLE)
    metrics = {
        "split": "test",
        "images": images,
        **compute_metrics(tally, samples.classes),
        "per_image": tally.to_rows(),
    }
    metrics["bundle"] = {"hash": hashlib.sha256(b"").hexdigest()}
    target = folder / "evaluation"
    target.mkdir(parents=True)
    write_metrics({**metrics, **facts}, target / "metrics.json")
    return folder


def compare_output(*runs: Path) -> str:
    stream = io.StringIO()
    compare(list(runs), False, Console(file=stream, width=200))
    return stream.getvalue()


def test_side_by_side_and_a_difference_that_is_there(tmp_path: Path) -> None:
    runs = write_evaluation(tmp_path / "worse", 0.2), write_evaluation(tmp_path / "better", 0.1)
    said = compare_output(*runs)
    one, two = (json.loads((run / "evaluation/metrics.json").read_text()) for run in runs)
    line = next(line for line in said.splitlines() if line.startswith("mIoU"))
    assert f"{one['miou']:.4f}" in line and f"{two['miou']:.4f}" in line
    assert f"{two['intervals']['miou'][0]:.3f}..{two['intervals']['miou'][1]:.3f}" in line
    gained = [line for line in said.splitlines() if line.startswith("mIoU")][1]
    assert gained.split()[1] == f"{two['miou'] - one['miou']:+.4f}" and NOT_SIGNIFICANT not in gained
    assert "IoU class 2" in said and "absent" in said


def test_the_best_is_bold(tmp_path: Path) -> None:
    stream = io.StringIO()
    runs = [write_evaluation(tmp_path / "worse", 0.2), write_evaluation(tmp_path / "better", 0.1)]
    compare(runs, False, Console(file=stream, width=200, force_terminal=True, color_system="standard"))
    best = json.loads((runs[1] / "evaluation/metrics.json").read_text())["miou"]
    line = next(line for line in stream.getvalue().splitlines() if line.startswith("mIoU"))
    assert line.count("\x1b[1m") == 1 and f"\x1b[1m{best:.4f}" in line


def test_of_a_run_and_itself_no_difference_is_shown(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "a", 0.2)
    said = compare_output(run, run)
    assert "+0.0000 [+0.0000..+0.0000] not significant" in said
    assert f"{run} (1)" in said and f"{run} (2)" in said


def test_pairing_shows_what_two_intervals_do_not(tmp_path: Path) -> None:
    """The intervals of the two overlap, for images differ more than runs do; the paired one leaves 0 out."""
    one, two = (
        read_evaluation(write_evaluation(tmp_path / "a", 0.11)),
        read_evaluation(write_evaluation(tmp_path / "b", 0.10)),
    )
    assert one.metrics["intervals"]["miou"][1] > two.metrics["intervals"]["miou"][0]
    assert align_images(one, two)
    gain = paired_differences(one, two)["miou"]
    assert gain["significant"] and 0 < gain["interval"][0] < gain["value"] < gain["interval"][1]


def test_the_paired_interval_is_that_of_an_independent_bootstrap(tmp_path: Path) -> None:
    one, two = (
        read_evaluation(write_evaluation(tmp_path / "a", 0.11)),
        read_evaluation(write_evaluation(tmp_path / "b", 0.10)),
    )

    def miou(counts: np.ndarray) -> float:
        hit, truth, answer = counts[:, 0].sum(axis=0)[:, :2]
        return float(np.mean(hit / (truth + answer - hit)))

    random, gains = np.random.default_rng(7), []
    for _ in range(1000):
        chosen = random.integers(24, size=24)
        gains.append(miou(two.per_image.counts[chosen]) - miou(one.per_image.counts[chosen]))
    low, high = paired_differences(one, two)["miou"]["interval"]
    assert [low, high] == pytest.approx(np.percentile(gains, [2.5, 97.5]), abs=0.15 * (high - low))


def test_the_order_of_the_images_does_not_matter(tmp_path: Path) -> None:
    one, two = write_evaluation(tmp_path / "a", 0.2), write_evaluation(tmp_path / "b", 0.1)
    before = compare_output(one, two)
    file = two / "evaluation/metrics.json"
    metrics = json.loads(file.read_text())
    metrics["per_image"].reverse()
    file.write_text(json.dumps(metrics))
    assert compare_output(one, two) == before


def test_other_images_are_not_paired_and_that_is_said(tmp_path: Path) -> None:
    said = compare_output(
        write_evaluation(tmp_path / "a", 0.2),
        write_evaluation(tmp_path / "b", 0.2, images=20),
        write_evaluation(tmp_path / "c", 0.1),
    )
    assert "b met other images, or other masks, than a: their difference is not judged." in said
    assert "less a" in said and "c met" not in said


def test_other_masks_of_the_same_names_are_not_paired(tmp_path: Path) -> None:
    one, two = write_evaluation(tmp_path / "a", 0.2), write_evaluation(tmp_path / "b", 0.1)
    file = two / "evaluation/metrics.json"
    metrics = json.loads(file.read_text())
    metrics["per_image"][0]["counts"][0][2] += 1
    file.write_text(json.dumps(metrics))
    assert "not judged" in compare_output(one, two)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", 0.2)
    with pytest.raises(RunError, match=r"their split differ, test and val; evaluate both on the same\."):
        compare_output(first, write_evaluation(tmp_path / "b", 0.2, split="val"))
    with pytest.raises(RunError, match="their classes differ, class 0, class 1, class 2 and class 0, class 1;"):
        compare_output(first, write_evaluation(tmp_path / "c", 0.2, classes=2))
    with pytest.raises(ConfigError, match="two or more"):
        compare_output(first)


def test_a_run_without_an_evaluation_says_what_to_type(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"is not there; type: maskserve evaluate .*run/bundle DATA"):
        read_evaluation(run)
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"data": "data/mine"}))
    with pytest.raises(
        RunError, match=r"type: maskserve export .*run, then maskserve evaluate .*run/bundle data/mine$"
    ):
        read_evaluation(run)
    (run / "bundle").mkdir()
    (run / "bundle/SHA256SUMS").touch()
    with pytest.raises(RunError, match=r"type: maskserve evaluate .*run/bundle data/mine$"):
        read_evaluation(run)
    with pytest.raises(RunError, match=r"type: maskserve evaluate .*run/bundle DATA$"):
        read_evaluation(run / "bundle")


def test_a_run_is_found_by_each_of_its_names(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", 0.2)
    (run / "bundle").mkdir()
    (run / "bundle/SHA256SUMS").touch()
    file = run / "evaluation/metrics.json"
    for name in (run, run / "evaluation", file, run / "bundle"):
        assert read_evaluation(name).file.samefile(file)


def test_an_evaluation_of_a_bundle_that_is_gone_is_refused(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", 0.2)
    (run / "bundle").mkdir()
    (run / "bundle/SHA256SUMS").write_text("of another export")
    for name in (run, run / "bundle"):
        with pytest.raises(RunError, match=r"is of another bundle than .*bundle holds now; type: maskserve evaluate"):
            read_evaluation(name)


@pytest.mark.parametrize("images", [1, 3])
def test_a_few_images_show_no_difference(tmp_path: Path, images: int) -> None:
    said = compare_output(
        write_evaluation(tmp_path / "worse", 0.4, images), write_evaluation(tmp_path / "better", 0.0, images)
    )
    gained = [line for line in said.splitlines() if line.startswith("mIoU")][1]
    assert NOT_SIGNIFICANT in gained


@pytest.mark.parametrize("content", ["", "[]", '{"miou": 0.5}', '{"per_image": 3, "per_class_iou": {}}', "{'a'"])
def test_what_is_no_evaluation_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RunError, match="is no evaluation that this maskserve wrote"):
        read_evaluation(tmp_path)


def test_json_says_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare([write_evaluation(tmp_path / "a", 0.2), write_evaluation(tmp_path / "b", 0.1)], True, QUIET_CONSOLE)
    found = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert found["runs"][0]["difference"] is None
    gain = found["runs"][1]["difference"]["miou"]
    assert gain["value"] == pytest.approx(found["runs"][1]["miou"] - found["runs"][0]["miou"], abs=2e-6)
    assert found["runs"][1]["difference"]["per_class_iou"]["class 2"] == {
        "value": None,
        "interval": None,
        "significant": False,
    }
    assert "per_image" not in found["runs"][0]
