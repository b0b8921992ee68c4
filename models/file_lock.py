"""Locks an open file against other processes."""


def lock_file(descriptor: int) -> None:
    """Lock an open file without waiting; on Windows, do nothing. The lock ends with the file, and with the process.

    Raises: BlockingIOError while another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
