"""The manifest's rows as Parquet (`manifest.py` describes the columns). pyarrow comes with the extra [batch]."""

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP = 10_000  # rows that are held in memory at once


def schema() -> "pa.Schema":
    """The columns, as the fields of `manifest.ManifestRow`."""
    import pyarrow as pa

    class_fields = [
        ("label", pa.uint8()), ("name", pa.string()), ("fraction", pa.float64()), ("rle", pa.string()),
        ("events", pa.int64()), ("voxels", pa.int64()), ("ml", pa.float64()),
    ]  # fmt: skip
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("mask", pa.string()),
            pa.field("error", pa.string()),
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("length", pa.int64()),
            pa.field("rate", pa.float64()),
            pa.field("shape", pa.list_(pa.int32())),
            pa.field("spacing", pa.list_(pa.float64())),
            pa.field("classes", pa.list_(pa.struct(class_fields))),
            pa.field("milliseconds", pa.float64()),
            pa.field("model", pa.string()),
        ]
    )


def write_parquet(file: Path | io.BytesIO, rows: Iterable[dict[str, Any]]) -> None:
    """Write a table, a group of rows at a time. Raises: OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema()
    with pq.ParquetWriter(file, columns, compression="zstd") as writer:
        for group in _row_groups(map(_escape_paths, rows)):
            writer.write_table(pa.Table.from_pylist(group, columns))


def to_parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    """The rows as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    write_parquet(buffer, rows)
    return buffer.getvalue()


def read_parquet_bytes(data: bytes) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def _escape_paths(row: dict[str, Any]) -> dict[str, Any]:
    r"""The row with file names that are not UTF-8 escaped as Python prints them, `\udce9`: Parquet holds only valid text."""
    texts = {name: row.get(name) for name in ("path", "mask", "error")}
    return row | {name: text and text.encode("utf-8", "backslashreplace").decode() for name, text in texts.items()}


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    remaining = iter(rows)
    while group := list(islice(remaining, ROWS_PER_GROUP)):
        yield group
