"""The run: find the images, leave out those that are done, label the rest on threads, and keep the manifest."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from threading import Event

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from maskserve.predict.backends import find_served_model, make_client
from maskserve.predict.config import GEOTIFF, PARQUET, RAY_ADDRESS_PATTERN, PredictConfig, require_package
from maskserve.predict.image_task import ImageTask, mask_name, open_output
from maskserve.predict.inputs import InputImage, find_images
from maskserve.predict.manifest import MANIFEST, ManifestRow, ManifestState, open_manifest
from maskserve.predict.outputs import STAGING_FOLDER, FolderStore, OutputStore
from models.bundle import open_bundle
from models.errors import ConfigError, DataError, RunError
from models.inference.segmenter import check_supports_windows
from models.outputs.select import class_indices
from models.spec import BundleSpec

MAX_NAME_BYTES = 255  # of a file's name, nearly everywhere
MAX_PRINTED_ERRORS = 20  # errors that are printed; the manifest has them all
LOG_INTERVAL_SECONDS = 60.0  # from line to line where no terminal shows a bar


def run(
    job: PredictConfig, sources: list[str], console: Console, retry_errors: bool = False, ray: str = "", actors: int = 0
) -> bool:
    """Label what the sources name and is not in the target's manifest yet; `console` gets the progress.

    With `ray` the work is done by so many actors (0: as many as there are cores) of the cluster at that address.
    Returns: whether every image has its mask; those that have not stand in the manifest with the reason.
    Raises: ConfigError, BundleError, EngineError; DataError for a source that is not there or two images of one name;
    RunError for what stops the whole run. Asked for again, it goes on from there.
    """
    check_packages(job, ray)
    if ray and not RAY_ADDRESS_PATTERN.fullmatch(ray):
        raise ConfigError(f"Ray's address is {ray!r}; wanted is local, auto, HOST:PORT or ray://HOST:PORT.")
    if actors and not ray:
        raise ConfigError("--actors is how many of Ray's there are: it goes with --ray.")
    target = open_output(job)
    images = list(find_images(sources, str(target.path) if isinstance(target, FolderStore) else target.url))
    check_mask_names(images, job)
    sealed = job.manifest_header(resolve_model(job))
    manifest = open_manifest(target, sealed, {image.path for image in images} if retry_errors else set())
    complete = False
    try:
        known = manifest.state
        before, failed = len(known.paths), known.failed_count
        todo = remaining_images(images, known, job, target)
        with ProgressReport(console, len(todo)) as report, report_interrupt(report):

            def took(row: ManifestRow) -> None:
                manifest.append(row)
                if row.mask:
                    target.publish(row.mask)
                report.add_row(row)

            if todo and ray:
                from maskserve.predict.ray_runner import run_on_ray

                run_on_ray(job, todo, took, ray, actors)
            elif todo:
                work = ImageTask(job, any(image.root.is_remote for image in todo), single=len(todo) == 1)
                report.print_line(f"running on {work.backend.description}")
                with closing(work.backend):
                    run_on_threads(work, todo, took, work.threads, work.stop_event)
        complete = True
    finally:
        manifest.close(complete)
    done = before - failed + report.done - report.failed
    earlier = f", {before - failed} of them before" if before else ""
    report.print_line(f"{job.output}: {done} of {before + report.done} images segmented{earlier}")
    if failed:
        report.print_line(f"{failed} could not be labelled before: --retry-errors tries them again")
    return failed + report.failed == 0


@contextmanager
def report_interrupt(report: "ProgressReport") -> Iterator[None]:
    """Say on Ctrl-C how far it came."""
    try:
        yield
    except KeyboardInterrupt:
        report.print_line(
            f"Stopped after {report.done:,} of {report.total:,} images; the same command goes on from there."
        )
        raise


def check_packages(job: PredictConfig, ray: str) -> None:
    """Raises: ConfigError for a package that is asked for and not here."""
    if job.format == PARQUET or "://" in job.output:
        require_package("pyarrow", "batch", "Parquet")
    if job.format == GEOTIFF:
        require_package("rasterio", "geo", "GeoTIFF")
    if ray:
        require_package("ray", "batch", "Ray")


def resolve_model(job: PredictConfig) -> str:
    """Name and hash of what will label; that it can is for later. Raises: BundleError, ConfigError, ClientError."""
    if job.uses_service:
        with make_client(job) as client:
            entry = find_served_model(client, job)
        class_indices(job.options.classes, BundleSpec.model_validate(entry["spec"]))
        return f"{entry['name']}@{entry['hash']}"
    bundle = open_bundle(Path(job.model))
    if job.format == GEOTIFF:
        check_supports_windows(bundle.spec.input)
    class_indices(job.options.classes, bundle.spec)
    return f"{bundle.spec.name}@{bundle.hash}"


def check_mask_names(images: list[InputImage], job: PredictConfig) -> None:
    """Raises: DataError for two images whose masks would be one file, or for a mask that cannot be at its place."""
    taken: dict[str, InputImage] = {}
    for image in images:
        mask = mask_name(image, job)
        if mask is None:
            continue
        first = taken.setdefault(mask, image)
        if first.path != image.path:
            raise DataError(f"{first.path} and {image.path} would both become {mask}; segment them into two folders.")
        if (
            mask.partition("/")[0] in (STAGING_FOLDER, MANIFEST)
            or len(os.fsencode(mask.rpartition("/")[2])) > MAX_NAME_BYTES
        ):
            raise DataError(f"{image.path} would become {mask}, which cannot be: the name is kept or too long.")
    for mask, image in taken.items():
        for above in map(str, PurePosixPath(mask).parents):
            if above in taken:
                raise DataError(f"{taken[above].path} would become {above}, and {image.path} {mask} below it.")


def remaining_images(
    images: list[InputImage], known: ManifestState, job: PredictConfig, target: OutputStore
) -> list[InputImage]:
    """The images that have no row yet, each once. Raises: RunError where a mask's place is taken by something else."""
    todo = {image.path: image for image in images if image.path not in known.paths}
    for image in todo.values():
        mask = mask_name(image, job)
        if mask in known.masks:
            raise RunError(
                f"{image.path} would become {mask}, which is another image's; segment it into another folder."
            )
        if mask and isinstance(target, FolderStore) and os.path.lexists(target.path / mask):
            raise RunError(
                f"{target.path / mask} is not of this run and will not be overwritten. Choose another --out, "
                "or remove it, where a power cut has taken its row."
            )
    return list(todo.values())


