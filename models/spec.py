"""What a bundle says of itself: everything that is needed to read its masks and to trust them."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 2  # 2: `parity` is by engine, and `int8` came
IGNORE_INDEX = 255  # the label of a pixel that belongs to no class: never trained on, never counted


_Channel = Annotated[int, Field(ge=0, le=255)]
_Pixels = Annotated[int, Field(ge=1)]


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassInfo(_FrozenModel):
    """A class: its place in the list is its label."""

    name: str
    rgb: tuple[_Channel, _Channel, _Channel] = Field(description="colour in masks and overlays, 0..255")


class InputRule(_FrozenModel):
    """How an image of any size meets a network that was trained at one scale.

    `native`: the image keeps its pixels (microscopes, satellites). `fit`: its long side is brought to `side`
    pixels (photographs). `exact`: it is stretched to `size`, for an imported network that takes no other. Under the
    last two the labels return to the image's size by nearest neighbour.
    """

    rule: Literal["native", "fit", "exact"]
    side: int | None = Field(default=None, ge=16, description="long side in pixels; set for `fit` alone")
    size: tuple[_Pixels, _Pixels] | None = Field(
        default=None, description="(height, width) in pixels; set for `exact` alone"
    )

    @model_validator(mode="after")
    def _measures_belong_to_their_rule(self) -> Self:
        if (self.rule == "fit") != (self.side is not None):
            raise ValueError("the rule `fit` needs a side in pixels, and the others have none")
        if (self.rule == "exact") != (self.size is not None):
            raise ValueError("the rule `exact` needs a size, height and width in pixels, and the others have none")
        return self


class Architecture(_FrozenModel):
    """Enough to build the network again around `weights.safetensors`."""

    name: str
    options: dict[str, Any] = {}


class Int8Metrics(_FrozenModel):
    """What the int8 graph cost: both on the validation split, 0..1."""

    miou: float
    float_miou: float = Field(description="of the float format that `auto` takes: bf16 where it is offered")
    calibration_images: int = Field(ge=1, description="training images that it was calibrated on")


class BundleSpec(_FrozenModel):
    """The content of `spec.json`."""

    format_version: int = FORMAT_VERSION
    name: str
    classes: list[ClassInfo] = Field(min_length=2, max_length=255)
    ignore_index: int = IGNORE_INDEX
    input: InputRule
    architecture: Architecture
    parity: dict[str, dict[str, float]] = Field(
        default={},
        description="lowest share of an image's pixels on which an engine gives the live network's label, by engine "
        "(`openvino`, `torch/cuda`) and number format",
    )
    int8: Int8Metrics | None = Field(default=None, description="of the int8 graph; None where the bundle holds none")
    metrics: dict[str, Any] = Field(default={}, description="of this bundle on the validation split, by name")
    provenance: dict[str, Any] = Field(default={}, description="when, from what data and settings, by which versions")

    def palette(self) -> list[tuple[int, int, int]]:
        """256 RGB colours by label; what is no class is black."""
        return palette(self.classes)


def palette(classes: list[ClassInfo]) -> list[tuple[int, int, int]]:
    """256 RGB colours by label; what is no class is black."""
    return [entry.rgb for entry in classes] + [(0, 0, 0)] * (256 - len(classes))


def default_rgb(label: int) -> tuple[int, int, int]:
    """The colour of a label in the PASCAL VOC palette: the label's bits, dealt to red, green, blue, highest first."""
    red = green = blue = 0
    for place in range(7, -1, -1):
        red |= (label & 1) << place
        green |= (label >> 1 & 1) << place
        blue |= (label >> 2 & 1) << place
        label >>= 3
    return red, green, blue
