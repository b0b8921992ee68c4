"""The tables of `maskserve models`: all architectures, one architecture, the encoders. Needs torch.

Sizes are one length per axis: (height, width) in pixels, (time steps,) of a signal. `rule`: the input; default: photographs.
"""

import fnmatch
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from rich.markup import escape
from rich.table import Table
from torch import nn

from models.analysis import complexity
from models.analysis.summary import Stage, list_stages
from models.architectures import ARCHITECTURES, build, default_options, encoders
from models.architectures.base import Network
from models.architectures.heads import HEADS
from models.console import Console
from models.errors import ConfigError, MaskserveError, closest_names, first_line, quoted
from models.spec import AXES, RGB_CHANNELS, InputRule

T = TypeVar("T")
PHOTOGRAPHS = InputRule(rule="native")
UNITS = {"HW": "pixel", "T": "time step", "DHW": "voxel"}


@dataclass(frozen=True)
class Complexity:
    """The figures of a network, as `models/analysis/complexity.py` defines them."""

    parameters: int
    gflop: float
    stride: int  # pixels
    receptive_field: int | None  # pixels; None is the whole image


def sample_input(axes: str, channels: int | None, rate: float | None) -> InputRule:
    """The input rule of samples with these axes, HW, T or DHW. Raises: ConfigError."""
    if axes not in AXES:
        raise ConfigError(f"The axes are {quoted(axes)}; choose HW for images, T for signals or DHW for volumes.")
    if rate and axes != "T":
        raise ConfigError(f"--rate is for signals; leave it out for {AXES[axes]}.")
    count = channels or (3 if axes == "HW" else 1)
    names = RGB_CHANNELS if axes == "HW" and count == 3 else tuple(f"band{index + 1}" for index in range(count))
    return InputRule.model_validate({
        "rule": "native", "axes": axes, "channels": names, "spacing": {"values": (rate,), "unit": "Hz"} if rate else None,
        "scaling": {"kind": "fixed", "low": (0.0,) * count, "high": (255.0,) * count},
    })  # fmt: skip


def print_architectures(size: tuple[int, ...], classes: int, console: Console, rule: InputRule = PHOTOGRAPHS) -> None:
    """Print one row per architecture and per head of `fcn`, for images of `size`.

    If an architecture cannot be built with the installed libraries, its row says why. Of signals and volumes only those are
    listed that have a form for them.
    """
    others = [name for name in ARCHITECTURES if name != "fcn" and (rule.axes == "HW" or "/" not in name)]
    rows = [("fcn", {"head": head}) for head in HEADS] + [(name, {}) for name in others]
    table = _make_table("architecture", "encoder", "params", "GFLOP", "stride", "field")
    with Console(stderr=True).status("measuring") as status:
        for index, (name, options) in enumerate(rows, start=1):
            status.update(f"measuring {name} ({index} of {len(rows)})")
            title = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
            encoder = str(default_options(name).get("encoder", ""))
            try:
                measures = measure_complexity(build_network(name, classes, options, rule), size)
            except MaskserveError as error:
                table.add_row(f"{title}\n[red]{escape(str(error))}[/]", encoder, *["-"] * 4)
                continue
            table.add_row(title, encoder, *_format_cells(measures))
    console.print(table)
    console.print(f"\n{_legend(size, classes, rule)}", style="dim", highlight=False)
    console.print("Details of one: maskserve models fcn encoder=resnet50 head=aspp", style="dim", highlight=False)


def print_architecture(
    name: str, settings: list[str], size: tuple[int, ...], classes: int, console: Console, rule: InputRule = PHOTOGRAPHS
) -> None:
    """Print the figures of a network, its options with their help, and its stages.

    `settings` are `key=value` options. Raises: ConfigError.
    """
    options = parse_options(name, settings)
    with Console(stderr=True).status(f"measuring {name}"):
        network = build_network(name, classes, options, rule)
        measures = measure_complexity(network, size)
        stages = _translate_errors(name, size, lambda: list_stages(network, size))
    console.print(" ".join([name, *settings]), style="bold", highlight=False, markup=False)
    parameters, gflop, stride, field = _format_cells(measures)
    unit = UNITS[rule.axes]
    grid = f"{' x '.join([stride] * len(rule.axes))} {unit}s" if measures.stride > 1 else unit
    width = f"{field} {unit}s" if measures.receptive_field else f"the whole {AXES[rule.axes].removesuffix('s')}"
    if rule.rate and measures.receptive_field:
        grid += f" ({1000 * measures.stride / rule.rate:.3g} ms)"
        width += f" ({1000 * measures.receptive_field / rule.rate:,.0f} ms)"
    console.print(
        f"{parameters} parameters, {gflop} GFLOP, one logit per {grid}, receptive field: {width}\n", highlight=False
    )
    console.print(_options_table(name, options))
    console.print()
    console.print(_stages_table(stages))
    console.print(f"\n{_legend(size, classes, rule)}", style="dim", highlight=False)


def print_encoders(pattern: str | None, console: Console) -> None:
    """Print the names of the encoders that contain `pattern` or match it (`*` and `?`), or of all.

    Raises: ConfigError if no name matches.
    """
    known = encoders.encoder_names()
    pattern = pattern or "*"
    matching = [name for name in known if fnmatch.fnmatch(name, pattern) or pattern in name]
    if not matching:
        closest = closest_names(pattern.strip("*"), known, count=3)
        hint = f"did you mean {closest}?" if closest else "list all with `maskserve models --encoders`."
        raise ConfigError(f"No encoder matches {quoted(pattern)}; {hint}")
    for name in matching:  # one per line, so that `grep` works
        console.print(name, highlight=False, markup=False, soft_wrap=True)


