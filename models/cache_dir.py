"""The user's cache folder."""

import os
from pathlib import Path


def user_cache_dir(name: str) -> Path:
    """The folder `name` in the user's cache of maskserve, by the XDG Base Directory Specification; it may not exist.

    Raises: RuntimeError for a user without a home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskserve" / name
