"""What the worker and its decoder processes send each other: JSON messages on a socket, files and pixels in a memory file.

The other side may have been taken over by a hostile image: nothing of what a child sends is run, and sizes are checked.
"""

import importlib
import json
import math
import os
import socket
from collections.abc import Callable
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.imaging.file_header import FileHeader

if TYPE_CHECKING:
    from models.sample import Frame, NiftiPlacement, Sample, VolumeGrid

MAX_MESSAGE_BYTES = 1 << 16

# What a child can be asked for, by name, and the module, which it imports when it is first asked: the readers import the spec.
# Each takes the bytes of a file, and returns an array, a Pillow image, a `Sample` or a `FileHeader`.
FUNCTIONS = {
    "decode_image": "models.imaging.decode",
    "decode_mask": "models.imaging.decode",
    "decode_stored_mask": "models.imaging.decode",
    "decode_gif_mask": "models.imaging.gif_mask",
    "decode_npy_mask": "models.readers.npy",
    "read_header": "models.imaging.file_header",
    "read_sample": "models.readers",
    "read_input": "models.readers",
    "decode_preview": "models.readers.composite",
}


def find_function(name: str) -> Callable[..., Any]:
    """One of FUNCTIONS. Raises: LookupError."""
    function: Callable[..., Any] = getattr(importlib.import_module(FUNCTIONS[name]), name)
    return function


