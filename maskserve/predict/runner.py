"""A run: find the images, skip the finished ones, segment the others on threads, and keep the manifest."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from threading import Event

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
from maskserve.predict.config import PARQUET, RAY_ADDRESS_PATTERN, PredictConfig, require_package
from maskserve.predict.image_task import ImageTask, mask_name, open_output
from maskserve.predict.inputs import InputImage, find_images
from maskserve.predict.manifest import MANIFEST, ManifestRow, ManifestState, open_manifest
from maskserve.predict.outputs import STAGING_FOLDER, FolderStore, OutputStore
from maskserve.predict.unread import UnreadFiles
from models.bundle import open_bundle
from models.console import Console
from models.errors import ConfigError, DataError, RunError, escape_line, quoted
from models.inference.segmenter import check_supports_windows
from models.outputs.select import class_indices

MAX_NAME_BYTES = 255  # of a file name, on nearly every file system
MAX_PRINTED_ERRORS = 20  # the manifest has all errors
LOG_INTERVAL_SECONDS = 60.0  # between progress lines if the console is not a terminal


def run(
    config: PredictConfig,
    sources: list[str],
    console: Console,
    retry_errors: bool = False,
    ray: str = "",
    actors: int = 0,
) -> bool:
    """Segment the images of the sources that are not in the output's manifest yet. Prints the progress to `console`.

    `ray`: the address of a Ray cluster that does the work, with `actors` actors (0: one per core or GPU).
    Returns: whether every image has a mask; the manifest has the reason for those that have none.
    Raises: ConfigError, BundleError, EngineError; DataError for a missing source or two images of one name; RunError for an
    error that stops the whole run, which the same call resumes later.
    """
    check_packages(config, ray)
    if ray and not RAY_ADDRESS_PATTERN.fullmatch(ray):
        raise ConfigError(f"--ray is {quoted(ray)}; expected local, auto, HOST:PORT or ray://HOST:PORT.")
    if actors and not ray:
        raise ConfigError("--actors is the number of Ray actors: add --ray.")
    output = open_output(config)
    excluded = str(output.path) if isinstance(output, FolderStore) else output.url
    config, model = resolve_model(config)
    unread = UnreadFiles(config.axes)
    images = list(find_images(sources, excluded, unread, config.axes))
    check_mask_names(images, config)
    header = config.manifest_header(model)
    manifest = open_manifest(output, header, {image.path for image in images} if retry_errors else set())
    complete = False
    try:
        state = manifest.state
        earlier, earlier_failed = len(state.paths), state.failed_count
        todo = remaining_images(images, state, config, output)
        with ProgressReport(console, len(todo)) as report, report_interrupt(report):
            for message in unread.messages():
                report.print_line(message)

            def save_row(row: ManifestRow) -> None:
                manifest.append(row)
                if row.mask:
                    output.publish(row.mask)
                report.add_row(row)

            if todo:
                _segment_images(config, todo, save_row, report, ray, actors)
        complete = True
    finally:
        manifest.close(complete)
    done = earlier - earlier_failed + report.done - report.failed
    note = f", {earlier - earlier_failed} of them by earlier runs" if earlier else ""
    report.print_line(f"{config.output}: {done} of {earlier + report.done} {config.noun} segmented{note}")
    if earlier_failed:
        report.print_line(f"{earlier_failed} failed in earlier runs: --retry-errors retries them")
    return earlier_failed + report.failed == 0


def _segment_images(
    config: PredictConfig,
    images: list[InputImage],
    save_row: Callable[[ManifestRow], None],
    report: "ProgressReport",
    ray: str,
    actors: int,
) -> None:
    """Segment the images in this process, or on Ray. Raises: RunError."""
    if ray:
        from maskserve.predict.ray_runner import run_on_ray

        run_on_ray(config, images, save_row, ray, actors)
        return
    task = ImageTask(config, any(image.root.is_remote for image in images), single=len(images) == 1)
    report.print_line(f"running on {task.backend.description}")
    with closing(task.backend):
        run_on_threads(task, images, save_row, task.threads, task.stop_event)


@contextmanager
def report_interrupt(report: "ProgressReport") -> Iterator[None]:
    """On Ctrl-C, print how many images are done."""
    try:
        yield
    except KeyboardInterrupt:
        report.print_line(f"Stopped after {report.done:,} of {report.total:,} images; the same command resumes.")
        raise


def check_packages(config: PredictConfig, ray: str) -> None:
    """Check that the packages of the requested features are installed. Raises: ConfigError."""
    if config.format == PARQUET or "://" in config.output:
        require_package("pyarrow", "batch", "Parquet")
    if config.reads_windows:
        require_package("rasterio", "geo", "GeoTIFF")
    if ray:
        require_package("ray", "batch", "Ray")


def resolve_model(config: PredictConfig) -> tuple[PredictConfig, str]:
    """The configuration with the axes of the model, and its name and hash, without loading an engine.

    Raises: BundleError, ClientError; ConfigError for options that the model does not have.
    """
    if config.uses_service:
        with make_client(config) as client:
            entry = find_served_model(client, config)
        spec, axes, model = entry.class_spec, entry.spec.input.axes, f"{entry.name}@{entry.hash}"
    else:
        bundle = open_bundle(Path(config.model))
        spec, axes, model = bundle.spec, bundle.spec.input.axes, f"{bundle.spec.name}@{bundle.hash}"
    config = replace(config, axes=axes)
    _ = config.output_format  # raises an error for a format that such models do not have
    if config.reads_windows and not config.uses_service:
        check_supports_windows(spec.input)
    class_indices(config.options.classes, spec)
    return config, model


def check_mask_names(images: list[InputImage], config: PredictConfig) -> None:
    """Check that each image's mask gets a file of its own. Raises: DataError."""
    owners: dict[str, InputImage] = {}
    for image in images:
        mask = mask_name(image, config)
        if mask is None:
            continue
        first = owners.setdefault(mask, image)
        if first.path != image.path:
            raise DataError(
                f"The masks of {first.path} and {image.path} would both be {mask}; segment them into two folders."
            )
        reserved = mask.partition("/")[0] in (STAGING_FOLDER, MANIFEST)
        if reserved or len(os.fsencode(mask.rpartition("/")[2])) > MAX_NAME_BYTES:
            reason = "a reserved name" if reserved else f"a name of more than {MAX_NAME_BYTES} bytes"
            raise DataError(f"The mask of {image.path} would be {mask}, {reason}; rename the image.")
    for mask, image in owners.items():
        for parent in map(str, PurePosixPath(mask).parents):
            if parent in owners:
                raise DataError(
                    f"The mask of {owners[parent].path} would be {parent}, and that of {image.path} {mask} below it; "
                    "segment them into two folders."
                )


