"""Files that are unpacked once into the user's cache folder: archives, and tables of images."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from models.cache_dir import user_cache_dir
from models.errors import DataError


def unpack_once(file: Path, kind: str, fill: Callable[[Path], None], advice: str, version: str = "") -> Path:
    """The folder that `fill(folder)` filled from a file; filled again if the file changes.

    `kind`: name of the folder in the cache folder. `advice`: ends the error message. `version`: what else the content follows from.
    Raises: DataError if the cache folder cannot be written; what `fill` raises, but for OSError.
    """
    try:
        stat = file.stat()
        key = f"{os.path.abspath(file)} {stat.st_size} {stat.st_mtime_ns}{version}"
        folder = user_cache_dir(kind) / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:24]
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{file}: cannot be unpacked into the cache folder ({error}); {advice}.") from error
    try:
        fill(draft)
        os.replace(draft, folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            raise DataError(f"{file}: cannot be unpacked ({error.strerror or error}); {advice}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
