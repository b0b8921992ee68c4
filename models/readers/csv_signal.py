"""Reader of signals in text: CSV or TSV, a column a channel, one time step a line.

    # rate=250
    time,I,II
    0.000,0.12,-0.03
    0.004,0.13,-0.01

The header line and the column of time are optional. The rate is that of the column (seconds, or `time_ms`, `time_us`, dates), or
of a comment line `# rate=250`; otherwise the caller states it. An empty cell or `nan` is a missing value.
"""

import csv
import math
import re
from array import array
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, UnsupportedFormatError, first_line, quoted
from models.readers.limits import ReadLimits
from models.readers.signal import build_signal, check_signal_size
from models.sample import Sample
from models.spec import MAX_CHANNELS

DELIMITERS = ",;\t"
COMMENTS = ("#", "%", "//")
TIME_COLUMNS = (
    "time",
    "t",
    "timestamp",
    "datetime",
    "date",
    "seconds",
    "second",
    "sec",
    "secs",
    "s",
    "elapsed",
    "ms",
    "us",
)
INDEX_COLUMNS = ("", "index", "sample", "samples", "n", "i_sample", "step")
MISSING = ("", "nan", "na", "n/a", "null", "none", "-", "?")
UNITS = {
    "ms": 1e-3,
    "msec": 1e-3,
    "milliseconds": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "microseconds": 1e-6,
    "ns": 1e-9,
    "min": 60.0,
}
MAX_TEXT = 256  # characters of a comment or a name that patterns are tried on
MAX_COLUMNS = 1024  # that are split; those of a signal are checked after it
MAX_CELL, MAX_LINE = 1024, (1 << 17) - 1  # characters; csv reads no longer cells
MAX_JITTER = 0.5  # of a period, between two lines: clocks that round to milliseconds
_NUMBER = r"(\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+)"
_RATE = re.compile(rf"(?:rate|frequency|fs)\b[^\d]*?{_NUMBER}|{_NUMBER}\s*hz\b", re.IGNORECASE)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")

Table = NDArray[np.float64]


def sniff(data: bytes) -> bool:
    """Whether the bytes are text with a digit in it."""
    start = data[:4096]
    return bool(start.strip()) and not _CONTROL.search(start) and bool(re.search(rb"\d", start))


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read a table. Raises: ImageError, which name the line of what is no number."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptImageError(f"The table is not in UTF-8 ({first_line(error)}). Save it as UTF-8.") from error
    rate, skipped = _read_comments(text)
    lines = text.splitlines()[skipped:]
    if not lines:
        raise CorruptImageError("The table has no lines of numbers. Export it again.")
    delimiter = _find_delimiter(lines[0])
    _check_lines(lines, delimiter, skipped + 1)
    decimal_comma = delimiter == ";" and "," in "".join(lines[1:20])
    first = _split(lines[0], delimiter)
    header = [] if all(_is_cell(cell, decimal_comma) for cell in first) else first
    body, line_number = lines[bool(header) :], skipped + 1 + bool(header)
    check_signal_size(limits, max(2, len(body)), max(1, len(first)), 8)
    times_as_dates = _date_column(header, body[:1], delimiter, decimal_comma)
    table = None if times_as_dates is not None else _read_fast(body, delimiter, decimal_comma)
    if table is None or table.shape[1] != len(first):
        table = _read_slowly(body, delimiter, decimal_comma, line_number, len(first), header, times_as_dates)
    kept, times = _find_time(header, table, times_as_dates)
    if times is not None:
        rate = _rate_of(table[:, times], header[times] if header else "", line_number, times_as_dates is not None)
    return build_signal(table[:, kept], rate, [_clean(header[index]) for index in kept] if header else ())


def _read_comments(text: str) -> tuple[float | None, int]:
    """The rate in the comment lines at the start, and the number of lines before the table."""
    rate, count = None, 0
    for line in text[: 1 << 16].splitlines():
        if line.strip() and not line.lstrip().startswith(COMMENTS):
            break
        match = _RATE.search(line[:MAX_TEXT])
        rate = float(match[1] or match[2]) if match else rate
        count += 1
    return rate, count


def _find_delimiter(line: str) -> str:
    counts = {mark: line.count(mark) for mark in DELIMITERS}
    if counts[";"]:
        return ";"
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ("," if not re.search(r"\S\s+\S", line) else " ")


def _check_lines(lines: list[str], delimiter: str, number: int) -> None:
    """Raises: UnsupportedFormatError for too many columns, CorruptImageError for a line that is longer than numbers are."""
    columns = 1 + (len(lines[0].split()) - 1 if delimiter == " " else lines[0].count(delimiter))
    if columns > MAX_COLUMNS:
        raise UnsupportedFormatError(
            f"The table has {columns:,} columns; the limit is {MAX_CHANNELS} channels. Each line is a time step: transpose the "
            "table, or select columns."
        )
    longest = max(range(len(lines)), key=lambda index: len(lines[index]))
    limit = min(MAX_CELL * columns, MAX_LINE)
    if len(lines[longest]) > limit:
        raise CorruptImageError(
            f"Line {number + longest} of the table has {len(lines[longest]):,} characters; the limit is {limit:,} for the "
            f"{columns} column{'s' * (columns != 1)} of its first line. Export it again."
        )


def _split(line: str, delimiter: str) -> list[str]:
    cells = line.split() if delimiter == " " else next(csv.reader([line], delimiter=delimiter), [])
    return [cell.strip().strip('"') for cell in cells]


def _is_cell(cell: str, decimal_comma: bool) -> bool:
    return cell.lower() in MISSING or _to_number(cell, decimal_comma) is not None


