"""What labels an image: a bundle in this process, or a service elsewhere."""

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

from maskserve.client import Client, ClientError, ServiceError, UnreachableError
from maskserve.predict.config import PARQUET, PredictConfig, short_model_name
from models.bundle import open_bundle
from models.cpu_quota import usable_cores
from models.engines.selection import has_gpu
from models.errors import ConfigError, DataError, InsufficientMemoryError, RunError, first_line
from models.imaging.decode import Labels, decode_image
from models.inference.segmenter import Segmenter
from models.outputs import OUTPUT_FORMATS, needs_confidence
from models.outputs.rle import coco_rle_counts
from models.outputs.select import class_indices, filter_prediction

MAX_IN_FLIGHT = 8  # requests to a service: enough to keep one of some workers busy, few enough for its line of 32
RETRY_TIMEOUT = 120.0  # seconds in which a request is sent again: a service that is rolled over is back by then
PER_IMAGE_STATUSES = (400, 413, 415, 422, 500, 504)  # what a service answers that another image may not meet


class EncodedPrediction(NamedTuple):
    """What a labeller says of an image."""

    encoded: bytes | None  # the mask's file; None where it stands in the row
    row_fields: dict[str, Any]  # of its row: height, width, classes, milliseconds


class Backend(Protocol):
    """Callable from several threads."""

    model: str  # name and hash of the bundle behind it
    max_in_flight: int  # from how many threads it keeps busy
    description: str  # what runs it, and why

    def __call__(self, data: bytes) -> EncodedPrediction:
        """Label an image. Raises: ImageError, DataError, TooLittleMemory for one that cannot be; RunError for all."""
        ...

    def close(self) -> None:
        """Let go of threads and connections."""
        ...