def send_message(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send a message. Raises: OSError if the other side has gone."""
    connection.send(json.dumps(message).encode())


def receive_message(connection: socket.socket) -> dict[str, Any]:
    """Receive a message. Raises: EOFError when the other side has gone, ValueError for what is not a message."""
    data = connection.recv(MAX_MESSAGE_BYTES)
    if not data:
        raise EOFError("the other process has closed the connection")
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message


def write_buffer(buffer: int, content: bytes | memoryview, start: int = 0) -> None:
    """Write to a memory file, from the byte `start`. Raises: OSError if memory is short."""
    rest, offset = memoryview(content).cast("B"), 0
    while offset < len(rest):
        offset += os.pwrite(buffer, rest[offset:], start + offset)


def read_buffer(buffer: int, content: bytearray | memoryview, start: int = 0) -> None:
    """Fill `content` from the byte `start` of a memory file. Raises: EOFError if the file is shorter."""
    rest, offset = memoryview(content).cast("B"), 0
    while offset < len(rest):
        count = os.preadv(buffer, [rest[offset:]], start + offset)
        if not count:
            raise EOFError("the buffer is too short")
        offset += count


def pack_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a function as JSON: a network's input, `rule`, as a dict."""
    if "rule" not in arguments:
        return arguments
    return {**arguments, "rule": arguments["rule"].model_dump(mode="json")}


def unpack_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The opposite of `pack_arguments`."""
    if "rule" not in arguments:
        return arguments
    from models.spec import InputRule

    return {**arguments, "rule": InputRule.model_validate(arguments["rule"])}


def write_result(buffer: int, result: Any) -> dict[str, Any]:
    """Write the pixels of a function's result to a memory file. Returns: the rest of it, as a message."""
    if isinstance(result, np.ndarray):
        return {"kind": "array", **_write_array(buffer, result)}
    if isinstance(result, Image.Image):
        pixels = result.tobytes()
        write_buffer(buffer, pixels)
        palette = result.palette
        colors = None if palette is None else [palette.mode, bytes(palette.palette).hex()]
        return {"kind": "image", "bytes": len(pixels), "mode": result.mode, "size": result.size, "palette": colors}
    if isinstance(result, FileHeader):
        return {"kind": "header", "bytes": 0, "values": tuple(result)}
    return {"kind": "sample", **_write_sample(buffer, result)}


def read_result(buffer: int, message: dict[str, Any], max_bytes: int) -> Any:
    """The opposite of `write_result`, for at most `max_bytes` of pixels.

    Raises: ValueError, LookupError, TypeError, AttributeError or OSError for a message that is wrong.
    """
    kind = message["kind"]
    if kind == "header":
        format, width, height, orientation, lossy = message["values"]
        return FileHeader(str(format), int(width), int(height), int(orientation), bool(lossy))
    if kind == "array":
        return _read_array(buffer, message, max_bytes)
    return {"image": _read_image, "sample": _read_sample}[kind](buffer, message, max_bytes)


def _write_array(buffer: int, array: NDArray[Any], start: int = 0) -> dict[str, Any]:
    content = np.ascontiguousarray(array)
    write_buffer(buffer, content.reshape(-1).view(np.uint8).data, start)
    return {"bytes": content.nbytes, "shape": content.shape, "dtype": content.dtype.str}


def _read_array(buffer: int, message: dict[str, Any], max_bytes: int, start: int = 0) -> NDArray[Any]:
    length, dtype, shape = message["bytes"], np.dtype(message["dtype"]), tuple(message["shape"])
    if not 0 <= length <= max_bytes:
        raise ValueError(f"{length} bytes")
    if dtype.kind not in "biuf" or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length:
        raise ValueError(f"{length} bytes as {dtype} {shape}")
    content = np.empty(length, np.uint8)
    read_buffer(buffer, content.data, start)
    array: NDArray[Any] = content.view(dtype).reshape(shape)
    return array


def _read_image(buffer: int, message: dict[str, Any], max_bytes: int) -> Image.Image:
    content = _read_array(buffer, {**message, "dtype": "|u1", "shape": [message["bytes"]]}, max_bytes)
    width, height = message["size"]
    if not 0 <= width * height <= 8 * len(content):  # of one bit each
        raise ValueError(f"{width} x {height} pixels in {len(content)} bytes")
    image = Image.frombytes(message["mode"], (width, height), content.data)
    if message["palette"]:
        mode, colors = message["palette"]
        image.putpalette(bytes.fromhex(colors), mode)
    return image


def _write_sample(buffer: int, sample: "Sample") -> dict[str, Any]:
    """The values, then one byte a pixel or time step if some are missing."""
    message = _write_array(buffer, sample.values)
    spacing, frame = sample.spacing, sample.frame
    return {
        **message,
        "valid": None if sample.valid is None else _write_array(buffer, sample.valid, message["bytes"]),
        "axes": sample.axes,
        "channels": sample.channels,
        "nodata": sample.nodata,
        "spacing": None if spacing is None else spacing.model_dump(mode="json"),
        "frame": None if frame is None else _frame_message(frame),
        "units": sample.units,
        "statistics": None if sample.statistics is None else sample.statistics.tolist(),
    }


def _frame_message(frame: "Frame") -> list[Any]:
    grid = frame.grid
    place = None
    if grid is not None:
        place = [
            grid.shape, grid.affine, grid.order, grid.flipped, grid.dtype, None if grid.nifti is None else astuple(grid.nifti)
        ]  # fmt: skip
    return [frame.affine, frame.crs, frame.start, place]


def _read_grid(place: list[Any]) -> "VolumeGrid":
    """Raises: ValueError, TypeError, IndexError for what is no grid."""
    from models.sample import VolumeGrid

    shape, affine, order, flipped, dtype, nifti = place
    i, j, k = (int(length) for length in shape)
    rows = [(float(a), float(b), float(c), float(d)) for a, b, c, d in affine]
    d, h, w = (int(axis) for axis in order)
    one, two, three = (bool(each) for each in flipped)
    if len(rows) != 4 or sorted((d, h, w)) != [0, 1, 2] or min(i, j, k) < 1:
        raise ValueError(f"a grid of {shape}, {order}")
    placement = None if nifti is None else _read_placement(nifti)
    return VolumeGrid((i, j, k), tuple(rows), (d, h, w), (one, two, three), np.dtype(dtype).name, placement)


def _read_placement(fields: list[Any]) -> "NiftiPlacement":
    """Raises: ValueError, TypeError for what no header holds."""
    from models.sample import NiftiPlacement

    version, units, pixdim, (qform, sform), quaternion, rows = fields
    if version not in (1, 2) or not 0 <= units <= 255 or (len(pixdim), len(quaternion), len(rows)) != (4, 6, 12):
        raise ValueError("a placement of other lengths")
    if not all(abs(int(code)) < 1 << (15 if version == 1 else 31) for code in (qform, sform)):
        raise ValueError(f"the codes {qform}, {sform}")
    steps, turn, matrix = (tuple(float(number) for number in each) for each in (pixdim, quaternion, rows))
    return NiftiPlacement(version, int(units), steps, (int(qform), int(sform)), turn, matrix)


def _read_sample(buffer: int, message: dict[str, Any], max_bytes: int) -> "Sample":
    from models.sample import Frame, Sample
    from models.spec import AXES, Spacing

    values = _read_array(buffer, message, max_bytes)
    valid = None if message["valid"] is None else _read_array(buffer, message["valid"], max_bytes, values.nbytes)
    axes, nodata = str(message["axes"]), message["nodata"]
    channels, units = (tuple(str(name) for name in message[key]) for key in ("channels", "units"))
    if axes not in AXES or values.ndim != len(axes) + 1 or values.shape[-1] != len(channels):
        raise ValueError(f"{len(channels)} channels of {values.shape} with the axes {axes}")
    if valid is not None and (valid.shape != values.shape[:-1] or valid.dtype != np.bool_):
        raise ValueError(f"valid pixels of {valid.shape}")
    frame, statistics = message["frame"], message["statistics"]
    if frame is not None:
        affine, crs, start, place = frame
        grid = None if place is None else _read_grid(place)
        a, b, c, d, e, f = affine or (0.0,) * 6
        corners = (float(a), float(b), float(c), float(d), float(e), float(f)) if affine else None
        if grid is not None and tuple(values.shape[:3]) != tuple(grid.shape[axis] for axis in grid.order):
            raise ValueError(f"a grid of {grid.shape} for {values.shape}")
        frame = Frame(corners, str(crs), start=str(start), grid=grid)
    return Sample(
        values,
        axes,
        channels,
        None if message["spacing"] is None else Spacing.model_validate(message["spacing"]),
        frame,
        None if nodata is None else float(nodata),
        valid,
        None if statistics is None else np.asarray(statistics, np.float32).reshape(2, len(channels)),
        units=units,
    )
