"""What labels a picture: a bundle in this process, or a service elsewhere."""

import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image

from maskserve.client import Client, ClientError, ServiceError, Unreachable
from maskserve.predict.config import PARQUET, Job, short
from models.bundle import open_bundle
from models.cpu_quota import usable_cores
from models.engines.selection import has_gpu
from models.errors import ConfigError, DataError, RunError, TooLittleMemory, first_line
from models.imaging.decode import Labels, decode
from models.inference.segmenter import Segmenter
from models.outputs import OUTPUTS, needs_confidence
from models.outputs.rle import run_lengths
from models.outputs.select import named, select

AT_ONCE = 8  # requests to a service: enough to keep one of some workers busy, few enough for its line of 32
PATIENCE = 120.0  # seconds in which a request is sent again: a service that is rolled over is back by then
OWN_FAULTS = (400, 413, 415, 422, 500, 504)  # what a service answers that another picture may not meet


class Labelled(NamedTuple):
    """What a labeller says of a picture."""

    encoded: bytes | None  # the mask's file; None where it stands in the row
    facts: dict[str, Any]  # of its row: height, width, classes, milliseconds


class Labeller(Protocol):
    """Callable from several threads."""

    model: str  # name and hash of the bundle behind it
    at_once: int  # from how many threads it keeps busy
    why: str  # what runs it, and why

    def __call__(self, data: bytes) -> Labelled:
        """Label a picture. Raises: ImageError, DataError, TooLittleMemory for one that cannot be; RunError for all."""
        ...

    def close(self) -> None:
        """Let go of threads and connections."""
        ...


