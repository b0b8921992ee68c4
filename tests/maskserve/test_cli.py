"""The commands as a person types them: each in a process of its own, from a folder that is not the clone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from models.bundle import open_bundle
from training.data.synthetic import CLASSES, generate_dataset

ROOT = Path(__file__).parents[2]
SUBCOMMANDS = (
    "models",
    "containerize",
    "train",
    "export",
    "import",
    "evaluate",
    "compare",
    "predict",
    "bench",
    "serve",
    "demo",
    "data shapes",
    "data lint",
    "data stats",
)
MASKSERVE = Path(sys.executable).with_name("maskserve")


def run_maskserve(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run([MASKSERVE, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)


def start_maskserve(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """A command that goes on. A shell that runs the tests in the background has them ignore Ctrl-C; this undoes it."""
    return subprocess.Popen(
        [MASKSERVE, *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
    )


def assert_fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One clear sentence, the code, and no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("verb", SUBCOMMANDS)
def test_help_explains_every_option(verb: str, tmp_path: Path) -> None:
    done = run_maskserve(*verb.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0
    options = [line for line in done.stdout.splitlines() if line.lstrip("│* ").startswith("--")]
    assert options
    assert all(len([part for part in line.strip("│ ").split("  ") if part]) > 1 for line in options)


def test_help_lists_every_verb(tmp_path: Path) -> None:
    listed = run_maskserve("--help", cwd=tmp_path).stdout
    assert all(verb.split()[0] in listed for verb in SUBCOMMANDS)


def test_settings_are_listed(tmp_path: Path) -> None:
    listed = run_maskserve("train", "--settings", cwd=tmp_path).stdout
    assert "epochs=None" in listed
    assert "default: 40" in listed
    assert "passes over the training images" in listed


@pytest.fixture
def shadowing_packages(tmp_path: Path) -> Path:
    """A folder with rooms of its own under our names, all of them poisoned."""
    for room in ("models", "training", "service"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('the wrong room')\n")
    return tmp_path


def test_a_folder_with_models_of_its_own_does_no_harm(shadowing_packages: Path) -> None:
    for environment in ({}, {"PYTHONPATH": str(shadowing_packages)}, {"PYTHONPATH": "."}):
        shutil.rmtree(shadowing_packages / "shapes", ignore_errors=True)
        words = ("data", "shapes", "shapes", "--train", "3", "--val", "2", "--test", "2")
        done = run_maskserve(*words, cwd=shadowing_packages, **environment)
        assert done.returncode == 0, done.stderr
        assert run_maskserve("data", "lint", "shapes", cwd=shadowing_packages, **environment).returncode in (0, 1)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serving_from_a_folder_with_models_of_its_own(
    stop: signal.Signals, shadowing_packages: Path, tiny_bundle: Path
) -> None:
    from service.server_process import free_port

    port = str(free_port())
    child = start_maskserve("serve", tiny_bundle, "--port", port, cwd=shadowing_packages)
    try:
        assert child.stdout is not None
        assert "tiny runs on" in child.stdout.readline()
        assert "answers at" in child.stdout.readline()
        child.send_signal(stop)
        child.communicate(timeout=60)
    finally:
        child.terminate()  # a kill would leave its server behind
        child.wait(60)
    assert child.returncode == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def test_errors_are_one_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    assert_fails(run_maskserve("data", "lint", "none", cwd=tmp_path), 1, "none is no folder")
    assert_fails(run_maskserve("train", "none", "epoch=3", cwd=tmp_path), 2, "did you mean epochs")
    assert_fails(run_maskserve("train", cwd=tmp_path), 2, "DATA")
    assert_fails(run_maskserve("export", "none", cwd=tmp_path), 1, "no finished run")
    assert_fails(run_maskserve("serve", "none", cwd=tmp_path), 1, "is no bundle")
    assert_fails(run_maskserve("evaluate", "none", "none", cwd=tmp_path), 1, "is no bundle")
    assert_fails(run_maskserve("serve", tiny_bundle, "--port", "70000", cwd=tmp_path), 2, "65535")
    assert_fails(run_maskserve("fly", cwd=tmp_path), 2, "fly")
    assert_fails(run_maskserve("export", "x[old]/[/a]", cwd=tmp_path), 1, "x[old]/[/a] is no finished run")
    assert_fails(
        run_maskserve("train", ".", "epochs=3", "--resume", cwd=tmp_path), 1, "holds no last.ckpt to resume from"
    )
    assert_fails(run_maskserve("train", ".", "--quiet", "--json", cwd=tmp_path), 2, "do not go together")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run_maskserve("data", "lint", "none", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_lint_exits_with_1_on_errors(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2, "test": 2})
    assert run_maskserve("data", "lint", "s", cwd=tmp_path).returncode == 0
    Image.new("L", (192, 144), len(CLASSES)).save(tmp_path / "s/masks/val/val_0001.png")
    done = run_maskserve("data", "lint", "s", cwd=tmp_path)
    assert done.returncode == 1
    assert "val_0001.png holds the labels 6" in done.stdout


def test_lint_writes_a_page_and_stats_print_json(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2})
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run_maskserve("data", "lint", "s", "--html", "page.html", "--no-cache", cwd=tmp_path, **home)
    assert done.returncode == 0, done.stderr
    assert "maskserve data lint" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not (tmp_path / "cache").exists()
    assert_fails(
        run_maskserve("data", "lint", "s", "--html", "none/page.html", cwd=tmp_path, **home), 1, "cannot be written"
    )
    done = run_maskserve("data", "stats", "s", "--json", cwd=tmp_path, **home)
    assert json.loads(done.stdout)["splits"]["train"]["images"] == 8
    assert "ground" in run_maskserve("data", "stats", "s", cwd=tmp_path, **home).stdout


@pytest.mark.slow
def test_the_scripts_are_the_verbs(tmp_path: Path) -> None:
    for script in ("train", "evaluate", "export"):
        command = [sys.executable, "-m", f"training.{script}"]
        done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        assert f"python -m training.{script}" in done.stdout
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert_fails(done, 1, "no finished run")


@pytest.mark.slow
def test_json_alone_is_on_standard_output(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2}, size=(48, 64))
    words = [
        "train",
        "s",
        "--out",
        "run",
        "--json",
        "epochs=2",
        "batch=4",
        "workers=0",
        "crop=32,64",
        "encoder=tu-lcnet_035",
    ]
    done = run_maskserve(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["epoch"] for line in done.stdout.splitlines()] == [1, 2]
    assert "8 images to train on" in done.stderr
    done = run_maskserve("train", "s", "--out", "run", "--resume", "lr=3", cwd=tmp_path)
    assert_fails(done, 2, "lr from 0.00141 to 3", "These may change")
    done = run_maskserve("train", "s", "--out", "run", "--resume", "--quiet", "epochs=3", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_plan_is_printed_and_can_be_trained_by(tmp_path: Path) -> None:
    from training.config_io import load_config

    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2}, size=(48, 64))
    words = ("plan", "s", "encoder=tu-lcnet_035", "--minutes", "1", "--out", "plan.yaml")
    done = run_maskserve(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / "plan.yaml", [])
    assert (config.minutes, config.encoder) == (1.0, "tu-lcnet_035")
    assert "as you said" in done.stdout
    assert "tried here" in done.stdout
    assert_fails(run_maskserve("plan", "s", "encoder=resnet17", cwd=tmp_path), 2, "resnet18")
    (tmp_path / "s" / "masks" / "train" / "train_0000.png").unlink()
    assert_fails(run_maskserve("plan", "s", cwd=tmp_path), 1, "1 error; mend what is wrong")


@pytest.mark.slow
def test_ctrl_c_stops_a_training_and_says_how_to_go_on(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2, "test": 2})
    words = ["train", "s", "--out", "run", "epochs=5000", "batch=4", "workers=1", "crop=64,64", "precision=f32"]
    child = start_maskserve(*words, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run/checkpoints/last.ckpt").exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=100)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "maskserve train s --out run --resume" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_demo_reaches_its_mark(tmp_path: Path) -> None:
    """The whole road as `make demo` goes it; only the time is not judged."""
    import json

    done = run_maskserve("demo", "--out", "demo", cwd=tmp_path, COLUMNS="200")
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert metrics["miou"] >= 0.85
    assert set(metrics) >= {"miou", "per_class_iou", "pixel_accuracy"}
    seen = {}
    for name in ("image.jpg", "mask.png", "overlay.png"):
        with Image.open(tmp_path / "demo" / name) as image:
            seen[name] = (image.size, image.mode)
    assert len({size for size, _ in seen.values()}) == 1
    assert seen["mask.png"][1] == "P"
    open_bundle(tmp_path / "demo/bundle")
    assert "<html" in (tmp_path / "demo/report.html").read_text()
    assert "maskserve serve demo/bundle" in done.stdout
    (tmp_path / "demo/.maskserve-demo").unlink()
    assert_fails(run_maskserve("demo", "--out", "demo", cwd=tmp_path), 1, "no demo made")
