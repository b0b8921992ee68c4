"""A run on Ray Data: the images' addresses are streamed to a pool of actors, each with its own engine.

Only addresses go through Ray, and rows come back. The actors read the images and write the masks, so they must reach inputs and
output as the driver does: in an object store, or in a folder that all machines share. Only the driver writes the manifest.
"""

import json
import logging
import os
import secrets
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from maskserve.client import ClientError
from maskserve.predict.config import RAY_LOCAL, PredictConfig
from maskserve.predict.image_task import ImageTask
from maskserve.predict.inputs import InputImage, InputRoot
from maskserve.predict.manifest import ManifestRow
from models import errors
from models.errors import MaskserveError, RunError, first_line

BLOCK_SIZE = 16  # images per block of an actor; if it dies, Ray starts another one, which gets the block again
MAX_ATTEMPTS = 3  # attempts per block; then each of its images gets as many attempts in a block of its own
MAX_LOST_BLOCKS = 32  # blocks that may be lost before the run stops: by then the images are not the cause
OBJECT_STORE_BYTES = 256 << 20  # of Ray's memory on this machine; addresses and rows need little
NAME_CODEC = ("utf-8", "surrogateescape")  # of file names
STOP_KEY = "stop"  # in a message in place of a row: the name of an error in models/errors.py
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # disables usage reports to the makers of Ray
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # a block that is retried is not an error
}


class PredictActor:
    """An engine with a core, or a GPU, of its own."""

    def __init__(self, config: PredictConfig, remote: bool, home: str) -> None:
        """`home`: the home of the driver's user, which holds credentials and the compiled networks."""
        os.environ["HOME"] = home
        self.task: ImageTask | None = None
        self.task_args = config, remote

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Segment a block of addresses. Returns: the rows as JSON, or the error that stops the run.

        The error is returned because Ray would deliver a raised one only as text.
        """
        try:
            return {"row": [json.dumps(asdict(row)) for row in self._process_block(block)]}
        except (MaskserveError, ClientError) as error:
            return {"row": [json.dumps({STOP_KEY: type(error).__name__, "message": str(error)})]}

    def _process_block(self, block: dict[str, Any]) -> list[ManifestRow]:
        self.task = self.task or ImageTask(*self.task_args)
        with ThreadPoolExecutor(self.task.threads) as pool:
            return list(pool.map(self.task, images_of_block(block)))


def image_to_item(image: InputImage) -> dict[str, bytes]:
    """The address of an image as a row of Ray Data. Bytes, because file names need not be UTF-8, and Arrow's text must."""
    return {"root": image.root.address.encode(*NAME_CODEC), "name": image.name.encode(*NAME_CODEC)}


def images_of_block(block: dict[str, Any]) -> list[InputImage]:
    """The images of a block of such rows; those of one folder share their root."""
    addresses, names = ([bytes(text).decode(*NAME_CODEC) for text in block[column]] for column in ("root", "name"))
    roots = {address: InputRoot(address) for address in set(addresses)}
    return [InputImage(roots[address], name) for address, name in zip(addresses, names, strict=True)]


def run_on_ray(
    config: PredictConfig,
    images: list[InputImage],
    save_row: Callable[[ManifestRow], None],
    address: str,
    actors: int = 0,
) -> None:
    """Segment the images on `actors` actors (0: one per core or GPU); `save_row` gets the rows in this process.

    Raises: RunError if the cluster cannot be reached, or for an error that stops the run.
    """
    config = replace(
        config, threads=config.threads or 1, output=_absolute_path(config.output), model=_absolute_path(config.model)
    )
    remaining = {image.path: image for image in images}
    with ray_cluster(address) as ray:
        actors = actors or max(1, int(ray.cluster_resources().get("GPU" if uses_gpu(ray, config) else "CPU", 1)))
        # Few images, or rasters, get smaller blocks: then each actor has some, and rows arrive meanwhile.
        block_size = 1 if config.reads_windows else max(1, min(BLOCK_SIZE, len(images) // (4 * actors)))
        for size in (block_size, 1):
            for row in _segment_on_actors(ray, config, list(remaining.values()), actors, size):
                save_row(row)
                del remaining[row.path]
            if not remaining:
                return
    for path in remaining:
        message = "the worker that segments this image dies each time. Does it have enough memory?"
        save_row(ManifestRow(path, error=f"{path}: {message}"))


def _segment_on_actors(
    ray: Any, config: PredictConfig, images: list[InputImage], actors: int, block_size: int
) -> Iterator[ManifestRow]:
    """The rows of the images, but for blocks whose actor died each time. Raises: RunError."""
    gpu = uses_gpu(ray, config)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of max_task_retries, for which Ray 2.60 has no replacement
        rows = ray.data.from_items(
            list(map(image_to_item, images)), override_num_blocks=-(-len(images) // block_size)
        ).map_batches(
            PredictActor,
            fn_constructor_args=(config, any(image.root.is_remote for image in images), str(Path.home())),
            batch_size=None,
            # A single image does not queue at an actor behind another one, which might crash it.
            compute=ray.data.ActorPoolStrategy(
                size=actors, max_tasks_in_flight_per_actor=1 if block_size == 1 else None
            ),
            num_cpus=0 if gpu else 1,
            num_gpus=1 if gpu else 0,
            max_task_retries=MAX_ATTEMPTS - 1,
        )
    for block in rows.iter_batches(batch_size=None):
        for row in map(json.loads, map(str, block["row"])):
            if STOP_KEY in row:
                raise getattr(errors, row[STOP_KEY], RunError)(row["message"])
            yield ManifestRow(**row)


def uses_gpu(ray: Any, config: PredictConfig) -> bool:
    """Whether each actor gets a GPU."""
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    return config.device == "cuda" or (config.device == "auto" and has_gpus and not config.uses_service)


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Connect to Ray; a local one is started, and stopped with the block. Raises: RunError."""
    os.environ.update(RAY_ENVIRONMENT)
    if address == RAY_LOCAL:  # it listens on all interfaces, and a caller may execute any code
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray keeps the first one of a process
    import ray
    import ray.data

    home = tempfile.TemporaryDirectory(prefix="maskserve-ray-")
    try:
        if address == RAY_LOCAL:
            _start_local_ray(ray, Path(home.name))
        else:
            check_ray_reachable(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_errored_blocks = MAX_LOST_BLOCKS
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        yield ray
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        raise RunError(
            f"Ray ({address}) stopped the run: {first_line(error)}. Finished masks are kept: the same command resumes."
        ) from error
    finally:
        ray.shutdown()
        home.cleanup()


def _start_local_ray(ray: Any, home: Path) -> None:
    """Start Ray on this machine, reachable only from it.

    Even with usage statistics off, Ray looks up for them which cloud it runs in, by requests to the addresses of three clouds,
    unless a file in the home folder says so. Its own processes get a home with that file; the actors get the user's.
    """
    (home / "ray_bootstrap_config.yaml").write_text("{}")
    user_home = os.environ.get("HOME", "")
    os.environ["HOME"] = str(home)
    try:
        ray.init(
            RAY_LOCAL,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    finally:
        os.environ["HOME"] = user_home


def check_ray_reachable(address: str) -> None:
    """Check that something listens at HOST:PORT: without it, Ray ends the process. Ray resolves `auto` itself.

    Raises: RunError.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(
            f"Ray cannot be reached at {address} ({error.strerror or error}). Is the cluster running?"
        ) from error


def _absolute_path(address: str) -> str:
    """A path that is valid in another process; a URL is unchanged."""
    return address if "://" in address else str(Path(address).absolute())
