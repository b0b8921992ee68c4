"""The run: find the pictures, leave out those that are done, label the rest on threads, and keep the manifest."""

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

from maskserve.predict.backends import client_of, served_model
from maskserve.predict.config import GEOTIFF, PARQUET, RAY_ADDRESS, Job, check_extra
from maskserve.predict.image_task import Work, mask_of, target_of
from maskserve.predict.inputs import Picture, find
from maskserve.predict.manifest import MANIFEST, Known, Row, open_manifest
from maskserve.predict.outputs import UNFINISHED, Folder, Target
from models.bundle import open_bundle
from models.errors import ConfigError, DataError, RunError
from models.inference.segmenter import check_windows
from models.outputs.select import named
from models.spec import Spec

NAME_BYTES = 255  # of a file's name, nearly everywhere
SHOWN = 20  # errors that are printed; the manifest has them all
LINE_SECONDS = 60.0  # from line to line where no terminal shows a bar


def run(
    job: Job, sources: list[str], console: Console, retry_errors: bool = False, ray: str = "", actors: int = 0
) -> bool:
    """Label what the sources name and is not in the target's manifest yet; `console` gets the progress.

    With `ray` the work is done by so many actors (0: as many as there are cores) of the cluster at that address.
    Returns: whether every picture has its mask; those that have not stand in the manifest with the reason.
    Raises: ConfigError, BundleError, EngineError; DataError for a source that is not there or two pictures of one name;
    RunError for what stops the whole run. Asked for again, it goes on from there.
    """
    check_extras(job, ray)
    if ray and not RAY_ADDRESS.fullmatch(ray):
        raise ConfigError(f"Ray's address is {ray!r}; wanted is local, auto, HOST:PORT or ray://HOST:PORT.")
    if actors and not ray:
        raise ConfigError("--actors is how many of Ray's there are: it goes with --ray.")
    target = target_of(job)
    pictures = list(find(sources, str(target.path) if isinstance(target, Folder) else target.url))
    check_names(pictures, job)
    sealed = job.sealed(model_of(job))
    manifest = open_manifest(target, sealed, {picture.path for picture in pictures} if retry_errors else set())
    complete = False
    try:
        known = manifest.known
        before, failed = len(known.done), known.failed
        todo = remaining(pictures, known, job, target)
        with Report(console, len(todo)) as report, stop_told(report):

            def took(row: Row) -> None:
                manifest.append(row)
                if row.mask:
                    target.publish(row.mask)
                report.add(row)

            if todo and ray:
                from maskserve.predict.ray_runner import on_ray

                on_ray(job, todo, took, ray, actors)
            elif todo:
                work = Work(job, any(picture.root.remote for picture in todo), single=len(todo) == 1)
                report.say(f"running on {work.labeller.why}")
                with closing(work.labeller):
                    on_threads(work, todo, took, work.threads, work.stopped)
        complete = True
    finally:
        manifest.close(complete)
    done = before - failed + report.done - report.failed
    earlier = f", {before - failed} of them before" if before else ""
    report.say(f"{job.target}: {done} of {before + report.done} pictures segmented{earlier}")
    if failed:
        report.say(f"{failed} could not be labelled before: --retry-errors tries them again")
    return failed + report.failed == 0


@contextmanager
def stop_told(report: "Report") -> Iterator[None]:
    """Say on Ctrl-C how far it came."""
    try:
        yield
    except KeyboardInterrupt:
        report.say(f"Stopped after {report.done:,} of {report.total:,} pictures; the same command goes on from there.")
        raise


def check_extras(job: Job, ray: str) -> None:
    """Raises: ConfigError for a package that is asked for and not here."""
    if job.format == PARQUET or "://" in job.target:
        check_extra("pyarrow", "batch", "Parquet")
    if job.format == GEOTIFF:
        check_extra("rasterio", "geo", "GeoTIFF")
    if ray:
        check_extra("ray", "batch", "Ray")


def model_of(job: Job) -> str:
    """Name and hash of what will label; that it can is for later. Raises: BundleError, ConfigError, ClientError."""
    if job.served:
        with client_of(job) as client:
            entry = served_model(client, job)
        named(job.options.classes, Spec.model_validate(entry["spec"]))
        return f"{entry['name']}@{entry['hash']}"
    bundle = open_bundle(Path(job.model))
    if job.format == GEOTIFF:
        check_windows(bundle.spec.input)
    named(job.options.classes, bundle.spec)
    return f"{bundle.spec.name}@{bundle.hash}"


