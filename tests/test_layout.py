"""The import rule, training -> models <- service, and the order of the folders within models/ and training/."""

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


# From the top to the bottom: a unit imports units below its own line only. Units of one line do not import each other.
LAYERS = {
    "models": [
        ("models.analysis", "models.outputs"),
        ("models.inference",),
        ("models.engines",),
        ("models.architectures", "models.imaging"),
        ("models.bundle",),
        ("models.spec",),
        ("models.errors", "models.cgroup_limits", "models.cache_dir", "models.atomic_write"),
    ],
    "training": [
        ("training.train", "training.compare", "training.export", "training.import_model"),
        ("training.evaluate",),
        ("training.plan",),
        ("training.lint",),
        ("training.reports", "training.freezing"),
        ("training.engine",),
        ("training.data",),
        ("training.augment",),
        ("training.config_io", "training.metrics"),
        ("training.config",),
        ("training.loss_spec", "training.run_folder", "training.oom"),
    ],
}


def imported_modules(file: Path) -> set[str]:
    """The dotted names that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_packages(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(file)}


def find_layer(module: str, package: str) -> tuple[int, str]:
    """The index of a module's line in `LAYERS`, and its unit there."""
    for index, units in enumerate(LAYERS[package]):
        for unit in units:
            if f"{module}.".startswith(f"{unit}."):
                return index, unit
    raise AssertionError(f"{module} belongs to no unit of LAYERS")


@pytest.mark.parametrize("package", ALLOWED_IMPORTS)
def test_packages_import_only_what_they_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        found = imported_packages(file) & set(PACKAGES)
        assert found <= ALLOWED_IMPORTS[package], f"{file} imports {found - ALLOWED_IMPORTS[package]}"


@pytest.mark.parametrize("package", LAYERS)
def test_every_import_points_down(package: str) -> None:
    for file in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == package:
            continue
        own_index, own_unit = find_layer(module, package)
        for name in imported_modules(file):
            if name.startswith(f"{package}."):
                index, unit = find_layer(name, package)
                assert unit == own_unit or index > own_index, f"{file} imports {name}"


def test_torch_stays_where_networks_are() -> None:
    torch_engine = {ROOT / "models" / "engines" / name for name in ("torch_engine.py", "cuda_graphs.py")}
    for file in sorted((ROOT / "models").rglob("*.py")):
        if not {"architectures", "analysis"} & set(file.parts):
            allowed = {"torch"} if file in torch_engine else set()
            assert imported_packages(file) & set(HEAVY_MODULES) <= allowed, file


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