class Bundled:
    """A bundle in this process: two inferences at a time on a CPU, one on a GPU; around them others are decoded and encoded.

    Two of half the cores each take longer than one after the other on all of them, but leave no core idle meanwhile: at the
    end of each layer threads wait for each other, and between two pictures for Python.
    """

    def __init__(self, job: Job, single: bool = False) -> None:
        """`single`: one picture at a time alone. Raises: BundleError, EngineError, ConfigError for an unknown class."""
        self.job = job
        self.bundle = open_bundle(Path(job.model))
        named(job.options.classes, self.bundle.spec)  # before the first picture
        self.model = f"{self.bundle.spec.name}@{self.bundle.hash}"
        cores = usable_cores()
        pair = not (single or job.threads or cores < 2 or job.device == "cuda" or has_gpu())
        streams, threads = (2, cores // 2) if pair else (1, job.threads)
        self.segmenter = Segmenter.load(self.bundle, job.engine, job.precision, job.device, threads, at_once=streams)
        self.why = self.segmenter.choice.why if self.segmenter.choice else ""
        self.at_once = (job.threads or cores) + 2
        self._rooms = threading.Semaphore(self.at_once)  # for pixels; there may be more threads that read and put
        self.confidence = job.format in OUTPUTS and needs_confidence(job.format, job.options)
        self.confidence |= job.options.min_confidence > 0
        # Threads of its own: an engine holds buffers for each that calls it.
        self._engine = ThreadPoolExecutor(streams, thread_name_prefix="infer")

    def alone(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do what runs the engine by itself."""
        return self._engine.submit(work).result()

    def __call__(self, data: bytes) -> Labelled:
        """Decode, infer, encode. Raises: ImageError, TooLittleMemory."""
        try:
            with self._rooms:
                return self._labelled(data)
        except MemoryError as error:
            raise TooLittleMemory("The memory is too small for this picture's answer.") from error

    def _labelled(self, data: bytes) -> Labelled:
        picture, spec, format = decode(data), self.bundle.spec, self.job.format
        prediction, milliseconds = self._engine.submit(timed, lambda: self._segment(picture)).result()
        kept = select(prediction, spec, self.job.options)
        facts = facts_of(kept.labels, [entry.name for entry in spec.classes], rle=format == PARQUET)
        encoded = None if format == PARQUET else OUTPUTS[format].encode(kept, spec, self.job.options)
        return Labelled(encoded, {**facts, "milliseconds": milliseconds})

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.shutdown()

    def _segment(self, picture: Any) -> Any:
        return self.segmenter.segment(picture, self.confidence)


class Served:
    """A service: several requests are in flight, and it decides how many are worked on."""

    at_once = AT_ONCE

    def __init__(self, job: Job) -> None:
        """Raises: ClientError; RunError where it serves several bundles and none is named."""
        self.job = job
        self.client = client_of(job)
        try:
            entry = served_model(self.client, job)
        except BaseException:
            self.close()
            raise
        self.model = f"{entry['name']}@{entry['hash']}"
        self.names = [one["name"] for one in entry["spec"]["classes"]]
        self.why = f"{job.model}: {short(self.model)}"

    def __call__(self, data: bytes) -> Labelled:
        """Ask for the mask. Raises: DataError for this picture's own trouble, RunError for the service's."""
        asked = self.job.options
        format = "json" if self.job.format == PARQUET else self.job.format
        try:
            encoded, milliseconds = timed(
                lambda: self.client.encoded(
                    data, format, model=short(self.model), classes=asked.classes, min_confidence=asked.min_confidence,
                    min_area=asked.min_area, alpha=asked.alpha, masks="rle" if self.job.format == PARQUET else asked.masks,
                    simplify=asked.simplify, confidence=asked.confidence,
                )
            )  # fmt: skip
        except ServiceError as error:
            if error.status in OWN_FAULTS:
                raise DataError(str(error)) from error
            raise gone(error) from error
        except ClientError as error:
            if (
                isinstance(error, Unreachable) and self.client.ready()
            ):  # it is back: this picture takes too long, or kills
                raise DataError(f"the service gives no answer to it ({error})") from error
            raise gone(error) from error
        try:
            facts = {**self._facts(encoded, format), "milliseconds": milliseconds}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise gone(f"{self.job.model} answered with what is no mask ({first_line(error)}).") from error
        return Labelled(None if self.job.format == PARQUET else encoded, facts)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _facts(self, encoded: bytes, format: str) -> dict[str, Any]:
        if format == "json":
            answer = json.loads(encoded)
            kept = ("label", "name", "share", "rle") if self.job.format == PARQUET else ("label", "name", "share")
            classes = [{name: one[name] for name in kept} for one in answer["classes"]]
            for one in classes:
                if "rle" in one:
                    one["rle"] = one["rle"]["counts"]
            return {"height": answer["height"], "width": answer["width"], "classes": classes}
        if format == "npy":
            return facts_of(np.load(io.BytesIO(encoded), allow_pickle=False), self.names)
        image = Image.open(io.BytesIO(encoded))
        if format == "png":
            return facts_of(np.asarray(image), self.names)
        return {"height": image.height, "width": image.width}


def client_of(job: Job) -> Client:
    """Raises: ConfigError for an address or a key that cannot be one."""
    try:
        return Client(job.service[0], key=job.key or None, patience=PATIENCE)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def served_model(client: Client, job: Job) -> dict[str, Any]:
    """What a service says of the bundle that is named, or of its only one. Raises: ClientError, RunError."""
    name = job.service[1]
    if name is not None:
        return client.model(name)
    entries = client.models()
    if len(entries) != 1:
        names = ", ".join(entry["name"] for entry in entries)
        raise RunError(f"{client.url} serves {names or 'no bundle'}; name one as in {client.url}/v1/models/NAME.")
    return entries[0]


def gone(error: ClientError | str) -> RunError:
    """The sentence for a service that no picture would get an answer from."""
    return RunError(
        f"{error} What is labelled so far is kept: once that is mended, the same command goes on from here."
    )


def facts_of(labels: Labels, names: list[str], rle: bool = False) -> dict[str, Any]:
    """Size of a mask, uint8 H x W, and its classes as `manifest.Row` has them."""
    height, width = labels.shape
    pixels = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()[: len(names)]  # NumPy's takes ten times as long
    counts = run_lengths(labels) if rle else {}
    classes = [
        {
            "label": label,
            "name": names[label],
            "share": round(float(pixels[label]) / labels.size, 6),
            **({"rle": counts[label]} if rle else {}),
        }
        for label in np.flatnonzero(pixels).tolist()
    ]
    return {"height": height, "width": width, "classes": classes}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the milliseconds that it took."""
    began = time.perf_counter()
    return work(), round((time.perf_counter() - began) * 1e3, 2)
