"""What a request may ask of its answer: one field a parameter, in the query or in the form."""

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.outputs import MASK_ENCODINGS, OUTPUT_FORMATS
from models.outputs.options import OutputOptions
from models.outputs.select import class_indices
from models.spec import BundleSpec
from service.errors import MalformedRequestError

UnitFloat = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_DEFAULTS = OutputOptions()  # the defaults


class SegmentParams(BaseModel):
    """The parameters of /v1/segment and /v1/segment/batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = Field("png", json_schema_extra={"enum": list(OUTPUT_FORMATS)}, description="of the answer")
    model: str | None = Field(
        None,
        max_length=200,
        description="name of the model, needed where several are served; or NAME@HASH as in X-Model: 404 once it is exchanged",
    )
    classes: tuple[str, ...] = Field(
        (), description="names of the classes to keep, separated by commas; all others become void. None: all are kept"
    )
    min_confidence: UnitFloat = Field(
        _DEFAULTS.min_confidence, description="pixels that are less sure become void; 0..1"
    )
    min_area: int = Field(
        _DEFAULTS.min_area, ge=0, le=2**31, description="connected regions of fewer pixels become void"
    )
    alpha: UnitFloat = Field(_DEFAULTS.alpha, description="of the colours over the image, for `overlay`; 0..1")
    masks: str = Field(
        _DEFAULTS.masks, json_schema_extra={"enum": list(MASK_ENCODINGS)}, description="how `json` holds the mask"
    )
    simplify: float = Field(
        _DEFAULTS.simplify,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="pixels by which an outline of `polygons` may move",
    )
    confidence: bool = Field(
        _DEFAULTS.confidence, description="whether `json` also holds the confidence, as a PNG in base64"
    )

    @field_validator("format", "masks")
    @classmethod
    def _validate_choice(cls, name: str, info: Any) -> str:
        known = OUTPUT_FORMATS if info.field_name == "format" else MASK_ENCODINGS
        if name not in known:
            raise ValueError(f"choose from {', '.join(known)}")
        return name

    @field_validator("classes", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(name for name in value.split(",") if name) if isinstance(value, str) else value

    @classmethod
    def parse(cls, query: Iterable[tuple[str, str]], form: Iterable[tuple[str, str]] = ()) -> Self:
        """From the pairs of name and value that came. Raises: BadRequest naming the first that is wrong."""
        found: dict[str, str] = {}
        for name, value in [*query, *form]:
            if name in found:
                raise MalformedRequestError(f"The parameter {name[:80]!r} was given twice; give it once.")
            found[name] = value
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])[:80]
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise MalformedRequestError(f"The parameter {name!r} is not known; known are {known}.") from error
            reason = first["msg"].removeprefix("Value error, ")
            raise MalformedRequestError(f"The parameter {name!r} is {str(first['input'])[:80]!r}: {reason}.") from error

    def output_options(self, spec: BundleSpec) -> OutputOptions:
        """What `models/outputs` is asked for. Raises: ConfigError for a class that the model does not know."""
        class_indices(self.classes, spec)
        return OutputOptions(
            alpha=self.alpha, classes=self.classes, min_confidence=self.min_confidence, min_area=self.min_area,
            simplify=self.simplify, masks=self.masks, confidence=self.confidence,
        )  # fmt: skip


def openapi_parameters() -> list[dict[str, Any]]:
    """The parameters as OpenAPI has them in a query."""
    schema = SegmentParams.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": entry.pop("description"),
            "schema": {"type": "string"} if name in ("classes", "model") else entry,
        }
        for name, entry in schema.items()
    ]
