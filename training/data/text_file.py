"""The encoding of text files that people write: lists, tables, class files."""

import codecs
from pathlib import Path

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def text_encoding(file: Path) -> str:
    """UTF-8, or UTF-16 if the file begins with its mark, as Windows' PowerShell and Excel write it. Raises: OSError."""
    with file.open("rb") as stream:
        return "utf-16" if stream.read(2) in UTF16_MARKS else "utf-8-sig"
