"""The commands of the README, in their order, as a new user types them; only the trainings are shorter."""

import json
import re
import shlex
from pathlib import Path

import pytest

from models.bundle import open_bundle
from tests.maskserve.command_line import assert_fails, run_maskserve_process

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Train on your own folder") : README.index("## Signals")]
COMMANDS = re.findall(r"^    maskserve (.*?)(?: {2,}.*| +# .*)?$", SECTION, re.MULTILINE)
SHORT_DATA = ["--train", "12", "--val", "4", "--test", "8"]
SHORT_TRAINING = ["epochs=1", "batch=4", "workers=0", "crop=32,64", "encoder=tu-lcnet_035"]


def shortened(command: str) -> list[str]:
    """The words of a command, on little data and for one epoch."""
    words = shlex.split(command)
    if words[:2] == ["data", "shapes"]:
        return [*words, *SHORT_DATA]
    if words[0] == "train" and "--resume" not in words:
        minutes = words.index("--minutes")
        words = [word for word in words[:minutes] + words[minutes + 2 :] if not word.startswith("encoder=")]
        return [*words, *SHORT_TRAINING]
    return words


def test_the_commands_are_found() -> None:
    assert [command.split()[0] for command in COMMANDS][-4:] == ["train", "export", "evaluate", "compare"]
    assert {"shapes", "lint", "predict"} <= {word for command in COMMANDS for word in command.split()}


@pytest.mark.slow
def test_the_readme_works_from_the_start(tmp_path: Path) -> None:
    for command in COMMANDS:
        done = run_maskserve_process(*shortened(command), cwd=tmp_path)
        assert "Traceback" not in done.stderr
        if "--resume" in command:  # nothing stopped the training before
            assert done.returncode in (0, 1), done.stderr
        else:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    first, second = (open_bundle(tmp_path / "runs" / run / "bundle").spec.name for run in ("mydata", "resnet18"))
    assert (first, second) == ("mydata", "mydata-resnet18")
    metrics = json.loads((tmp_path / "runs/mydata/evaluation/metrics.json").read_text())
    assert metrics["images"] == 8 and set(metrics["per_class_precision"]) == set(metrics["per_class_recall"])
    assert len(list((tmp_path / "masks").glob("**/*.png"))) == 8
    done = run_maskserve_process("train", "mydata", cwd=tmp_path)  # a second training into the same folder
    assert_fails(done, 1, "already holds a run")
