"""The import rule, training -> models <- service, the order of the folders in models/ and training/, and the lock files."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.import_graph import PACKAGES, ROOT, imported_names

ALLOWED_IMPORTS = {"models": {"models"}, "training": {"training", "models"}, "service": {"service", "models"}}
TRAINING_LIBRARIES = ("torch", "torchvision", "lightning_fabric", "albumentations", "segmentation_models_pytorch")

# From top to bottom. A unit imports only units of the rows below its own; units of one row do not import each other.
LAYERS = {
    "models": [
        ("models.analysis", "models.outputs", "models.explain"),
        ("models.inference",),
        ("models.engines", "models.imaging.sandbox"),
        ("models.imaging.decoder_pool",),
        ("models.imaging.decoder_process",),
        ("models.imaging.decoder_messages",),
        ("models.readers",),
        ("models.architectures", "models.imaging"),
        ("models.bundle", "models.sample"),
        ("models.spec", "models.archive_limits", "models.console"),
        (
            "models.errors",
            "models.setting_errors",
            "models.cgroup_limits",
            "models.cache_dir",
            "models.atomic_write",
            "models.file_lock",
            "models.malloc",
            "models.thread_count",
        ),
        ("models.external_data",),
    ],
    "training": [
        (
            "training.train",
            "training.cross_validation",
            "training.compare",
            "training.export",
            "training.import_model",
            "training.explain",
        ),
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

imported_modules = cache(imported_names)


def imported_packages(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(file)}


def find_layer(module: str, package: str) -> tuple[int, str]:
    """Row and unit of a module in `LAYERS`."""
    for row, units in enumerate(LAYERS[package]):
        for unit in units:
            if f"{module}.".startswith(f"{unit}."):
                return row, unit
    raise AssertionError(f"{module} is in no unit of LAYERS")


@pytest.mark.parametrize("package", ALLOWED_IMPORTS)
def test_packages_import_only_allowed_packages(package: str) -> None:
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
        own_row, own_unit = find_layer(module, package)
        for name in imported_modules(file):
            if name.startswith(f"{package}."):
                row, unit = find_layer(name, package)
                assert unit == own_unit or row > own_row, f"{file} imports {name}"


def test_only_networks_import_torch() -> None:
    torch_engine = {
        ROOT / "models" / name for name in ("engines/torch_engine.py", "engines/cuda_graphs.py", "thread_count.py")
    }
    for file in sorted((ROOT / "models").rglob("*.py")):
        if not {"architectures", "analysis"} & set(file.relative_to(ROOT).parts):
            allowed = {"torch"} if file in torch_engine else set()
            assert imported_packages(file) & set(TRAINING_LIBRARIES) <= allowed, file


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import models.outputs, service.server_process, service.bento_service", {"models", "service"}),
        ("import maskserve.cli.app, maskserve.client", {"maskserve"}),
    ],
    ids=["the service needs no training", "the wheel needs no other package, --help neither"],
)
def test_loaded_packages(statement: str, loaded: set[str]) -> None:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) & {*PACKAGES, *TRAINING_LIBRARIES} == loaded


def pins(lock: str) -> set[str]:
    """The requirements `name==version` of a lock file. Every requirement must have this form and name no index."""
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line and not line.lstrip().startswith("#")]
    assert all("==" in line and "://" not in line for line in lines)
    return {line.split(";")[0].strip() for line in lines}


def test_lock_of_the_service_is_part_of_the_full_lock_without_torch() -> None:
    serve = pins("requirements-serve.lock")
    assert len(serve) > 50
    assert serve <= pins("requirements.lock")
    assert not {pin.split("==")[0].replace("-", "_") for pin in serve} & set(TRAINING_LIBRARIES)
