"""Names of files and classes in messages and on the terminal: control characters are shown, not sent; no backslash is doubled."""

import io
import os

import pytest
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.console import Console, name_text
from models.errors import escape_control_characters, escape_line, printable, quoted
from tests.import_graph import PACKAGES, ROOT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\rb\x9b2J\x7f\0", r"a\rb\x9b2J\x7f\x00"),
        ("gpj.\u202eexe\u2066", r"gpj.\u202eexe\u2066"),
        ("\ufeffroad\u200b", r"\ufeffroad\u200b"),
        (os.fsdecode(b"b\xfcro.png"), r"b\xfcro.png"),
        ("größe 日本 🙂 \\x1b", "größe 日本 🙂 \\x1b"),
        ("two\n\tlines", "two\n\tlines"),
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    line = expected.replace("\n", r"\n").replace("\t", r"\t")
    assert escape_control_characters(text) == expected
    assert (escape_line(text), quoted(text)) == (line, f"'{line}'")
    assert escape_control_characters(printable(text)) == expected
    printable(text).encode()
    assert escape_line(expected) == line  # escaping twice changes nothing


def test_quoted_keeps_backslashes() -> None:
    assert quoted(r"C:\data\new") == r"'C:\data\new'" and quoted(r"^(patient\d+)") == r"'^(patient\d+)'"
    assert quoted(5) == "5" and quoted(["a\x1b"]) == r"['a\x1b']"


def test_the_console_escapes_whatever_is_printed() -> None:
    name, shown = "a\x1b[31mb", r"a\x1b[31mb"
    table = Table("class", box=None, pad_edge=False)
    table.add_row(name_text(name))
    table.add_row(Text(name))
    console = Console(file=io.StringIO(), width=len(shown))
    for each in (name, Text(name), Padding(name, 0), table):
        console.print(each, highlight=False)
    console.print(f"[b]{name}[/]", soft_wrap=True)
    assert console.file.getvalue().split() == [*[shown] * 3, "class", *[shown] * 3]  # type: ignore[attr-defined]
    colored = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    colored.print(Text(name, "red"))
    assert colored.file.getvalue() == f"\x1b[31m{shown}\x1b[0m\n"  # type: ignore[attr-defined]


def test_no_message_is_quoted_by_repr_and_no_other_console_prints() -> None:
    """`repr` doubles backslashes. It stays in `__repr__`, and for bytes, code and hashes."""
    allowed = {
        "maskserve/bench_workers.py", "maskserve/client/client.py", "maskserve/client/async_client.py",
        "maskserve/client/responses.py",
    }  # fmt: skip
    for file in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        name, code = file.relative_to(ROOT).as_posix(), file.read_text()
        assert "!r}" not in code or name in allowed, f"{name}: use models.errors.quoted"
        assert "from rich.console import Console\n" not in code or name == "models/console.py", name
