"""Training on several devices: torchrun starts one process per device."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent


def exec_torchrun(devices: int, arguments: list[str]) -> NoReturn:
    """Replace this process by torchrun, which runs `python -m maskserve train ARGUMENTS` once per device of this machine.

    A replacement, not a child: a signal to this process then reaches torchrun, which stops its children and waits for
    them. A killed parent would leave them on the GPUs.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    command += ["-m", "maskserve", "train", *arguments]
    path = os.environ.get("PYTHONPATH")
    threads = max(1, (os.cpu_count() or 1) // devices)  # per process; torchrun's default is 1, with a warning
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # the processes compute beside each other (models/thread_count.py)
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), path] if path else [str(ROOT)]),
    }
    if os.name == "posix":
        os.execve(command[0], command, environment)
    sys.exit(subprocess.call(command, env=environment))
