"""From a request to the bytes of its images: a raw body, or the files of a form with their parameters beside them."""

from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import MalformedRequestError
from service.params import SegmentParams

IMAGE_FIELD, IMAGES_FIELD = "image", "images"


@dataclass(frozen=True)
class ParsedRequest:
    """What a request brought."""

    images: list[bytes | MalformedRequestError]
    parameters: list[tuple[str, str]] = field(default_factory=list)  # of the form


async def parse_image_request(request: Request, limit: int) -> tuple[bytes, list[tuple[str, str]]]:
    """The bytes of the image that the request brings, and the parameters of its form.

    Only a form says so by its content type; of everything else the bytes decide, never a type or a file name.
    `limit` is the largest body in bytes. Raises: BadRequest for a form that is broken or holds anything but one image.
    """
    if not _is_form(request):
        return await request.body(), []
    sent = await _parse_form(request, IMAGE_FIELD, limit, max_files=2)
    if len(sent.images) > 1:
        raise MalformedRequestError(
            f"The form has several fields `{IMAGE_FIELD}`; send one image, or many to /v1/segment/batch."
        )
    image = sent.images[0]
    if isinstance(image, MalformedRequestError):
        raise image
    return image, sent.parameters


async def parse_batch_request(request: Request, limit: int, most: int) -> ParsedRequest:
    """The images of a form with up to `most` files `images`, in their order. Raises: BadRequest."""
    if not _is_form(request):
        raise MalformedRequestError(
            f"A batch is a form (multipart/form-data) with a file `{IMAGES_FIELD}` for each image."
        )
    return await _parse_form(request, IMAGES_FIELD, limit, most)


def _is_form(request: Request) -> bool:
    return _content_type(request)[0] == b"multipart/form-data"


def _content_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    return parse_options_header(request.headers.get("content-type", ""))


async def _parse_form(request: Request, name: str, limit: int, max_files: int) -> ParsedRequest:
    advice = f"Send {'one file' if name == IMAGE_FIELD else 'files'} in the field `{name}`."
    # Text fields too may be called `images`; the parser counts files and text apart.
    # It is told the boundary alone: it decodes text by whatever charset it is told, and some of Python's codecs take minutes.
    boundary = _content_type(request)[1].get(b"boundary", b"").decode("latin-1")
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary}"' if boundary else ""})
    parser = MultiPartParser(
        headers, request.stream(), max_files=max_files, max_fields=max_files + len(SegmentParams.model_fields)
    )
    parser.spool_max_size = limit + 1  # in memory: nothing of an image is ever written to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # the parser's own are ValueErrors, as are a codec's
        raise MalformedRequestError(f"The form cannot be read: {error} {advice}") from error
    try:
        sent = ParsedRequest([])
        for key, value in form.multi_items():
            if key == name:
                sent.images.append(await value.read() if isinstance(value, UploadFile) else _text_field_error(name))
            elif isinstance(value, UploadFile):
                raise MalformedRequestError(f"The form holds a file in the field {key[:80]!r}. {advice}")
            elif key in SegmentParams.model_fields:
                sent.parameters.append((key, value))
            else:
                known = ", ".join([name, *SegmentParams.model_fields])
                raise MalformedRequestError(f"The form field {key[:80]!r} is not known; known are {known}.")
        if not sent.images:
            raise MalformedRequestError(
                f"The form has no whole field `{name}`; send the image's file in it, and the form to its end."
            )
        return sent
    finally:
        await form.close()


def _text_field_error(name: str) -> MalformedRequestError:
    """Many services take an address there and fetch it; this one fetches nothing."""
    return MalformedRequestError(f"The field `{name}` holds text; send the image's bytes as a file, with a file name.")
