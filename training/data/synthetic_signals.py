"""The *waves* data set, generated from a seed: signals to train on without downloading data.

Bumps, spikes and bursts of varying length and height follow each other in two leads, each with its own projection of them, over
a drifting baseline, mains hum and noise; steps of the baseline are no event. Records are WFDB, with an annotation file each, and
belong to patients, who differ in rate, height and noise.
"""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.readers.annotations import Interval, from_intervals, write_annotations
from models.spec import ClassInfo
from training.data.class_file import class_table
from training.data.tree import CLASS_FILE

Signal = NDArray[np.float64]

CLASSES = [
    ClassInfo(name="background", rgb=(70, 70, 70)),
    ClassInfo(name="bump", rgb=(90, 190, 90)),
    ClassInfo(name="spike", rgb=(230, 80, 70)),
    ClassInfo(name="burst", rgb=(70, 130, 230)),
]
RATE, SECONDS = 250, 20  # Hz; of a record
LEADS = ("front", "side")
SPLIT_COUNTS = {"train": 96, "val": 16, "test": 16}  # records, two of each patient
RECORDS_PER_PATIENT = 2
GAIN = 1000  # ADC units for a millivolt
DURATIONS = {1: (0.16, 0.30), 2: (0.06, 0.11), 3: (0.30, 0.60)}  # seconds, by label
MAINS = 50.0  # Hz


def generate_signals(
    target: Path, seed: int = 0, counts: dict[str, int] | None = None, seconds: float = SECONDS
) -> None:
    """Write the data set into an empty folder, in the layout of `formats/wfdb_records.py`; `counts`: records by split.

    Raises: DataError if the folder is not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is not empty; give a new folder, or delete its files first.")
    patient = 0
    for split_index, (split, count) in enumerate((counts or SPLIT_COUNTS).items()):
        (target / split).mkdir(parents=True)
        for index in range(count):
            patient += index % RECORDS_PER_PATIENT == 0
            values, intervals = generate_record((seed, split_index, index // RECORDS_PER_PATIENT), index, seconds)
            name = f"p{patient:03d}_{index % RECORDS_PER_PATIENT + 1}"
            write_record(target / split, name, values)
            (target / split / f"{name}.atr").write_bytes(write_annotations(from_intervals(intervals)))
    with (target / CLASS_FILE).open("w", newline="") as stream:
        csv.writer(stream).writerows(class_table(CLASSES))


def generate_record(
    patient: tuple[int, ...], index: int = 0, seconds: float = SECONDS
) -> tuple[NDArray[np.float32], list[Interval]]:
    """The values of a record in millivolts, float32 T x 2, and its events; `patient` seeds what a patient's records share."""
    traits, random = np.random.default_rng(patient), np.random.default_rng((*patient, index, 1))
    length = round(seconds * RATE)
    pause = traits.uniform(0.10, 0.45)  # seconds, on average, between two events
    heights = traits.uniform(0.7, 1.4, len(CLASSES))
    projection = traits.uniform(0.5, 1.2, (len(CLASSES), len(LEADS))) * traits.choice((-1, 1), (1, len(LEADS)))
    noise = traits.uniform(0.02, 0.08)
    values = np.zeros((length, len(LEADS)))
    intervals: list[Interval] = []
    position = random.uniform(0, pause)
    while True:
        label = int(random.integers(1, len(CLASSES)))
        duration = random.uniform(*DURATIONS[label])
        start, end = round(position * RATE), round((position + duration) * RATE)
        if end >= length:
            break
        wave = event_wave(label, end - start, random) * heights[label]
        values[start:end] += wave[:, None] * projection[label]
        intervals.append(Interval(start, end, CLASSES[label].name))
        position += duration + random.exponential(pause) + 0.06
    values += baseline(length, random)
    times = np.arange(length) / RATE
    values += random.uniform(0, 0.05) * np.sin(2 * np.pi * MAINS * times + random.uniform(0, 6.3))[:, None]
    values += random.normal(0, noise, values.shape)
    return values.astype(np.float32), intervals


def event_wave(label: int, length: int, random: np.random.Generator) -> Signal:
    """The shape of one event, T, at most 1 high: of a class, never the same twice."""
    x = (np.arange(length) + 0.5) / length
    if label == 1:  # a slow hill, whose top leans to one side
        top = random.uniform(0.35, 0.65)
        return np.asarray(np.sin(np.pi * np.interp(x, [0, top, 1], [0, 0.5, 1])) ** 0.7)
    if label == 2:  # a sharp peak between two valleys
        return np.interp(x, [0, 0.18, 0.5, 0.8, 1], [0, -random.uniform(0.1, 0.4), 1, -random.uniform(0.1, 0.5), 0])
    frequency = random.uniform(14, 22)  # a swing of this many hertz
    edge = np.minimum(1, 6 * np.minimum(x, 1 - x))
    return np.asarray(0.6 * edge * np.sin(2 * np.pi * frequency * np.arange(length) / RATE + random.uniform(0, 6.3)))


def baseline(length: int, random: np.random.Generator) -> Signal:
    """The drift of two leads, T x 2: breathing, and now and then a step that goes back slowly."""
    times = np.arange(length)[:, None] / RATE
    drift = random.uniform(0.05, 0.3, len(LEADS)) * np.sin(
        2 * np.pi * random.uniform(0.1, 0.4) * times + random.uniform(0, 6.3, len(LEADS))
    )
    for _ in range(random.integers(0, 3)):
        start = random.uniform(0, length / RATE)
        drift = drift + (times >= start) * random.uniform(-0.4, 0.4, len(LEADS)) * np.exp(
            -(np.maximum(times, start) - start) / 1.5
        )
    return np.asarray(drift)


def write_record(
    folder: Path, name: str, values: NDArray[np.float32], leads: tuple[str, ...] = LEADS, rate: float = RATE
) -> None:
    """Write a WFDB record of format 16: `name`.hea and .dat; values in millivolts, T x C."""
    samples = np.clip(np.rint(values * GAIN), -32767, 32767).astype("<i2")
    (folder / f"{name}.dat").write_bytes(samples.tobytes())
    sums = samples.sum(axis=0, dtype=np.int64).astype(np.int16)
    lines = [f"{name} {len(leads)} {rate:g} {len(values)}"]
    lines += [
        f"{name}.dat 16 {GAIN}(0)/mV 16 0 {samples[0, index]} {sums[index]} 0 {lead}"
        for index, lead in enumerate(leads)
    ]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
