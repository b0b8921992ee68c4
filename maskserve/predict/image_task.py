"""What is done with each image: from its address to a mask that is put, and its row."""

import os
import threading
from pathlib import Path
from typing import Any

from maskserve.predict.backends import Backend, BundleBackend, ServiceBackend
from maskserve.predict.config import GEOTIFF, PredictConfig, short_model_name
from maskserve.predict.inputs import InputImage
from maskserve.predict.manifest import ManifestRow
from maskserve.predict.outputs import FolderStore, ObjectStore
from models.errors import DataError, ImageError, InsufficientMemoryError

REMOTE_EXTRA_THREADS = (
    8  # more threads where sources or target are far: a request to a store takes some 50 ms, whatever it carries
)


class ImageTask:
    """What is done with each image, once the model is open."""

    def __init__(self, job: PredictConfig, far: bool = False, single: bool = False) -> None:
        """`far`: sources are in a store; `single`: there is one image. Raises: as the labellers."""
        self.config = job
        self.stop_event = threading.Event()  # once set, a scene is not labelled to its end
        self.output = open_output(job)
        self.backend: Backend = (
            ServiceBackend(job) if job.uses_service else BundleBackend(job, single or job.format == GEOTIFF)
        )
        self.threads = self.backend.max_in_flight + (
            REMOTE_EXTRA_THREADS if far or isinstance(self.output, ObjectStore) else 0
        )
        if job.format == GEOTIFF:
            self.threads = 2  # a scene is labelled by itself, and a far one is a copy on this machine's disk

    def __call__(self, image: InputImage) -> ManifestRow:
        """Label it and put its mask; whoever appends the row publishes it. Raises: RunError where no image could be."""
        mask = mask_name(image, self.config)
        model = short_model_name(self.backend.model)
        try:
            facts = self._segment(image, mask)
        except (ImageError, DataError, InsufficientMemoryError, MemoryError) as error:
            sentence = "the memory is too small for it." if isinstance(error, MemoryError) else str(error)
            named = sentence if sentence.startswith(image.path) else f"{image.path}: {sentence}"
            return ManifestRow(image.path, error=named, model=model)
        return ManifestRow(image.path, mask, model=model, **facts)

    def _segment(self, image: InputImage, mask: str | None) -> dict[str, Any]:
        if self.config.format == GEOTIFF and mask and isinstance(self.backend, BundleBackend):
            from maskserve.predict.geotiff import segment_raster

            bundled = self.backend
            with image.root.local_copy(image.name) as source, self.output.writable_path(mask) as file:
                return bundled.run_on_engine(
                    lambda: segment_raster(
                        bundled.segmenter, bundled.bundle.spec, source, file, self.config, self.stop_event.is_set
                    )
                )
        encoded, facts = self.backend(image.root.read(image.name))
        if mask and encoded is not None:
            self.output.put(mask, encoded)
        return facts


def open_output(job: PredictConfig) -> FolderStore | ObjectStore:
    """Where the masks go. Raises: RunError, ConfigError for a store that cannot be reached."""
    return ObjectStore(job.output) if "://" in job.output else FolderStore(Path(job.output).absolute())


def mask_name(image: InputImage, job: PredictConfig) -> str | None:
    """The place of an image's mask; None where it stands in the manifest."""
    return os.path.splitext(image.name)[0] + job.mask_suffix if job.mask_suffix else None
