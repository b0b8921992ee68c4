"""The command line: help, errors, exit codes and signals of the subcommands."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from PIL import Image

from maskserve.cli import app as cli_app
from models.bundle import open_bundle
from models.errors import DataError
from service.server_process import ROOT, free_port
from tests.maskserve.command_line import assert_fails, run_maskserve, run_maskserve_process, start_maskserve
from training.data.synthetic import CLASSES, generate_dataset


def list_subcommands(command: click.Command, name: str = "") -> dict[str, click.Command]:
    """Every subcommand by its full name, such as `data lint`."""
    found = {name: command}
    for child, subcommand in getattr(command, "commands", {}).items():
        found |= list_subcommands(subcommand, f"{name} {child}".strip())
    return found


SUBCOMMANDS = list_subcommands(typer.main.get_command(cli_app.app))
NAMES = {
    "", "demo", "data", "data shapes", "data inspect", "data lint", "data stats", "data split", "data convert", "data remap",
    "models", "plan", "train", "export", "import", "evaluate", "compare", "explain", "bench", "predict", "serve", "key",
    "containerize",
}  # fmt: skip


def test_ctrl_c_ends_with_a_word_and_the_next_one_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer catches KeyboardInterrupt itself."""

    def stop(*arguments: Any) -> int:
        raise KeyboardInterrupt

    ignored: list[Any] = []
    monkeypatch.setattr("service.server_process.serve", stop)
    monkeypatch.setattr(signal, "signal", lambda number, handler: ignored.append((number, handler)))
    done = run_maskserve("serve", "bundle", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "Stopped.\n")
    assert (signal.SIGINT, signal.SIG_IGN) in ignored


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_explains_every_parameter(name: str, tmp_path: Path) -> None:
    done = run_maskserve(*name.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0
    for parameter in SUBCOMMANDS[name].params:
        assert getattr(parameter, "help", None), parameter.name
        assert parameter.opts[0] in done.stdout or (parameter.metavar or "") in done.stdout


def test_help_lists_every_subcommand(tmp_path: Path) -> None:
    done = run_maskserve_process("--help", cwd=tmp_path)
    assert set(SUBCOMMANDS) == NAMES
    assert done.returncode == 0
    assert all(name.split()[0] in done.stdout for name in NAMES if name)


def test_settings_are_listed(tmp_path: Path) -> None:
    printed = run_maskserve("train", "--settings", cwd=tmp_path).stdout
    assert "epochs=none" in printed
    assert "default: 40" in printed


@pytest.fixture
def shadowing_packages(tmp_path: Path) -> Path:
    """A folder with packages of the same names as ours, which fail when they are imported."""
    for name in ("models", "training", "service"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    return tmp_path


def test_packages_in_the_current_folder_are_not_imported(shadowing_packages: Path) -> None:
    arguments = ("data", "shapes", "shapes", "--train", "3", "--val", "2", "--test", "2")
    done = run_maskserve_process(*arguments, cwd=shadowing_packages, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_serve_ends_on_a_hangup(shadowing_packages: Path, small_bundle: Path) -> None:
    """From a folder with other packages of our names. tests/service tests the other signals."""
    port = free_port()
    child = start_maskserve("serve", small_bundle, "--port", str(port), cwd=shadowing_packages)
    try:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("small: ")
        assert f":{port}" in child.stdout.readline()
        child.send_signal(signal.SIGHUP)
        child.communicate(timeout=60)
    finally:
        child.terminate()  # a kill would leave its server running
        child.wait(60)
    assert child.returncode == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_exits_as_an_exception_does(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned_up: list[bool] = []

    def command(**kwargs: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            cleaned_up.append(True)

    monkeypatch.setattr(cli_app, "app", command)
    assert run_maskserve("demo", cwd=tmp_path).returncode == 128 + number
    assert cleaned_up


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data", "lint", "none"], 1, "none is not a folder"),
        (["train", "none", "epoch=3"], 2, "did you mean epochs"),
        (["train"], 2, "DATA"),
        (["train", ".", "epochs=3", "--resume"], 1, "no last.ckpt to resume from"),
        (["train", ".", "--quiet", "--json"], 2, "--quiet and --json"),
        (["export", "none"], 1, "none is not a finished run"),
        (["export", "x[old]/[/a]"], 1, "x[old]/[/a] is not a finished run"),
        (["serve", "none"], 1, "none is "),
        (["serve", ".", "--port", "70000"], 2, "65535"),
        (["evaluate", "none", "none"], 1, "none is "),
        (["fly"], 2, "fly"),
    ],
)
def test_errors_are_one_message(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert_fails(run_maskserve(*arguments, cwd=tmp_path), code, message)


def test_an_error_in_a_process(tmp_path: Path) -> None:
    done = run_maskserve_process("serve", "none", cwd=tmp_path)
    assert_fails(done, 1, "error: none is ")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run_maskserve("data", "lint", "none", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and DataError.__name__ in done.stderr


def test_without_a_clone_the_commands_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_app, "ROOT", tmp_path)
    assert_fails(run_maskserve("models", cwd=tmp_path), 2, "contains only maskserve.client")


def test_lint_exits_with_1_on_errors(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2, "test": 2})
    assert run_maskserve("data", "lint", "s", cwd=tmp_path).returncode == 0
    Image.new("L", (192, 144), len(CLASSES)).save(tmp_path / "s/masks/val/val_0001.png")
    done = run_maskserve("data", "lint", "s", cwd=tmp_path)
    assert done.returncode == 1
    assert "val_0001.png" in done.stdout


def test_lint_writes_html_and_stats_print_json(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2})
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run_maskserve("data", "lint", "s", "--html", "page.html", "--no-cache", cwd=tmp_path, **cache)
    assert done.returncode == 0, done.stderr
    assert "maskserve data lint" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not (tmp_path / "cache").exists()
    done = run_maskserve("data", "lint", "s", "--html", "none/page.html", cwd=tmp_path, **cache)
    assert_fails(done, 1, "cannot be written")
    done = run_maskserve("data", "stats", "s", "--json", cwd=tmp_path, **cache)
    assert json.loads(done.stdout)["splits"]["train"]["images"] == 8
    assert "ground" in run_maskserve("data", "stats", "s", cwd=tmp_path, **cache).stdout


@pytest.mark.slow
def test_only_json_is_on_standard_output(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2}, size=(48, 64))
    settings = ("epochs=2", "batch=4", "workers=0", "crop=32,64", "encoder=tu-lcnet_035")
    done = run_maskserve_process("train", "s", "--out", "run", "--json", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["epoch"] for line in done.stdout.splitlines()] == [1, 2]
    assert "8 images" in done.stderr
    done = run_maskserve("train", "s", "--out", "run", "--resume", "lr=3", cwd=tmp_path)
    assert_fails(done, 2, "lr from 0.00141 to 3")
    done = run_maskserve_process("train", "s", "--out", "run", "--resume", "--quiet", "epochs=3", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_plan_is_printed_and_saved(tmp_path: Path) -> None:
    from training.config_io import load_config

    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2}, size=(48, 64))
    arguments = ("plan", "s", "encoder=tu-lcnet_035", "--minutes", "1", "--out", "plan.yaml")
    done = run_maskserve_process(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / "plan.yaml", [])
    assert (config.minutes, config.encoder) == (1.0, "tu-lcnet_035")
    assert "tu-lcnet_035" in done.stdout
    assert_fails(run_maskserve("plan", "s", "encoder=resnet17", cwd=tmp_path), 2, "resnet18")
    (tmp_path / "s" / "masks" / "train" / "train_0000.png").unlink()
    assert_fails(run_maskserve("plan", "s", cwd=tmp_path), 1, "1 error")


