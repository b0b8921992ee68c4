"""Finds the files beside an ONNX graph in which it keeps tensors (its "external data"), without the package onnx.

The serving installation has no onnx, so this reads protobuf's wire format (protobuf.dev/programming-guides/encoding) as far as
the schema https://github.com/onnx/onnx/blob/main/onnx/onnx.proto needs it. Weights are skipped by their length.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Message = Literal["model", "graph", "node", "attribute", "tensor", "sparse", "function", "training", "entry"]

VARINT, FIXED64, BYTES, GROUP_START, GROUP_END, FIXED32 = range(6)  # wire types
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}  # bytes

# Of each message the fields that lead to a tensor: number -> message.
FIELDS: dict[Message, dict[int, Message]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},  # external_data: pairs of key and value, of which `location` is the file
    "entry": {},
}
ENTRY_KEY, ENTRY_VALUE = 1, 2
MAX_DEPTH = 200  # of nested messages: more than protobuf's own limit of 100


def external_data_files(graph: Path) -> set[str]:
    """The locations of a graph's external data, relative to its folder. Raises: OSError; ValueError for a file that is no graph."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return set(_locations(data, 0, len(data), "model", 0))


def _locations(data: mmap.mmap, start: int, end: int, message: Message, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    key = value = ""
    for number, first, last in _fields(data, start, end):
        if message == "entry" and number in (ENTRY_KEY, ENTRY_VALUE):
            text = data[first:last].decode("utf-8", "replace")
            key, value = (text, value) if number == ENTRY_KEY else (key, text)
        elif inner := FIELDS[message].get(number):
            yield from _locations(data, first, last, inner, depth + 1)
    if message == "entry" and key == "location":
        yield value


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field that is made of bytes. Raises: ValueError."""
    groups = 0  # a reader skips groups, which ONNX does not use
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            _, position = _varint(data, position, end)
            continue
        if wire_type in (GROUP_START, GROUP_END):
            groups += 1 if wire_type == GROUP_START else -1
            continue
        length = FIXED_SIZES.get(wire_type, -1)
        if wire_type == BYTES:
            length, position = _varint(data, position, end)
        if length < 0 or position + length > end:
            raise ValueError("it is truncated, or no ONNX graph")
        if wire_type == BYTES and groups == 0:
            yield number, position, position + length
        position += length


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """A number of up to 64 bits, and the position behind it. Raises: ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("it is truncated, or no ONNX graph")
