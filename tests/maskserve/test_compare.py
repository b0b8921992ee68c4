"""`maskserve evaluate` and `maskserve compare` as a person types them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fixtures_bundles import CLASSES
from training.data.synthetic import generate_dataset

ROOT = Path(__file__).parents[2]


def run_maskserve(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "maskserve", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_from_two_bundles_to_their_difference(tiny_bundle: Path, tmp_path: Path) -> None:
    generate_dataset(tmp_path / "data", counts={"train": 2, "val": 2, "test": 4})
    (tmp_path / "data/classes.csv").write_text("".join(f"class {label}\n" for label in range(CLASSES)))
    for run, more in (("one", ()), ("two", ("--tta", "flip"))):
        shutil.copytree(tiny_bundle, tmp_path / run / "bundle")
        done = run_maskserve("evaluate", f"{run}/bundle", "data", "--no-speed", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{run}/evaluation: metrics.json, report.html" in done.stdout  # beside the bundle, and said
        assert {path.name for path in (tmp_path / run / "evaluation").iterdir()} == {"metrics.json", "report.html"}

    done = run_maskserve("compare", "one", "two/evaluation", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "less one" in done.stdout and "IoU class 0" in done.stdout

    done = run_maskserve("compare", "one", "two", "--json", cwd=tmp_path)
    assert [run["tta"] for run in json.loads(done.stdout)["runs"]] == [None, "flip"]


def test_what_is_refused_is_one_sentence(tmp_path: Path) -> None:
    for words, code, said in (
        (("one",), 2, "two or more"),
        (("one", "two"), 1, "type: maskserve evaluate one/bundle DATA"),
    ):
        done = run_maskserve("compare", *words, cwd=tmp_path)
        assert done.returncode == code
        assert said in done.stderr and "Traceback" not in done.stderr
