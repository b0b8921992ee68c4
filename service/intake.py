"""From a request to the bytes of its one picture: a raw body, or the field `image` of a form."""

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import BadRequest

FIELD = "image"


async def picture_bytes(request: Request, limit: int) -> bytes:
    """The bytes of the picture that the request brings; `limit` is the largest body in bytes.

    Only a form says so by its content type; of everything else the bytes decide, never a type or a file name.
    Raises: BadRequest for a form that is broken or holds anything but one file `image`.
    """
    kind, _ = parse_options_header(request.headers.get("content-type", ""))
    return await _form_image(request, limit) if kind == b"multipart/form-data" else await request.body()


async def _form_image(request: Request, limit: int) -> bytes:
    # Starlette raises for a part's size before it raises for the number of files, so that number stays at 2.
    parser = MultiPartParser(request.headers, request.stream(), max_files=2, max_fields=8)
    parser.spool_max_size = limit + 1  # in memory: nothing of a picture is ever written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequest(f"The form cannot be read: {error.message} Send one file in the field `{FIELD}`.") from error
    try:
        fields = form.multi_items()
        unknown = [name for name, _ in fields if name != FIELD]
        if unknown:
            raise BadRequest(
                f"The form field {unknown[0][:80]!r} is not known; send one file in `{FIELD}`, options in the query."
            )
        if not fields:
            raise BadRequest(f"The form has no field `{FIELD}`; send the picture's file in it.")
        if len(fields) > 1:
            raise BadRequest(f"The form has {len(fields)} fields `{FIELD}`; send one picture a request.")
        file = fields[0][1]
        if not isinstance(file, UploadFile):
            raise BadRequest(f"The field `{FIELD}` holds text; send the picture's bytes as a file, with a file name.")
        return await file.read()
    finally:
        await form.close()
