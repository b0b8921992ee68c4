"""The labels of a volume: the class of each voxel, on the grid of the file that was sent."""

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskserve.client.mask import Mask
from maskserve.client.npz_arrays import read_arrays

HEADER_BYTES = 544
MAX_RATIO = 1032  # deflate packs no more bytes into one


@dataclass(frozen=True, eq=False, repr=False)
class VolumeMask(Mask):
    """The label of each voxel of a volume, in the order of the file's axes; of an array in that of the array.

    As a `Mask`, with `labels` and `confidence` of three axes. `png` is empty.
    """

    affine: NDArray[np.float64] | None = (
        None  # 4 x 4, from (i, j, k, 1) to mm; None if nothing says how the volume lies
    )
    spacing: tuple[float, ...] | None = None  # mm along the axes of the labels; None if it is not known
    data: bytes = b""  # what the service returned: a .nii.gz, or an npz

    @classmethod
    def from_nifti(cls, nifti: bytes, **fields: Any) -> "VolumeMask":
        """The labels of the service's `.nii.gz`; `fields`: those of `Mask` beside the labels, `palette` and `png`.

        Raises: ValueError, struct.error or zlib.error for bytes that are not this format.
        """
        labels, affine, spacing = _read_nifti(nifti)
        return cls(
            labels=labels, palette=_palette(fields), png=b"", affine=affine, spacing=spacing, data=nifti, **fields
        )

    @classmethod
    def from_npz(cls, npz: bytes, **fields: Any) -> "VolumeMask":
        """The labels of the service's npz. `fields` and errors as in `from_nifti`; also LookupError, zipfile.BadZipFile."""
        arrays = read_arrays(npz, ["labels"], ["confidence", "affine", "spacing"])
        labels, confidence = arrays["labels"], arrays.get("confidence")
        if labels.dtype != np.uint8 or labels.ndim != 3 or not labels.size:
            raise ValueError(f"expected labels as uint8 of three axes, got {labels.dtype} of {labels.shape}")
        if confidence is not None and (confidence.dtype != np.float32 or confidence.shape != labels.shape):
            raise ValueError(f"expected a confidence for each label, got {confidence.dtype} of {confidence.shape}")
        affine, spacing = (
            None if name not in arrays else arrays[name].astype(np.float64) for name in ("affine", "spacing")
        )
        if (affine is not None and affine.shape != (4, 4)) or (spacing is not None and spacing.shape != (3,)):
            raise ValueError("expected an affine of 4 x 4 and a spacing of 3 numbers")
        return cls(
            labels=labels, palette=_palette(fields), png=b"", confidence=confidence, affine=affine,
            spacing=None if spacing is None else tuple(spacing.tolist()), data=npz, **fields,
        )  # fmt: skip

    def save(self, path: Path | str) -> None:
        """Write what the service returned: for a file that was sent a `.nii.gz` on its grid; for an array, or with confidence, an
        npz.

        Raises: ValueError for a path with another suffix.
        """
        suffix = ".npz" if self.data.startswith(b"PK") else ".nii.gz"
        if not str(path).lower().endswith(suffix):
            raise ValueError(f"{path}: these labels are saved as {suffix}.")
        Path(path).write_bytes(self.data)

    def class_fractions(self) -> dict[str, float]:
        """Fraction of the voxels, 0..1, by class name, the largest first. Only classes that occur; 255 is none."""
        counts = sorted(zip(self._counts(), self.classes, strict=False), key=lambda pair: -pair[0])
        return {entry["name"]: count / self.labels.size for count, entry in counts if count}

    def class_volumes(self) -> dict[str, float]:
        """Volume in ml by class name, by label. Only classes that occur. Raises: ValueError if the spacing is not known."""
        if self.spacing is None:
            raise ValueError(
                "The spacing of this volume is not known: send it, as in segment(array, spacing=(3, 1, 1))."
            )
        voxel = math.prod(self.spacing) if self.affine is None else abs(float(np.linalg.det(self.affine[:3, :3])))
        pairs = zip(self._counts(), self.classes, strict=False)
        return {entry["name"]: count * voxel / 1000 for count, entry in pairs if count}

    def overlay(self, alpha: float = 0.5) -> Any:
        """Raises: ValueError: a volume is no image."""
        raise ValueError("A volume has no overlay; the web page of the service draws its slices.")

    def _counts(self) -> list[int]:
        """Voxels by label."""
        found: list[int] = np.sum([np.bincount(plane.ravel(), minlength=256) for plane in self.labels], axis=0).tolist()
        return found

    def _repr_png_(self) -> None:  # type: ignore[override]
        """In a notebook, the text and no image."""

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.labels.shape))
        if self.spacing is None:
            parts = [f"{name} {fraction:.1%}" for name, fraction in self.class_fractions().items()]
        else:
            parts = [f"{name} {ml:.3g} ml" for name, ml in self.class_volumes().items()]
        return f"<VolumeMask {shape} by {self.model}: {', '.join(parts) or 'unlabeled'}>"


