"""OpenMP's threads sleep while they wait, unless the user chose otherwise."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import models


@pytest.mark.parametrize("chosen", [None, *models.OPENMP_WAITING])
def test_waiting_threads_sleep_unless_the_user_chose(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in models.OPENMP_WAITING:
        monkeypatch.setenv(name, "1000")
        if name != chosen:
            monkeypatch.delenv(name)
    importlib.reload(models)
    found = {name: os.environ[name] for name in models.OPENMP_WAITING if name in os.environ}
    assert found == ({chosen: "1000"} if chosen else {"OMP_WAIT_POLICY": "PASSIVE"})


@pytest.mark.parametrize("package", ["training", "service"])
def test_policy_is_set_before_torch_reads_it(package: str) -> None:
    """And is inherited by every process that is started: workers, torchrun's and the service's."""
    code = f"import os, sys, {package}; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name not in models.OPENMP_WAITING}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["PASSIVE", "False"], done.stderr
