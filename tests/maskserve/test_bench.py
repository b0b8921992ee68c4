"""`maskserve bench`: its measurements, its output, and configurations that fail."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from maskserve import bench, bench_workers
from maskserve.bench_workers import EngineConfig, benchmark_engines
from models.bundle import WEIGHTS_FILE, Bundle, open_bundle
from models.engines.openvino_engine import has_bf16
from models.engines.selection import choose_engine, usable_precisions
from models.errors import BundleError, ConfigError
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.command_line import assert_fails, run_maskserve

OPENVINO = EngineConfig("openvino", "cpu", "f32")
KILLED, FAILING = (EngineConfig("openvino", "cpu", name, f"broken:{name}") for name in ("killed", "failing"))


# Factories that fail. In a file of their own: a worker that imported this one would import torch.
BROKEN = """
import os, signal

def killed(folder, config, threads):
    os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory is short

def failing(folder, config, threads):
    calls = []
    def predict(image):
        print("output of a library")
        calls.append(image)
        if len(calls) > 1:
            raise MemoryError("3 of 2 GB")
        return image[:, :, 0]
    return predict
"""


@pytest.fixture
def broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module `broken`, in the current folder, beside a package `models` that must not be imported."""
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def run_bench(
    bundle: Path, source: Path | None = None, size: str | None = None, out: Path | None = None, width: int = 80
) -> tuple[bool, str]:
    """Whether any configuration could be measured, and the printed text."""
    console = Console(width=width)
    with console.capture() as captured:
        measured = bench.run_bench(bundle, source, size, rounds=1, threads=1, out=out, console=console)
    return measured, captured.get()


