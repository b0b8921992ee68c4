"""Jobs: requests with `Prefer: respond-async` (RFC 7240), whose results wait on the disk until they are fetched.

A job runs in the worker that received it. Its state and its result are files that every worker of the same server reads, in a
folder that belongs to the server's process: a restart begins with an empty one. Only the key that sent the request reads the
result.
"""

import asyncio
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from models.atomic_write import write_atomically
from models.errors import ConfigError
from models.file_lock import lock_file
from service.errors import OverloadedError, ResponseTooLargeError, UnknownJobError

JOB_KEY = "maskserve.job"  # in a request's scope: the id of its job
STATE_FILE, RESULT_FILE, LOCK_FILE = "job.json", "result", ".lock"
FOLDER_NAME = re.compile(r"maskserve-jobs-(\d+)-(\d+)")
ID = re.compile(r"[A-Za-z0-9_-]{22}")
MAX_JOBS = 1000  # with their results, of all workers
FULL_RETRY_SECONDS = 60
WATCH_SECONDS = 1.0  # between two looks at whether a job was deleted
SWEEP_SECONDS = 30.0

logger = logging.getLogger("maskserve")

ProcessKey = tuple[int, int]  # the id of a process and when it started, because ids are used again


@dataclass(frozen=True)
class Job:
    """The state of a job, as it is on the disk."""

    id: str
    owner: str  # sha256 of the API key that sent it; empty if the service needs none
    worker: ProcessKey  # that runs it
    created: float  # seconds since 1970
    request_id: str
    state: Literal["running", "done", "failed"] = "running"
    finished: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)  # of the response with the result
    media_type: str = ""
    problem: dict[str, Any] = field(default_factory=dict)  # of a job that failed


class JobStore:
    """The jobs of one server, in a folder. Methods block, and may be called from any thread of any worker."""

    def __init__(self, base: Path | None, max_bytes: int, ttl_seconds: float) -> None:
        """`base`: the folder that holds the server's own; None is the system's for temporary files."""
        self.base = Path(tempfile.gettempdir()) if base is None else base
        self.max_bytes, self.ttl_seconds = max_bytes, ttl_seconds
        server = process_key(os.getppid())
        self.folder = self.base / f"maskserve-jobs-{server[0]}-{server[1]}"

    def open(self) -> None:
        """Create the folder, and remove those of servers that have ended. Raises: ConfigError if it is not ours alone."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.folder.lstat()
        except OSError as error:
            raise ConfigError(f"MASKSERVE_JOB_FOLDER: {self.folder} cannot be created ({error.strerror}).") from error
        if (hasattr(os, "getuid") and status.st_uid != os.getuid()) or self.folder.is_symlink():
            raise ConfigError(f"MASKSERVE_JOB_FOLDER: {self.folder} belongs to another user. Choose another folder.")
        for other in self.base.glob("maskserve-jobs-*-*"):
            match = FOLDER_NAME.fullmatch(other.name)
            if match and not is_alive((int(match[1]), int(match[2]))):
                shutil.rmtree(other, ignore_errors=True)

    def create(self, owner: str, request_id: str) -> Job:
        """A new job of this worker. Raises: OverloadedError if the store is full."""
        with self._locked():
            self.sweep()
            jobs = list(self._jobs())
            if len(jobs) >= MAX_JOBS or self._used_bytes() >= self.max_bytes:
                raise OverloadedError(
                    f"The store of results is full: {len(jobs):,} jobs. DELETE results, or retry in {FULL_RETRY_SECONDS} s.",
                    FULL_RETRY_SECONDS,
                )
            job = Job(secrets.token_urlsafe(16), owner, process_key(os.getpid()), time.time(), request_id)
            (self.folder / job.id).mkdir(mode=0o700)
            self._write(job)
            return job

    def finish(self, job: Job, result: bytes, media_type: str, headers: dict[str, str]) -> None:
        """Store the result. Raises: ResponseTooLargeError; OSError for a job that was deleted, or a full disk."""
        with self._locked():
            if self._used_bytes() + len(result) > self.max_bytes:
                raise ResponseTooLargeError(
                    f"The result has {len(result):,} bytes, more than is left of the store's {self.max_bytes:,}. Fetch and DELETE "
                    "other results, and send the request again."
                )
            (self.folder / job.id / RESULT_FILE).write_bytes(result)
            self._write(replace(job, state="done", finished=time.time(), media_type=media_type, headers=headers))

    def fail(self, job: Job, problem: dict[str, Any], headers: dict[str, str]) -> None:
        """Store the error. Raises: OSError for a job that was deleted."""
        self._write(replace(job, state="failed", finished=time.time(), problem=problem, headers=headers))

    def read(self, id: str, owner: str) -> tuple[Job, bytes]:
        """A job, and its result if it is done. Raises: UnknownJobError, also for a job of another key."""
        job = self._read(id) if ID.fullmatch(id) else None
        if job is None or job.owner != owner or self._is_expired(job):
            raise UnknownJobError(
                "There is no such job: it has expired, was deleted, ended with a restart of the service, or another key sent it. "
                "Send the request again."
            )
        if job.state == "running" and not is_alive(job.worker):
            raise UnknownJobError("The worker that ran this job has ended before it was done. Send the request again.")
        try:
            return job, (self.folder / id / RESULT_FILE).read_bytes() if job.state == "done" else b""
        except OSError as error:  # it was deleted just now
            raise UnknownJobError("The job was deleted. Send the request again.") from error

    def delete(self, job: Job) -> None:
        """Delete a job; if it runs, its worker stops it."""
        shutil.rmtree(self.folder / job.id, ignore_errors=True)

    def exists(self, job: Job) -> bool:
        """Whether the job was not deleted."""
        return (self.folder / job.id).is_dir()

    def sweep(self) -> None:
        """Delete the jobs that have expired, and those whose worker has ended."""
        for job in self._jobs():
            if self._is_expired(job) or (job.state == "running" and not is_alive(job.worker)):
                self.delete(job)

    def _is_expired(self, job: Job) -> bool:
        return job.state != "running" and time.time() > job.finished + self.ttl_seconds

    def _jobs(self) -> Iterator[Job]:
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                if ID.fullmatch(entry.name) and (job := self._read(entry.name)):
                    yield job

    def _used_bytes(self) -> int:
        total = 0
        for file in self.folder.glob(f"*/{RESULT_FILE}"):
            with suppress(OSError):
                total += file.stat().st_size
        return total

    def _read(self, id: str) -> Job | None:
        try:
            content = json.loads((self.folder / id / STATE_FILE).read_bytes())
            return Job(**content | {"worker": tuple(content["worker"])})
        except (OSError, ValueError):
            return None

    def _write(self, job: Job) -> None:
        """Raises: OSError."""
        folder = self.folder / job.id
        if not folder.is_dir():
            raise FileNotFoundError(f"the job {job.id} was deleted")
        write_atomically(folder / STATE_FILE, json.dumps(asdict(job)).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one worker at a time counts the bytes of the store."""
        with (self.folder / LOCK_FILE).open("ab") as file:
            lock_file(file.fileno(), wait=True)
            yield


