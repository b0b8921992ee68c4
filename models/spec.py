"""The content of a bundle's spec.json: classes, input rule, architecture, and what the export measured."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# 2: `parity` is by engine, `int8` was added; 3: names of settings and metrics changed; 4: `input.divisor` was added;
# 5: `input` also says axes, channels, dtype, scaling, nodata and spacing, and `postprocess` was added. Bundles of format 4 have
# photographs as input, the default of each new field, so they open unchanged.
FORMAT_VERSION, OLDEST_FORMAT_VERSION = 5, 4
IGNORE_INDEX = 255  # label of pixels that belong to no class; they are ignored in training and metrics


RGB_CHANNELS = ("red", "green", "blue")
AXES = {
    "HW": "images",
    "T": "signals",
    "DHW": "volumes",
}  # of a sample, before its channels: height, width; time; depth ...
SAMPLE_DTYPES = ("uint8", "uint16", "int16", "float32")  # that a network takes; readers convert others to float32
MAX_CHANNELS = 64

_Channel = Annotated[int, Field(ge=0, le=255)]
_Pixels = Annotated[int, Field(ge=1)]
_FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassInfo(_FrozenModel):
    """A class. Its index in the list is its label."""

    name: str
    rgb: tuple[_Channel, _Channel, _Channel] = Field(description="color in masks and overlays, 0..255")


class Scaling(_FrozenModel):
    """How samples become the numbers that a network computes with.

    `fixed` and `window` map `low`..`high` of each channel to 0..255, and clip what is outside; for `window` they are
    percentiles of the training set. `zscore` subtracts the mean of the whole sample, and divides by its standard deviation,
    channel by channel, without nodata (`models/readers/statistics.py`): the sample's own scale does not matter.
    """

    kind: Literal["fixed", "window", "zscore"] = "fixed"
    low: tuple[_FiniteFloat, ...] = Field(default=(0.0, 0.0, 0.0), description="by channel; empty for `zscore`")
    high: tuple[_FiniteFloat, ...] = Field(default=(255.0, 255.0, 255.0), description="by channel; empty for `zscore`")

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if len(self.low) != len(self.high) or any(low >= high for low, high in zip(self.low, self.high, strict=False)):
            raise ValueError("`low` and `high` are one number for each channel, each `low` below its `high`")
        if (self.kind == "zscore") != (not self.low):
            raise ValueError("`low` and `high` are required with fixed and window, and empty with zscore")
        return self


class Spacing(_FrozenModel):
    """The physical distance of neighboring samples along each axis; with the unit Hz the sampling rate of a signal."""

    values: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    unit: str = Field(description="such as m, mm, degree or Hz")


class InputRule(_FrozenModel):
    """What the network takes: its channels and their scaling, and the resize rule.

    The default is a photograph: RGB uint8, 0..255. `native` keeps the pixels (microscopes, satellites). `fit` resizes the long
    side to `side` pixels (photographs). `exact` resizes to `size`, for an imported network that takes
    only that size. With `fit` and `exact`, labels are resized to the image's size by nearest neighbor. With `native` and
    `fit`, the image is then padded to multiples of `divisor`, in validation, evaluation and service alike. Signals and volumes
    have the rule `native`.
    """

    rule: Literal["native", "fit", "exact"]
    side: int | None = Field(default=None, ge=16, description="long side in pixels; only for `fit`")
    size: tuple[_Pixels, _Pixels] | None = Field(
        default=None, description="(height, width) in pixels; only for `exact`"
    )
    divisor: int = Field(
        default=32,
        ge=1,
        description="the lengths of the network's input are multiples of this: 32, the deepest stride, for networks "
        "trained here; 1, no padding, for imported networks that take any size; not used with `exact`",
    )

    window: tuple[_Pixels, ...] | None = Field(
        default=None,
        description="signals and volumes: the lengths of every input of the network, for norms whose statistics are those of the "
        "input; None: any multiples of `divisor`",
    )

    axes: Literal["HW", "T", "DHW"] = Field(
        default="HW",
        description="the axes of a sample, before its channels: height, width of an image; time of a signal; depth, height, "
        "width of a volume",
    )
    channels: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        default=RGB_CHANNELS, min_length=1, max_length=MAX_CHANNELS, description="names, in the network's order"
    )
    dtype: Literal["uint8", "uint16", "int16", "float32"] = Field(
        default="uint8", description="of the samples that the network takes"
    )
    scaling: Scaling = Scaling()
    nodata: _FiniteFloat | None = Field(
        default=None,
        description="value of missing pixels, which are void in the mask, beside those that a file marks itself; NaN and "
        "infinite samples always are; None for no value",
    )
    spacing: Spacing | None = Field(
        default=None,
        description="of the training images, if all have the same; of a signal or volume that at which the network was trained",
    )

    @property
    def is_photograph(self) -> bool:
        """Whether the network takes RGB uint8 as images are decoded, without nodata: no reader of samples is needed."""
        return self.axes == "HW" and (self.channels, self.dtype, self.scaling, self.nodata) == (
            RGB_CHANNELS,
            "uint8",
            _PHOTOGRAPH,
            None,
        )

    @property
    def rate(self) -> float | None:
        """The sampling rate, in Hz, of the signals that the network takes; None if it is not known, and for other axes."""
        return self.spacing.values[0] if self.axes == "T" and self.spacing else None

    def describe(self) -> str:
        """What the network takes, such as "4 channels of uint16 (red, green, blue, nir)"."""
        count = f"{len(self.channels)} channel{'s' * (len(self.channels) > 1)}"
        return f"{count} of {self.dtype} ({', '.join(self.channels)})"

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if len({name.lower() for name in self.channels}) != len(self.channels):
            raise ValueError("`channels` has a name twice")
        if self.scaling.kind != "zscore" and len(self.scaling.low) != len(self.channels):
            raise ValueError(f"`scaling` has {len(self.scaling.low)} ranges for {len(self.channels)} channels")
        return self

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        if self.axes != "HW" and self.rule != "native":
            raise ValueError(f"{AXES[self.axes]} have the rule `native`, not `{self.rule}`: they are not resized")
        if self.axes != "HW" and self.spacing and len(self.spacing.values) != len(self.axes):
            raise ValueError(f"`spacing` has {len(self.spacing.values)} values for the axes {self.axes}")
        if self.window and (self.axes == "HW" or len(self.window) != len(self.axes)):
            raise ValueError(f"`window` has {len(self.window)} lengths for {AXES[self.axes]} with the axes {self.axes}")
        if self.window and any(length % self.divisor for length in self.window):
            raise ValueError(f"`window` has lengths that are no multiples of `divisor`, {self.divisor}")
        if self.axes == "T" and self.spacing and self.spacing.unit != "Hz":
            raise ValueError(f"`spacing` of a signal is its sampling rate in Hz, not in {self.spacing.unit}")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if (self.rule == "fit") != (self.side is not None):
            raise ValueError("`side`, in pixels, is required with the rule `fit` and not allowed with others")
        if (self.rule == "exact") != (self.size is not None):
            raise ValueError(
                "`size`, height and width in pixels, is required with the rule `exact` and not allowed with others"
            )
        return self


_PHOTOGRAPH = Scaling()


class Architecture(_FrozenModel):
    """The name and options that build the network for `weights.safetensors`."""

    name: str
    options: dict[str, Any] = {}


class EventRule(_FrozenModel):
    """Post-processing of a class's events in a signal (`models/inference/events.py`); 0 is off."""

    min_duration: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="shorter events are removed, seconds"
    )
    max_gap: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="background up to this long within an event is filled, seconds",
    )


