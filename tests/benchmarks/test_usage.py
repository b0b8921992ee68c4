"""Every benchmark explains itself with `--help`, and does not start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text())
# All in one process: each imports torch, which takes most of the time.
PRINT_HELP = """
import contextlib, io, json, runpy, sys
printed = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    sys.modules.pop(f"benchmarks.{name}", None)  # another benchmark may have imported it; runpy warns then
    code, output, errors = None, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    printed[name] = [code, output.getvalue(), errors.getvalue()]
print(json.dumps(printed))
"""


@pytest.mark.slow
def test_help_of_every_benchmark() -> None:
    command = [sys.executable, "-c", PRINT_HELP, *COMMANDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert printed.keys() == set(COMMANDS) and len(COMMANDS) > 20
    for name, (code, output, errors) in printed.items():
        assert (code, errors) == (0, ""), name
        assert name in output, name