def check_names(pictures: list[Picture], job: Job) -> None:
    """Raises: DataError for two pictures whose masks would be one file, or for a mask that cannot be at its place."""
    taken: dict[str, Picture] = {}
    for picture in pictures:
        mask = mask_of(picture, job)
        if mask is None:
            continue
        first = taken.setdefault(mask, picture)
        if first.path != picture.path:
            raise DataError(f"{first.path} and {picture.path} would both become {mask}; segment them into two folders.")
        if mask.partition("/")[0] in (UNFINISHED, MANIFEST) or len(os.fsencode(mask.rpartition("/")[2])) > NAME_BYTES:
            raise DataError(f"{picture.path} would become {mask}, which cannot be: the name is kept or too long.")
    for mask, picture in taken.items():
        for above in map(str, PurePosixPath(mask).parents):
            if above in taken:
                raise DataError(f"{taken[above].path} would become {above}, and {picture.path} {mask} below it.")


def remaining(pictures: list[Picture], known: Known, job: Job, target: Target) -> list[Picture]:
    """The pictures that have no row yet, each once. Raises: RunError where a mask's place is taken by something else."""
    todo = {picture.path: picture for picture in pictures if picture.path not in known.done}
    for picture in todo.values():
        mask = mask_of(picture, job)
        if mask in known.masks:
            raise RunError(
                f"{picture.path} would become {mask}, which is another picture's; segment it into another folder."
            )
        if mask and isinstance(target, Folder) and os.path.lexists(target.path / mask):
            raise RunError(
                f"{target.path / mask} is not of this run and will not be overwritten. Choose another --out, "
                "or remove it, where a power cut has taken its row."
            )
    return list(todo.values())


def on_threads(
    work: Callable[[Picture], Row],
    pictures: Iterable[Picture],
    took: Callable[[Row], None],
    threads: int,
    stopped: Event,
) -> None:
    """Each thread takes picture after picture from its bytes to its row: while one waits for the engine or a disk,
    others decode and encode, and no more pictures are held than there are threads.

    Raises: what `work` or `took` raised first, once `stopped` is set and every thread has ended what it was at.
    """
    turn, left = threading.Lock(), iter(pictures)

    def following() -> Iterator[Picture]:
        while not stopped.is_set():
            with turn:
                picture = next(left, None)
            if picture is None:
                return
            yield picture

    def loop() -> None:
        for picture in following():
            took(work(picture))

    with ThreadPoolExecutor(threads, thread_name_prefix="picture") as pool:
        running = [pool.submit(loop) for _ in range(threads)]
        try:
            for one in as_completed(running):
                one.result()
        finally:
            stopped.set()


class Rate(ProgressColumn):
    """Pictures a second, of late."""

    def render(self, task: Task) -> Text:
        """As it is drawn."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class Report:
    """What a person sees of the run: a bar with the rate and what is left, or a line a minute in a log; the first errors."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.done, self.failed = console, total, 0, 0
        self.began = self.told = time.monotonic()
        self.lock = threading.Lock()
        self.progress = Progress(
            TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.task: TaskID = self.progress.add_task("", total=total)

    def __enter__(self) -> "Report":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def say(self, sentence: str) -> None:
        """Print a line."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def add(self, row: Row) -> None:
        """Count a row; print its error. From any thread."""
        with self.lock:
            self.done += 1
            self.failed += row.error is not None
            failed, done, now = self.failed, self.done, time.monotonic()
            due = not self.console.is_terminal and now - self.told > LINE_SECONDS
            self.told = now if due else self.told
        self.progress.advance(self.task)
        if row.error is not None and failed <= SHOWN:
            self.console.print(f"[red]error:[/] {escape(row.error)}", highlight=False, soft_wrap=True)
            if failed == SHOWN:
                self.say("more errors stand in the manifest alone")
        if due:
            self.say(f"{done:,} of {self.total:,} pictures, {done / (now - self.began):.1f}/s")
