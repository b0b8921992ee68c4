"""What networks there are, and what each is: for `maskserve models`. It needs torch, as training does."""

import difflib
import fnmatch
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from models.analysis import complexity
from models.analysis.summary import Stage, list_stages
from models.architectures import ARCHITECTURES, build, default_options, encoders
from models.architectures.base import Network
from models.architectures.heads import HEADS
from models.errors import ConfigError, MaskserveError, first_line

T = TypeVar("T")


@dataclass(frozen=True)
class Complexity:
    """A network in numbers, as `models/analysis/complexity.py` defines them."""

    parameters: int
    gflop: float
    stride: int  # pixels
    receptive_field: int | None  # pixels; None is the whole image


def print_architectures(size: tuple[int, int], classes: int, console: Console) -> None:
    """Print a row for each architecture, and one for each head of `fcn`; `size` is (height, width) in pixels.

    One that cannot be built on this installation says why.
    """
    rows = [("fcn", {"head": head}) for head in HEADS] + [(name, {}) for name in ARCHITECTURES if name != "fcn"]
    table = _make_table("architecture", "encoder", "params", "GFLOP", "stride", "field")
    with Console(stderr=True).status("measuring") as status:
        for place, (name, options) in enumerate(rows, start=1):
            status.update(f"measuring {name} ({place} of {len(rows)})")
            title = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
            encoder = str(default_options(name).get("encoder", ""))
            try:
                measures = measure_complexity(build_network(name, classes, options), size)
            except MaskserveError as error:
                table.add_row(f"{title}\n[red]{escape(str(error))}[/]", encoder, *["-"] * 4)
                continue
            table.add_row(title, encoder, *_format_cells(measures))
    console.print(table)
    console.print(f"\n{_legend(size, classes)}", style="dim", highlight=False)
    console.print("Look into one: maskserve models fcn encoder=resnet50 head=aspp", style="dim", highlight=False)


def print_architecture(name: str, words: list[str], size: tuple[int, int], classes: int, console: Console) -> None:
    """Print a network's measures, its options with their help, and its stages. Raises: ConfigError."""
    options = parse_options(name, words)
    with Console(stderr=True).status(f"measuring {name}"):
        network = build_network(name, classes, options)
        measures = measure_complexity(network, size)
        told = _translate_errors(name, size, lambda: list_stages(network, size))
    console.print(" ".join([name, *words]), style="bold", highlight=False, markup=False)
    parameters, gflop, stride, field = _format_cells(measures)
    place = f"{stride} x {stride} pixels" if measures.stride > 1 else "pixel"
    view = f"a receptive field of {field} pixels" if measures.receptive_field else "the whole image in view"
    sentence = f"{parameters} parameters, {gflop} GFLOP, a logit for each {place} with {view}"
    console.print(f"{sentence}\n", highlight=False)
    console.print(_options_table(name, options))
    console.print()
    console.print(_stages_table(told))
    console.print(f"\n{_legend(size, classes)}", style="dim", highlight=False)


def print_encoders(pattern: str | None, console: Console) -> None:
    """Print the encoders' names, those that hold `pattern` or match it (`*` and `?`). Raises: ConfigError for none."""
    known = encoders.encoder_names()
    wanted = pattern or "*"
    found = [name for name in known if fnmatch.fnmatch(name, wanted) or wanted in name]
    if not found:
        close = difflib.get_close_matches(wanted.strip("*"), known, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else "."
        raise ConfigError(f"No encoder's name matches {wanted!r}{hint}")
    for name in found:  # a name a line, for `grep` and people alike
        console.print(name, highlight=False, markup=False, soft_wrap=True)


def parse_options(name: str, words: list[str]) -> dict[str, Any]:
    """`key=value` words as the options of an architecture, values as YAML reads them and none for nothing.

    Raises: ConfigError for an architecture or option that is not there, with the nearest ones.
    """
    options: dict[str, Any] = {}
    known = default_options(name)
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(f"{word!r} is no option; write key=value, such as {next(iter(known))}=...")
        try:
            options[key] = None if value == "none" else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"The option {key}={value!r} cannot be read.") from error
    return options


