"""How `--help` and usage errors look: subcommands in groups, in the order of use; text in plain words, wrapped by the terminal."""

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

ROOT_OPTIONS = ("-h", "--help", "--version", "--debug")
START, DATA, TRAIN, MEASURE, USE = PANELS = ("Start here", "Prepare data", "Train", "Measure", "Use")


class PlainWords:
    """For a class of commands: help is wrapped by the terminal, flags show no `<bool>`, errors name no Python types."""

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

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse the arguments. Raises: BadParameter that says what came and what was expected; Typer's message is pydantic's."""
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]
        except typer.BadParameter as error:
            details = getattr(error.__cause__, "errors", None)
            if details is not None:
                from models.errors import quoted
                from models.setting_errors import plain_reason

                error.message = f"{quoted(details()[0]['input'])}; {plain_reason(details()[0])}."
            raise


class Command(PlainWords, TyperCommand):
    """A subcommand."""


class Group(PlainWords, TyperGroup):
    """A group of subcommands."""


class RootGroup(Group):
    """All subcommands, in the order of `PANELS`; Typer would put nested groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the subcommands, in the order of the help."""
        panels = {name: getattr(command, "rich_help_panel", None) for name, command in self.commands.items()}
        return sorted(panels, key=lambda name: PANELS.index(panels[name]) if panels[name] in PANELS else len(PANELS))

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse the arguments. Raises: UsageError, for an option before its subcommand one that says where it belongs."""
        name = next((word for word in args if word in self.commands), None)
        if name is not None and args[0].startswith("-") and args[0].partition("=")[0] not in ROOT_OPTIONS:
            ctx.fail(f"Options follow the subcommand, as in `maskserve {name} {args[0]}`.")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The subcommand. Raises: UsageError; one that belongs to a group is named in full."""
        name = args[0]
        groups = [group for group, command in self.commands.items() if name in getattr(command, "commands", ())]
        if name not in self.commands and groups:
            ctx.fail(f"No such command '{name}'. Did you mean `maskserve {groups[0]} {name}`?")
        return super().resolve_command(ctx, args)
