"""Reads the body of a response in pieces, and never more of it than a limit, compressed or not.

httpx would hold a body of any length, and decode any compression that a server names.
"""

import zlib

import httpx

from maskserve.client.errors import InvalidResponseError

ACCEPTED_ENCODING = "gzip"  # sent as Accept-Encoding, in place of everything that httpx could decode
MAX_BODY_BYTES = 1 << 29  # 512 MiB: a mask of 100 million pixels as `npy`, or as JSON with two PNGs, fits
MAX_ERROR_BYTES = 1 << 20  # of an error only the beginning is read
GZIP_FORMAT = 31  # zlib's `wbits` for a gzip header and the largest window


class ResponseBody:
    """The body of one response, as it arrives."""

    def __init__(self, response: httpx.Response) -> None:
        """Raises: InvalidResponseError for a compression that was not requested."""
        self.response = response
        self.limit = MAX_BODY_BYTES if response.is_success else MAX_ERROR_BYTES
        self._parts: list[bytes] = []
        self._size = 0
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        self._decompressor = zlib.decompressobj(GZIP_FORMAT) if encoding in ("gzip", "x-gzip") else None
        if self._decompressor is None and encoding != "identity":
            raise self._invalid(f"compressed with '{encoding[:40]}', which was not requested")

    def add(self, chunk: bytes) -> bool:
        """Add a piece. Returns: whether more is wanted: not of an error that is longer than its limit.

        Raises: InvalidResponseError for a body above the limit, or a broken compression.
        """
        if self._decompressor is not None:
            try:
                chunk = self._decompressor.decompress(chunk, self.limit - self._size + 1)  # 0 would be no limit
            except zlib.error as error:
                raise self._invalid(f"not valid gzip ({error})") from error
        self._parts.append(chunk)
        self._size += len(chunk)
        if self._size <= self.limit:
            return True
        if self.response.is_success:
            raise self._invalid(f"more than {self.limit >> 20} MiB long")
        return False

    def finish(self) -> httpx.Response:
        """The response with its whole body. Raises: InvalidResponseError for an incomplete compression."""
        decompressor, complete = self._decompressor, self.response.is_success and self._size
        if decompressor is not None and complete and not decompressor.eof:
            raise self._invalid("incomplete gzip")
        headers = self.response.headers.copy()
        for name in ("Content-Encoding", "Transfer-Encoding"):
            headers.pop(name, None)
        return httpx.Response(
            self.response.status_code, headers=headers, content=b"".join(self._parts)[: self.limit],
            request=self.response.request, extensions=self.response.extensions,
        )  # fmt: skip

    def _invalid(self, problem: str) -> InvalidResponseError:
        return InvalidResponseError(
            f"{self.response.request.url} returned a body that is {problem}: not a response of maskserve. "
            "Check the address."
        )
