"""Parses the option `--input` of `export` and `import`: native, fit, fit:SIDE or exact:HEIGHTxWIDTH."""

import re
from pathlib import Path

from models.errors import ConfigError, quoted
from models.spec import AXES, InputRule
from training.freezing.onnx_import.graph_reader import InputSpec

MIN_FIT_SIDE, MAX_EXACT_SIDE = 16, 4096  # pixels


def parse_input_rule(text: str | None, default: InputRule) -> InputRule:
    """The input rule of `native`, `fit` or `fit:SIDE`; None gives the network's default. Raises: ConfigError."""
    if text is None:
        return default
    if default.axes != "HW" and text != "native":
        raise ConfigError(f"--input {text} is not possible: {AXES[default.axes]} are not resized; leave it out.")
    if text == "native":
        return _replace_resize(default, "native", None)
    name, _, side = text.partition(":")
    if name != "fit" or (side and not (side.isdigit() and int(side) >= MIN_FIT_SIDE)) or not (side or default.side):
        as_trained = ", fit (as trained)" if default.side else ""
        raise ConfigError(
            f"The input rule {quoted(text)} is not possible; choose native{as_trained}, or fit:SIDE with "
            f"{MIN_FIT_SIDE} pixels or more."
        )
    return _replace_resize(default, "fit", int(side) if side else default.side)


def _replace_resize(default: InputRule, rule: str, side: int | None) -> InputRule:
    """Another resize rule, and the same channels."""
    return InputRule.model_validate({**default.model_dump(), "rule": rule, "side": side, "size": None})


def parse_exact_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) in pixels of `exact:HEIGHTxWIDTH`; None for any other rule. Raises: ConfigError."""
    if text is None or text.partition(":")[0] != "exact":
        return None
    found = re.fullmatch(r"exact:([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise ConfigError(f"The input rule {quoted(text)} is not possible; write exact:HEIGHTxWIDTH, in pixels.")
    height, width = int(found[1]), int(found[2])
    if max(height, width) > MAX_EXACT_SIDE:
        raise ConfigError(
            f"The input rule {quoted(text)} is not possible; a side may have up to {MAX_EXACT_SIDE} pixels."
        )
    return height, width


def onnx_input_rule(file: Path, entry: InputSpec, text: str | None, divisor: int) -> InputRule:
    """The input rule of an ONNX graph: `exact` if it takes one size, else `native` or what `text` says.

    `divisor`: of the heights and widths that the graph takes. Raises: ConfigError.
    """
    if entry.size is None:
        return parse_input_rule(text, InputRule(rule="native", divisor=divisor))
    if text is not None and parse_exact_size(text) is None:
        raise ConfigError(
            f"{file} takes only images of {entry.size[0]} x {entry.size[1]} (height x width), so --input {text} is not "
            "possible; omit it."
        )
    return InputRule(rule="exact", size=entry.size)
