"""Reads annotation files in JSON, and the class names in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.errors import DataError, quoted

MAX_SHOWN = 60  # letters of a value in an error message


def read_json(file: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file. `object_hook`: as in `json.loads`. Raises: DataError that names the file."""
    try:
        return json.loads(file.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}); check the file and its permissions.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}: invalid JSON at line {error.lineno}, column {error.colno} ({error.msg}); the file may be truncated. "
            "Export or copy it again."
        ) from error
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8, a number of thousands of digits
        raise DataError(f"{file}: invalid JSON ({type(error).__name__}); export or copy it again.") from error


def class_name(value: Any) -> str:
    """The name of a class as an annotation file holds it: a text or a number. Raises: DataError for null and others."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        return str(value).strip()
    written = quoted(json.dumps(value, default=str)[:MAX_SHOWN]) if value not in (None, "") else "missing or empty"
    raise DataError(f"the class name is {written}; expected a text. Name the class, or delete the object.")
