"""Segments an image: with a bundle in this process, or through a service."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
from httpx import TimeoutException
from numpy.typing import NDArray
from pydantic import ValidationError

from maskserve.client import Client, ClientError, ServiceError, UnreachableError
from maskserve.predict.config import PARQUET, PredictConfig, short_model_name
from maskserve.predict.service_responses import (
    ServedModel,
    read_events_fields,
    read_image_size,
    read_json_fields,
    read_nifti_labels,
    read_npy_labels,
    read_png_labels,
    read_volume_fields,
)
from models.bundle import open_bundle
from models.cgroup_limits import usable_cores
from models.engines.selection import has_gpu
from models.errors import ConfigError, DataError, RunError, first_line
from models.imaging.decode import MAX_PIXELS, Labels
from models.imaging.decoder_pool import DecoderPool
from models.inference.leads import RecordPrediction
from models.inference.segmenter import Segmenter
from models.inference.volumes import VolumePrediction
from models.outputs.pipelines import make_pipeline
from models.outputs.rle import coco_rle_counts
from models.readers.orientation import voxel_ml

MAX_IN_FLIGHT = 8  # requests to a service: enough for several workers, few enough for its queue of 32
MAX_VOLUMES_IN_FLIGHT = 2  # one is read or written while the other is segmented: each may take gigabytes
RETRY_TIMEOUT = 120.0  # seconds in which a request is retried: enough for a rolling update of the service
PER_IMAGE_STATUSES = (400, 413, 415, 422, 500, 504)  # statuses that another image may not get

Result = TypeVar("Result")


class EncodedPrediction(NamedTuple):
    """What a backend returns for an image."""

    encoded: bytes | None  # the mask file; None if the mask is in the manifest row
    row_fields: dict[str, Any]  # of ManifestRow: height, width, classes, milliseconds


class Backend(Protocol):
    """Segments images. May be called from several threads."""

    model: str  # name and hash of the bundle
    max_in_flight: int  # number of threads that keep it busy
    description: str  # the engine and why it was chosen, or the service

    def __call__(self, data: bytes) -> EncodedPrediction:
        """Segment an image file.

        Raises: ImageError, DataError, InsufficientMemoryError if this image cannot be segmented; RunError if none can.
        """
        ...

    def close(self) -> None:
        """Stop the threads and close the connections."""
        ...


class BundleBackend:
    """A bundle in this process: two inferences at a time on a CPU, one on a GPU; meanwhile other images are decoded and encoded.

    Two inferences on half the cores each take longer than one after the other on all of them, but leave no core idle: at the
    end of each layer threads wait for each other, and between two images for Python.
    """

    def __init__(self, config: PredictConfig, single: bool = False) -> None:
        """`single`: one inference at a time, on all cores. Raises: BundleError, EngineError; ConfigError for an unknown class."""
        self.config = config
        self.bundle = open_bundle(Path(config.model))
        self.model = f"{self.bundle.spec.name}@{self.bundle.hash}"
        cores = usable_cores()
        is_volume = self.bundle.spec.input.axes == "DHW"
        one_stream = single or is_volume or config.threads or cores < 2 or config.device == "cuda" or has_gpu()
        streams, threads = (1, config.threads) if one_stream else (2, cores // 2)
        self.segmenter = Segmenter.load(
            self.bundle, config.engine, config.precision, config.device, threads, concurrency=streams
        )
        self.description = self.segmenter.choice.reason if self.segmenter.choice else ""
        self.pipeline = make_pipeline(
            self.segmenter, self.bundle.spec, config.output_format, config.options, MAX_PIXELS
        )
        self.max_in_flight = MAX_VOLUMES_IN_FLIGHT if is_volume else (config.threads or cores) + 2
        self._decoders = DecoderPool(cores) if config.sandbox else None
        self._slots = threading.Semaphore(self.max_in_flight)  # limits decoded images; more threads may read and write
        # Inference has its own threads: an engine holds buffers for each thread that calls it.
        self._engine_pool = ThreadPoolExecutor(streams, thread_name_prefix="infer")

    def run_on_engine(self, function: Callable[[], Result]) -> Result:
        """Call a function that uses the segmenter on one of the inference threads."""
        return self._engine_pool.submit(function).result()

    def __call__(self, data: bytes) -> EncodedPrediction:
        """Decode, infer, encode. Raises: ImageError, InsufficientMemoryError."""
        with self._slots:
            image = (
                self.pipeline.decode_in_child(data, self._decoders) if self._decoders else self.pipeline.decode(data)
            )
            prediction, milliseconds = self.run_on_engine(lambda: time_call(lambda: self.pipeline.infer(image)))
            mask = self.pipeline.encode(prediction)
            names = [entry.name for entry in self.bundle.spec.classes]
            if isinstance(prediction, RecordPrediction):
                fields = summarize_record(prediction, names)
            elif isinstance(prediction, VolumePrediction):
                affine = np.array(prediction.grid.affine) if prediction.has_spacing else None
                fields = summarize_volume(mask.labels, affine, names)
            else:
                fields = summarize_mask(mask.labels, names, rle=self.config.format == PARQUET)
            return EncodedPrediction(mask.data, {**fields, "milliseconds": milliseconds})

    def close(self) -> None:
        """Stop the inference threads and the decoders."""
        self._engine_pool.shutdown()
        if self._decoders is not None:
            self._decoders.close()


class ServiceBackend:
    """A service: several requests are in flight, and it decides how many are processed at a time."""

    max_in_flight = MAX_IN_FLIGHT

    def __init__(self, config: PredictConfig) -> None:
        """Raises: ClientError; RunError if the service has several bundles and the URL names none."""
        self.config = config
        if config.axes == "DHW":
            self.max_in_flight = MAX_VOLUMES_IN_FLIGHT
        self.client = make_client(config)
        try:
            entry = find_served_model(self.client, config)
        except BaseException:
            self.close()
            raise
        self.model = f"{entry.name}@{entry.hash}"
        self.class_names = [class_.name for class_ in entry.spec.classes]
        self.description = f"{config.model}: {short_model_name(self.model)}"

    def __call__(self, data: bytes) -> EncodedPrediction:
        """Request the mask. Raises: DataError for an error of this image, RunError for an error of the service."""
        options, in_manifest = self.config.options, self.config.format == PARQUET
        format = self.config.output_format or "json"
        further: dict[str, Any] = {
            "min_area": options.min_area, "alpha": options.alpha, "masks": "rle" if in_manifest else options.masks,
            "simplify": options.simplify, "confidence": options.confidence,
        }  # fmt: skip
        if self.config.axes == "T":
            further = {"lead": options.leads, "rate": options.rate}
        elif self.config.axes == "DHW":
            further = {"confidence": options.confidence}
        try:
            encoded, milliseconds = time_call(
                lambda: self.client.segment_bytes(
                    data, format, model=short_model_name(self.model), classes=options.classes,
                    min_confidence=options.min_confidence, **further,
                )
            )  # fmt: skip
        except ServiceError as error:
            if error.status in PER_IMAGE_STATUSES:
                raise DataError(str(error)) from error
            raise service_lost_error(error) from error
        except ClientError as error:
            # If the service is ready again, this image takes too long, or crashes a worker.
            if isinstance(error, UnreachableError) and self.client.is_ready():
                raise DataError(self._no_response_message(error)) from error
            raise service_lost_error(error) from error
        try:
            fields = {**self._read_row_fields(encoded, format), "milliseconds": milliseconds}
        except Exception as error:  # of Pillow's plugins, which raise exceptions of any class
            raise service_lost_error(
                f"{self.config.model} returned a response that is not a mask ({first_line(error)})."
            ) from error
        return EncodedPrediction(None if in_manifest else encoded, fields)

    def _no_response_message(self, error: UnreachableError) -> str:
        if not isinstance(error.__cause__, TimeoutException):
            return f"the service did not respond to this image ({error})"
        seconds = f"{self.config.response_timeout:g} seconds"
        return f"the service did not respond to this image within {seconds}: give it more time with --timeout SECONDS."

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _read_row_fields(self, encoded: bytes, format: str) -> dict[str, Any]:
        """Height, width and classes; for overlay and confidence only the size, as these do not contain the labels.

        Of a recording: length, rate and classes, which only the format `events` has. Of a volume: shape, spacing and classes, of
        the formats `nifti` and `json`.
        """
        if self.config.axes == "DHW":
            if format == "nifti":
                return summarize_volume(*read_nifti_labels(encoded, len(self.class_names)), self.class_names)
            return read_volume_fields(encoded, self.class_names) if format == "json" else {}
        if self.config.axes == "T":
            return read_events_fields(encoded, self.class_names) if format == "events" else {}
        if format == "json":
            return read_json_fields(encoded, rle=self.config.format == PARQUET)
        if format in ("overlay", "confidence"):
            return read_image_size(encoded, format)
        read_labels = read_npy_labels if format == "npy" else read_png_labels
        return summarize_mask(read_labels(encoded, len(self.class_names)), self.class_names)


def make_client(config: PredictConfig) -> Client:
    """The client of the service. Raises: ConfigError for an invalid address or key."""
    try:
        return Client(
            config.service_address[0], api_key=config.api_key or None, timeout=config.response_timeout,
            retry_timeout=RETRY_TIMEOUT, background=config.axes == "DHW",
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from error


def find_served_model(client: Client, config: PredictConfig) -> ServedModel:
    """The model of that name in the service, or its only one. Raises: ClientError, RunError."""
    name = config.service_address[1]
    entries = [client.model(name)] if name is not None else client.models()
    if len(entries) != 1:
        names = ", ".join(entry["name"] for entry in entries)
        raise RunError(
            f"{client.url} serves {names or 'no bundle'}; name one of them in MODEL: {client.url}/v1/models/NAME."
        )
    try:
        return ServedModel.model_validate(entries[0])
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise RunError(
            f"{client.url}/v1/models returned a model that cannot be used ({key}: {problem['msg']}). Is it a maskserve service?"
        ) from error


def service_lost_error(error: ClientError | str) -> RunError:
    """The error that stops the run when no further image would get a response."""
    return RunError(f"{error} Finished masks are kept: once the service works again, the same command resumes.")


def summarize_mask(labels: Labels, names: list[str], rle: bool = False) -> dict[str, Any]:
    """Size and classes of a mask, uint8 H x W, as ManifestRow has them."""
    height, width = labels.shape
    # NumPy's histogram takes ten times as long.
    pixels = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()[: len(names)]
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


def summarize_record(prediction: RecordPrediction, names: list[str]) -> dict[str, Any]:
    """Length, rate and number of events by class of a recording, as ManifestRow has them."""
    counts = np.sum([np.bincount(track.columns.labels, minlength=256) for track in prediction.tracks], axis=0)
    classes = [
        {"label": label, "name": names[label], "events": int(counts[label])}
        for label in np.flatnonzero(counts).tolist()
    ]
    return {"length": len(prediction.sample.values), "rate": prediction.sample.rate, "classes": classes}


def summarize_volume(labels: Labels, affine: NDArray[np.float64] | None, names: list[str]) -> dict[str, Any]:
    """Shape, spacing and classes of a volume, as ManifestRow has them.

    labels: uint8 i x j x k; affine: 4 x 4, to mm; None if the spacing is not known.
    """
    counts = np.sum(
        [np.bincount(plane.ravel(), minlength=256) for plane in labels], axis=0
    )  # bincount takes 8 bytes a voxel
    classes: list[dict[str, Any]] = []
    for label in np.flatnonzero(counts[: len(names)]).tolist():
        entry: dict[str, Any] = {"label": label, "name": names[label], "voxels": int(counts[label])}
        if affine is not None:
            entry["ml"] = round(voxel_ml(affine) * entry["voxels"], 6)
        classes.append(entry)
    spacing = None if affine is None else np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist()
    return {"shape": list(labels.shape), "spacing": spacing, "classes": classes}


def time_call(function: Callable[[], Result]) -> tuple[Result, float]:
    """The function's result, and the milliseconds that it took."""
    start = time.perf_counter()
    return function(), round((time.perf_counter() - start) * 1e3, 2)
