"""`maskserve bench`: what it measures, what it says, and what it does with ways that fail."""

import json
import re
import subprocess
import sys
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

MASKSERVE = Path(sys.executable).with_name("maskserve")
OPENVINO = EngineConfig("openvino", "cpu", "f32")
KILLED, TIRING = (EngineConfig("openvino", "cpu", name, f"broken:{name}") for name in ("killed", "tiring"))


# Ways that fail. A file of their own, for a worker that imported this one would import torch.
BROKEN = """
import os, signal

def killed(folder, way, threads):
    os.kill(os.getpid(), signal.SIGKILL)  # as the system does for want of memory

def tiring(folder, way, threads):
    asked = []
    def ask(image):
        print("a library's chatter")
        asked.append(image)
        if len(asked) > 1:
            raise MemoryError("3 of 2 GB")
        return image[:, :, 0]
    return ask
"""


@pytest.fixture
def broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def run_bench(
    bundle: Path, source: Path | None = None, size: str | None = None, out: Path | None = None, width: int = 80
) -> tuple[bool, str]:
    """Whether anything could be measured, and what was printed."""
    console = Console(width=width)
    with console.capture() as captured:
        good = bench.run_bench(bundle, source, size, rounds=1, threads=1, out=out, console=console)
    return good, captured.get()


