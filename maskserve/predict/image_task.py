"""What is done with each picture: from its address to a mask that is put, and its row."""

import os
import threading
from pathlib import Path
from typing import Any

from maskserve.predict.backends import Bundled, Labeller, Served
from maskserve.predict.config import GEOTIFF, Job, short
from maskserve.predict.inputs import Picture
from maskserve.predict.manifest import Row
from maskserve.predict.outputs import Folder, Store
from models.errors import DataError, ImageError, TooLittleMemory

FAR = 8  # more threads where sources or target are far: a request to a store takes some 50 ms, whatever it carries


class Work:
    """What is done with each picture, once the model is open."""

    def __init__(self, job: Job, far: bool = False, single: bool = False) -> None:
        """`far`: sources are in a store; `single`: there is one picture. Raises: as the labellers."""
        self.job = job
        self.stopped = threading.Event()  # once set, a scene is not labelled to its end
        self.target = target_of(job)
        self.labeller: Labeller = Served(job) if job.served else Bundled(job, single or job.format == GEOTIFF)
        self.threads = self.labeller.at_once + (FAR if far or isinstance(self.target, Store) else 0)
        if job.format == GEOTIFF:
            self.threads = 2  # a scene is labelled by itself, and a far one is a copy on this machine's disk

    def __call__(self, picture: Picture) -> Row:
        """Label it and put its mask; whoever appends the row publishes it. Raises: RunError where no picture could be."""
        mask = mask_of(picture, self.job)
        model = short(self.labeller.model)
        try:
            facts = self._label(picture, mask)
        except (ImageError, DataError, TooLittleMemory, MemoryError) as error:
            sentence = "the memory is too small for it." if isinstance(error, MemoryError) else str(error)
            named = sentence if sentence.startswith(picture.path) else f"{picture.path}: {sentence}"
            return Row(picture.path, error=named, model=model)
        return Row(picture.path, mask, model=model, **facts)

    def _label(self, picture: Picture, mask: str | None) -> dict[str, Any]:
        if self.job.format == GEOTIFF and mask and isinstance(self.labeller, Bundled):
            from maskserve.predict.geotiff import label_raster

            bundled = self.labeller
            with picture.root.local(picture.name) as source, self.target.file(mask) as file:
                return bundled.alone(
                    lambda: label_raster(
                        bundled.segmenter, bundled.bundle.spec, source, file, self.job, self.stopped.is_set
                    )
                )
        encoded, facts = self.labeller(picture.root.read(picture.name))
        if mask and encoded is not None:
            self.target.put(mask, encoded)
        return facts


def target_of(job: Job) -> Folder | Store:
    """Where the masks go. Raises: RunError, ConfigError for a store that cannot be reached."""
    return Store(job.target) if "://" in job.target else Folder(Path(job.target).absolute())


def mask_of(picture: Picture, job: Job) -> str | None:
    """The place of a picture's mask; None where it stands in the manifest."""
    return os.path.splitext(picture.name)[0] + job.suffix if job.suffix else None
