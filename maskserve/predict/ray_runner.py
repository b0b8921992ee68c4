"""The run on Ray Data: a pool of actors with an engine each, to which the images' addresses are streamed.

What goes through Ray is small: addresses there, rows back. Images are read and masks put by the actors, so that they
must see sources and target as the driver does: an object store, or a folder that all machines share. The driver alone
keeps the manifest.
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
from maskserve.predict.config import GEOTIFF, RAY_LOCAL, PredictConfig
from maskserve.predict.image_task import ImageTask
from maskserve.predict.inputs import InputImage, InputRoot
from maskserve.predict.manifest import ManifestRow
from models import errors
from models.errors import MaskserveError, RunError, first_line

BLOCK_SIZE = 16  # images that an actor gets at once; where it dies, Ray starts another, which gets them again
MAX_ATTEMPTS = 3  # so often; then each of them gets an actor to itself, so often again
MAX_LOST_BLOCKS = 32  # blocks that may be lost so until the run is stopped: by then it is not the images
OBJECT_STORE_BYTES = 256 << 20  # of Ray's memory on this machine, of which the addresses and rows need little
STOP_KEY = "stop"  # in place of a row: the name of an error in models/errors.py
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # a block that is labelled again is no error
}


class PredictActor:
    """An engine on a core, or a GPU, of its own."""

    def __init__(self, job: PredictConfig, far: bool, home: str) -> None:
        """`home` of the driver's user, where credentials are, and the compiled graphs."""
        os.environ["HOME"] = home
        self.task: ImageTask | None = None
        self.task_args = job, far

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Addresses -> rows as JSON, or what stops the run: raised here, it would reach the driver as a text of Ray's."""
        try:
            return {"row": [json.dumps(asdict(row)) for row in self._process_block(block)]}
        except (MaskserveError, ClientError) as error:
            return {"row": [json.dumps({STOP_KEY: type(error).__name__, "sentence": str(error)})]}

    def _process_block(self, block: dict[str, Any]) -> list[ManifestRow]:
        self.task = self.task or ImageTask(*self.task_args)
        roots = {address: InputRoot(address) for address in set(map(str, block["root"]))}
        places = zip(map(str, block["root"]), map(str, block["name"]), strict=True)
        with ThreadPoolExecutor(self.task.threads) as pool:
            return list(pool.map(self.task, [InputImage(roots[root], name) for root, name in places]))


def run_on_ray(
    job: PredictConfig, images: list[InputImage], took: Callable[[ManifestRow], None], address: str, actors: int = 0
) -> None:
    """Label the images by so many actors; `took` gets their rows in this process.

    Raises: RunError where the cluster cannot be reached, or for what stops the run.
    """
    job = replace(job, threads=job.threads or 1, output=_absolute_path(job.output), model=_absolute_path(job.model))
    left = {image.path: image for image in images}
    with ray_cluster(address) as ray:
        actors = actors or max(1, int(ray.cluster_resources().get("GPU" if uses_gpu(ray, job) else "CPU", 1)))
        # With few images, or scenes, smaller blocks: each actor has some, and rows come meanwhile.
        block = 1 if job.format == GEOTIFF else max(1, min(BLOCK_SIZE, len(images) // (4 * actors)))
        for together in (block, 1):
            for row in _segment_on_actors(ray, job, list(left.values()), actors, together):
                took(row)
                del left[row.path]
            if not left:
                return
    for path in left:  # what is left took its actor with it, every time
        took(ManifestRow(path, error=f"{path}: the worker that is at it dies each time: is its memory too small?"))


def _segment_on_actors(
    ray: Any, job: PredictConfig, images: list[InputImage], actors: int, together: int
) -> Iterator[ManifestRow]:
    """What actors make of the images, so many together; those that an actor died of are left out. Raises: RunError."""
    gpu = uses_gpu(ray, job)
    addresses = [{"root": image.root.address, "name": image.name} for image in images]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_task_retries, for which 2.60 has nothing else
        rows = ray.data.from_items(addresses, override_num_blocks=-(-len(images) // together)).map_batches(
            PredictActor,
            fn_constructor_args=(job, any(image.root.is_remote for image in images), str(Path.home())),
            batch_size=None,
            # One alone waits behind no other, which might take the actor with it.
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1 if together == 1 else None),
            num_cpus=0 if gpu else 1,
            num_gpus=1 if gpu else 0,
            max_task_retries=MAX_ATTEMPTS - 1,
        )
    for block in rows.iter_batches(batch_size=None):
        for row in map(json.loads, map(str, block["row"])):
            if STOP_KEY in row:
                raise getattr(errors, row[STOP_KEY], RunError)(row["sentence"])
            yield ManifestRow(**row)


def uses_gpu(ray: Any, job: PredictConfig) -> bool:
    """Whether each actor gets a GPU."""
    there = ray.cluster_resources().get("GPU", 0) > 0
    return job.device == "cuda" or (job.device == "auto" and there and not job.uses_service)


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Ray, connected; one that was started here ends with the block. Raises: RunError."""
    os.environ.update(RAY_ENVIRONMENT)
    if address == RAY_LOCAL:  # it listens on all interfaces, and who may call it may run what he likes
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # once: the first is kept in the process
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
            f"Ray ({address}) stopped the run: {first_line(error)}. What is labelled so far is kept: the same command goes on."
        ) from error
    finally:
        ray.shutdown()
        home.cleanup()


def _start_local_ray(ray: Any, home: Path) -> None:
    """Ray on this machine, heard by nobody else.

    Where usage statistics are off, it still finds out for them in which cloud it is, by requests to the addresses of three;
    unless a file at home tells. So its own processes get a home with such a file; the actors have ours.
    """
    (home / "ray_bootstrap_config.yaml").write_text("{}")
    ours = os.environ.get("HOME", "")
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
        os.environ["HOME"] = ours


def check_ray_reachable(address: str) -> None:
    """Raises: RunError where nobody listens at HOST:PORT: asked in vain, Ray ends the process. `auto` is for Ray to find."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(
            f"Ray cannot be reached at {address} ({error.strerror or error}); is the cluster running there?"
        ) from error


def _absolute_path(place: str) -> str:
    """A path that means the same in another process; a URL does."""
    return place if "://" in place else str(Path(place).absolute())