@pytest.mark.slow
def test_ctrl_c_stops_a_training_and_prints_how_to_resume(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2, "test": 2})
    settings = ("epochs=5000", "batch=4", "workers=1", "crop=64,64", "precision=f32", "encoder=tu-lcnet_035")
    child = start_maskserve("train", "s", "--out", "run", *settings, cwd=tmp_path)
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


SMALL_DEMO = """
import dataclasses, functools, sys
from maskserve import demo
load = demo.load_config
demo.load_config = lambda file, overrides: load(file, ["epochs=3", *overrides])
fewer = functools.partial(demo.generate_dataset, counts={"train": 160, "val": 12, "test": 12})
demo.DEMOS["HW"] = dataclasses.replace(demo.DEMOS["HW"], generate=fewer)
sys.argv[0] = "maskserve"
from maskserve.cli.app import main
main()
"""


@pytest.mark.slow
def test_the_demo_learns_and_writes_its_files(tmp_path: Path) -> None:
    """Everything that `make demo` does, on a quarter of its images and for three epochs; docs/planning.md has its mIoU."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SMALL_DEMO, "demo", "--out", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert metrics["miou"] >= 0.2  # one class everywhere: 0.13
    assert set(metrics) >= {"miou", "per_class_iou", "pixel_accuracy"}
    images = {}
    for name in ("image.jpg", "mask.png", "overlay.png"):
        with Image.open(tmp_path / "demo" / name) as image:
            images[name] = (image.size, image.mode)
    assert len({size for size, _ in images.values()}) == 1
    assert images["mask.png"][1] == "P"
    open_bundle(tmp_path / "demo/bundle")
    assert "<html" in (tmp_path / "demo/report.html").read_text()
    assert "maskserve serve demo/bundle" in done.stdout


def test_the_demo_replaces_only_its_own_folder(tmp_path: Path) -> None:
    from maskserve.demo import MARKER_FILE, prepare_output_folder

    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "notes").touch()
    assert_fails(run_maskserve("demo", "--out", "demo", cwd=tmp_path), 1, "contains files that no demo created")
    (tmp_path / "demo" / MARKER_FILE).touch()
    prepare_output_folder(tmp_path / "demo")
    assert [file.name for file in (tmp_path / "demo").iterdir()] == [MARKER_FILE]
    shutil.rmtree(tmp_path / "demo")
