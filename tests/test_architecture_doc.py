"""The paths in docs/architecture.md are true: every listed function exists, and an earlier step uses it.

A step is a numbered line that begins with a file and a name: "1. `training/export.py`: `export` - text" or
"... `service/app.py`: `Maskserve.start`, `Maskserve.stop` - text". A name is a function, a class, a constant or `Class.method`.
The steps of one list are in the order of their calls: every name but the first is used by an earlier one, directly or through
other definitions of that one's file.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
STEP = re.compile(r"\d+\. `([\w/]+\.py)`: ((?:`[\w.]+`(?:, | and )?)+)")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Step(NamedTuple):
    """A line of a list: a file, relative to the repository, and names in it."""

    file: str
    names: tuple[str, ...]


def read_paths(text: str) -> dict[str, list[Step]]:
    """The lists of steps of a document, by the heading and the sentence above each."""
    paths: dict[str, list[Step]] = {}
    heading = sentence = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = sentence = line.strip("# ")
        elif re.match(r"\d+\. ", line):
            match = STEP.match(line)
            assert match, f"not of the form 'N. `file.py`: `name` - text': {line}"
            key = heading if sentence == heading else f"{heading}: {sentence.rstrip(':')}"
            paths.setdefault(key, []).append(Step(match[1], tuple(re.findall(r"`([\w.]+)`", match[2]))))
        elif line.endswith(":") and not line.startswith(" "):
            sentence = line
    return paths


@cache
def definitions(file: str) -> dict[str, list[Definition]]:
    """Functions, classes and constants of a file by name. Methods are there by their name and by `Class.method`."""
    found: dict[str, list[Definition]] = {}
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found.setdefault(ast.unparse(target), []).append(node)
        elif isinstance(node, Definition):
            found.setdefault(node.name, []).append(node)
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.setdefault(method.name, []).append(method)
                    found[f"{node.name}.{method.name}"] = [method]
    return found


@cache
def names_used(file: str, name: str) -> frozenset[str]:
    """Names that a definition refers to, also through other definitions of its file."""
    text = (ROOT / file).read_text()
    aliases = {
        alias.asname: alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    used: set[str] = set()
    visited: set[str] = set()
    pending = {name, f"{name.partition('.')[0]}.__init__"}  # the types of a class's attributes are in its __init__
    while pending:
        current = pending.pop()
        visited.add(current)
        for node in (node for root in definitions(file).get(current, []) for node in ast.walk(root)):
            if isinstance(node, ast.Name | ast.Attribute):
                word = node.id if isinstance(node, ast.Name) else node.attr
                used.add(aliases.get(word, word))
                pending |= {word} - visited
            elif isinstance(node, ast.Constant) and (match := re.fullmatch(r"[\w.]+:(\w+)", str(node.value))):
                used.add(match[1])  # such as "service.app:app", for a process that is started
    return frozenset(used)


def is_used(name: str, earlier: list[tuple[str, str]]) -> bool:
    """Whether an earlier (file, name) refers to a name; a special method or `forward` is referred to by its class."""
    owner, _, method = name.rpartition(".")
    word = owner if owner and (method.startswith("__") or method == "forward") else method
    return any(word in names_used(*one) for one in earlier)


PATHS = read_paths(DOCUMENT.read_text())


def test_document_lists_training_export_and_service() -> None:
    files = {step.file for steps in PATHS.values() for step in steps}
    assert {"training/train.py", "training/engine/trainer.py", "training/export.py", "service/app.py"} <= files


@pytest.mark.parametrize("path", PATHS)
def test_listed_functions_exist(path: str) -> None:
    missing = [
        f"{step.file}: {name}"
        for step in PATHS[path]
        for name in step.names
        if not (ROOT / step.file).is_file() or name not in definitions(step.file)
    ]
    assert not missing, f"docs/architecture.md lists what does not exist: {missing}"


@pytest.mark.parametrize("path", PATHS)
def test_every_step_is_used_by_an_earlier_one(path: str) -> None:
    listed = [(step.file, name) for step in PATHS[path] for name in step.names if (ROOT / step.file).is_file()]
    unused = [
        f"{file}: {name}" for index, (file, name) in enumerate(listed) if index and not is_used(name, listed[:index])
    ]
    assert not unused, f"no earlier step in docs/architecture.md refers to {unused}"


def test_untrue_steps_are_found() -> None:
    text = "## Path\n\n1. `models/bundle.py`: `open_bundle` - text\n2. `training/export.py`: `export`, `gone` - text\n"
    (first, second), *_ = read_paths(text).values()
    opener = (first.file, first.names[0])
    assert not is_used("export", [opener])
    assert is_used("Bundle", [opener])
    assert "gone" not in definitions(second.file)
    with pytest.raises(AssertionError, match="not of the form"):
        read_paths("1. models/bundle.py: open_bundle - text")
