"""Prints a plan as a table, and writes it as `plan.yaml`."""

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.atomic_write import write_atomically
from training.config import TrainConfig
from training.plan.rules import Plan, PlannedSetting

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
        table.add_row(name, Text(to_yaml(setting.value)), Text(setting.reason))
    console.print(table)


def save_plan(plan: Plan, file: Path) -> None:
    """Write the settings as YAML, each on a line with its reason. Raises: OSError, with the file as it was."""
    lines = [(f"{name}: {to_yaml(setting.value)}", setting.reason) for name, setting in ordered_settings(plan)]
    width = max(len(line) for line, _ in lines)
    text = HEADER.format(file=file) + "".join(f"{line.ljust(width)}  # {reason}\n" for line, reason in lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.encode())


def ordered_settings(plan: Plan) -> list[tuple[str, PlannedSetting]]:
    """The settings in the order of `maskserve train --settings`."""
    return [(name, plan.settings[name]) for name in TrainConfig.model_fields if name in plan.settings]


def to_yaml(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
