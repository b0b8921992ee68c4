"""Reads the arrays of the service's npz. Nothing is unpickled, and nothing unpacks to more than the bytes that came."""

import io
import math
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_arrays(npz: bytes, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of these names, and those of `optional` that are there.

    Raises: ValueError, LookupError or zipfile.BadZipFile for bytes that are not this format.
    """
    with zipfile.ZipFile(io.BytesIO(npz)) as archive:
        present = [name for name in optional if f"{name}.npy" in archive.NameToInfo]
        arrays = {}
        for name in (*names, *present):
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("expected an npz without compression")
            arrays[name] = _read_array(archive.read(member))
        return arrays


def _read_array(content: bytes) -> NDArray[Any]:
    """An array of NumPy's format. Raises: ValueError. (`np.load` allocates whatever size the header names.)"""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_order, dtype = read_header(file)
    if column_order or dtype.hasobject or math.prod(shape) * dtype.itemsize > len(content):
        raise ValueError(f"an array of {dtype} of {shape} in {len(content):,} bytes")
    array: NDArray[Any] = np.frombuffer(content, dtype, math.prod(shape), file.tell()).reshape(shape)
    return array
