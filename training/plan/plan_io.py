"""Prints a plan as a table, and writes it as `plan.yaml`."""

import math
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from models.atomic_write import write_atomically
from models.console import Console, name_text
from training.config import TrainConfig
from training.metrics.learning import GOOD_EPOCHS
from training.plan.rules import Plan, PlannedSetting

MIN_BUSY_FRACTION = 0.1  # from which the timing is doubted
HEADER = "# Planned from the data and the machine. Use it as a config: `maskserve train DATA --config {file}`.\n"


def print_plan(plan: Plan, console: Console) -> None:
    """Print the settings, each with its reason."""
    table = Table(
        title="plan", title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False
    )
    table.add_column("setting", no_wrap=True)
    table.add_column("value", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for name, setting in ordered_settings(plan):
        table.add_row(name, Text(to_yaml(setting.value)), name_text(setting.reason))
    console.print(table)


def plan_warnings(plan: Plan) -> list[str]:
    """What the user should know before the training starts."""
    warnings, epochs = [], plan.expected_epochs
    if epochs < 1:
        minutes = math.ceil(plan["minutes"] / max(epochs, 1e-3) * GOOD_EPOCHS)
        warnings.append(
            f"Only about {epochs:.1g} epochs fit into minutes={plan['minutes']:g}: the network will not see every training "
            f"image once. Set minutes={minutes} for {GOOD_EPOCHS} epochs, or train on fewer pixels (side, crop)."
        )
    if plan.busy_fraction >= MIN_BUSY_FRACTION:
        warnings.append(
            f"Other programs had the processor for {plan.busy_fraction:.0%} of the time while training steps were timed. "
            "The training measures again, and may run more epochs than planned."
        )
    return warnings


def save_plan(plan: Plan, file: Path) -> None:
    """Write the settings as YAML, each on a line with its reason. Raises: OSError, with the file as it was."""
    lines = [(f"{name}: {to_yaml(setting.value)}", setting.reason) for name, setting in ordered_settings(plan)]
    width = max(len(line) for line, _ in lines)
    text = HEADER.format(file=file) + "".join(f"{line.ljust(width)}  # {reason}\n" for line, reason in lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.encode(errors="backslashreplace"))


def ordered_settings(plan: Plan) -> list[tuple[str, PlannedSetting]]:
    """The settings in the order of `maskserve train --settings`."""
    return [(name, plan.settings[name]) for name in TrainConfig.model_fields if name in plan.settings]


def to_yaml(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