class JobRunner:
    """The jobs that this worker runs. Use it from one event loop."""

    def __init__(self, store: JobStore, run_in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self.store = store
        self._run_in_thread = run_in_thread
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, which stores the result of the job, until it ends or the job is deleted."""
        task = asyncio.create_task(self._run(job, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sweep_regularly(self) -> None:
        """Delete expired jobs. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._run_in_thread(self.store.sweep)

    async def stop(self) -> None:
        """Stop and delete the jobs that run: nobody could fetch them after a restart."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        working = asyncio.ensure_future(work())
        try:
            while not working.done():
                await asyncio.wait({working}, timeout=WATCH_SECONDS)
                if not working.done() and not await self._run_in_thread(lambda: self.store.exists(job)):
                    working.cancel()
                    await asyncio.wait({working})
            error = None if working.cancelled() else working.exception()
            if error is not None and self.store.exists(job):
                logger.error("job %s: its result cannot be stored", job.id, exc_info=error)
                self.store.delete(job)
        except asyncio.CancelledError:
            working.cancel()
            await asyncio.wait({working})
            self.store.delete(job)
            raise


def process_key(pid: int) -> ProcessKey:
    """The id of a process and when it started; 0 for a process that has ended."""
    try:
        if Path(
            "/proc/self/stat"
        ).exists():  # in clock ticks: psutil adds the time of the boot, which the clock's corrections move
            return pid, int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        return pid, int(psutil.Process(pid).create_time())
    except (OSError, psutil.Error):
        return pid, 0


def is_alive(process: ProcessKey) -> bool:
    """Whether a process still runs."""
    return process[1] != 0 and process_key(process[0]) == process


def prefers_async(value: str) -> bool:
    """Whether the header Prefer asks for a job (RFC 7240, 4.1)."""
    return any(part.partition(";")[0].strip().lower() == "respond-async" for part in value.split(","))
