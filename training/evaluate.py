"""Evaluate a bundle on a data set: `maskserve evaluate BUNDLE DATA`.

The bundle itself answers, through the Segmenter that the service calls, and its answers are compared with the masks
at the images' own size: the mIoU reported is the mIoU served. Images come and go one by one; what is kept of each is
six counts a class (`training/metrics/bootstrap.py`). Left behind are `metrics.json` and one page to look at, `report.html`.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from models.atomic_write import write_atomically
from models.bundle import CHECKSUM_FILE, Bundle, open_bundle
from models.errors import ConfigError, DataError
from models.imaging.decode import RGB, Labels
from models.inference.segmenter import Segmenter
from models.inference.tta import TTAOptions
from models.spec import IGNORE_INDEX
from training.data import SegmentationDataset, load_split
from training.metrics.bootstrap import PerImageCounts, compute_metrics
from training.metrics.boundary_iou import boundary_counts
from training.metrics.confusion import ConfusionMatrix
from training.reports.build import write_evaluation_report
from training.reports.console import print_metrics
from training.reports.latency import measure_latencies

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
# Images are read and answers counted while another image is segmented: by so many threads, so many images ahead.
NUM_THREADS, PREFETCH = 2, 3

T = TypeVar("T")


def evaluate(
    bundle: Path, data: Path, split: str = "test", out: Path | None = None, data_format: str = "auto", tta: str | None = None,
    engine: str = "auto", precision: str = "auto", device: str = "auto", console: Console | None = None,
    speed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure a bundle on a split; with `out`, leave `metrics.json` and `report.html` there.

    `tta` asks for test-time augmentation, as in `flip,0.75,1,1.25`; the service answers without it. `speed` has the
    report say how quick each engine is here, which takes some seconds.

    Returns: what stands in metrics.json: `miou` and other metrics (0..1, None where a class is absent), their 95%
    `intervals`, the counts `per_image`, and what was measured.
    Raises: BundleError, DataError, EngineError; ConfigError for an `out` that cannot be.
    """
    console = console or Console()
    opened = open_bundle(bundle)
    create_output_folder(out)
    samples = load_split(data, split, data_format)
    if not samples:
        raise DataError(f"{data}: the split {split} holds no image with a mask; run `maskserve data lint {data}`.")
    check_same_classes(opened, samples, data)
    augmentation = TTAOptions.parse(tta) if tta else None
    segmenter = Segmenter.load(opened, engine, precision, device, tta=augmentation)
    assert segmenter.choice is not None  # `load` made it
    console.print(f"running on {segmenter.choice.reason}", highlight=False, markup=False, soft_wrap=True)
    matrix, tally = evaluate_split(segmenter, samples, console)
    metrics = {
        **compute_metrics(tally, samples.classes),
        "split": split,
        "images": len(samples),
        "images_without_mask": len(samples.unmatched_images),
        "ignored_pixels": matrix.ignored_pixels,
        "data": data.resolve().name,
        "tta": tta,
        "bundle": {"name": opened.spec.name, "hash": opened.hash, **asdict(segmenter.choice)},
        "per_image": tally.to_rows(),
    }
    print_metrics(metrics, matrix, console)
    if out:
        write_metrics(metrics, out / METRICS_FILE)
        with console.status("drawing the report"):
            engines = (
                measure_latencies(opened, [samples.image(index) for index in range(min(3, len(samples)))])
                if speed
                else []
            )
            write_evaluation_report(out / REPORT_FILE, metrics, opened, segmenter, samples, matrix, tally, engines)
        console.print(f"{out}: {METRICS_FILE}, {REPORT_FILE}", highlight=False, markup=False, soft_wrap=True)
    return metrics


def evaluation_folder(bundle: Path) -> Path:
    """Where an evaluation goes that was told no place: `evaluation` beside the run's `bundle`, `evaluation-NAME` beside
    one of another name, for such bundles may stand side by side."""
    bundle = bundle.resolve()
    return bundle.with_name("evaluation" if bundle.name == "bundle" else f"evaluation-{bundle.name}")


def create_output_folder(out: Path | None) -> None:
    """Make `out`, before minutes of measuring. Raises: ConfigError where that cannot be."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder.")
    if any((folder / CHECKSUM_FILE).exists() for folder in (out.resolve(), *out.resolve().parents)):
        raise ConfigError(f"--out {out} is in a bundle, and its files are sealed; choose another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made ({error.strerror}); name another folder by --out.") from error


def evaluate_split(
    segmenter: Segmenter, samples: SegmentationDataset, console: Console
) -> tuple[ConfusionMatrix, PerImageCounts]:
    """Segment every image; returns the confusion matrix of the split and the counts of each image.

    Memory holds a few images at a time, whatever their number. Raises: DataError for a mask that does not fit.
    """
    classes, number = len(samples.classes), len(samples)
    total, tally = ConfusionMatrix(classes), PerImageCounts(classes)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        pairs = prefetch(pool, (partial(read_pair, samples, index) for index in range(number)))
        # This thread segments, as `ahead` asks for the next image to be counted.
        answered = (partial(count_pixels, truth, segmenter.segment(image).labels, classes) for image, truth in pairs)
        counted = track(
            prefetch(pool, answered),
            "evaluating",
            number,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        for index, (single, edges) in enumerate(counted):
            total += single
            tally.add(samples.pairs[index].name, single.class_counts, edges)
    return total, tally


def prefetch(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each call returns, in order; a pool is at most AHEAD of them ahead, so that memory stays bounded."""
    waiting = deque[Future[T]]()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > PREFETCH:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def count_pixels(truth: Labels, answer: Labels, classes: int) -> tuple[ConfusionMatrix, NDArray[np.int64]]:
    """The confusion matrix of one image, and its boundary pixels by class, 3 x C; masks are uint8 H x W."""
    single = ConfusionMatrix(classes)
    single.add(truth, answer)
    return single, boundary_counts(truth, answer, classes)


def read_pair(samples: SegmentationDataset, index: int) -> tuple[RGB, Labels]:
    """An image and its mask. Raises: DataError where one does not fit the other, or the classes."""
    image, truth = samples.image(index), samples.labels(index)
    mask = samples.pairs[index].mask
    if image.shape[:2] != truth.shape:
        raise DataError(f"{mask} has not the size of its image; run `maskserve data lint` on the data set.")
    strange = truth[(truth >= len(samples.classes)) & (truth != IGNORE_INDEX)]
    if strange.size:
        raise DataError(f"{mask} holds the label {strange[0]}, which is no class; run `maskserve data lint`.")
    return image, truth


def check_same_classes(bundle: Bundle, samples: SegmentationDataset, data: Path) -> None:
    """Raises: DataError where the data set's classes are not the bundle's."""
    names, wanted = ([entry.name for entry in classes] for classes in (samples.classes, bundle.spec.classes))
    if names != wanted:
        raise DataError(f"{data} has the classes {', '.join(names)}; the bundle was trained on {', '.join(wanted)}.")


def write_metrics(metrics: dict[str, Any], file: Path) -> None:
    """As JSON, an image a line."""
    rows = ",\n".join(f"    {json.dumps(row)}" for row in metrics["per_image"])
    head = json.dumps({name: value for name, value in metrics.items() if name != "per_image"}, indent=2)
    write_atomically(file, f'{head[:-2]},\n  "per_image": [\n{rows}\n  ]\n}}\n'.encode())
