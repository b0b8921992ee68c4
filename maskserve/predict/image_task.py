"""Processes one image: from its address to a written mask and its manifest row."""

import threading
from pathlib import Path
from typing import Any

from maskserve.predict.backends import Backend, BundleBackend, ServiceBackend
from maskserve.predict.config import PredictConfig, short_model_name
from maskserve.predict.geo_polygons import georeference_polygons
from maskserve.predict.inputs import InputImage, strip_suffix
from maskserve.predict.manifest import ManifestRow
from maskserve.predict.outputs import FolderStore, ObjectStore
from models.errors import DataError, ImageError, InsufficientMemoryError

REMOTE_EXTRA_THREADS = 8  # threads added for a remote input or output: each request to a store takes some 50 ms


class ImageTask:
    """Segments an image and writes its mask. Holds the backend and the output of the run."""

    def __init__(self, config: PredictConfig, remote: bool = False, single: bool = False) -> None:
        """`remote`: inputs are in a store; `single`: the run has one image. Raises: as the backends."""
        self.config = config
        self.stop_event = threading.Event()  # once set, a raster is abandoned before its next window
        self.output = open_output(config)
        self.backend: Backend = (
            ServiceBackend(config) if config.uses_service else BundleBackend(config, single or config.reads_windows)
        )
        extra = REMOTE_EXTRA_THREADS if remote or isinstance(self.output, ObjectStore) else 0
        # Two for rasters: they are segmented one after the other, while a remote one is copied to this machine's disk.
        self.threads = 2 if config.reads_windows else self.backend.max_in_flight + extra

    def __call__(self, image: InputImage) -> ManifestRow:
        """Segment the image and write its mask, which the caller publishes after it has appended the row.

        Raises: RunError for an error that concerns all images.
        """
        mask = mask_name(image, self.config)
        model = short_model_name(self.backend.model)
        try:
            fields = self._segment(image, mask)
        except (ImageError, DataError, InsufficientMemoryError, MemoryError) as error:
            message = "there is not enough memory for this image." if isinstance(error, MemoryError) else str(error)
            prefix = "" if message.startswith(image.path) else f"{image.path}: "
            return ManifestRow(image.path, error=prefix + message, model=model)
        return ManifestRow(image.path, mask, model=model, **fields)

    def _segment(self, image: InputImage, mask: str | None) -> dict[str, Any]:
        """Write the mask. Returns: height, width, classes and milliseconds of its row."""
        if self.config.reads_windows and mask and isinstance(self.backend, BundleBackend):
            from maskserve.predict.geotiff import segment_raster

            backend, should_stop = self.backend, self.stop_event.is_set
            with image.root.local_copy(image.name) as source, self.output.writable_path(mask) as target:
                return backend.run_on_engine(
                    lambda: segment_raster(
                        backend.segmenter, backend.bundle.spec, source, target, self.config, should_stop
                    )
                )
        data = image.read()
        encoded, fields = self.backend(data)
        if encoded is not None and self.config.format == "json" and self.config.options.masks == "polygons":
            encoded = georeference_polygons(data, encoded)
        if mask and encoded is not None:
            self.output.put(mask, encoded)
        return fields


def open_output(config: PredictConfig) -> FolderStore | ObjectStore:
    """The folder or store of the masks. Raises: RunError, ConfigError for a store that cannot be reached."""
    return ObjectStore(config.output) if "://" in config.output else FolderStore(Path(config.output).absolute())


def mask_name(image: InputImage, config: PredictConfig) -> str | None:
    """The path of an image's mask below the output; None if the masks are in the manifest."""
    return strip_suffix(image.name, config.axes) + config.mask_suffix if config.mask_suffix else None