def parse_options(name: str, settings: list[str]) -> dict[str, Any]:
    """Parse `key=value` settings into the options of an architecture; values are YAML, and `none` is None.

    Raises: ConfigError for an unknown architecture, or a setting that is no `key=value` with a YAML value.
    """
    options: dict[str, Any] = {}
    known = default_options(name)
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"{quoted(setting)} is not an option; write key=value, such as {next(iter(known))}=...")
        if "," in value and not value.startswith("["):
            value = f"[{value}]"  # no option is a text with commas
        try:
            options[key] = None if value == "none" else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"The option {key}={quoted(value)} is not valid YAML; check its quotes and brackets."
            ) from error
    return options


def build_network(name: str, classes: int, options: dict[str, Any], rule: InputRule = PHOTOGRAPHS) -> Network:
    """Build the network without pretrained weights, which do not change its figures. Raises: ConfigError with the reason."""
    try:
        network = build(name, classes, rule.axes, **{key: value for key, value in options.items() if key != "weights"})
        network.set_input(rule)
        return network
    except MaskserveError:
        raise
    except Exception as error:  # torchvision, smp and timm raise exceptions of many types
        raise ConfigError(f"{name} cannot be built: {first_line(error)}") from error


def measure_complexity(network: Network, size: tuple[int, ...]) -> Complexity:
    """The figures of a network for images of `size`. Raises: ConfigError if it does not accept them."""
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
    """The help text of each option, from the lines `option: text` in the docstring of the architecture's `build`."""
    make = getattr(make, "func", make)  # the function of a `partial`
    lines = re.findall(r"^(\w+): (.+)$", inspect.getdoc(make) or "", flags=re.MULTILINE)
    return {key: text for key, text in lines if key in inspect.signature(make).parameters}


def _translate_errors(name: str, size: tuple[int, ...], analyse: Callable[[], T]) -> T:
    """The result of `analyse`. Raises: ConfigError for any error of the network."""
    try:
        return analyse()
    except Exception as error:  # networks raise exceptions of many types for sizes that they do not accept
        raise ConfigError(
            f"{name} does not accept {_describe_size(complexity.padded_size(size))}: {first_line(error)}"
        ) from error


def _format_cells(measures: Complexity) -> tuple[str, str, str, str]:
    count, gflop = measures.parameters, measures.gflop
    parameters = f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
    work = f"{gflop:,.0f}" if gflop >= 100 else f"{gflop:.1f}" if gflop >= 1 else f"{gflop:.2g}"
    return parameters, work, str(measures.stride), _format_field(measures.receptive_field)


def _format_field(field: int | None) -> str:
    return "whole" if field is None else f"{field:,}"


def _make_table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for index, column in enumerate(columns):
        numbers = column in ("params", "GFLOP", "FLOP", "stride", "field", "channels")
        style = "" if index else "cyan"
        table.add_column(column, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold", style=style)
    return table


def _options_table(name: str, chosen: dict[str, Any]) -> Table:
    table = _make_table("option", "value", "description")
    descriptions = option_help(ARCHITECTURES[name])
    for key, default in default_options(name).items():
        value = chosen.get(key, default)
        shown = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        changed = value != default
        table.add_row(key, f"[bold]{escape(shown)}[/]" if changed else escape(shown), escape(descriptions.get(key, "")))
    return table


def _stages_table(stages: list[Stage]) -> Table:
    table = _make_table("stage", "operations", "channels", "stride", "field", "params", "FLOP")
    parameters, flops = sum(stage.parameters for stage in stages) or 1, sum(stage.flops for stage in stages) or 1
    for stage in stages:
        table.add_row(
            stage.name or ("between the stages" if stage.flops else "in training only"),
            ", ".join(_pluralize(operation, count) for operation, count in stage.operations.items()),
            *((str(stage.channels), f"{stage.stride:g}") if stage.stride else ("", "")),
            _format_field(stage.receptive_field) if stage.name else "",
            _format_fraction(stage.parameters / parameters),
            _format_fraction(stage.flops / flops),
        )
    return table


def _pluralize(operation: str, count: int) -> str:
    if count == 1:
        return operation
    return f"{count} {operation}s" if operation in ("sum", "gate", "concat") else f"{count} {operation}"


def _format_fraction(fraction: float) -> str:
    return "" if fraction == 0 else "<1%" if fraction < 0.005 else f"{fraction:.0%}"


def _describe_size(size: tuple[int, ...]) -> str:
    """Such as "images of 480x360", the width first."""
    kind = {1: "signals", 2: "images", 3: "volumes"}[len(size)]
    return f"{kind} of {'x'.join(map(str, reversed(size)))}"


def _legend(size: tuple[int, ...], classes: int, rule: InputRule) -> str:
    padded, unit = complexity.padded_size(size), UNITS[rule.axes]
    kind = AXES[rule.axes].removesuffix("s")
    note = f" (padded to {'x'.join(map(str, reversed(padded)))})" if padded != size else ""
    article = "an" if kind == "image" else "a"
    return (
        f"For {classes} classes and {article} {kind} of {'x'.join(map(str, reversed(size)))}{note}. A multiplication and an "
        f"addition are two FLOP. Stride: {unit}s of the {kind} per value. Field: width in {unit}s of the part of the {kind} that "
        "one value can depend on; whole: all of it, after a global mean, attention or a group norm."
    )
