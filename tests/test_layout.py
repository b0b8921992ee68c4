"""The one rule of the house: training -> models <- service."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "training", "service", "maskserve")
ALLOWED_IMPORTS = {"models": {"models"}, "training": {"training", "models"}, "service": {"service", "models"}}
HEAVY_MODULES = (
    "torch",
    "torchvision",
    "lightning",
    "albumentations",
    "segmentation_models_pytorch",
    "training",
    "maskserve",
)


def imported_packages(tree: ast.AST) -> set[str]:
    """The top-level packages that a piece of code imports, wherever the import stands in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def strip_main_block(tree: ast.Module) -> ast.Module:
    """A module less its `if __name__ == "__main__":`, where a script goes through the front door."""
    kept = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    return ast.Module(kept, [])


@pytest.mark.parametrize("room", ALLOWED_IMPORTS)
def test_a_room_opens_only_the_doors_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        rooms = imported_packages(strip_main_block(ast.parse(file.read_text()))) & set(PACKAGES)
        assert rooms <= ALLOWED_IMPORTS[room], f"{file} imports {rooms - ALLOWED_IMPORTS[room]}"


def test_torch_stays_in_architectures_and_its_engine() -> None:
    for file in sorted((ROOT / "models").rglob("*.py")):
        allowed = {"torch"} if file.parent.name == "engines" and file.name in ("torch.py", "graphs.py") else set()
        if "architectures" not in file.parts:
            assert imported_packages(ast.parse(file.read_text())) & set(HEAVY_MODULES) <= allowed, file


def modules_loaded_by(statement: str) -> set[str]:
    """The modules of the house's heavy list that a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*(name for name in {HEAVY_MODULES} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["service.app", "service.server_process", "models.inference.segmenter", "models.outputs"]
)
def test_serving_imports_no_torch(module: str) -> None:
    assert modules_loaded_by(f"import {module}") == set()


def test_help_opens_no_room() -> None:
    assert modules_loaded_by("import maskserve.cli") == {"maskserve"}


def test_a_wheel_would_hold_the_client_alone() -> None:
    done = modules_loaded_by("import maskserve.client")
    assert done == {"maskserve"}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-serve.lock"])
def test_locks_pin_everything_and_name_no_index(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line and not line.lstrip().startswith("#")]
    assert len(lines) > 50
    assert all("==" in line and "://" not in line for line in lines)


def test_the_service_lock_is_the_other_ones_part_without_torch() -> None:
    def pins(lock: str) -> set[str]:
        lines = (ROOT / lock).read_text().splitlines()
        return {line.split(";")[0].strip() for line in lines if line and line[0] not in "# "}

    serve = pins("requirements-serve.lock")
    assert serve <= pins("requirements.lock")
    assert not [pin for pin in serve if pin.split("==")[0] in ("torch", "torchvision", "lightning", "albumentations")]
