"""Parses a request: its parameters, and the bytes of its images from a raw body or a form."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from models.errors import quoted
from models.outputs import ALL_FORMATS, MASK_ENCODINGS, find_format
from models.outputs.options import OutputOptions
from models.setting_errors import plain_reason
from models.spec import AXES
from service.errors import MalformedRequestError

IMAGE_FIELD, IMAGES_FIELD = "image", "images"

Parameters = list[tuple[str, str]]  # name and value, as in a query or a form
UnitFloat = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_DEFAULTS = OutputOptions()
# The axes of the models that have a parameter; the others are for all.
_AXES_OF_PARAMETERS = {
    **dict.fromkeys(("min_area", "alpha", "masks", "simplify", "bands"), ("HW",)),
    **dict.fromkeys(("lead", "rate", "trace"), ("T",)),
    "confidence": ("HW", "DHW"),
}


Params = TypeVar("Params", bound=BaseModel)


def parse_parameters(
    model: type[Params], query: Iterable[tuple[str, str]], form: Iterable[tuple[str, str]] = ()
) -> Params:
    """Parse the parameters of query and form together. Raises: MalformedRequestError that names the first invalid one."""
    values: dict[str, str] = {}
    for name, value in [*query, *form]:
        if name in values:
            raise MalformedRequestError(f"The parameter {quoted(name[:80])} was given twice. Give it once.")
        values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])[:80]
        if first["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise MalformedRequestError(f"Unknown parameter {quoted(name)}. Available: {known}.") from error
        reason = plain_reason(first)
        value = str(first["input"])[:80]
        raise MalformedRequestError(
            f"Invalid value {quoted(value)} for the parameter {quoted(name)}: {reason}."
        ) from error


class SegmentParams(BaseModel):
    """The parameters of /v1/segment and /v1/segment/batch, in the query or in the form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str | None = Field(
        None,
        json_schema_extra={"enum": list(ALL_FORMATS)},
        description="output format; default: `png` for a model of images, `events` for one of signals, `nifti` for one of volumes",
    )
    model: str | None = Field(
        None,
        max_length=200,
        description="name of the model, required if several are served; or NAME@HASH as in X-Model: 404 once it is replaced",
    )
    classes: tuple[str, ...] = Field(
        (),
        description="names of the classes to keep, separated by commas; all others become unlabeled. Empty: all are kept",
    )
    min_confidence: UnitFloat = Field(
        _DEFAULTS.min_confidence,
        description="pixels, time steps or voxels with a lower confidence become unlabeled; 0..1",
    )
    min_area: int = Field(
        _DEFAULTS.min_area, ge=0, le=2**31, description="connected regions of fewer pixels become unlabeled"
    )
    alpha: UnitFloat = Field(_DEFAULTS.alpha, description="opacity of the colors in an `overlay`; 0..1")
    masks: str = Field(
        _DEFAULTS.masks, json_schema_extra={"enum": list(MASK_ENCODINGS)}, description="encoding of the mask in `json`"
    )
    simplify: float = Field(
        _DEFAULTS.simplify,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="pixels by which an outline of `polygons` may move",
    )
    confidence: bool = Field(
        _DEFAULTS.confidence,
        description="whether `json` also holds the confidence, as a PNG in base64; volumes: whether `npz` holds it",
    )

    bands: tuple[str, ...] = Field(
        _DEFAULTS.bands,
        description="channels that an `overlay` shows, one or three, by name, separated by commas; default: red, green and "
        "blue, or the first three",
    )
    lead: tuple[str, ...] = Field(
        _DEFAULTS.leads,
        description="signals: names of the leads to segment, separated by commas; default: all that the model takes",
    )
    rate: float | None = Field(
        _DEFAULTS.rate,
        gt=0,
        le=1e9,
        allow_inf_nan=False,
        description="signals: sampling rate in Hz of a file that states none: npy, CSV without a column of time",
    )
    trace: bool = Field(_DEFAULTS.trace, description="signals: whether `npz` also holds the recording itself")

    @field_validator("format", "masks")
    @classmethod
    def _validate_choice(cls, name: str | None, info: Any) -> str | None:
        known = ALL_FORMATS if info.field_name == "format" else MASK_ENCODINGS
        if name not in known:
            raise ValueError(f"choose from {', '.join(known)}")
        return name

    @field_validator("classes", "bands", "lead", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(name for name in value.split(",") if name) if isinstance(value, str) else value

    @classmethod
    def parse(cls, query: Iterable[tuple[str, str]], form: Iterable[tuple[str, str]] = ()) -> Self:
        """As `parse_parameters`."""
        return parse_parameters(cls, query, form)

    def output_format(self, axes: str) -> str:
        """The format for a model of these axes.

        Raises: ConfigError for a format, and MalformedRequestError for a parameter, that only models of other axes have.
        """
        for name, known in _AXES_OF_PARAMETERS.items():
            if axes not in known and name in self.model_fields_set:
                kinds = " and ".join(AXES[each] for each in known)
                raise MalformedRequestError(
                    f"The parameter {quoted(name)} is for models of {kinds}; this one segments {AXES[axes]}. Leave it out."
                )
        return find_format(self.format, axes)

    def output_options(self) -> OutputOptions:
        """The options of the output format."""
        return OutputOptions(
            alpha=self.alpha, classes=self.classes, min_confidence=self.min_confidence, min_area=self.min_area,
            simplify=self.simplify, masks=self.masks, confidence=self.confidence, bands=self.bands, leads=self.lead,
            rate=self.rate, trace=self.trace,
        )  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """The images of one request, in their order."""

    images: list[bytes | MalformedRequestError]
    names: list[str]  # as they were sent; empty for text


async def parse_image_request(request: Request, max_body_bytes: int) -> tuple[bytes, Parameters]:
    """Read the image of a request, and the parameters of its form.

    Only the content type of a form is used. For everything else the image's bytes decide, never a type or a file name.
    Raises: MalformedRequestError for a form that is malformed or does not hold exactly one image.
    """
    if not _is_form(request):
        return await request.body(), []
    images, _, parameters = await _parse_form(request, IMAGE_FIELD, max_body_bytes, max_files=2)
    if len(images) > 1:
        raise MalformedRequestError(
            f"The form has several fields `{IMAGE_FIELD}`. Send one image, or many to /v1/segment/batch."
        )
    if isinstance(images[0], MalformedRequestError):
        raise images[0]
    return images[0], parameters


async def parse_batch_request(request: Request, max_body_bytes: int, max_images: int) -> tuple[Batch, Parameters]:
    """Read the files `images` of a form, in their order, and its parameters.

    Returns: for each image its bytes, or an error if the field holds text, and its file name; and the parameters.
    Raises: MalformedRequestError for a form that is malformed or has no or too many images.
    """
    if not _is_form(request):
        raise MalformedRequestError(
            f"The body is not a form. Send a form (multipart/form-data) with a file `{IMAGES_FIELD}` for each image."
        )
    images, names, parameters = await _parse_form(request, IMAGES_FIELD, max_body_bytes, max_images)
    return Batch(images, names), parameters


def _is_form(request: Request) -> bool:
    return _content_type(request)[0] == b"multipart/form-data"


def _content_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    return parse_options_header(request.headers.get("content-type", ""))


async def _parse_form(
    request: Request, field: str, max_body_bytes: int, max_files: int
) -> tuple[list[bytes | MalformedRequestError], list[str], Parameters]:
    advice = f"Send {'one file' if field == IMAGE_FIELD else 'files'} in the field `{field}`."
    # The parser gets the boundary only: with a charset it would decode text by it, and some of Python's codecs take minutes.
    boundary = _content_type(request)[1].get(b"boundary", b"").decode("latin-1")
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary}"' if boundary else ""})
    # Text fields may be called `images` too; the parser counts files and text separately.
    parser = MultiPartParser(
        headers, request.stream(), max_files=max_files, max_fields=max_files + len(SegmentParams.model_fields)
    )
    parser.spool_max_size = max_body_bytes + 1  # in memory: no image is ever written to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # the parser's own errors are ValueErrors, and so are a codec's
        raise MalformedRequestError(f"The form is malformed: {error} {advice}") from error
    images: list[bytes | MalformedRequestError] = []
    names: list[str] = []
    parameters: Parameters = []
    try:
        for key, value in form.multi_items():
            if key == field:
                names.append((value.filename or "") if isinstance(value, UploadFile) else "")
                images.append(await value.read() if isinstance(value, UploadFile) else _text_field_error(field))
            elif isinstance(value, UploadFile):
                raise MalformedRequestError(f"The form has a file in the field {quoted(key[:80])}. {advice}")
            elif key in SegmentParams.model_fields:
                parameters.append((key, value))
            else:
                known = ", ".join([field, *SegmentParams.model_fields])
                raise MalformedRequestError(f"Unknown form field {quoted(key[:80])}. Available: {known}.")
    finally:
        await form.close()
    if not images:
        raise MalformedRequestError(
            f"The form has no complete field `{field}`. Send the image file in it, and the form to its end."
        )
    return images, names, parameters


def _text_field_error(field: str) -> MalformedRequestError:
    """For callers who send a URL, which many services fetch."""
    return MalformedRequestError(
        f"The field `{field}` holds text; URLs are not fetched, and base64 is not decoded. Send the image's bytes "
        "as a file, with a file name."
    )
