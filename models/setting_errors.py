"""Says in plain words what is wrong with a value that pydantic refused: its own messages name Python types."""

from typing import Any

# The message by pydantic's error type; braces hold the error's context.
EXPECTED = {
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "string_type": "expected text",
    "tuple_type": "expected several values, separated by commas",
    "too_long": "expected at most {max_length} values, and got {actual_length}",
    "too_short": "expected at least {min_length} values, and got {actual_length}",
    "list_type": "expected a list",
    "dict_type": "expected names with values",
    "model_type": "expected names with values",
    "literal_error": "expected {expected}",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "missing": "it is missing",
    "extra_forbidden": "it is unknown",
}


def plain_reason(error: Any) -> str:
    """What was expected instead, without a period; `error` is an item of `ValidationError.errors()`."""
    kind = error["type"]
    if kind == "missing" and error["loc"] and isinstance(error["loc"][-1], int):  # a tuple that is too short
        return f"expected at least {error['loc'][-1] + 1} values, separated by commas"
    if kind in EXPECTED:
        context = {name: _plain(value) for name, value in error.get("ctx", {}).items()}
        return EXPECTED[kind].format(**context)
    return str(error["msg"]).removeprefix("Value error, ")


def _plain(value: object) -> str:
    """A limit or the choices, without quotes and without `.0`."""
    return f"{value:g}" if isinstance(value, float) else str(value).replace("'", "")
