"""Settings as people give them: a YAML file, then `key=value` words; and back, for the run folder and for the screen."""

import difflib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.atomic_write import write_atomically
from models.errors import ConfigError, RunError
from training.config import TrainConfig
from training.run_folder import LAST_CHECKPOINT


def load_config(file: Path | None, overrides: list[str]) -> TrainConfig:
    """Read a YAML file (or none) and lay `key=value` words over it. Raises: ConfigError."""
    return config_from_dict({**(_read_yaml(file) if file else {}), **parse_overrides(overrides)})


# What a run may be resumed with; all else would make another training of it.
CHANGEABLE_ON_RESUME = (
    "epochs", "minutes", "patience", "validate_every", "device", "devices", "workers", "cache_decoded", "save_minutes",
    "tensorboard",
)  # fmt: skip


def load_resume_config(run: Path, file: Path | None, overrides: list[str]) -> TrainConfig:
    """The settings that a run goes on with: those that it began with, and over them what may change.

    Raises: ConfigError; RunError where there is no run that can go on.
    """
    check_run_exists(run)
    began = load_config(run / "config.yaml", [])
    config = config_from_dict(
        {**began.model_dump(), **(_read_yaml(file) if file else {}), **parse_overrides(overrides)}
    )
    check_resume_settings(run, config)
    return config


def check_run_exists(run: Path) -> None:
    """Raises: RunError where there is no run that can go on."""
    if not (run / LAST_CHECKPOINT).exists() or not (run / "config.yaml").exists():
        raise RunError(f"{run} holds no {LAST_CHECKPOINT.name} to resume from; train without --resume.")


def check_no_run(run: Path) -> None:
    """Raises: RunError where there is a run already."""
    if (run / LAST_CHECKPOINT).exists():
        raise RunError(f"{run} holds a run already; go on with it by --resume, or choose another --out.")


def check_resume_settings(run: Path, config: TrainConfig) -> None:
    """Raises: ConfigError that names what differs from the settings that a run began with, and what may."""
    began = load_config(run / "config.yaml", [])
    may = list(CHANGEABLE_ON_RESUME)
    if config.batch * config.accumulate == began.batch * began.accumulate:
        may += ["batch", "accumulate"]  # the same images a step, in other parts
    changed = [name for name in TrainConfig.model_fields if getattr(config, name) != getattr(began, name)]
    if wrong := [name for name in changed if name not in may]:
        told = ", ".join(f"{name} from {getattr(began, name)} to {getattr(config, name)}" for name in wrong)
        raise ConfigError(
            f"{run} cannot go on with other settings: {told}. These may change: {', '.join(CHANGEABLE_ON_RESUME)}; and batch with "
            "accumulate, where their product stays. Leave the others out, or train anew into another --out."
        )


def config_from_dict(settings: dict[str, Any]) -> TrainConfig:
    """A config from plain values. Raises: ConfigError naming the first key that is wrong, and the nearest right one."""
    for key in map(str, settings):
        if key not in TrainConfig.model_fields:
            close = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
            hint = f"did you mean {close[0]}?" if close else "`maskserve train --settings` lists them all."
            raise ConfigError(f"The setting {key!r} is not known; {hint}")
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        where = (
            f"The setting {first['loc'][0]}={first['input']!r} is not possible"
            if first["loc"]
            else "These settings are not possible"
        )
        raise ConfigError(f"{where}: {reason}.") from error


def print_settings(console: Console) -> None:
    """Print each setting with its default, its choices, and its line of help."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", overflow="fold")
    for name, field in TrainConfig.model_fields.items():
        literals = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
        choices = "|".join(str(choice) for literal in literals for choice in get_args(literal))
        table.add_row(f"{name}={field.default}", escape(f"{choices}; " * bool(choices) + (field.description or "")))
    console.print(table)


def save_config(config: TrainConfig, file: Path) -> None:
    """Write every setting, as run, as YAML that `load_config` reads back. Raises: OSError, with the file as it was."""
    write_atomically(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """The settings of `key=value` words, as YAML reads them. Raises: ConfigError for a word that is none."""
    settings = {}
    for word in overrides:
        key, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(f"{word!r} is no setting; write key=value, such as epochs=20.")
        settings[key.strip()] = _parse_value(key.strip(), value)
    return settings


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text.") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be opened ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{file}: holds a {type(content).__name__}; wanted are lines of the form `key: value`.")
    return content or {}


def _parse_value(key: str, value: str) -> Any:
    """A word of the command line as YAML reads it; `crop=360,480` is a pair."""
    field = TrainConfig.model_fields.get(key)
    if field is not None and "tuple" in str(field.annotation) and "," in value:
        value = f"[{value}]"
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"The setting {key}={value!r} cannot be read.") from error
