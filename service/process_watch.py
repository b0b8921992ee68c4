"""Ends a process whose parent has died: a kill -9 of the parent reaches no child.

    python -m service.process_watch PARENT_PID HOME serve ...     bentoml serve ..., until the process PARENT_PID has ended

HOME is a folder that is removed at the end.
"""

import os
import shutil
import signal
import sys
import threading
import time

POLL_SECONDS = 0.5


def stop_with_parent(parent: int, grace_seconds: float) -> None:
    """Send this process SIGTERM as soon as its parent is another one than `parent`, and end it after `grace_seconds`.

    Polling needs nothing of the parent. The signal of Linux for this (PR_SET_PDEATHSIG) already comes when the thread has ended
    that started the child.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def main(parent: int, home: str, arguments: list[str]) -> None:
    """Run `bentoml` with these arguments."""
    from bentoml_cli.cli import cli

    from service.settings import read_settings

    stop_with_parent(parent, read_settings().stop_seconds + 5)
    try:
        cli(arguments)
    finally:
        shutil.rmtree(home, ignore_errors=True)  # the parent does so too, if it still can


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
