"""Nothing leaves the machine: an audit hook in a fresh interpreter sees every address that is looked up or called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AUDIT_HOOK = """
import sys

def hook(event, arguments):
    if event == "socket.getaddrinfo":
        address = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        address = arguments[1][0]
    elif event == "urllib.Request":
        address = arguments[0]
    else:
        return
    if address not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
        sys.stderr.write(f"CALLED {event} {address}\\n")

sys.addaudithook(hook)
"""


def network_calls(code: str, tmp_path: Path) -> list[str]:
    """What a piece of code tried to reach, in an interpreter with no sign of ours in its environment."""
    (tmp_path / "sitecustomize.py").write_text(AUDIT_HOOK)
    silent = ("BENTOML_DO_NOT_TRACK", "NO_ALBUMENTATIONS_UPDATE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in silent}
    environment["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("CALLED")]


def test_the_watch_sees_a_call(tmp_path: Path) -> None:
    code = "import socket\ntry: socket.getaddrinfo('example.invalid', 80)\nexcept OSError: pass"
    assert network_calls(code, tmp_path) == ["CALLED socket.getaddrinfo example.invalid"]


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import training.train, training.export, training.augment, training.import_model", id="training"),
        pytest.param("import service.app", id="service"),
        pytest.param(
            "from pathlib import Path\n"
            "from training.data.synthetic import draw\n"
            "from training.config_io import load_config\n"
            "from training.train import train\n"
            "from training.export import export\n"
            "from training.evaluate import evaluate\n"
            "draw(Path('data'), counts={'train': 4, 'val': 2, 'test': 2})\n"
            "train(Path('data'), Path('run'), load_config(None, ['epochs=1', 'batch=2', 'workers=0']))\n"
            "evaluate(export(Path('run')), Path('data'))",
            id="the road",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "from pathlib import Path\n"
            "from tests.fixtures_graphs import graph\n"
            "from training.import_model import bring\n"
            "Path('names.csv').write_text('a\\nb\\nc\\nd\\n')\n"
            "bring('onnx', graph(Path('theirs.onnx')), Path('bundle'), classes='names.csv')",
            id="the road from elsewhere",
        ),
    ],
)
def test_nothing_is_called(code: str, tmp_path: Path) -> None:
    assert network_calls(code, tmp_path) == []
