"""Reads settings from a YAML file and `key=value` overrides, and writes them to the run folder and the screen."""

import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from models.atomic_write import write_atomically
from models.console import Console
from models.errors import ConfigError, RunError, closest_names, quoted
from models.setting_errors import plain_reason
from models.spec import AXES, ClassInfo, ComponentRule, EventRule
from training.config import SETTING_GROUPS, TrainConfig
from training.run_folder import CONFIG_FILE, LAST_CHECKPOINT, EndSetting, RunEnd, read_run_metadata

POSTPROCESS_SETTINGS = {
    "min_duration": "T",
    "max_gap": "T",
    "keep_largest": "DHW",
    "min_volume": "DHW",
}  # and their axes


def load_config(file: Path | None, overrides: list[str]) -> TrainConfig:
    """Read a YAML file (or none); `key=value` overrides it. Raises: ConfigError."""
    return config_from_dict({**(_read_yaml(file) if file else {}), **parse_overrides(overrides)})


# Settings that may change when a run is resumed; the others would make it another training.
CHANGEABLE_ON_RESUME = (
    "epochs", "minutes", "patience", "validate_every", "device", "devices", "workers", "sandbox", "cache_decoded", "save_minutes",
    "tensorboard", "kernel_snapshots", "min_duration", "max_gap", "keep_largest", "min_volume",
)  # fmt: skip


def load_resume_config(run: Path, file: Path | None, overrides: list[str]) -> TrainConfig:
    """The settings of a run, overridden by those of `file` and `overrides` that may change.

    Raises: ConfigError; RunError if there is no run to resume.
    """
    check_run_exists(run)
    saved = load_config(run / CONFIG_FILE, [])
    config = config_from_dict(
        {**saved.model_dump(), **(_read_yaml(file) if file else {}), **parse_overrides(overrides)}
    )
    check_resume_settings(run, config)
    if (end := read_run_metadata(run).end) and (setting := binding_limit(end, saved, config)):
        raise RunError(finished_message(run, end, setting, config))
    return config


def binding_limit(end: RunEnd, saved: TrainConfig, config: TrainConfig) -> EndSetting | None:
    """The setting of `config` that leaves a finished run nothing to train; None if there is something.

    `saved`: the settings that the run ended with.
    """
    limits = config.limits()
    if limits.get("epochs", math.inf) <= end.epochs:
        return "epochs"
    if limits.get("minutes", math.inf) <= end.minutes:
        return "minutes"
    # A run in minutes ends a little early, to validate in time.
    before = saved.limits().get(end.setting, 0)
    return end.setting if limits.get(end.setting, math.inf) <= before else None


def finished_message(run: Path, end: RunEnd, setting: EndSetting, config: TrainConfig) -> str:
    """Why a resume has nothing to train, and which settings would change that."""
    epochs, minutes = f"epochs={math.ceil(1.5 * end.epochs) + 1}", f"minutes={math.ceil(1.5 * end.minutes) + 1}"
    longer = {
        "epochs": f"`--resume {epochs}`, or `--resume epochs=None {minutes}`",
        "minutes": f"`--resume {minutes}`, or `--resume minutes=None {epochs}`",
        "patience": "`--resume patience=None`",
    }
    return (
        f"{run} has already been trained for {end.epochs:.4g} epochs in {end.minutes:.3g} minutes, and "
        f"{setting}={config.limits()[setting]:g} asks for no more: nothing was trained. To train longer: {longer[setting]}."
    )


def check_run_exists(run: Path) -> None:
    """Raises: RunError if there is no run to resume."""
    if not (run / LAST_CHECKPOINT).exists() or not (run / CONFIG_FILE).exists():
        raise RunError(f"{run} has no {LAST_CHECKPOINT.name} to resume from; train without --resume.")


def check_no_run(run: Path) -> None:
    """Raises: RunError if there is a run already."""
    if (run / LAST_CHECKPOINT).exists():
        raise RunError(f"{run} already holds a run; continue it with --resume, or set another --out.")


def check_resume_settings(run: Path, config: TrainConfig) -> None:
    """Raises: ConfigError that names the settings that differ from the run's and may not."""
    saved = load_config(run / CONFIG_FILE, [])
    allowed = list(CHANGEABLE_ON_RESUME)
    if config.batch * config.accumulate == saved.batch * saved.accumulate:
        allowed += ["batch", "accumulate"]  # the same images per step
    changed = [name for name in TrainConfig.model_fields if getattr(config, name) != getattr(saved, name)]
    if refused := [name for name in changed if name not in allowed]:
        changes = ", ".join(f"{name} from {getattr(saved, name)} to {getattr(config, name)}" for name in refused)
        raise ConfigError(
            f"{run} cannot be resumed with other settings: {changes}. Only these may change: "
            f"{', '.join(CHANGEABLE_ON_RESUME)}; and batch with accumulate, if their product stays. Leave the others out, or "
            "train again into another --out."
        )


