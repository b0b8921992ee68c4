"""A container engine that runs, the image of a bundle, and containers of it."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from maskserve.cli.containerize import CONTAINER_ENGINES
from service.server_process import free_port

# .ci/container makes one where there is no registry.
BASE_IMAGE = os.environ.get("CONTAINER_BASE", "docker.io/library/python:3.12-slim")
CONTAINER_REQUIRED = os.environ.get("REQUIRE_CONTAINER") == "1"
HARDENING_FLAGS = (
    "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
)  # fmt: skip
READY_SECONDS = 120.0


def find_engine() -> str:
    """The first engine that runs a container; that one is installed says little. None: skipped, or failed where it must be."""
    lacking = []
    for name in CONTAINER_ENGINES:
        if shutil.which(name) is None:
            lacking.append(f"{name} is not installed")
            continue
        tried = run_engine(name, "run", "--rm", BASE_IMAGE, "python3", "-V", check=False)
        if tried.returncode == 0:
            return name
        lacking.append(f"{name} does not run {BASE_IMAGE}: {(tried.stderr.strip().splitlines() or [''])[-1][:200]}")
    reason = "no container engine runs here: " + "; ".join(lacking)
    if CONTAINER_REQUIRED:
        pytest.fail(reason + " (REQUIRE_CONTAINER=1)")
    pytest.skip(reason)


@dataclass(frozen=True)
class BuiltImage:
    """What `maskserve containerize` made."""

    engine: str
    tag: str
    output: str

    def inspect(self) -> dict[str, Any]:
        return dict(json.loads(run_engine(self.engine, "image", "inspect", self.tag).stdout)[0])


@dataclass(frozen=True)
class Container:
    """One that was started."""

    engine: str
    name: str
    url: str

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command inside, as the container's own user."""
        return run_engine(self.engine, "exec", self.name, *words, check=False)

    def state(self) -> dict[str, Any]:
        return dict(json.loads(run_engine(self.engine, "inspect", self.name).stdout)[0]["State"])

    def logs(self) -> str:
        done = run_engine(self.engine, "logs", self.name)
        return done.stdout + done.stderr

    def wait_until_ready(self) -> float:
        """Seconds from now until it is ready."""
        begun = time.monotonic()
        while time.monotonic() - begun < READY_SECONDS:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5.0).status_code == 200:
                    return time.monotonic() - begun
            except httpx.TransportError:
                assert self.state()["Status"] == "running", self.logs()
            time.sleep(0.1)
        raise AssertionError(f"not ready after {READY_SECONDS} s: {self.logs()}")


def run_engine(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 or not check, done.stderr
    return done


@contextmanager
def run_container(image: BuiltImage, *options: str) -> Iterator[Container]:
    """Run the image with no more rights than it needs; it is taken away at the end."""
    port = free_port()
    name = f"maskserve-test-{port}"
    run_engine(
        image.engine,
        "run",
        "--detach",
        "--name",
        name,
        *HARDENING_FLAGS,
        "-p",
        f"127.0.0.1:{port}:3000",
        *options,
        image.tag,
    )
    try:
        yield Container(image.engine, name, f"http://127.0.0.1:{port}")
    finally:
        run_engine(image.engine, "rm", "--force", name, check=False)
