"""Runs maskserve's command line in tests: in this process, which is fast, or as a process of its own."""

import io
import os
import signal
import subprocess
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from maskserve.cli.app import main

MASKSERVE = Path(sys.executable).with_name("maskserve")


def run_maskserve(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, in the folder `cwd`, with output lines of up to 200 characters."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    code: str | int | None = 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["maskserve", *map(str, arguments)])
        patch.setattr(sys, "path", [*sys.path])
        for name, value in {"COLUMNS": "200", **environment}.items():
            patch.setenv(name, value)
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            try:
                main()
            except SystemExit as end:
                code = end.code
            except Exception:  # as the interpreter does
                traceback.print_exc()
                code = 1
    for number, handler in handlers.items():
        signal.signal(number, handler)
    output, errors = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(list(map(str, arguments)), int(code or 0), output, errors)


def run_maskserve_process(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    environment = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(
        [MASKSERVE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200
    )


def start_maskserve(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start a command and do not wait for it. Resets the signals that a shell ignores for tests in the background."""
    return subprocess.Popen(
        [MASKSERVE, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
    )


def assert_fails(done: subprocess.CompletedProcess[str], code: int, *messages: str) -> None:
    """Check for the exit code, the messages, and no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert all(message in done.stderr for message in messages), done.stderr
