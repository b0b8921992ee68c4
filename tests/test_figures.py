"""Every measured figure of README and docs has its source in `docs/figures.yaml`: a file and a place in `benchmarks/results/`.

A measured figure is a number with one of the units below, or a cell of a table that is a decimal number. Code blocks and
code spans are left out. A number that is no measurement, such as a default, has its reason instead of a source.
"""

import json
import re
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = yaml.safe_load((ROOT / "docs" / "figures.yaml").read_text(encoding="utf-8"))
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]

NUMBER = r"(?<![\w.\-/#])[+-]?\d[\d,]*(?:\.\d+)?"
WITH_UNIT = re.compile(rf"{NUMBER}(?:\s?(?:%|(?:ms|MB|GB|images/s|mIoU|GFLOP)\b)|x\b|\s(?:s|seconds|points)\b)")
DECIMALS = re.compile(r"\**((?:[+-]?\d*\.\d+(?:, )?)+)\**(?: \(.*)?")  # a cell of one or several, also in bold


def figures_in_line(line: str) -> list[str]:
    """The measured figures of a line, in order."""
    if not line.startswith("|"):
        return WITH_UNIT.findall(line)
    found = []
    for cell in line.strip("| \n").split("|"):
        decimals = DECIMALS.fullmatch(cell.strip())
        found += decimals[1].split(", ") if decimals else []
        found += WITH_UNIT.findall(cell)
    return found


def figures_in_page(text: str) -> list[tuple[str, str, str]]:
    """The measured figures of a page, each with its section and its line."""
    found, fenced, section = [], False, ""
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            continue
        if line.startswith("#"):
            section = line.strip("# ")
        found += [(figure, section, line) for figure in figures_in_line(re.sub(r"`[^`]*`", "", line))]
    return found


def listed(page: str) -> list[tuple[str, Any, str]]:
    """The figures of a page, their sources and their sections, as in figures.yaml."""
    pairs = SOURCES.get(page, {}).items()
    groups = [(section, entries) for section, entries in pairs if not isinstance(entries, str)]
    return [(*next(iter(entry.items())), section) for section, entries in groups for entry in entries]


def whole_tables(page: str) -> dict[str, str]:
    """The sections whose figures are all printed by a benchmark, with the file of its results."""
    return {section: file for section, file in SOURCES.get(page, {}).items() if isinstance(file, str)}


@cache
def read_results(file: str) -> Any:
    """A file of benchmarks/results/; of JSON lines, their list."""
    text = (RESULTS / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.endswith(".jsonl") else json.loads(text)


def look_up(file: str, path: str) -> float:
    """The number at a path such as `rows > 2 > ms`; paths joined by ` + ` are added, and of a list the median is taken."""
    total = 0.0
    for one in path.split(" + "):
        value = read_results(file)
        for key in one.split(" > "):
            value = value[int(key) if isinstance(value, list) else key]
        total += statistics.median(value) if isinstance(value, list) else value
    return total


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_has_a_source(page: str) -> None:
    """On a failure: add the figure to docs/figures.yaml, in the order of the page, or take it out of the page."""
    found = figures_in_page((ROOT / page).read_text(encoding="utf-8"))
    assert all((RESULTS / file).is_file() for file in whole_tables(page).values())
    found = [figure for figure in found if figure[1] not in whole_tables(page)]
    expected = [(figure, section) for figure, _, section in listed(page)]
    for (figure, section, line), entry in zip(found, expected, strict=False):
        assert (figure, section) == entry, (
            f"{page}, {section}: {line!r} has {figure!r}, where docs/figures.yaml has {entry}"
        )
    assert [(figure, section) for figure, section, _ in found] == expected


def test_the_costs_of_hostile_images_are_those_of_the_results() -> None:
    """The sentences below the table, whose figures have other units than the pages' usual ones."""
    text = " ".join((ROOT / "docs" / "service.md").read_text(encoding="utf-8").split())
    container = read_results("container.json")
    counts = [sum(by_status.values()) for by_status in container["responses"].values()]
    assert f"all {sum(counts):,} requests" in text and f"together were {container['peak_mib']:,} MiB" in text
    rows = {row["image"]: row for row in read_results("hostile.json")}
    largest, floats = rows["RGBA of 16 bits, 49 megapixels"], rows["float predictor, 49 megapixels of float64"]
    stated = (largest["now"]["cpu_seconds"], largest["now"]["mib"], largest["bytes"] / 1000)
    assert "{:.2f} s and {:,} MiB for 49 megapixels in a file of {:.0f} KB".format(*stated) in text
    assert f"float64 take 16 bytes and 0.12 us each, {floats['now']['cpu_seconds']} s" in text


@pytest.mark.parametrize("page", SOURCES)
def test_figures_are_those_of_the_results(page: str) -> None:
    for figure, source, _ in listed(page):
        if isinstance(source, str):
            assert len(source.split()) > 2, f"{figure} of {page} is a constant: say of what"
            continue
        file, path, times = (*source, 1)[:3]
        number = re.match(r"[+-]?[\d,]*\.?\d+", figure)[0].replace(",", "")  # type: ignore[index]
        half_digit = 0.5 * 10 ** -len(number.partition(".")[2])
        value = look_up(file, path) * times
        assert abs(value - float(number)) <= half_digit * (1 + 1e-6), (
            f"{page} says {figure}, {file} {path} is {value:g}"
        )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("It takes 12 ms, 1,234 MB and 99.9% of 2 s, +0.3 points.", ["12 ms", "1,234 MB", "99.9%", "2 s", "+0.3 points"]),
        ("61.4 mIoU at 23 images/s (0.5 GFLOP), 3.5x", ["61.4 mIoU", "23 images/s", "0.5 GFLOP", "3.5x"]),
        ("Images of 640x480 pixels, 3 x 3, 520 x long side, in bf16, on 2 cores, `timeout=60 s`, seconds, v1.2", []),
        ("| lr 0.005 | **.458** | 12.5, 3.0 | **4.5** (95%: 4 to 5) | 7 ms |", [".458", "12.5", "3.0", "4.5", "95%", "7 ms"]),
    ],
)  # fmt: skip
def test_what_counts_as_a_figure(line: str, expected: list[str]) -> None:
    assert [figure for figure, _, _ in figures_in_page(line)] == expected