class BundleBackend:
    """A bundle in this process: two inferences at a time on a CPU, one on a GPU; around them others are decoded and encoded.

    Two of half the cores each take longer than one after the other on all of them, but leave no core idle meanwhile: at the
    end of each layer threads wait for each other, and between two images for Python.
    """

    def __init__(self, job: PredictConfig, single: bool = False) -> None:
        """`single`: one image at a time alone. Raises: BundleError, EngineError, ConfigError for an unknown class."""
        self.config = job
        self.bundle = open_bundle(Path(job.model))
        class_indices(job.options.classes, self.bundle.spec)  # before the first image
        self.model = f"{self.bundle.spec.name}@{self.bundle.hash}"
        cores = usable_cores()
        pair = not (single or job.threads or cores < 2 or job.device == "cuda" or has_gpu())
        streams, threads = (2, cores // 2) if pair else (1, job.threads)
        self.segmenter = Segmenter.load(
            self.bundle, job.engine, job.precision, job.device, threads, concurrency=streams
        )
        self.description = self.segmenter.choice.reason if self.segmenter.choice else ""
        self.max_in_flight = (job.threads or cores) + 2
        self._slots = threading.Semaphore(self.max_in_flight)  # for pixels; there may be more threads that read and put
        self.with_confidence = job.format in OUTPUT_FORMATS and needs_confidence(job.format, job.options)
        self.with_confidence |= job.options.min_confidence > 0
        # Threads of its own: an engine holds buffers for each that calls it.
        self._engine_pool = ThreadPoolExecutor(streams, thread_name_prefix="infer")

    def run_on_engine(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do what runs the engine by itself."""
        return self._engine_pool.submit(work).result()

    def __call__(self, data: bytes) -> EncodedPrediction:
        """Decode, infer, encode. Raises: ImageError, TooLittleMemory."""
        try:
            with self._slots:
                return self._predict(data)
        except MemoryError as error:
            raise InsufficientMemoryError("The memory is too small for this image's answer.") from error

    def _predict(self, data: bytes) -> EncodedPrediction:
        image, spec, format = decode_image(data), self.bundle.spec, self.config.format
        prediction, milliseconds = self._engine_pool.submit(time_call, lambda: self._infer(image)).result()
        kept = filter_prediction(prediction, spec, self.config.options)
        facts = summarize_mask(kept.labels, [entry.name for entry in spec.classes], rle=format == PARQUET)
        encoded = None if format == PARQUET else OUTPUT_FORMATS[format].encode(kept, spec, self.config.options)
        return EncodedPrediction(encoded, {**facts, "milliseconds": milliseconds})

    def close(self) -> None:
        """End the engine's thread."""
        self._engine_pool.shutdown()

    def _infer(self, image: Any) -> Any:
        return self.segmenter.segment(image, self.with_confidence)


class ServiceBackend:
    """A service: several requests are in flight, and it decides how many are worked on."""

    max_in_flight = MAX_IN_FLIGHT

    def __init__(self, job: PredictConfig) -> None:
        """Raises: ClientError; RunError where it serves several bundles and none is named."""
        self.config = job
        self.client = make_client(job)
        try:
            entry = find_served_model(self.client, job)
        except BaseException:
            self.close()
            raise
        self.model = f"{entry['name']}@{entry['hash']}"
        self.class_names = [one["name"] for one in entry["spec"]["classes"]]
        self.description = f"{job.model}: {short_model_name(self.model)}"

    def __call__(self, data: bytes) -> EncodedPrediction:
        """Ask for the mask. Raises: DataError for this image's own trouble, RunError for the service's."""
        asked = self.config.options
        format = "json" if self.config.format == PARQUET else self.config.format
        try:
            encoded, milliseconds = time_call(
                lambda: self.client.segment_bytes(
                    data, format, model=short_model_name(self.model), classes=asked.classes, min_confidence=asked.min_confidence,
                    min_area=asked.min_area, alpha=asked.alpha, masks="rle" if self.config.format == PARQUET else asked.masks,
                    simplify=asked.simplify, confidence=asked.confidence,
                )
            )  # fmt: skip
        except ServiceError as error:
            if error.status in PER_IMAGE_STATUSES:
                raise DataError(str(error)) from error
            raise service_lost_error(error) from error
        except ClientError as error:
            if (
                isinstance(error, UnreachableError) and self.client.is_ready()
            ):  # it is back: this image takes too long, or kills
                raise DataError(f"the service gives no answer to it ({error})") from error
            raise service_lost_error(error) from error
        try:
            facts = {**self._read_row_fields(encoded, format), "milliseconds": milliseconds}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise service_lost_error(
                f"{self.config.model} answered with what is no mask ({first_line(error)})."
            ) from error
        return EncodedPrediction(None if self.config.format == PARQUET else encoded, facts)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _read_row_fields(self, encoded: bytes, format: str) -> dict[str, Any]:
        if format == "json":
            answer = json.loads(encoded)
            kept = (
                ("label", "name", "fraction", "rle") if self.config.format == PARQUET else ("label", "name", "fraction")
            )
            classes = [{name: one[name] for name in kept} for one in answer["classes"]]
            for one in classes:
                if "rle" in one:
                    one["rle"] = one["rle"]["counts"]
            return {"height": answer["height"], "width": answer["width"], "classes": classes}
        if format == "npy":
            return summarize_mask(np.load(io.BytesIO(encoded), allow_pickle=False), self.class_names)
        image = Image.open(io.BytesIO(encoded))
        if format == "png":
            return summarize_mask(np.asarray(image), self.class_names)
        return {"height": image.height, "width": image.width}


def make_client(job: PredictConfig) -> Client:
    """Raises: ConfigError for an address or a key that cannot be one."""
    try:
        return Client(job.service_address[0], api_key=job.api_key or None, retry_timeout=RETRY_TIMEOUT)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def find_served_model(client: Client, job: PredictConfig) -> dict[str, Any]:
    """What a service says of the bundle that is named, or of its only one. Raises: ClientError, RunError."""
    name = job.service_address[1]
    if name is not None:
        return client.model(name)
    entries = client.models()
    if len(entries) != 1:
        names = ", ".join(entry["name"] for entry in entries)
        raise RunError(f"{client.url} serves {names or 'no bundle'}; name one as in {client.url}/v1/models/NAME.")
    return entries[0]


def service_lost_error(error: ClientError | str) -> RunError:
    """The sentence for a service that no image would get an answer from."""
    return RunError(
        f"{error} What is labelled so far is kept: once that is mended, the same command goes on from here."
    )


def summarize_mask(labels: Labels, names: list[str], rle: bool = False) -> dict[str, Any]:
    """Size of a mask, uint8 H x W, and its classes as `manifest.Row` has them."""
    height, width = labels.shape
    pixels = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()[: len(names)]  # NumPy's takes ten times as long
    counts = coco_rle_counts(labels) if rle else {}
    classes = [
        {
            "label": label,
            "name": names[label],
            "fraction": round(float(pixels[label]) / labels.size, 6),
            **({"rle": counts[label]} if rle else {}),
        }
        for label in np.flatnonzero(pixels).tolist()
    ]
    return {"height": height, "width": width, "classes": classes}


def time_call(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the milliseconds that it took."""
    began = time.perf_counter()
    return work(), round((time.perf_counter() - began) * 1e3, 2)
