"""Characters that control a terminal are shown, not sent."""

import pytest

from models.errors import escape_control_characters, escape_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\rb\x9b2J\x7f\0", r"a\rb\x9b2J\x7f\x00"),
        ("gpj.\u202eexe\u2066", r"gpj.\u202eexe\u2066"),
        ("b\udcfcro.png", r"b\udcfcro.png"),
        ("größe 日本 🙂 \\x1b", "größe 日本 🙂 \\x1b"),
        ("two\n\tlines", "two\n\tlines"),
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    assert escape_control_characters(text) == expected
    escape_control_characters(text).encode()
    assert escape_line(text) == expected.replace("\n", r"\n").replace("\t", r"\t")
