"""From a request to the bytes of its pictures: a raw body, or the files of a form with their parameters beside them."""

from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import BadRequest
from service.params import Wishes

ONE, MANY = "image", "images"


@dataclass(frozen=True)
class Sent:
    """What a request brought."""

    pictures: list[bytes | BadRequest]
    parameters: list[tuple[str, str]] = field(default_factory=list)  # of the form


async def one_picture(request: Request, limit: int) -> tuple[bytes, list[tuple[str, str]]]:
    """The bytes of the picture that the request brings, and the parameters of its form.

    Only a form says so by its content type; of everything else the bytes decide, never a type or a file name.
    `limit` is the largest body in bytes. Raises: BadRequest for a form that is broken or holds anything but one picture.
    """
    if not _is_form(request):
        return await request.body(), []
    sent = await _form(request, ONE, limit, most=2)
    if len(sent.pictures) > 1:
        raise BadRequest(f"The form has several fields `{ONE}`; send one picture, or many to /v1/segment/batch.")
    picture = sent.pictures[0]
    if isinstance(picture, BadRequest):
        raise picture
    return picture, sent.parameters


async def many_pictures(request: Request, limit: int, most: int) -> Sent:
    """The pictures of a form with up to `most` files `images`, in their order. Raises: BadRequest."""
    if not _is_form(request):
        raise BadRequest(f"A batch is a form (multipart/form-data) with a file `{MANY}` for each picture.")
    return await _form(request, MANY, limit, most)


def _is_form(request: Request) -> bool:
    return _content_type(request)[0] == b"multipart/form-data"


def _content_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    return parse_options_header(request.headers.get("content-type", ""))


async def _form(request: Request, name: str, limit: int, most: int) -> Sent:
    advice = f"Send {'one file' if name == ONE else 'files'} in the field `{name}`."
    # Text fields too may be called `images`; the parser counts files and text apart.
    # It is told the boundary alone: it decodes text by whatever charset it is told, and some of Python's codecs take minutes.
    boundary = _content_type(request)[1].get(b"boundary", b"").decode("latin-1")
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary}"' if boundary else ""})
    parser = MultiPartParser(headers, request.stream(), max_files=most, max_fields=most + len(Wishes.model_fields))
    parser.spool_max_size = limit + 1  # in memory: nothing of a picture is ever written to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # the parser's own are ValueErrors, as are a codec's
        raise BadRequest(f"The form cannot be read: {error} {advice}") from error
    try:
        sent = Sent([])
        for key, value in form.multi_items():
            if key == name:
                sent.pictures.append(await value.read() if isinstance(value, UploadFile) else _text(name))
            elif isinstance(value, UploadFile):
                raise BadRequest(f"The form holds a file in the field {key[:80]!r}. {advice}")
            elif key in Wishes.model_fields:
                sent.parameters.append((key, value))
            else:
                known = ", ".join([name, *Wishes.model_fields])
                raise BadRequest(f"The form field {key[:80]!r} is not known; known are {known}.")
        if not sent.pictures:
            raise BadRequest(
                f"The form has no whole field `{name}`; send the picture's file in it, and the form to its end."
            )
        return sent
    finally:
        await form.close()


def _text(name: str) -> BadRequest:
    """Many services take an address there and fetch it; this one fetches nothing."""
    return BadRequest(f"The field `{name}` holds text; send the picture's bytes as a file, with a file name.")
