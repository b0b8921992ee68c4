"""Where what can be made again is kept for the next time."""

import os
from pathlib import Path


def user_cache_dir(part: str) -> Path:
    """The user's cache folder for a part of the house, by the XDG Base Directory Specification; it may not be there.

    Raises: RuntimeError for a user without a home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskserve" / part