def config_from_dict(settings: dict[str, Any]) -> TrainConfig:
    """A config from plain values. Raises: ConfigError that names the first wrong key, with the nearest right one."""
    for key in map(str, settings):
        if key not in TrainConfig.model_fields:
            close = closest_names(key, TrainConfig.model_fields)
            hint = f"did you mean {close}?" if close else "`maskserve train --settings` lists all."
            raise ConfigError(f"The setting {quoted(key)} is not known; {hint}")
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise ConfigError(f"These settings are not possible: {plain_reason(first)}.") from error
        name = str(first["loc"][0])
        shown = format_value(settings[name])
        raise ConfigError(
            f"The setting {name}={shown} is not possible: {plain_reason(first)}.{_meaning(name)}"
        ) from error


def _meaning(name: str) -> str:
    """What a setting is, as a sentence: the first part of its description."""
    description = (TrainConfig.model_fields[name].description or "").partition(";")[0]
    return f" {name} is: {description}." if description else ""


def format_value(value: Any) -> str:
    """A value as it is written on the command line: `360,480`, `none`, `true`."""
    if isinstance(value, (list, tuple)) and not any(isinstance(each, (dict, list)) for each in value):
        return ",".join(map(format_value, value))
    if isinstance(value, dict):
        return ",".join(f"{name}:{format_value(each)}" for name, each in value.items())
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def postprocess_rules(
    config: TrainConfig, classes: list[ClassInfo], axes: str
) -> dict[str, EventRule] | dict[str, ComponentRule]:
    """The post-processing by class name, for the spec. Raises: ConfigError for an unknown class, and for other axes."""
    foreground = [entry.name for entry in classes[1:]]
    rules: dict[str, dict[str, Any]] = {}
    for setting, possible in POSTPROCESS_SETTINGS.items():
        given = getattr(config, setting) or {}
        if given and axes != possible:
            raise ConfigError(
                f"The setting {setting} is for {AXES[possible]}, and this data set holds {AXES[axes]}; leave it out."
            )
        for name, value in (given if isinstance(given, dict) else dict.fromkeys(given, True)).items():
            if name not in foreground:
                close = closest_names(name, foreground)
                hint = f"did you mean {close}?" if close else f"they are {', '.join(foreground)}."
                kind = "class of an event" if axes == "T" else "class but the background"
                raise ConfigError(f"The setting {setting} names {quoted(name)}, which is no {kind}; {hint}")
            rules.setdefault(name, {})[setting] = value
    if axes == "DHW":
        return {name: ComponentRule(**rule) for name, rule in rules.items()}
    return {name: EventRule(**rule) for name, rule in rules.items()}


def print_settings(console: Console) -> None:
    """Print each setting with its default, its choices and its description, in groups."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, field in TrainConfig.model_fields.items():
        if name in SETTING_GROUPS:
            if table.row_count:
                table.add_row()
            table.add_row(f"[bold cyan]{SETTING_GROUPS[name]}[/]")
        literals = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
        choices = "|".join(str(choice) for literal in literals for choice in get_args(literal))
        text = f"{choices}; " * bool(choices) + (field.description or "")
        table.add_row(f"[bold]{escape(f'{name}={format_value(field.default)}')}[/]", escape(text))
    console.print(table)


def save_config(config: TrainConfig, file: Path) -> None:
    """Write every setting as YAML that `load_config` reads. Raises: OSError, with the old file unchanged."""
    write_atomically(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """The settings in `key=value` words; values are YAML. Raises: ConfigError."""
    settings = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"{quoted(override)} is not a setting; write key=value, such as epochs=20.")
        settings[key.strip()] = _parse_value(key.strip(), value)
    return settings


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be opened ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{file}: holds a {type(content).__name__}; write lines of the form `key: value`.")
    return content or {}


def _parse_value(key: str, value: str) -> Any:
    """A value of the command line, read as YAML; `crop=360,480` is a pair, `strides=1,2,2` a list."""
    field = TrainConfig.model_fields.get(key)
    if field is not None and field.default is None and value == "none":  # as `--settings` and the messages write it
        return None
    if field is not None and "dict[str, float]" in str(field.annotation) and not value.startswith("{"):
        return value  # CLASS:SECONDS; YAML reads `1:30` as 90
    several = field is not None and any(kind in str(field.annotation) for kind in ("tuple", "list[int"))
    if several and "," in value and not value.startswith("["):
        value = f"[{value}]"
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"The setting {key}={quoted(value)} is not YAML: {getattr(error, 'problem', error)}."
        ) from error