class ComponentRule(_FrozenModel):
    """Post-processing of a class's connected components in a volume (`models/inference/components.py`); off by default."""

    keep_largest: bool = Field(default=False, description="all components but the largest are removed")
    min_volume: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="smaller components are removed, ml; voxels if the input rule has no spacing",
    )


class Calibration(_FrozenModel):
    """What an export fitted on validation images: the graph's logits are (the network's logits + bias) / temperature.

    Labels are the argmax of these logits, in every engine; the temperature changes only their confidence.
    """

    bias: dict[str, _FiniteFloat] = Field(
        default={}, description="added to the logit of a class, by name, for the best F1; 0 for the others"
    )
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="above 1 lowers the confidence")
    images: int = Field(default=0, ge=0, description="number of validation images that these were fitted on")
    f1: tuple[float, float] | None = Field(
        default=None, description="mean F1 of the classes in `bias` on these images, before and after; 0..1"
    )
    ece: tuple[float, float] | None = Field(
        default=None, description="expected calibration error on these images, before and after; 0..1"
    )


class Int8Metrics(_FrozenModel):
    """mIoU of the int8 graph and of the float graph on the validation split, 0..1."""

    miou: float
    float_miou: float = Field(description="in the float precision that `auto` uses: bf16 if available")
    calibration_images: int = Field(ge=1, description="number of training images used for calibration")


