"""ECG delineation on LUDB: `python -m benchmarks.ludb --data FOLDER [KEY=VALUE ...] --minutes 20 --seed 0`.

FOLDER holds the records of the Lobachevsky University Database (1.hea, 1.dat, 1.ii and so on, PhysioNet, ODC-By). The patients
whose number leaves 3 when divided by 5 are the test, those whose number leaves 2 when divided by 10 the validation; the others are
trained on. Trains with the plan, which KEY=VALUE overrides, exports, and evaluates on the validation patients: onsets and offsets
of P, QRS and T, lead by lead, within 150 ms. With --test on the test patients as well: only at the end. Adds a line to
benchmarks/results/ludb.jsonl, and prints the figures beside published ones, which are of other splits.

`--speed BUNDLE` measures instead, with the bundle that a training left: a record of 12 leads and 10 s in process (decode, segment,
answer), its FLOP and the fraction of the machine's peak in the engine's precision; and a record of 24 h, 2 leads of 250 Hz, with
the memory of its process. Writes benchmarks/results/ludb_speed.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import memory_mb
from benchmarks.training_run import benchmark_training, make_parser, split_by_number
from models.engines.host_info import host_info
from models.malloc import MALLOC_SETTINGS
from training.metrics.events import POINTS
from training.metrics.results import EvaluationMetrics

RESULTS = Path(__file__).parent / "results" / "ludb.jsonl"
SPEED_RESULTS = RESULTS.with_name("ludb_speed.json")
SPLITS = {"test": (5, 3), "val": (10, 2)}  # divisor of the patient's number, and the remainder
DAY_SECONDS, DAY_RATE, DAY_LEADS = 24 * 3600, 250, 2
MAX_RECORD_MS, MAX_DAY_SECONDS, MAX_DAY_MB = 15, 60, 500

# F1 in percent of P, QRS and T; and SD of the error in ms, onset and offset. On other splits of LUDB than this one.
PUBLISHED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "U-Net (Moskalenko et al. 2019, arXiv 2001.04689)": {
        "P": (96.5, 14.1, 15.7), "QRS": (99.9, 9.8, 9.8), "T": (99.2, 20.9, 22.9),
    },
    "U-Net (Joung et al. 2024, arXiv 2304.06237)": {"P": (97.2,), "QRS": (99.5,), "T": (99.7,)},
    "wavelets (Kalyakulina et al. 2020)": {"P": (97.4,), "QRS": (99.7,), "T": (None,)},
}  # fmt: skip


def write_split(data: Path, folder: Path) -> Path:
    """A data set of the records of `data` by the split above: a table that points to them. Returns its folder."""
    patients = sorted(int(file.stem) for file in data.glob("*.hea"))
    if not patients:
        sys.exit(f"{data} has no records; --data names the folder that holds 1.hea, 1.dat, 1.ii and so on.")
    folder.mkdir(parents=True)
    base = os.path.relpath(data.resolve(), folder.resolve())
    rows = [f"{base}/{patient},{split_by_number(patient, SPLITS)},{patient}" for patient in patients]
    (folder / "splits.csv").write_text("record,split,patient\n" + "\n".join(rows) + "\n")
    return folder


def event_figures(metrics: EvaluationMetrics) -> dict[str, Any]:
    """The figures of the events, by class and point."""
    assert metrics.events is not None  # of signals
    return {
        name: {point: each.model_dump(mode="json", exclude_none=True) for point, each in points.items()}
        for name, points in metrics.events.per_class.items()
    }


def report(split: str, metrics: EvaluationMetrics) -> dict[str, Any]:
    """Print the figures of a split, and return those to keep."""
    print_figures(split, metrics)
    return {
        "records": metrics.images,
        "patients": len({each.group for each in metrics.per_image}),
        "miou": metrics.miou,
        "event_f1": metrics.events and metrics.events.event_f1,
        "precision": metrics.bundle.precision,
        "events": event_figures(metrics),
    }


def print_figures(split: str, metrics: EvaluationMetrics) -> None:
    """The figures of each class beside the published ones."""
    assert metrics.events is not None  # of signals
    print(f"\n{split}: F1 in percent (onset, offset), SD of the error in ms (onset/offset), mean error, matched")
    for name, points in metrics.events.per_class.items():
        onset, offset = (points[point] for point in POINTS)
        if onset.f1 is None or offset.f1 is None:
            print(f"  {name:4} absent")
            continue
        print(
            f"  {name:4} {50 * (onset.f1 + offset.f1):6.2f} ({100 * onset.f1:.2f}, {100 * offset.f1:.2f})   SD {onset.sd_ms:.1f}/"
            f"{offset.sd_ms:.1f}   mean {onset.mean_ms:+.1f}/{offset.mean_ms:+.1f}   {onset.matched}/{offset.matched}"
        )
    for title, figures in PUBLISHED.items():
        shown = [
            f"{name} {f1 or '-'}" + (f" (SD {deviations[0]}/{deviations[1]})" if deviations else "")
            for name, (f1, *deviations) in figures.items()
        ]
        print(f"  {title}: {', '.join(shown)}")


def measure_speed(bundle: Path, record: Path) -> None:
    """Time a record of 12 leads in this process, and a day in another one. Writes SPEED_RESULTS."""
    from models.analysis.complexity import count_gflops
    from models.architectures import build
    from models.bundle import open_bundle
    from models.inference.segmenter import Segmenter
    from models.outputs.options import OutputOptions
    from models.outputs.pipelines import make_pipeline
    from models.readers import read_file

    opened = open_bundle(bundle)
    spec = opened.spec
    segmenter = Segmenter.load(opened)
    assert segmenter.choice is not None  # `load` made it
    pipeline = make_pipeline(segmenter, spec, "events", OutputOptions(), 10**8)
    data = read_file(record)
    steps: dict[str, list[float]] = {"decode": [], "segment": [], "answer": []}
    processor = []
    for _ in range(60):
        start, processor_start = time.perf_counter(), time.process_time()
        sample = pipeline.decode(data)
        decoded = time.perf_counter()
        prediction = pipeline.infer(sample)
        segmented = time.perf_counter()
        pipeline.encode(prediction)
        processor.append(1000 * (time.process_time() - processor_start))
        ends = (start, decoded, segmented, time.perf_counter())
        for name, first, last in zip(steps, ends[:-1], ends[1:], strict=True):
            steps[name].append(1000 * (last - first))
    milliseconds = {name: round(float(np.median(values[10:])), 2) for name, values in steps.items()}
    total = float(np.median(np.sum([values[10:] for values in steps.values()], axis=0)))

    network = build(spec.architecture.name, len(spec.classes), axes="T", **spec.architecture.options)
    length = round(len(sample.values) * (spec.input.rate or DAY_RATE) / (sample.rate or DAY_RATE))
    items = len(prediction.tracks)
    gflop = count_gflops(network, (length,)) * items
    peak = measure_peak(segmenter.choice.precision)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.ludb", "--day", str(bundle), str(write_day(Path(folder)))]
        day = json.loads(subprocess.check_output(command, env={**os.environ, **MALLOC_SETTINGS}))  # as a service has
    row = {
        "record": {
            "ms": round(total, 2), **milliseconds, "processor_ms": round(float(np.median(processor[10:])), 2),
            "target_ms": MAX_RECORD_MS, "engine": segmenter.choice.engine,
            "precision": segmenter.choice.precision, "gflop": round(gflop, 3), "peak_tflops": round(peak, 2),
            "fraction_of_peak": round(gflop / milliseconds["segment"] / peak, 4),
        },
        "day": {**day, "target_seconds": MAX_DAY_SECONDS, "target_mb": MAX_DAY_MB},
        "machine": host_info(),
    }  # fmt: skip
    SPEED_RESULTS.write_text(json.dumps(row, indent=2) + "\n")
    print(json.dumps(row, indent=2))


def measure_peak(precision: str) -> float:
    """TFLOP/s of a product of two matrices in this precision: what this machine reaches."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.randn(1024, 1024).to(dtype)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return 2 * len(matrix) ** 3 / float(np.median(seconds[2:])) / 1e12


