"""A training on several devices: torchrun starts the script once for each."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent


def exec_torchrun(devices: int, words: list[str]) -> NoReturn:
    """Become torchrun, which runs `python -m maskserve train` with these words once for each device of this machine.

    In its place, not under it: whoever stops this process stops torchrun itself, which tells its children and waits for
    them. A parent that is killed would leave them on the GPUs.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    command += ["-m", "maskserve", "train", *words]
    path = os.environ.get("PYTHONPATH")
    threads = max(1, (os.cpu_count() or 1) // devices)  # of each process; torchrun's own choice is 1, and a warning
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), path] if path else [str(ROOT)]),
    }
    if os.name == "posix":
        os.execve(command[0], command, environment)
    sys.exit(subprocess.call(command, env=environment))