@pytest.fixture(scope="module")
def tiny_bench(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What is printed of the tiny bundle, and the folder of its files."""
    out = tmp_path_factory.mktemp("out") / "new"
    good, printed = run_bench(tiny_bundle, out=out)
    assert good
    return printed, out


def test_everything_offered_has_a_row(tiny_bench: tuple[str, Path], tiny_bundle: Path) -> None:
    printed, out = tiny_bench
    report, bundle = json.loads((out / "bench.json").read_text()), open_bundle(tiny_bundle)
    rows = {(row["engine"], row["precision"]): row for row in report["rows"] if "/" not in row["engine"]}
    wanted = {
        (engine, precision)
        for engine in ("openvino", "onnxruntime", "torch")
        for precision in usable_precisions(bundle, engine, "cpu")
    }
    assert set(rows) == wanted
    assert all(row["ms"] > 0 and row["p95"] >= row["ms"] and row["first_s"] > 0 for row in rows.values())
    assert all(row["memory_mb"] > 50 and row["equal"] > 0.9 and not row["error"] for row in rows.values())
    assert rows["openvino", "f32"]["equal"] == 1.0 and report["reference"] == "openvino f32"
    assert [row["memory_mb"] for row in rows.values()] != [rows["openvino", "f32"]["memory_mb"]] * len(rows)
    lines = [line.split()[:2] for line in printed.splitlines()]
    assert all(list(way) in lines for way in wanted)


def test_auto_is_marked_and_explained(tiny_bench: tuple[str, Path], tiny_bundle: Path) -> None:
    printed, out = tiny_bench
    choice, report = choose_engine(open_bundle(tiny_bundle)), json.loads((out / "bench.json").read_text())
    marked = [(row["engine"], row["precision"]) for row in report["rows"] if row["auto"]]
    assert marked == [(choice.engine_id, choice.precision)]
    assert [line.split()[:2] for line in printed.splitlines() if line.endswith("auto")] == [[*marked[0]]]
    assert f"auto takes {choice.engine_id} {choice.precision} ({choice.reason})" in printed
    assert report["auto"]["reason"] == choice.reason


def test_the_report_says_where_and_on_what(tiny_bench: tuple[str, Path], tiny_bundle: Path) -> None:
    printed, out = tiny_bench
    report, bundle = json.loads((out / "bench.json").read_text()), open_bundle(tiny_bundle)
    assert report["bundle"] == {"name": "tiny", "hash": bundle.hash, "input": bundle.spec.input.model_dump()}
    assert {"cpu", "cores", "flags", "gpu", "load"} == set(report["machine"])
    assert report["images"] == ["160x120"] and (report["rounds"], report["threads"]) == (1, 1)
    assert "tiny, its probe at 160x120" in printed
    with Image.open(out / "bench.png") as drawn:
        drawn.load()
        assert drawn.width == 900


def test_the_table_fits_eighty_columns(tiny_bench: tuple[str, Path]) -> None:
    table = tiny_bench[0][tiny_bench[0].index("engine") : tiny_bench[0].index("auto takes")]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80


@pytest.mark.usefixtures("broken_module")
def test_what_fails_is_a_row_and_spoils_no_other(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = [KILLED, TIRING, OPENVINO, EngineConfig("openvino", "cpu", "int8")]
    monkeypatch.setattr(bench, "list_engine_configs", lambda bundle: (ways, {"torch": "It is on holiday."}))
    good, printed = run_bench(tiny_bundle, out=tmp_path)
    assert good
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [bool(row["error"]) for row in rows] == [True, True, False, True]
    assert "ended by SIGKILL; the memory may be too small" in rows[0]["error"]
    assert rows[1]["error"] == "The memory is too small for it (3 of 2 GB)."
    assert "not int8" in rows[3]["error"]
    assert "failed: openvino killed: Its process" in printed
    assert "not here: torch: It is on holiday." in printed
    assert re.search(r"openvino +f32 +[\d.]+", printed) and re.search(r"openvino +killed +- +-", printed)


@pytest.mark.usefixtures("broken_module")
def test_nothing_that_works(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "list_engine_configs", lambda bundle: ([KILLED], {}))
    good, printed = run_bench(tiny_bundle)
    assert not good and "failed: openvino killed" in printed


def test_a_stop_ends_every_worker(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bench_workers.BenchWorker] = []

    class Known(bench_workers.BenchWorker):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    def stop(what: str, done: int, total: int) -> None:
        if what == "warming up":
            raise KeyboardInterrupt

    monkeypatch.setattr(bench_workers, "BenchWorker", Known)
    with pytest.raises(KeyboardInterrupt):
        benchmark_engines(tiny_bundle, [OPENVINO, OPENVINO], [synthetic_image(64, 64)], 1, 1, stop)
    assert len(started) == 2
    assert all(worker.process.returncode is not None for worker in started)


def test_what_is_not_here_says_why(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    without = replace(
        bundle, checksums={name: digest for name, digest in bundle.checksums.items() if name != WEIGHTS_FILE}
    )
    ways, absent = bench.list_engine_configs(without)
    assert "torch" not in {way.engine for way in ways}
    assert "holds no weights.safetensors" in absent["torch"]


@pytest.mark.skipif(not has_bf16(), reason="this CPU has no bf16")
def test_a_format_that_the_export_refused_says_why(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    far = replace(bundle, spec=bundle.spec.model_copy(update={"parity": {"openvino": {"f32": 1.0, "bf16": 0.9}}}))
    ways, absent = bench.list_engine_configs(far)
    assert EngineConfig("openvino", "cpu", "bf16") not in ways
    assert "90.00% of an image's labels" in absent["openvino bf16"]


def test_an_image_is_resized(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(synthetic_image(40, 50)).save(tmp_path / "mine.png")
    monkeypatch.setattr(bench, "list_engine_configs", lambda bundle: ([OPENVINO], {}))
    assert "tiny, mine.png at 70x60" in run_bench(tiny_bundle, tmp_path / "mine.png", "70x60")[1]


def test_what_is_wrong_is_one_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is no size"):
        run_bench(tiny_bundle, size="640")
    for out in (tiny_bundle, tiny_bundle / "bench"):
        with pytest.raises(ConfigError, match="is in a bundle, and its files are sealed"):
            run_bench(tiny_bundle, out=out)
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        run_bench(tiny_bundle, out=tmp_path / "file")
    with pytest.raises(ConfigError, match="is a folder; name one image"):
        run_bench(tiny_bundle, tmp_path)
    with pytest.raises(BundleError, match="holds no probe images"):
        bench.load_images(Bundle(tmp_path, open_bundle(tiny_bundle).spec), None)


def test_a_folder_with_models_of_its_own_does_no_harm(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the wrong room')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert benchmark_engines(tiny_bundle, [OPENVINO], [synthetic_image(64, 64)], 1, 1)[0].error == ""


def test_the_command_line(tiny_bundle: Path) -> None:
    done = subprocess.run([MASKSERVE, "bench", tiny_bundle, "--size", "9"], capture_output=True, text=True)
    assert done.returncode == 2 and "is no size" in done.stderr and "Traceback" not in done.stderr
    listed = subprocess.run([MASKSERVE, "bench", "--help"], capture_output=True, text=True).stdout
    assert all(option in listed for option in ("--size", "--rounds", "--threads", "--out"))
