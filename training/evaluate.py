"""Evaluate a bundle on a data set: `maskserve evaluate BUNDLE DATA`.

The bundle itself answers, through the Segmenter that the service calls, and its answers are compared with the masks
at the pictures' own size: the mIoU reported is the mIoU served. Pictures come and go one by one; what is kept of each is
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

from models.bundle import SUMS, Bundle, open_bundle
from models.errors import ConfigError, DataError
from models.imaging.decode import RGB, Labels
from models.inference.segmenter import Segmenter
from models.inference.tta import Augmentation
from models.spec import VOID
from training.data import Samples, load
from training.metrics.bootstrap import Tally, summary
from training.metrics.boundary_iou import boundary_margins
from training.metrics.confusion import Confusion
from training.reports.build import write_page
from training.reports.console import show
from training.reports.latency import measured
from training.run_folder import write_whole

METRICS, PAGE = "metrics.json", "report.html"
# Pictures are read and answers counted while another picture is segmented: by so many threads, so many pictures ahead.
WORKERS, AHEAD = 2, 3

Item = TypeVar("Item")


def evaluate(
    bundle: Path, data: Path, split: str = "test", out: Path | None = None, format: str = "auto", tta: str | None = None,
    engine: str = "auto", precision: str = "auto", device: str = "auto", console: Console | None = None,
    speed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure a bundle on a split; with `out`, leave `metrics.json` and `report.html` there.

    `tta` asks for test-time augmentation, as in `flip,0.75,1,1.25`; the service answers without it. `speed` has the
    report say how quick each engine is here, which takes some seconds.

    Returns: what stands in metrics.json: `miou` and other metrics (0..1, None where a class is absent), their 95%
    `intervals`, the counts `by_picture`, and what was measured.
    Raises: BundleError, DataError, EngineError; ConfigError for an `out` that cannot be.
    """
    console = console or Console()
    opened = open_bundle(bundle)
    check_out(out)
    samples = load(data, split, format)
    if not samples:
        raise DataError(f"{data}: the split {split} holds no picture with a mask; run `maskserve data lint {data}`.")
    same_classes(opened, samples, data)
    augmentation = Augmentation.parse(tta) if tta else None
    segmenter = Segmenter.load(opened, engine, precision, device, augmentation=augmentation)
    assert segmenter.choice is not None  # `load` made it
    console.print(f"running on {segmenter.choice.why}", highlight=False, markup=False, soft_wrap=True)
    matrix, tally = measure(segmenter, samples, console)
    metrics = {
        **summary(tally, samples.classes),
        "split": split,
        "pictures": len(samples),
        "without_mask": len(samples.unpaired),
        "void": matrix.void,
        "data": data.resolve().name,
        "tta": tta,
        "bundle": {"name": opened.spec.name, "hash": opened.hash, **asdict(segmenter.choice)},
        "by_picture": tally.rows(),
    }
    show(metrics, matrix, console)
    if out:
        write_metrics(metrics, out / METRICS)
        with console.status("drawing the report"):
            engines = (
                measured(opened, [samples.picture(index) for index in range(min(3, len(samples)))]) if speed else []
            )
            write_page(out / PAGE, metrics, opened, segmenter, samples, matrix, tally, engines)
        console.print(f"{out}: {METRICS}, {PAGE}", highlight=False, markup=False, soft_wrap=True)
    return metrics


def evaluation_folder(bundle: Path) -> Path:
    """Where an evaluation goes that was told no place: `evaluation` beside the run's `bundle`, `evaluation-NAME` beside
    one of another name, for such bundles may stand side by side."""
    bundle = bundle.resolve()
    return bundle.with_name("evaluation" if bundle.name == "bundle" else f"evaluation-{bundle.name}")


def check_out(out: Path | None) -> None:
    """Make `out`, before minutes of measuring. Raises: ConfigError where that cannot be."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder.")
    if any((folder / SUMS).exists() for folder in (out.resolve(), *out.resolve().parents)):
        raise ConfigError(f"--out {out} is in a bundle, and its files are sealed; choose another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made ({error.strerror}); name another folder by --out.") from error


def measure(segmenter: Segmenter, samples: Samples, console: Console) -> tuple[Confusion, Tally]:
    """Segment every picture; returns the confusion matrix of the split and the counts of each picture.

    Memory holds a few pictures at a time, whatever their number. Raises: DataError for a mask that does not fit.
    """
    classes, number = len(samples.classes), len(samples)
    total, tally = Confusion(classes), Tally(classes)
    with ThreadPoolExecutor(WORKERS) as pool:
        pairs = ahead(pool, (partial(read_pair, samples, index) for index in range(number)))
        # This thread segments, as `ahead` asks for the next picture to be counted.
        answered = (partial(count, truth, segmenter.segment(picture).labels, classes) for picture, truth in pairs)
        counted = track(
            ahead(pool, answered),
            "evaluating",
            number,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        for index, (single, edges) in enumerate(counted):
            total += single
            tally.add(samples.pairs[index].name, single.margins, edges)
    return total, tally


def ahead(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], Item]]) -> Iterator[Item]:
    """What each call returns, in order; a pool is at most AHEAD of them ahead, so that memory stays bounded."""
    waiting = deque[Future[Item]]()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def count(truth: Labels, answer: Labels, classes: int) -> tuple[Confusion, NDArray[np.int64]]:
    """The confusion matrix of one picture, and its boundary pixels by class, 3 x C; masks are uint8 H x W."""
    single = Confusion(classes)
    single.add(truth, answer)
    return single, boundary_margins(truth, answer, classes)


def read_pair(samples: Samples, index: int) -> tuple[RGB, Labels]:
    """A picture and its mask. Raises: DataError where one does not fit the other, or the classes."""
    picture, truth = samples.picture(index), samples.labels(index)
    mask = samples.pairs[index].mask
    if picture.shape[:2] != truth.shape:
        raise DataError(f"{mask} has not the size of its picture; run `maskserve data lint` on the data set.")
    strange = truth[(truth >= len(samples.classes)) & (truth != VOID)]
    if strange.size:
        raise DataError(f"{mask} holds the label {strange[0]}, which is no class; run `maskserve data lint`.")
    return picture, truth


def same_classes(bundle: Bundle, samples: Samples, data: Path) -> None:
    """Raises: DataError where the data set's classes are not the bundle's."""
    names, wanted = ([entry.name for entry in classes] for classes in (samples.classes, bundle.spec.classes))
    if names != wanted:
        raise DataError(f"{data} has the classes {', '.join(names)}; the bundle was trained on {', '.join(wanted)}.")


def write_metrics(metrics: dict[str, Any], file: Path) -> None:
    """As JSON, a picture a line."""
    rows = ",\n".join(f"    {json.dumps(row)}" for row in metrics["by_picture"])
    head = json.dumps({name: value for name, value in metrics.items() if name != "by_picture"}, indent=2)
    write_whole(file, f'{head[:-2]},\n  "by_picture": [\n{rows}\n  ]\n}}\n'.encode())