@pytest.fixture(scope="module")
def tiny_bench(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The printed text for the tiny bundle, and the folder of the written files."""
    out = tmp_path_factory.mktemp("out") / "new"
    measured, printed = run_bench(tiny_bundle, out=out)
    assert measured
    return printed, out


def test_every_usable_engine_and_precision_has_a_row(tiny_bench: tuple[str, Path], tiny_bundle: Path) -> None:
    printed, out = tiny_bench
    report, bundle = json.loads((out / "bench.json").read_text()), open_bundle(tiny_bundle)
    rows = {(row["engine"], row["precision"]): row for row in report["rows"] if "/" not in row["engine"]}
    expected = {
        (engine, precision)
        for engine in ("openvino", "onnxruntime", "torch")
        for precision in usable_precisions(bundle, engine, "cpu")
    }
    assert set(rows) == expected
    speeds = [row["ms"] for row in report["rows"]]
    assert speeds == sorted(speeds)
    for row in rows.values():
        assert not row["error"]
        assert row["ms"] > 0 and row["p95"] >= row["ms"] and row["first_prediction_s"] > 0
        assert row["memory_mb"] > 50 and row["agreement"] > 0.9
    assert rows["openvino", "f32"]["agreement"] == 1.0 and report["reference"] == "openvino f32"
    assert len({row["memory_mb"] for row in rows.values()}) > 1
    lines = [line.split()[:2] for line in printed.splitlines()]
    assert all(list(pair) in lines for pair in expected)


def test_the_choice_of_auto_is_marked_and_explained(tiny_bench: tuple[str, Path], tiny_bundle: Path) -> None:
    printed, out = tiny_bench
    choice, report = choose_engine(open_bundle(tiny_bundle)), json.loads((out / "bench.json").read_text())
    marked = [(row["engine"], row["precision"]) for row in report["rows"] if row["auto"]]
    assert marked == [(choice.engine_id, choice.precision)]
    assert [line.split()[:2] for line in printed.splitlines() if line.endswith("auto")] == [[*marked[0]]]
    assert f"auto chooses {choice.engine_id} {choice.precision} ({choice.reason})" in printed
    assert report["auto"]["reason"] == choice.reason


def test_the_report_names_machine_bundle_and_images(tiny_bench: tuple[str, Path], tiny_bundle: Path) -> None:
    printed, out = tiny_bench
    report, bundle = json.loads((out / "bench.json").read_text()), open_bundle(tiny_bundle)
    assert report["bundle"] == {"name": "tiny", "hash": bundle.hash, "input": bundle.spec.input.model_dump(mode="json")}
    assert {"cpu", "cores", "flags", "gpu", "load"} == set(report["machine"])
    assert report["images"] == ["160x120"] and (report["rounds"], report["threads"]) == (1, 1)
    assert "tiny, its probe at 160x120" in printed
    with Image.open(out / "bench.png") as plot:
        plot.load()
        assert plot.width == 900


def test_the_table_fits_eighty_columns(tiny_bench: tuple[str, Path]) -> None:
    table = tiny_bench[0][tiny_bench[0].index("engine") : tiny_bench[0].index("auto chooses")]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80
    assert "…" not in table


@pytest.mark.usefixtures("broken_module")
def test_a_failure_is_a_row_and_affects_no_other(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [KILLED, FAILING, OPENVINO, EngineConfig("openvino", "cpu", "int8")]
    monkeypatch.setattr(bench, "list_engine_configs", lambda bundle: (configs, {"torch": "torch is not installed."}))
    Image.fromarray(synthetic_image(40, 50)).save(tmp_path / "mine.png")
    measured, printed = run_bench(tiny_bundle, tmp_path / "mine.png", "70x60", out=tmp_path / "out")
    assert measured
    assert "tiny, mine.png at 70x60" in printed
    rows = json.loads((tmp_path / "out" / "bench.json").read_text())["rows"]
    assert [bool(row["error"]) for row in rows] == [False, True, True, True]
    assert "ended by SIGKILL; there may be too little memory" in rows[1]["error"]
    assert rows[2]["error"] == "There is not enough memory (3 of 2 GB)."
    assert "int8" in rows[3]["error"]
    assert "failed: openvino killed: Its process" in printed
    assert "unavailable: torch: torch is not installed." in printed
    assert re.search(r"openvino +f32 +[\d.]+", printed) and re.search(r"openvino +killed +- +-", printed)


@pytest.mark.usefixtures("broken_module")
def test_if_all_fail_bench_exits_with_1(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "list_engine_configs", lambda bundle: ([KILLED], {}))
    done = run_maskserve("bench", tiny_bundle, "--rounds", "1", cwd=tmp_path)
    assert done.returncode == 1 and "failed: openvino killed" in done.stdout


@pytest.mark.usefixtures("broken_module")
def test_an_interrupt_ends_every_worker(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bench_workers.BenchWorker] = []

    class RecordedWorker(bench_workers.BenchWorker):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    def interrupt(step: str, done: int, total: int) -> None:
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(bench_workers, "BenchWorker", RecordedWorker)
    with pytest.raises(KeyboardInterrupt):
        benchmark_engines(tiny_bundle, [FAILING, FAILING], [synthetic_image(64, 64)], 1, 1, interrupt)
    assert len(started) == 2
    assert all(worker.process.returncode is not None for worker in started)


def test_an_unavailable_engine_has_a_reason(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    checksums = {name: digest for name, digest in bundle.checksums.items() if name != WEIGHTS_FILE}
    configs, unavailable = bench.list_engine_configs(replace(bundle, checksums=checksums))
    assert "torch" not in {config.engine for config in configs}
    assert "weights.safetensors" in unavailable["torch"]


@pytest.mark.skipif(not has_bf16(), reason="this CPU has no bf16")
def test_a_precision_that_the_export_refused_has_a_reason(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    inexact = replace(bundle, spec=bundle.spec.model_copy(update={"parity": {"openvino": {"f32": 1.0, "bf16": 0.9}}}))
    configs, unavailable = bench.list_engine_configs(inexact)
    assert EngineConfig("openvino", "cpu", "bf16") not in configs
    assert "90.00%" in unavailable["openvino bf16"]


def test_bad_arguments_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected WIDTHxHEIGHT"):
        run_bench(tiny_bundle, size="640")
    for out in (tiny_bundle, tiny_bundle / "bench"):
        with pytest.raises(ConfigError, match="is in a bundle, whose files must not change"):
            run_bench(tiny_bundle, out=out)
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        run_bench(tiny_bundle, out=tmp_path / "file")
    with pytest.raises(ConfigError, match="is a folder; expected one image"):
        run_bench(tiny_bundle, tmp_path)
    with pytest.raises(BundleError, match="contains no probe images"):
        bench.load_images(Bundle(tmp_path, open_bundle(tiny_bundle).spec), None)
    assert_fails(run_maskserve("bench", tiny_bundle, "--size", "9", cwd=tmp_path), 2, "expected WIDTHxHEIGHT")
