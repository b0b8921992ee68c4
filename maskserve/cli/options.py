"""Arguments and options that several subcommands share, and `expand_options` for subcommands with many options."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

DataFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Data set: a folder, such as images/NAME.jpg with masks/NAME.png, or a table split,image,mask (CSV, TSV).",
    ),
]
DataFormat = Annotated[
    str,
    typer.Option(
        "--format", help="Layout, such as folder, coco, yolo or nnunet, if auto (`data inspect`) detects another."
    ),
]


def _enable_sandbox(wanted: bool) -> None:
    if wanted:
        from models.imaging.sandbox import enable_sandbox

        enable_sandbox()


SandboxOption = Annotated[
    bool,
    typer.Option(
        "--sandbox",
        callback=_enable_sandbox,
        help="Decode images and masks in child processes with limits: for files of unknown origin.",
    ),
]


def check_bundle_is_first(first: Path | str, others: Iterable[Path | str]) -> None:
    """Raises: ConfigError if a bundle is among `others`, the images or data of a bundle, and `first` is none."""
    from models.bundle import CHECKSUM_FILE
    from models.errors import ConfigError

    if not Path(first, CHECKSUM_FILE).is_file():
        for other in others:
            if Path(other, CHECKSUM_FILE).is_file():
                raise ConfigError(f"{first} is not a bundle, but {other} is: name the bundle first.")


BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder written by `maskserve export`.")]
BundleName = Annotated[
    str | None,
    typer.Option(
        "--name", help="Name of the model in the service (default: of the data set; imported: of the source)."
    ),
]
EngineOption = Annotated[
    str, typer.Option(help="openvino, onnxruntime, torch, or auto: the first one that this machine supports.")
]
PrecisionOption = Annotated[
    str, typer.Option(help="f32, bf16, fp16, int8, or auto: the fastest one that passed the checks of the export.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]


@dataclass(frozen=True)
class EngineOptions:
    """The options that select what runs the network."""

    engine: EngineOption = "auto"
    precision: PrecisionOption = "auto"
    device: DeviceOption = "auto"


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a subcommand group its options in dataclasses: a parameter that is a dataclass becomes one option per field.

    The fields are annotated as Typer parameters are. Typer sees the expanded signature and passes plain values; the command
    gets instances of its dataclasses. Field names must be unique within the command.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    annotations: dict[str, Any] = {name: parameter.annotation for name, parameter in parameters.items()}
    groups = {name: kind for name, kind in annotations.items() if isinstance(kind, type) and is_dataclass(kind)}
    expanded_parameters: list[inspect.Parameter] = []
    for name, parameter in parameters.items():
        members = inspect.signature(groups[name], eval_str=True).parameters.values() if name in groups else [parameter]
        expanded_parameters += [member.replace(kind=inspect.Parameter.KEYWORD_ONLY) for member in members]

    @wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in inspect.signature(group).parameters})
        command(**values)

    expanded.__signature__ = inspect.Signature(expanded_parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in expanded_parameters}
    return expanded
