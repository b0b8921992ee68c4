"""What a training run can be told: one flat, frozen model; a YAML file, then `key=value`; unknown keys are fatal."""

import difflib
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.errors import ConfigError


class TrainConfig(BaseModel):
    """Every setting of a run, with its unit; `runs/<name>/config.yaml` holds them as run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the network
    architecture: str = Field("fcn", description="fcn, smp/NAME, torchvision/NAME: `maskserve models` lists them")
    encoder: str = Field(
        "resnet18", description="of segmentation-models-pytorch, timm (tu-NAME), or alexnet (arXiv 1411.4038)"
    )
    weights: str = Field(
        "none", description="start from scratch, from pretrained ones (imagenet), or from a FILE or BUNDLE to fine-tune"
    )
    reset_head: bool = Field(
        False, description="of a FILE's or BUNDLE's weights keep all but the head: for other classes"
    )
    head: Literal["linear", "fcn", "d6", "aspp", "psp"] = Field(
        "fcn",
        description="1x1 alone (arXiv 1411.4038); 3x3 then 1x1; FCN-D6 (mmsegmentation); ASPP (arXiv 1706.05587); "
        "pyramid pooling (arXiv 1612.01105)",
    )
    output_stride: Literal[8, 16, 32] | None = Field(
        None, description="of the encoder, 16 and 8 by dilation (arXiv 1511.07122); default: as in the head's paper"
    )
    skips: Literal["32s", "16s", "8s"] | None = Field(
        None,
        description="finer maps added to the scores (arXiv 1411.4038); default: 8s for linear and fcn, else none, 32s",
    )
    upsampling: Literal["bilinear", "learned"] = Field(
        "bilinear", description="learned: transposed convolutions that start as bilinear (arXiv 1411.4038)"
    )
    aux: bool = Field(False, description="train a second head on the map of stride 16 as well (arXiv 1612.01105)")
    aux_weight: float = Field(0.4, ge=0, le=1, description="of the second head's loss")
    separable: bool = Field(False, description="3x3 kernels of the heads a channel at a time (arXiv 1610.02357)")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the values before the 1x1 classifier that are dropped (Srivastava et al. 2014)",
    )
    init: Literal["kaiming", "xavier"] = Field(
        "kaiming", description="of what starts from scratch: arXiv 1502.01852, or Glorot and Bengio 2010"
    )

    # the pictures
    format: str = Field("auto", description="of the data set: a name in training/data, or auto to recognise it")
    input: Literal["fit", "native"] = Field("fit", description="bring pictures to one scale, or keep their pixels")
    side: int | None = Field(
        None, ge=32, description="long side in pixels for fit; default: the training pictures' median"
    )
    crop: tuple[int, int] | None = Field(
        None, description="height,width of the training crop; default: the fitted picture"
    )
    scale: tuple[float, float] = Field((0.5, 2.0), description="smallest,largest random enlargement")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip; 0 where left and right differ")
    vflip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip: microscopes, satellites")
    rotate: float = Field(0.0, ge=0, le=180, description="largest random rotation, degrees")
    elastic: float = Field(
        0.0,
        ge=0,
        le=0.1,
        description="largest displacement of an elastic change, as a share of the crop's shorter side (arXiv 1505.04597)",
    )
    colour: float = Field(0.4, ge=0, le=1, description="strength of random brightness, contrast, saturation; 0 is off")
    hue: float = Field(0.0, ge=0, le=0.5, description="largest random shift of hue, as a share of the colour circle")
    blur: float = Field(0.0, ge=0, le=10, description="largest sigma of a random Gaussian blur, pixels")
    noise: float = Field(0.0, ge=0, le=100, description="largest standard deviation of random noise, levels of 0..255")
    balance: float = Field(
        0.0, ge=0, le=1, description="probability that a crop is laid on a class drawn evenly from its picture's"
    )
    augment: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="where: in the workers, or on whole batches on the training's device"
    )

    # the optimisation
    epochs: int = Field(40, ge=1, description="passes over the training pictures")
    minutes: float | None = Field(
        None, gt=0, description="stop after this time, with the best and last checkpoint kept"
    )
    batch: int = Field(8, ge=1, description="pictures a step")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="with Nesterov momentum, or AdamW (arXiv 1711.05101)")
    lr: float = Field(0.02, gt=0, description="peak learning rate, at the batch size given")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="on kernels; none on norms and biases")
    warmup: int = Field(100, ge=0, description="steps of linear rise to the learning rate")
    power: float = Field(0.9, gt=0, description="of the polynomial decay to zero")

    # the machine
    precision: Literal["auto", "f32", "bf16"] = Field(
        "auto", description="auto: bf16 where it is quicker on this machine"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where torch sees one")
    workers: int = Field(2, ge=0, description="processes that read and augment pictures")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and augmentation")

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.crop is not None and min(self.crop) < 32:
            raise ValueError("crop is height,width, each of 32 pixels or more")
        if not 0.05 <= self.scale[0] <= self.scale[1] <= 20:
            raise ValueError("scale is smallest,largest, between 0.05 and 20")
        return self


def load_config(file: Path | None, overrides: list[str]) -> TrainConfig:
    """Read a YAML file (or none) and lay `key=value` words over it. Raises: ConfigError."""
    settings: dict[str, Any] = {}
    if file is not None:
        settings = _read_yaml(file)
    for word in overrides:
        key, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(f"{word!r} is no setting; write key=value, such as epochs=20.")
        settings[key.strip()] = _parse(key.strip(), value)
    return validated(settings)


def validated(settings: dict[str, Any]) -> TrainConfig:
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


def show_settings(console: Console) -> None:
    """Print each setting with its default, its choices, and its line of help."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", overflow="fold")
    for name, field in TrainConfig.model_fields.items():
        literals = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
        choices = "|".join(str(choice) for literal in literals for choice in get_args(literal))
        table.add_row(f"{name}={field.default}", escape(f"{choices}; " * bool(choices) + (field.description or "")))
    console.print(table)


def save_config(config: TrainConfig, file: Path) -> None:
    """Write every setting, as run, as YAML that `load_config` reads back."""
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


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


def _parse(key: str, value: str) -> Any:
    """A word of the command line as YAML reads it; `crop=360,480` is a pair."""
    field = TrainConfig.model_fields.get(key)
    if field is not None and "tuple" in str(field.annotation) and "," in value:
        value = f"[{value}]"
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"The setting {key}={value!r} cannot be read.") from error
