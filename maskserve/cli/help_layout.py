"""How `--help` looks: subcommands in groups, in the order of use; text without the line breaks of the source."""

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

START, DATA, TRAIN, MEASURE, USE = PANELS = ("Start here", "Prepare data", "Train", "Measure", "Use")


class PlainHelp:
    """For a class with `help` and `get_params`: lines are wrapped by the terminal, and flags show no `<bool>`."""

    def __init__(self, **options: Any) -> None:
        text = options.get("help") or ""
        super().__init__(**{**options, "help": re.sub(r"(?<!\n)\n(?!\n)", " ", text)})

    def get_params(self, ctx: Any) -> Any:
        """The parameters of the command, flags with an empty placeholder."""
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class Command(PlainHelp, TyperCommand):
    """A subcommand."""


class Group(PlainHelp, TyperGroup):
    """A group of subcommands."""


class RootGroup(Group):
    """All subcommands, in the order of `PANELS`; Typer would put nested groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the subcommands, in the order of the help."""
        panels = {name: getattr(command, "rich_help_panel", None) for name, command in self.commands.items()}
        return sorted(panels, key=lambda name: PANELS.index(str(panels[name])))
