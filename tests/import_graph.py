"""Which files import which, and from that the test files of changed code: `python -m tests.import_graph [BASE]`.

`make test-changed` runs the printed test files: those that changed since the git commit BASE (default: HEAD) or are new,
those that mirror a changed file (`training/export.py` is tested by `tests/training/test_export.py`), and those that reach
a changed module over at most MAX_IMPORTS imports, or over more if there are none. Farther ones are left to `make test`:
in the end nearly every test imports nearly everything.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "training", "service", "maskserve")
MAX_IMPORTS = 2
MODULE_STRING = re.compile(rf"((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?::\w+)?")


def imported_names(file: Path) -> set[str]:
    """Dotted names that a Python file imports, at its top or inside a function; `from a import b` gives `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_files(file: Path, root: Path) -> set[Path]:
    """Files under `root` that a Python file imports, or names in a string such as "service.app:Maskserve".

    A conftest.py counts as imported by the tests of its folder.
    """
    strings = (node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
    named = {match[1] for text in strings if isinstance(text, str) and (match := MODULE_STRING.fullmatch(text))}
    found = set()
    for name in imported_names(file) | named:
        parts = name.split(".")
        module = next((path for end in (len(parts), len(parts) - 1) if (path := _module(root, parts[:end]))), None)
        if module:
            found.add(module)
    if file.name.startswith("test_"):
        found |= {folder / "conftest.py" for folder in file.parents if (folder / "conftest.py").is_file()}
    return found


def changed_files(base: str) -> list[Path]:
    """Files that differ from a git commit, and new files that git does not ignore."""
    commands = (["git", "diff", "--name-only", base, "--"], ["git", "ls-files", "--others", "--exclude-standard"])
    results = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for command in commands]
    for result in results:
        if result.returncode:
            raise SystemExit(f"{result.stderr.strip()}; choose a commit, for example `make test-changed BASE=HEAD~3`")
    return [ROOT / line for result in results for line in result.stdout.splitlines()]


def select_tests(changed: Iterable[Path], root: Path) -> list[Path]:
    """Test files of changed files, sorted; see the top of this file. A file that is not Python stands for its folder."""
    graph = {
        file: imported_files(file, root) for folder in (*PACKAGES, "tests") for file in (root / folder).rglob("*.py")
    }
    reached: set[Path] = set().union(
        *({file} if file.suffix == ".py" else _nearest_modules(file, root) for file in changed)
    )
    mirrors = {file for file in graph if file.name in {f"test_{module.name}" for module in reached}}
    tests: set[Path] = set()
    for distance in range(len(graph)):
        tests = {file for file in mirrors | reached if file.name.startswith("test_") and file in graph}
        importers = {file for file, imported in graph.items() if imported & reached}
        if importers <= reached or (tests and distance >= MAX_IMPORTS):
            break
        reached |= importers
    return sorted(tests)


def _module(root: Path, parts: list[str]) -> Path | None:
    base = root.joinpath(*parts)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _nearest_modules(file: Path, root: Path) -> set[Path]:
    """Python files of the nearest folder above that has any; none for files at the top and of the docs."""
    if file.relative_to(root).parts[0] in (*PACKAGES, "tests"):
        for folder in file.parents:
            if found := set(folder.glob("*.py")):
                return found
    return set()


if __name__ == "__main__":
    base = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    print(*(file.relative_to(ROOT) for file in select_tests(changed_files(base), ROOT)))