def build_network(name: str, classes: int, options: dict[str, Any]) -> Network:
    """The network from scratch, for its pretrained weights measure the same. Raises: ConfigError with the reason."""
    try:
        return build(name, classes, **{key: value for key, value in options.items() if key != "weights"})
    except MaskserveError:
        raise
    except Exception as error:  # torchvision, smp and timm raise what they meet
        raise ConfigError(f"{name} cannot be built: {first_line(error)}") from error


def measure_complexity(network: Network, size: tuple[int, int]) -> Complexity:
    """Its measures for images of `size` = (height, width) in pixels. Raises: ConfigError where it takes none such."""
    return _translate_errors(
        network.architecture.name,
        size,
        lambda: Complexity(
            complexity.count_parameters(network),
            complexity.count_gflops(network, size),
            complexity.logit_stride(network),
            complexity.receptive_field(network),
        ),
    )


def option_help(make: Callable[..., nn.Module]) -> dict[str, str]:
    """A line of help for each option: the lines `option: text` of the docstring of its `build`."""
    make = getattr(make, "func", make)  # an entry may be a `partial` of one
    lines = re.findall(r"^(\w+): (.+)$", inspect.getdoc(make) or "", flags=re.MULTILINE)
    return {key: text for key, text in lines if key in inspect.signature(make).parameters}


def _translate_errors(name: str, size: tuple[int, int], ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception as error:  # whatever a network raises at a size that it does not take
        height, width = complexity.padded_size(size)
        raise ConfigError(f"{name} does not take images of {width}x{height}: {first_line(error)}") from error


def _format_cells(measures: Complexity) -> tuple[str, str, str, str]:
    field = "whole" if measures.receptive_field is None else f"{measures.receptive_field:,}"
    return _format_count(measures.parameters), _format_number(measures.gflop), str(measures.stride), field


def _format_count(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def _format_number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def _make_table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for place, column in enumerate(columns):
        numbers = column in ("params", "GFLOP", "FLOP", "stride", "field", "maps")
        style = "" if place else "cyan"
        table.add_column(column, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold", style=style)
    return table


def _options_table(name: str, chosen: dict[str, Any]) -> Table:
    table = _make_table("option", "value", "what it is")
    lines = option_help(ARCHITECTURES[name])
    for key, default in default_options(name).items():
        value = chosen.get(key, default)
        shown = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        changed = value != default
        table.add_row(key, f"[bold]{escape(shown)}[/]" if changed else escape(shown), escape(lines.get(key, "")))
    return table


def _stages_table(told: list[Stage]) -> Table:
    table = _make_table("stage", "what it does", "maps", "stride", "field", "params", "FLOP")
    weights, work = sum(stage.parameters for stage in told) or 1, sum(stage.flops for stage in told) or 1
    for stage in told:
        does = ", ".join(_pluralize(word, count) for word, count in stage.operations.items())
        scale = (str(stage.channels), f"{stage.stride:g}") if stage.stride else ("", "")
        field = ("whole" if stage.receptive_field is None else f"{stage.receptive_field:,}") if stage.name else ""
        title = stage.name or ("between the stages" if stage.flops else "for training alone")
        table.add_row(
            title,
            does,
            *scale,
            field,
            _format_fraction(stage.parameters / weights),
            _format_fraction(stage.flops / work),
        )
    return table


def _pluralize(word: str, count: int) -> str:
    if count == 1:
        return word
    return f"{count} {word}s" if word in ("sum", "gate", "concat") else f"{count} {word}"


def _format_fraction(share: float) -> str:
    return "" if share == 0 else "<1%" if share < 0.005 else f"{share:.0%}"


def _legend(size: tuple[int, int], classes: int) -> str:
    height, width = complexity.padded_size(size)
    note = f" (padded to {width}x{height})" if (height, width) != size else ""
    return (
        f"For {classes} classes and an image of {size[1]}x{size[0]}{note}. A multiplication and an addition are two FLOP. "
        "Stride: pixels of the image for one value. Field: how wide a part of it one value can depend on, in pixels; "
        "whole is all of it (a global mean, attention, a group norm)."
    )