def segment_day(bundle: Path, header: Path) -> None:
    """A WFDB record of 24 h, from its files to the events as JSON; print seconds and resident memory as JSON.

    In a process of its own. The bytes are let go once they are decoded, as in the service, whose decoder is another process.
    """
    from models.bundle import open_bundle
    from models.inference.segmenter import Segmenter
    from models.outputs.options import OutputOptions
    from models.outputs.pipelines import make_pipeline
    from models.readers import read_file

    opened = open_bundle(bundle)
    segmenter = Segmenter.load(opened)
    pipeline = make_pipeline(segmenter, opened.spec, "events", OutputOptions(), 10**8)
    steps: dict[str, dict[str, float]] = {}
    start, processor_start = time.perf_counter(), time.process_time()

    def mark(step: str) -> None:
        steps[step] = {
            "end_s": round(time.perf_counter() - start, 1),
            "mb": memory_mb("VmRSS"),
            "peak_mb": memory_mb("VmHWM"),
        }

    mark("load")
    data = read_file(header)
    mark("read")
    sample = pipeline.decode(data)
    del data
    mark("decode")
    prediction = pipeline.infer(sample)
    mark("segment")
    encoded = pipeline.encode(prediction).data
    mark("answer")
    assert encoded is not None  # the pipeline has a format
    print(
        json.dumps({
            "seconds": steps["answer"]["end_s"],
            "processor_seconds": round(time.process_time() - processor_start, 1),
            "peak_mb": steps["answer"]["peak_mb"],
            "steps": steps,
            "events": sum(len(track.columns.labels) for track in prediction.tracks),
            "json_mb": round(len(encoded) / 1e6),
        })
    )  # fmt: skip


def write_day(folder: Path) -> Path:
    """Write a WFDB record of 24 h in format 16: beats of 0.8 s, and noise. Returns: its header."""
    steps, period = DAY_SECONDS * DAY_RATE, round(0.8 * DAY_RATE)
    beat = (1000 * np.exp(-((np.arange(period) / DAY_RATE - 0.3) ** 2) / 0.0008)).astype(np.int16)
    values = np.random.default_rng(0).integers(-20, 20, (steps, DAY_LEADS), dtype=np.int16)
    values += np.resize(beat, steps)[:, None]
    (folder / "day.dat").write_bytes(values.tobytes())
    lines = "".join(f"day.dat 16 1000/mV 16 0 0 0 0 lead{lead + 1}\n" for lead in range(DAY_LEADS))
    header = folder / "day.hea"
    header.write_text(f"day {DAY_LEADS} {DAY_RATE} {steps}\n{lines}")
    return header


def main() -> None:
    parser = make_parser(__doc__, 20, "the records", "patients")
    parser.add_argument("--speed", type=Path, metavar="BUNDLE", help="measure the speed of a bundle instead")
    parser.add_argument("--day", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.day:
        segment_day(*arguments.day)
    elif arguments.data is None:
        parser.error("--data names the folder that holds 1.hea, 1.dat, 1.ii and so on")
    elif arguments.speed:
        measure_speed(arguments.speed, arguments.data / "1.hea")
    else:
        benchmark_training(arguments, RESULTS, write_split, report, export_options=["--no-int8"])


if __name__ == "__main__":
    main()
