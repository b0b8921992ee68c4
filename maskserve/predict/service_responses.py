"""Reads what a service answers: nothing of it is trusted, and no library sees another format than the one that was requested."""

import io
from collections import Counter
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import BaseModel, Field

from models.errors import quoted
from models.imaging.decode import MAX_PIXELS, Labels
from models.readers import nifti
from models.readers.limits import ReadLimits
from models.spec import IGNORE_INDEX, Architecture, BundleSpec, ClassInfo, InputRule

_Size = Annotated[int, Field(ge=1, le=2**31 - 1)]  # pixels


class _ServedInput(BaseModel):
    axes: str = "HW"


class _ServedSpec(BaseModel):
    classes: list[ClassInfo] = Field(min_length=2, max_length=255)
    input: _ServedInput = _ServedInput()


class ServedModel(BaseModel):
    """An entry of /v1/models. The rest of its spec may be of another version of maskserve."""

    name: str = Field(min_length=1)
    hash: str = Field(pattern="^[0-9a-f]{64}$")
    spec: _ServedSpec

    @property
    def class_spec(self) -> BundleSpec:
        """A spec of which only the classes are the model's."""
        rest = {"input": InputRule(rule="native"), "architecture": Architecture(name="")}
        return BundleSpec.model_validate({"name": self.name, "classes": self.spec.classes, **rest})


class _Rle(BaseModel):
    counts: str


class _ClassEntry(BaseModel):
    label: int = Field(ge=0, lt=IGNORE_INDEX)
    name: str
    fraction: float = Field(ge=0, le=1)
    rle: _Rle | None = None


class _JsonResult(BaseModel):
    height: _Size
    width: _Size
    classes: list[_ClassEntry]


def read_json_fields(encoded: bytes, rle: bool) -> dict[str, Any]:
    """Height, width and classes, as ManifestRow has them, of the format `json`; `rle`: with COCO's counts.

    Raises: ValueError.
    """
    result = _JsonResult.model_validate_json(encoded)
    classes = []
    for entry in result.classes:
        row = {"label": entry.label, "name": entry.name, "fraction": entry.fraction}
        if rle:
            if entry.rle is None:
                raise ValueError(f"the class {quoted(entry.name)} has no rle")
            row["rle"] = entry.rle.counts
        classes.append(row)
    return {"height": result.height, "width": result.width, "classes": classes}


class _EventEntry(BaseModel):
    label: int = Field(ge=0, lt=IGNORE_INDEX)
    onset: int = Field(ge=0)
    offset: int = Field(ge=0)


class _EventsResult(BaseModel):
    rate: float = Field(gt=0, allow_inf_nan=False)
    length: _Size
    leads: list[str]
    events: list[_EventEntry]


def read_events_fields(encoded: bytes, names: list[str]) -> dict[str, Any]:
    """Length, rate and events by class, as ManifestRow has them, of the format `events`. Raises: ValueError."""
    result = _EventsResult.model_validate_json(encoded)
    highest = max((event.label for event in result.events), default=0)
    if highest >= len(names):
        raise ValueError(f"an event has the label {highest}, and the model {len(names)} classes")
    counts = Counter(event.label for event in result.events)
    classes = [{"label": label, "name": names[label], "events": counts[label]} for label in sorted(counts)]
    return {"length": result.length, "rate": result.rate, "classes": classes}


class _VolumeClass(BaseModel):
    label: int = Field(ge=0, lt=IGNORE_INDEX)
    voxels: int = Field(ge=0)
    ml: float | None = Field(ge=0, allow_inf_nan=False)


class _VolumeResult(BaseModel):
    shape: list[_Size] = Field(min_length=3, max_length=3)
    spacing: list[float] | None
    classes: list[_VolumeClass]


def read_volume_fields(encoded: bytes, names: list[str]) -> dict[str, Any]:
    """Shape, spacing and classes, as ManifestRow has them, of the format `json` of volumes. Raises: ValueError."""
    result = _VolumeResult.model_validate_json(encoded)
    if any(entry.label >= len(names) for entry in result.classes):
        raise ValueError(f"a class has a label that is none of the model's {len(names)} classes")
    classes = [
        {"label": entry.label, "name": names[entry.label], "voxels": entry.voxels}
        | ({} if entry.ml is None else {"ml": entry.ml})
        for entry in result.classes
    ]
    return {"shape": result.shape, "spacing": result.spacing, "classes": classes}


def read_nifti_labels(encoded: bytes, class_count: int) -> tuple[Labels, NDArray[np.float64]]:
    """The labels, uint8 i x j x k, and the affine to mm of the format `nifti`. Raises: ValueError, ImageError."""
    stored, header = nifti.read_stored(encoded, ReadLimits(MAX_PIXELS))
    if stored.dtype != np.uint8:
        raise ValueError(f"expected uint8, got {stored.dtype}")
    return _check_labels(stored, class_count), header.affine


def read_png_labels(encoded: bytes, class_count: int) -> Labels:
    """The labels, uint8 H x W, of the format `png`. Raises: ValueError, and whatever Pillow raises for a broken PNG."""
    image = Image.open(io.BytesIO(encoded), formats=["PNG"])
    if image.mode != "P":
        raise ValueError(f"expected an indexed PNG, got mode {image.mode}")
    return _check_labels(np.asarray(image), class_count)


def read_npy_labels(encoded: bytes, class_count: int) -> Labels:
    """The labels, uint8 H x W, of the format `npy`. Raises: ValueError.

    `np.load` would open zip files too, and allocate whatever size the header names.
    """
    stream = io.BytesIO(encoded)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("expected a file of NumPy's format 1.0")
    shape, column_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(shape) != 2 or 0 in shape or dtype != np.uint8 or column_order:
        raise ValueError(f"expected uint8 of H x W, row by row, got {dtype} of {shape}")
    return _check_labels(np.frombuffer(encoded, np.uint8, offset=stream.tell()).reshape(shape), class_count)


def read_image_size(encoded: bytes, format: str) -> dict[str, Any]:
    """Height and width of the formats `overlay` and `confidence`, which do not contain the labels. Raises: as Pillow."""
    file = io.BytesIO(encoded)
    # Not `Image.open`: it would open a JPEG that says so as a file of several images.
    image = JpegImageFile(file) if format == "overlay" else Image.open(file, formats=["PNG"])
    return {"height": image.height, "width": image.width}


def _check_labels(labels: Labels, class_count: int) -> Labels:
    """The labels. Raises: ValueError for a label that is neither a class nor IGNORE_INDEX."""
    highest = int((labels + np.uint8(1)).max()) - 1  # 255 becomes 0 before it counts
    if highest >= class_count:
        raise ValueError(f"the mask has the label {highest}, and the model {class_count} classes")
    return labels
