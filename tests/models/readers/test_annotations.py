"""Annotation files: what is written is read, also by an independent reader, and errors say what is wrong."""

import struct
from pathlib import Path

import pytest

from models.errors import DataError
from models.readers.annotations import (
    Annotation,
    Interval,
    from_intervals,
    read_annotations,
    to_intervals,
    write_annotations,
)

LUDB = Path(__file__).parents[3] / ".." / "shared" / "data" / "ludb" / "data"
INTERVALS = [
    Interval(5, 40, "P"),
    Interval(60, 90, "QRS"),
    Interval(5000, 100_000, "deep sleep"),
    Interval(100_000, 100_400, "T"),
]


def test_intervals_there_and_back() -> None:
    written = write_annotations(from_intervals(INTERVALS))
    assert to_intervals(read_annotations(written)) == INTERVALS


@pytest.mark.skipif(not LUDB.is_dir(), reason="the folder ../shared/data/ludb is missing")
@pytest.mark.parametrize("name", ["1.i", "102.v3"])
def test_files_of_another_writer_are_read_and_written_bit_for_bit(name: str) -> None:
    data = (LUDB / name).read_bytes()
    annotations = read_annotations(data)
    assert write_annotations(annotations) == data
    intervals = to_intervals(annotations)
    assert len(intervals) == sum(each.symbol == "(" for each in annotations)
    assert {each.name for each in intervals} == {"P", "QRS", "T"}


def test_points_and_rhythms_are_no_intervals() -> None:
    points = [(3, "+", "(AFIB"), (5, "N", ""), (9, "(", ""), (12, "p", ""), (15, "(", ""), (18, "N", ""), (20, ")", "")]
    found = [Annotation(*each) for each in points]
    assert to_intervals(read_annotations(write_annotations(found))) == [
        Interval(15, 21, "QRS")
    ]  # the P wave has no end


def test_intervals_of_several_channels_are_kept_apart() -> None:
    both = [
        each._replace(channel=channel)
        for channel in (0, 1)
        for each in from_intervals([Interval(5 + channel, 40, "P")])
    ]
    both.sort(key=lambda each: each.step)
    read = read_annotations(write_annotations(both))
    assert read == both and to_intervals(read) == [Interval(5, 40, "P"), Interval(6, 40, "P")]


def test_overlapping_events_cannot_be_written() -> None:
    with pytest.raises(DataError, match="Events overlap at time step 5"):
        write_annotations(from_intervals([Interval(1, 9, "P"), Interval(5, 12, "T")]))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (struct.pack("<HHhHH", 39 << 10 | 500, 59 << 10, -1, 0xFF00, 40 << 10), "one at time step 244 follows one at 500"),
        (struct.pack("<H", 39 << 10 | 5), "is truncated: it has no end mark"),
        (struct.pack("<HH", 59 << 10, 0), "is truncated"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused(data: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_annotations(data)
