"""Evolution: the first layer from random to edge detectors, with loss, mIoU and orientation selectivity by step."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.explain.colors import enlarge, tile_images
from models.explain.facts import Facts, Finding
from models.imaging.decode import RGB
from training.engine.kernel_snapshots import Kernels, read_snapshots
from training.explain.kernels import kernel_image, orientation_selectivity
from training.reports.line_chart import parse_cell, read_rows
from training.run_folder import KERNELS_FILE, METRICS_CSV

TITLE = "Evolution"
MAX_FRAMES, COLUMNS = 48, 16  # on the page; kernels in a row
GIF_MILLISECONDS = 250  # per frame; the last one stays longer


def compute(run: Path) -> Facts:
    """A row per snapshot, its image, and all of them as a GIF."""
    snapshots = read_snapshots(run / KERNELS_FILE)
    steps = list(snapshots)
    if len(steps) > MAX_FRAMES:
        steps = [steps[index] for index in np.unique(np.linspace(0, len(steps) - 1, MAX_FRAMES).astype(int))]
    curves = [
        {"step": parse_cell(row, "step"), "loss": parse_cell(row, "loss"), "miou": parse_cell(row, "miou")}
        for row in read_rows(run / METRICS_CSV)
    ]
    first = snapshots[steps[0]].astype(np.float32)
    rows: list[dict[str, Any]] = []
    for step in steps:
        kernels = snapshots[step].astype(np.float32)
        rows.append(
            {
                "step": step,
                "selectivity": round(orientation_selectivity(torch.from_numpy(kernels)), 4),
                "moved": round(float(np.linalg.norm(kernels - first)) / max(float(np.linalg.norm(first)), 1e-12), 4),
                **nearest_metrics(curves, step),
            }
        )
    frames = [sheet(snapshots[step]) for step in steps]
    images = {f"{index:03d}": frame for index, frame in enumerate(frames)}
    numbers = {
        "snapshots": rows,
        "kernels": list(first.shape),
        "rise": rows[-1]["selectivity"] - rows[0]["selectivity"],
    }
    return Facts(numbers, images, files={"evolution.gif": gif(frames)})


def nearest_metrics(curves: list[dict[str, float]], step: int) -> dict[str, float | None]:
    """Loss and mIoU of the last validation at or before a step; None before the first."""
    done = [row for row in curves if row["step"] <= step]
    names = ("loss", "miou")
    return {name: round(done[-1][name], 5) if done and np.isfinite(done[-1][name]) else None for name in names}


def sheet(kernels: Kernels) -> RGB:
    """All kernels O x C x k x l of a snapshot as one image, a pixel per weight."""
    return tile_images([kernel_image(kernel) for kernel in kernels.astype(np.float32)], COLUMNS, gap=1)


def gif(frames: list[RGB]) -> bytes:
    """An animation that repeats."""
    factor = max(1, 480 // max(frames[0].shape[:2]))
    images = [Image.fromarray(enlarge(frame, factor)) for frame in frames]
    memory = io.BytesIO()
    durations = [GIF_MILLISECONDS] * (len(images) - 1) + [6 * GIF_MILLISECONDS]
    images[0].save(memory, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return memory.getvalue()


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """None: a first layer without orientations can be healthy, as with pretrained or depthwise kernels."""
    return []