def _palette(fields: dict[str, Any]) -> NDArray[np.uint8]:
    palette = np.zeros((256, 3), np.uint8)
    for label, entry in enumerate(fields.get("classes", [])[:256]):
        palette[label] = entry["rgb"]
    return palette


def _read_nifti(nifti: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[float, ...]]:
    """Labels i x j x k, affine and spacing of a little-endian NIfTI of uint8, as the service writes it."""
    head = zlib.decompressobj(wbits=31).decompress(nifti, HEADER_BYTES)
    if head[344:347] == b"n+1":
        dim, pixdim, offset = struct.unpack_from("<8h", head, 40), struct.unpack_from("<8f", head, 76), 352
        kind, codes = struct.unpack_from("<h", head, 70)[0], struct.unpack_from("<2h", head, 252)
        turn, rows = struct.unpack_from("<6f", head, 256), struct.unpack_from("<12f", head, 280)
    elif head[4:7] == b"n+2":
        dim, pixdim, offset = struct.unpack_from("<8q", head, 16), struct.unpack_from("<8d", head, 104), 544
        kind, codes = struct.unpack_from("<h", head, 12)[0], struct.unpack_from("<2i", head, 344)
        turn, rows = struct.unpack_from("<6d", head, 352), struct.unpack_from("<12d", head, 400)
    else:
        raise ValueError("expected a NIfTI")
    shape = tuple(dim[1:4])
    count = math.prod(shape)
    if dim[0] != 3 or kind != 2 or min(shape) < 1 or count > MAX_RATIO * len(nifti):
        raise ValueError(f"expected labels as uint8 of three axes, got the type {kind} of {dim}")
    content = zlib.decompressobj(wbits=31).decompress(nifti, offset + count)
    if len(content) < offset + count:
        raise ValueError(f"expected {count:,} voxels, got {max(0, len(content) - offset):,}")
    labels = np.frombuffer(content, np.uint8, count, offset).reshape(shape, order="F")
    affine = np.eye(4)
    if codes[1] > 0:
        affine[:3] = np.array(rows).reshape(3, 4)
    elif codes[0] > 0:
        affine[:3, :3] = _rotation(*turn[:3]) * np.array([*pixdim[1:3], pixdim[3] * (-1 if pixdim[0] < 0 else 1)])
        affine[:3, 3] = turn[3:]
    else:  # that of Analyze, as nibabel and SPM read it
        affine[:3, :3] = np.diag([-pixdim[1], *pixdim[2:4]])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    if not np.isfinite(affine).all() or min(spacing) <= 0:
        raise ValueError("expected an affine of finite numbers")
    return labels, affine, spacing


def _rotation(b: float, c: float, d: float) -> NDArray[np.float64]:
    """The rotation of a quaternion whose first part is not negative (nifti1.h, METHOD 2)."""
    a = math.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