def remaining_images(
    images: list[InputImage], state: ManifestState, config: PredictConfig, output: OutputStore
) -> list[InputImage]:
    """The images that have no row yet, without duplicates. Raises: RunError if a mask would replace another file."""
    todo = {image.path: image for image in images if image.path not in state.paths}
    for image in todo.values():
        mask = mask_name(image, config)
        if mask in state.masks:
            raise RunError(
                f"The mask of {image.path} would be {mask}, which is another image's; segment it into another folder."
            )
        if mask and isinstance(output, FolderStore) and os.path.lexists(output.path / mask):
            raise RunError(
                f"{output.path / mask} exists and is not in the manifest, so it will not be overwritten. Choose another "
                "--out, or delete the file if a power failure lost its row."
            )
    return list(todo.values())


def run_on_threads(
    process: Callable[[InputImage], ManifestRow],
    images: Iterable[InputImage],
    save_row: Callable[[ManifestRow], None],
    threads: int,
    stop_event: Event,
) -> None:
    """Process images on threads. Each takes one image after the other, from its bytes to its row, so that some decode and
    encode while others wait for the engine or a disk, and at most one image per thread is held.

    Raises: the first error of `process` or `save_row`, after it has set `stop_event` and every thread has ended.
    """
    lock, remaining = threading.Lock(), iter(images)

    def next_images() -> Iterator[InputImage]:
        while not stop_event.is_set():
            with lock:
                image = next(remaining, None)
            if image is None:
                return
            yield image

    def loop() -> None:
        for image in next_images():
            save_row(process(image))

    with ThreadPoolExecutor(threads, thread_name_prefix="image") as pool:
        running = [pool.submit(loop) for _ in range(threads)]
        try:
            for future in as_completed(running):
                future.result()
        finally:
            stop_event.set()


class RateColumn(ProgressColumn):
    """Recent images per second."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before the first image."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class ProgressReport:
    """Prints the first errors and the progress: on a terminal a bar with rate and remaining time, in a log a line per minute."""

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

    def print_line(self, text: str) -> None:
        """Print a line."""
        self.console.print(escape_line(text), highlight=False, markup=False, soft_wrap=True)

    def add_row(self, row: ManifestRow) -> None:
        """Count a row and print its error. May be called from any thread."""
        with self.lock:
            self.done += 1
            self.failed += row.error is not None
            failed, done, now = self.failed, self.done, time.monotonic()
            due = not self.console.is_terminal and now - self.last_logged > LOG_INTERVAL_SECONDS
            self.last_logged = now if due else self.last_logged
        self.progress.advance(self.task)
        if row.error is not None and failed <= MAX_PRINTED_ERRORS:
            self.console.print(f"[red]error:[/] {escape(escape_line(row.error))}", highlight=False, soft_wrap=True)
            if failed == MAX_PRINTED_ERRORS:
                self.print_line("further errors are only in the manifest")
        if due:
            self.print_line(f"{done:,} of {self.total:,} images, {done / (now - self.started):.1f}/s")
