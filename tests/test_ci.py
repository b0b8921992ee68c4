"""The commands that people and CI run: Makefile, .ci/run, the workflow, and the documents that name them."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CI_RUN = (ROOT / ".ci" / "run").read_text()
STEPS = CI_RUN.partition("all_steps=(")[2].partition(")")[0].split()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_time_limits_add_up_to_less_than_80_minutes() -> None:
    limits = [int(minutes) for minutes in re.findall(r"timeout (\d+)m", CI_RUN)]
    assert len(limits) >= len(STEPS)
    assert sum(limits) < 80
    assert f"add up to {sum(limits)} minutes" in CI_RUN


def test_workflow_runs_every_step() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    named = {word for call in re.findall(r"\.ci/run ([a-z ]+)", text) for word in call.split()}
    assert named | set(jobs["tests"]["strategy"]["matrix"]["step"]) == set(STEPS)


def test_documented_targets_exist() -> None:
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / ".ci" / "run", *(ROOT / ".github").rglob("*.*")]
    named = {
        target
        for file in files
        for target in re.findall(r"(?:`|^ *|m )make ([a-z][a-z-]*)", file.read_text(), re.MULTILINE)
    }
    assert {"test", "check", "container"} <= named
    assert named <= TARGETS


def test_unknown_step_is_refused() -> None:
    result = subprocess.run([ROOT / ".ci" / "run", "check", "tests"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == f"Unknown step 'tests'. Choose from: {' '.join(STEPS)}.\n"
    assert result.stdout == ""
