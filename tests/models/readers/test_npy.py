"""Arrays: `.npy` and `.npz`, their names and missing pixels, and what is refused."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from models.errors import CorruptImageError, ImageTooLargeError, UnsupportedFormatError
from models.readers import limits, read_sample


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


VALUES = np.arange(5 * 7 * 2, dtype=np.uint16).reshape(5, 7, 2)


def test_an_array_is_read_as_it_is() -> None:
    for array in (VALUES, np.asfortranarray(VALUES), VALUES.astype(">u2")):
        sample = read_sample(npy(array))
        assert sample.channels == ("band1", "band2")
        assert sample.dtype == "uint16" and np.array_equal(sample.values, VALUES)
    assert read_sample(npy(VALUES[:, :, 0])).channels == ("gray",)
    assert read_sample(npy(VALUES[:, :, :1].repeat(3, 2).astype(np.uint8))).channels == ("red", "green", "blue")


def test_an_archive_holds_names_and_missing_pixels() -> None:
    valid = np.ones((5, 7), np.bool_)
    valid[0] = False
    sample = read_sample(npz(values=VALUES, channels=["hh", "hv"], valid=valid, nodata=0.0))
    assert sample.channels == ("hh", "hv") and sample.nodata == 0
    assert sample.valid is not None and np.array_equal(sample.valid, valid)
    assert np.array_equal(read_sample(npz(scene=VALUES)).values, VALUES)  # its only array


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (npy(np.array([{}], object), allow_pickle=True), UnsupportedFormatError, "object"),
        (npy(np.zeros((2, 3, 4, 5))), UnsupportedFormatError, "4 axes"),
        (npy(np.zeros((13, 256, 256), np.uint8)), UnsupportedFormatError, "transpose"),
        (npy(np.zeros((0, 3))), CorruptImageError, "no samples"),
        (npy(VALUES)[:-1], CorruptImageError, "truncated"),
        (npy(VALUES)[:40], CorruptImageError, "header"),
        (npz(a=VALUES, b=VALUES), UnsupportedFormatError, "a, b"),
        (npz(values=VALUES, channels=["hh"]), CorruptImageError, "1 names"),
        (npz(values=VALUES, valid=np.ones((2, 2), np.bool_)), CorruptImageError, "valid"),
        (npz(values=VALUES)[:-30], CorruptImageError, "npz"),
    ],
    ids=["pickle", "axes", "channels first", "empty", "short", "header", "several", "names", "valid", "cut"],
)
def test_other_content_is_refused_with_the_reason(data: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_sample(data)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("values.npy", npy(np.zeros((300, 300), np.uint8)) + bytes(70 << 20))
    with pytest.raises(ImageTooLargeError, match="unpacks to more"):
        read_sample(buffer.getvalue(), max_pixels=100_000)


def test_samples_add_to_the_cpu_time_of_a_decoder_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are read: what unpacks to many may take longer than its few bytes would."""
    allowed: list[int] = []
    monkeypatch.setattr(limits, "allow_pixels", allowed.append)
    read_sample(npy(VALUES))
    assert allowed == [5 * 7 * 2]
