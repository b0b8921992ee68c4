"""Finds a container engine that works, and runs containers of the image under test."""

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

# Without a registry, .ci/container builds one.
BASE_IMAGE = os.environ.get("CONTAINER_BASE", "docker.io/library/python:3.12-slim")
CONTAINER_REQUIRED = os.environ.get("REQUIRE_CONTAINER") == "1"
HARDENING_FLAGS = (
    "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
)  # fmt: skip
READY_SECONDS = 120.0


def find_engine() -> str:
    """The first engine that can run a container. Without one the test is skipped, or fails with REQUIRE_CONTAINER=1."""
    problems = []
    for name in CONTAINER_ENGINES:
        if shutil.which(name) is None:
            problems.append(f"{name} is not installed")
            continue
        done = run_engine(name, "run", "--rm", BASE_IMAGE, "python3", "-V", check=False)
        if done.returncode == 0:
            return name
        problems.append(f"{name} cannot run {BASE_IMAGE}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}")
    reason = "no container engine works on this machine: " + "; ".join(problems)
    if CONTAINER_REQUIRED:
        pytest.fail(reason + " (REQUIRE_CONTAINER=1)")
    pytest.skip(reason)


@dataclass(frozen=True)
class BuiltImage:
    """The image that `maskserve containerize` built."""

    engine: str
    tag: str
    output: str

    def inspect(self) -> dict[str, Any]:
        return dict(json.loads(run_engine(self.engine, "image", "inspect", self.tag).stdout)[0])


@dataclass(frozen=True)
class Container:
    """A container that was started."""

    engine: str
    name: str
    url: str

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the container's own user."""
        return run_engine(self.engine, "exec", self.name, *command, check=False)

    def state(self) -> dict[str, Any]:
        return dict(json.loads(run_engine(self.engine, "inspect", self.name).stdout)[0]["State"])

    def logs(self) -> str:
        done = run_engine(self.engine, "logs", self.name)
        return done.stdout + done.stderr

    def wait_until_ready(self) -> float:
        """Wait for /readyz. Returns: the seconds that it took."""
        start = time.monotonic()
        while time.monotonic() - start < READY_SECONDS:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5.0).status_code == 200:
                    return time.monotonic() - start
            except httpx.TransportError:
                assert self.state()["Status"] == "running", self.logs()
            time.sleep(0.1)
        raise AssertionError(f"not ready after {READY_SECONDS} s: {self.logs()}")


def run_engine(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 or not check, done.stderr
    return done


@contextmanager
def run_container(image: BuiltImage, *options: str) -> Iterator[Container]:
    """Run the image with the fewest privileges while the block runs."""
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