class BundleSpec(_FrozenModel):
    """The content of `spec.json`."""

    format_version: int = FORMAT_VERSION
    name: str
    classes: list[ClassInfo] = Field(min_length=2, max_length=255)
    ignore_index: int = IGNORE_INDEX
    input: InputRule
    architecture: Architecture
    postprocess: dict[str, EventRule] | dict[str, ComponentRule] = Field(
        default={},
        description="by class name, of a signal's events or a volume's components; classes without a rule stay as they are",
    )
    calibration: Calibration | None = Field(default=None, description="of the logits; None leaves them as they are")
    parity: dict[str, dict[str, float]] = Field(
        default={},
        description="agreement with PyTorch: lowest fraction of an image's pixels with equal labels, by engine "
        "(`openvino`, `torch/cuda`) and precision",
    )
    unpadded_agreement: float | None = Field(
        default=None,
        description="lowest fraction of an image's pixels, 0..1, whose label equals that of the original network without "
        "any padding; None if it does not take images of any size",
    )
    int8: Int8Metrics | None = Field(default=None, description="metrics of the int8 graph; None without one")
    metrics: dict[str, Any] = Field(default={}, description="of this bundle on the validation split, by name")
    provenance: dict[str, Any] = Field(default={}, description="date, data, settings and versions of the training")

    def palette(self) -> list[tuple[int, int, int]]:
        """256 RGB colors by label; labels without a class are black."""
        return palette(self.classes)

    def event_rules(self) -> dict[int, EventRule]:
        """The rules of `postprocess` for the events of a signal, by label."""
        return {label: rule for label, rule in self._rules() if isinstance(rule, EventRule)}

    def component_rules(self) -> dict[int, ComponentRule]:
        """The rules of `postprocess` for the components of a volume, by label."""
        return {label: rule for label, rule in self._rules() if isinstance(rule, ComponentRule)}

    def _rules(self) -> list[tuple[int, EventRule | ComponentRule]]:
        labels = {entry.name: label for label, entry in enumerate(self.classes)}
        return [(labels[name], rule) for name, rule in self.postprocess.items()]

    @model_validator(mode="after")
    def _check_calibration(self) -> Self:
        names = [entry.name for entry in self.classes]
        if unknown := [name for name in (self.calibration.bias if self.calibration else ()) if name not in names]:
            raise ValueError(f"`calibration` has a bias for {unknown[0]}, and the classes are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _check_postprocess(self) -> Self:
        foreground = [entry.name for entry in self.classes[1:]]
        if unknown := [name for name in self.postprocess if name not in foreground]:
            raise ValueError(f"`postprocess` has a rule for {unknown[0]}, and the classes are {', '.join(foreground)}")
        kinds: dict[str, type] = {"T": EventRule, "DHW": ComponentRule}
        if any(type(rule) is not kinds.get(self.input.axes) for rule in self.postprocess.values()):
            raise ValueError(f"`postprocess` has rules that are not for {AXES[self.input.axes]}")
        return self


def palette(classes: list[ClassInfo]) -> list[tuple[int, int, int]]:
    """256 RGB colors by label; labels without a class are black."""
    return [entry.rgb for entry in classes] + [(0, 0, 0)] * (256 - len(classes))


def default_rgb(label: int) -> tuple[int, int, int]:
    """The color of a label in the PASCAL VOC palette: red, green and blue take the label's bits in turn, highest first."""
    red = green = blue = 0
    for bit in range(7, -1, -1):
        red |= (label & 1) << bit
        green |= (label >> 1 & 1) << bit
        blue |= (label >> 2 & 1) << bit
        label >>= 3
    return red, green, blue