def run_on_threads(
    work: Callable[[InputImage], ManifestRow],
    images: Iterable[InputImage],
    took: Callable[[ManifestRow], None],
    threads: int,
    stopped: Event,
) -> None:
    """Each thread takes image after image from its bytes to its row: while one waits for the engine or a disk,
    others decode and encode, and no more images are held than there are threads.

    Raises: what `work` or `took` raised first, once `stopped` is set and every thread has ended what it was at.
    """
    turn, left = threading.Lock(), iter(images)

    def following() -> Iterator[InputImage]:
        while not stopped.is_set():
            with turn:
                image = next(left, None)
            if image is None:
                return
            yield image

    def loop() -> None:
        for image in following():
            took(work(image))

    with ThreadPoolExecutor(threads, thread_name_prefix="image") as pool:
        running = [pool.submit(loop) for _ in range(threads)]
        try:
            for one in as_completed(running):
                one.result()
        finally:
            stopped.set()


class RateColumn(ProgressColumn):
    """Images a second, of late."""

    def render(self, task: Task) -> Text:
        """As it is drawn."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class ProgressReport:
    """What a person sees of the run: a bar with the rate and what is left, or a line a minute in a log; the first errors."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.done, self.failed = console, total, 0, 0
        self.started = self.last_logged = time.monotonic()
        self.lock = threading.Lock()
        self.progress = Progress(
            TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.task: TaskID = self.progress.add_task("", total=total)

    def __enter__(self) -> "ProgressReport":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def print_line(self, sentence: str) -> None:
        """Print a line."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def add_row(self, row: ManifestRow) -> None:
        """Count a row; print its error. From any thread."""
        with self.lock:
            self.done += 1
            self.failed += row.error is not None
            failed, done, now = self.failed, self.done, time.monotonic()
            due = not self.console.is_terminal and now - self.last_logged > LOG_INTERVAL_SECONDS
            self.last_logged = now if due else self.last_logged
        self.progress.advance(self.task)
        if row.error is not None and failed <= MAX_PRINTED_ERRORS:
            self.console.print(f"[red]error:[/] {escape(row.error)}", highlight=False, soft_wrap=True)
            if failed == MAX_PRINTED_ERRORS:
                self.print_line("more errors stand in the manifest alone")
        if due:
            self.print_line(f"{done:,} of {self.total:,} images, {done / (now - self.started):.1f}/s")
