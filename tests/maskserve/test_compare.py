"""The subcommands `evaluate` and `compare`."""

import json
import shutil
from pathlib import Path

from tests.fixtures_bundles import CLASSES
from tests.maskserve.command_line import assert_fails, run_maskserve
from training.data.synthetic import generate_dataset


def test_two_bundles_are_evaluated_and_compared(tiny_bundle: Path, tmp_path: Path) -> None:
    generate_dataset(tmp_path / "data", counts={"train": 1, "val": 1, "test": 4}, size=(96, 128))
    (tmp_path / "data/classes.csv").write_text("".join(f"class {label}\n" for label in range(CLASSES)))
    for run, options in (("one", ()), ("two", ("--tta", "flip"))):
        shutil.copytree(tiny_bundle, tmp_path / run / "bundle")
        done = run_maskserve("evaluate", f"{run}/bundle", "data", "--no-speed", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{run}/evaluation: metrics.json, report.html" in done.stdout  # beside the bundle
        assert {path.name for path in (tmp_path / run / "evaluation").iterdir()} == {"metrics.json", "report.html"}

    done = run_maskserve("compare", "one", "two/evaluation", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Difference from one" in done.stdout and "IoU class 0" in done.stdout

    done = run_maskserve("compare", "one", "two", "--json", cwd=tmp_path)
    assert [run["tta"] for run in json.loads(done.stdout)["runs"]] == [None, "flip"]


def test_errors_of_compare_say_what_to_do(tmp_path: Path) -> None:
    assert_fails(run_maskserve("compare", "one", cwd=tmp_path), 2, "two or more")
    done = run_maskserve("compare", "one", "two", cwd=tmp_path)
    assert_fails(done, 1, "run: maskserve evaluate one/bundle DATA")
