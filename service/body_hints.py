"""Explains a raw body that is not an image: the commonest slips with curl and with HTTP libraries."""

import re

from models.errors import CorruptImageError, MaskserveError, UnsupportedFormatError
from service.errors import MalformedRequestError

HOW_TO_SEND = (
    "Send the bytes of the image file themselves as the body (curl --data-binary @photo.jpg; in Python "
    "requests.post(url, data=open('photo.jpg', 'rb'))), or as a file of a form (curl -F image=@photo.jpg)."
)
CURL_D = (
    "The content type is that of curl's -d, which alters bytes. Use --data-binary @photo.jpg, or -F image=@photo.jpg."
)

_START_BYTES = 4096
_FORM = re.compile(rb"[\w.\[\]%+-]+=[\x21-\x7e]*")
_JSON = re.compile(rb'\s*(?:\xef\xbb\xbf)?\s*(?:\{\s*["}]|\[\s*["{\[\d]|")')
_DROPPED_BY_CURL_D = re.compile(rb"[\r\n\0]")
_BASE64 = re.compile(rb"\s*(?:data:[\w/+.;=-]*,)?[A-Za-z0-9+/_\r\n-]{60,}={0,2}\s*")


def explain_body(error: UnsupportedFormatError | CorruptImageError, content_type: str, body: bytes) -> MaskserveError:
    """The error for a body that cannot be decoded, with what may be wrong with the request, if that can be seen.

    Images are sent with any content type, so that only the error makes the type worth a look.
    """
    start = body[:_START_BYTES]
    is_form = content_type.lower().startswith("application/x-www-form-urlencoded")
    if is_form and _FORM.fullmatch(start):
        return MalformedRequestError(
            f"The body is a form of the type x-www-form-urlencoded, which holds no files. {HOW_TO_SEND}"
        )
    if _JSON.match(start):
        return UnsupportedFormatError(f"The body is JSON, not an image; base64 in it is not decoded. {HOW_TO_SEND}")
    if start[:5] == b"data:" or _BASE64.fullmatch(start):
        return UnsupportedFormatError(f"The body is text in base64, which is not decoded. {HOW_TO_SEND}")
    # curl --data-binary has this type too, but leaves the bytes that -d drops.
    is_altered = is_form and not _DROPPED_BY_CURL_D.search(body)
    return type(error)(f"{error} {CURL_D}") if is_altered else error