def _to_number(cell: str, decimal_comma: bool) -> float | None:
    try:
        return float(cell.replace(",", ".") if decimal_comma else cell)
    except ValueError:
        return None


def _date_column(header: list[str], body: list[str], delimiter: str, decimal_comma: bool) -> int | None:
    """The column that holds dates, by its name and its first cell."""
    cells = _split(body[0], delimiter) if body else []
    for index, name in enumerate(header):
        if _is_time(name) and index < len(cells) and not _is_cell(cells[index], decimal_comma):
            return index
    return None


def _is_time(name: str) -> bool:
    words = re.split(r"[^a-zµ]+", name.lower())
    return bool(words) and words[0] in TIME_COLUMNS


def _read_fast(body: list[str], delimiter: str, decimal_comma: bool) -> Table | None:
    """All cells as numbers, by NumPy's reader; None if one is none."""
    if decimal_comma or not any(map(str.strip, body)):
        return None
    try:
        table: Table = np.loadtxt(
            body, np.float64, comments=None, delimiter=None if delimiter == " " else delimiter, ndmin=2
        )
        return table
    except ValueError:
        return None


def _read_slowly(
    body: list[str],
    delimiter: str,
    decimal_comma: bool,
    line_number: int,
    width: int,
    header: list[str],
    dates: int | None,
) -> Table:
    """The same with missing cells, decimal commas and dates. Raises: CorruptImageError that names the first wrong line."""
    plain = dates is None and not decimal_comma and delimiter != " "
    values = array("d")  # a list of lists takes 30 times the bytes of short lines
    for number, line in enumerate(_read_lines(body, delimiter), line_number):
        if plain and len(line) == width:
            with suppress(ValueError):
                values.extend([*map(float, line)])
                continue
        cells = " ".join(line).split() if delimiter == " " else line
        if len(cells) < max(2, width) and not "".join(cells).strip():
            continue  # an empty line
        if len(cells) != width:
            raise CorruptImageError(
                f"Line {number} of the table has {len(cells)} columns; expected {width}, as the first line has. Fill the gap: "
                "an empty cell is a missing value."
            )
        for index, cell in enumerate(map(str.strip, cells)):
            value = _to_seconds(cell) if index == dates else _to_number(cell, decimal_comma)
            if value is None and (cell.lower() not in MISSING or index == dates):
                name = f" ({quoted(header[index])})" if header else ""
                raise CorruptImageError(
                    f"Line {number} of the table has {quoted(cell[:40])} in column {index + 1}{name}; expected a number. "
                    "Delete the column, or leave the cell empty if the value is missing."
                )
            values.append(math.nan if value is None else value)
    if not values:
        raise CorruptImageError("The table has no lines of numbers. Export it again.")
    return np.frombuffer(values, np.float64).reshape(-1, width)


def _read_lines(body: list[str], delimiter: str) -> Iterator[list[str]]:
    """The cells of each line. Raises: CorruptImageError for a quote that does not end."""
    stream = csv.reader((f"{line}\n" for line in body), delimiter=delimiter)
    try:
        yield from stream
    except csv.Error as error:
        raise CorruptImageError(f"The table cannot be read ({first_line(error)}). Export it without quotes.") from error


def _to_seconds(cell: str) -> float | None:
    """A date in ISO form as seconds."""
    try:
        return int(np.datetime64(cell.strip().rstrip("Z").replace(" ", "T"), "us").astype(np.int64)) / 1e6
    except ValueError:
        return None


def _find_time(header: list[str], table: Table, dates: int | None) -> tuple[list[int], int | None]:
    """The columns of the channels, and that of time, by name; without a header, a first column of equal steps."""
    columns = list(range(table.shape[1]))
    times = dates
    if header:
        if times is None:
            times = next((index for index, name in enumerate(header) if _is_time(name)), None)
        columns = [index for index in columns if header[index].lower() not in INDEX_COLUMNS or len(header) == 1]
    elif table.shape[1] > 1 and len(table) > 2:
        steps = np.diff(table[:, 0])
        if steps[0] > 0 and np.allclose(steps, steps[0], rtol=0.01):
            times = 0
    if times is not None and table.shape[1] > 1:
        return [index for index in columns if index != times], times
    return columns, None


def _rate_of(times: Table, name: str, line_number: int, in_seconds: bool) -> float:
    """The rate in Hz. Raises: CorruptImageError for time that does not advance evenly."""
    words = re.split(r"[^a-zµ]+", name.lower())
    times = times * next((factor for word, factor in UNITS.items() if word in words and not in_seconds), 1.0)
    steps = np.diff(times)
    if not len(steps):
        raise CorruptImageError("The signal has 1 time step; expected at least 2. Export it again.")
    backward = ~(steps > 0) | np.isinf(steps)  # or missing
    if backward.any():
        raise CorruptImageError(
            f"The time does not increase at line {line_number + int(backward.argmax()) + 1} of the table; expected one time step a "
            "line, in order. Sort the lines by time."
        )
    period = float(np.median(steps))
    period = float(times[-1] - times[0]) / len(steps) if np.abs(steps - period).max() <= MAX_JITTER * period else period
    wrong = np.abs(steps - period) > MAX_JITTER * period
    if wrong.any():
        index = int(wrong.argmax())
        raise CorruptImageError(
            f"The time jumps by {steps[index]:g} s before line {line_number + index + 1} of the table; expected {period:g} s. "
            "Fill the gap with lines of empty cells, or split the file there."
        )
    rate = 1 / period
    return float(round(rate)) if abs(rate - round(rate)) < 1e-3 * rate else rate


def _clean(name: str) -> str:
    """A column's name without its unit in brackets."""
    return re.sub(r"\s*[\[(][^\])]*[\])]\s*$", "", name.strip()[:MAX_TEXT])
