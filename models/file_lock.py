"""Locks an open file against other processes."""


def lock_file(descriptor: int, wait: bool = False) -> None:
    """Lock an open file; on Windows, do nothing. The lock ends with the file, and with the process.

    `wait`: whether to wait while another process holds the lock. Raises: BlockingIOError otherwise.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
