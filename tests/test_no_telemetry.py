"""No code of ours or of a dependency contacts another host: an audit hook in a fresh interpreter records every attempt."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPT_OUT_VARIABLES = (
    "BENTOML_DO_NOT_TRACK",
    "NO_ALBUMENTATIONS_UPDATE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "CI",
)
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
IMPORT_SERVICE = "import service.bento_service"
IMPORT_ONNX_MODEL = """
from pathlib import Path
import training.train, training.export, training.augment
from tests.fixtures_graphs import write_onnx_graph
from training.import_model import import_model
Path("names.csv").write_text("a\\nb\\nc\\nd\\n")
import_model("onnx", write_onnx_graph(Path("model.onnx")), Path("bundle"), classes="names.csv")
"""
TRAIN_AND_EXPORT = """
from pathlib import Path
from training.config_io import load_config
from training.data.synthetic import generate_dataset
from training.evaluate import evaluate
from training.export import export
from training.train import train
generate_dataset(Path("data"), counts={"train": 4, "val": 2, "test": 2})
train(Path("data"), Path("run"), load_config(None, ["epochs=1", "batch=2", "workers=0", "encoder=tu-lcnet_035"]))
evaluate(export(Path("run")), Path("data"))
"""


def network_calls(code: str, tmp_path: Path) -> list[str]:
    """Addresses other than this machine that code looks up or connects to, run without the variables that opt out."""
    (tmp_path / "sitecustomize.py").write_text(AUDIT_HOOK)
    environment = {name: value for name, value in os.environ.items() if name not in OPT_OUT_VARIABLES}
    environment["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("CALLED")]


def test_audit_hook_records_a_call(tmp_path: Path) -> None:
    code = "import socket\ntry: socket.getaddrinfo('example.invalid', 80)\nexcept OSError: pass"
    assert network_calls(code, tmp_path) == ["CALLED socket.getaddrinfo example.invalid"]


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(IMPORT_SERVICE, id="service"),
        pytest.param(IMPORT_ONNX_MODEL, id="import of an ONNX model", marks=pytest.mark.slow),
        pytest.param(TRAIN_AND_EXPORT, id="training, export, evaluation", marks=pytest.mark.slow),
    ],
)
def test_no_host_is_contacted(code: str, tmp_path: Path) -> None:
    assert network_calls(code, tmp_path) == []
