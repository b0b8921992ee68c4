"""Small files of signals and volumes that took seconds, gigabytes or a traceback: each is refused, or read in bounded memory."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom.pixels  # noqa: F401  # not while memory is measured
import pytest

from models.errors import CorruptImageError, ImageError, ImageTooLargeError, UnsupportedFormatError
from models.readers import read_sample, resample, volume_limits
from models.readers.limits import ReadLimits
from models.readers.wfdb import parse_header, read_record
from models.sample import Sample
from models.spec import Spacing
from tests import hostile_samples as hostile

MIB = 1 << 20


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that Python and NumPy held at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


REFUSED: dict[str, tuple[str, Callable[[], bytes], type[ImageError], str]] = {
    "csv, a long line": ("T", lambda: b"1,2\n1," + b"3" * 9000, CorruptImageError, "Line 2 of the table has 9,002 characters"),
    "csv, many columns": ("T", lambda: b"1," * 5000 + b"1", UnsupportedFormatError, "5,001 columns; the limit is 64"),
    "csv, a quote that does not end": ("T", lambda: b'1,2\n"' + b"3\n" * 99_000, CorruptImageError, "field larger than"),
    "csv, more cells than names": ("T", lambda: b"x,y\n1,2,3\n1,2,3\n", CorruptImageError, "Line 2 .* has 3 columns; expected 2"),
    "csv, names alone": ("T", lambda: b"x1,y\n\n\n", CorruptImageError, "no lines of numbers"),
    "wfdb, signals": ("T", lambda: hostile.wfdb(["a.dat 80"] * 65, {"a.dat": b"0" * 130}), UnsupportedFormatError, "65 signals"),
    "wfdb, samples of slow signals": (
        "T", lambda: hostile.wfdb(["a.dat 80x1000"] + ["a.dat 80"] * 63, {"a.dat": bytes(1_000_000)}),
        ImageTooLargeError, "60,160,000 samples in 64 channels",
    ),
    "wfdb, rates": (
        "T", lambda: hostile.wfdb(["a.dat 80x2000", "a.dat 80"], {"a.dat": bytes(9000)}), UnsupportedFormatError, "factor of 1000",
    ),
    "wfdb, baseline": ("T", lambda: hostile.wfdb([f"a.dat 80 1({10**20})/mV"], {"a.dat": b"0000"}), CorruptImageError, "header"),
    "wfdb, gain": ("T", lambda: hostile.wfdb(["a.dat 80 1e999/mV"], {"a.dat": b"0000"}), CorruptImageError, "header cannot be"),
    "edf, slow signals": (
        "T", lambda: hostile.edf([7000] + [7] * 63, 62), ImageTooLargeError, "27,776,000 samples, from 461,342 in the file",
    ),
    "npy of nothing": ("T", lambda: hostile.npy_header("|V0", "(1000000000000,)"), UnsupportedFormatError, "holds |V0"),
    "npy of sides beside a 0": ("T", lambda: hostile.npy_header("<f4", f"(0, {2**62 - 1})"), CorruptImageError, "0 time steps"),
    "npy of sides beyond 64 bits": ("DHW", lambda: hostile.npy_header("<f4", f"({2**40}, {2**40}, 4)"), ImageTooLargeError, "vox"),
    "npz of names": (
        "T", lambda: hostile.npz(values=np.zeros((4, 2)), channels=np.zeros(MIB // 2, np.uint8)),
        CorruptImageError, "`channels` has 524,288 names for an array of 2 channels",
    ),
    "npz of units": ("T", lambda: hostile.npz(values=np.zeros((4, 2)), units=np.zeros(MIB // 2)), CorruptImageError, "`units` has"),
    "nrrd of no size": ("DHW", lambda: hostile.nrrd("nan 1 1"), CorruptImageError, "the sizes 'nan 1 1'"),
    "nrrd of a huge size": ("DHW", lambda: hostile.nrrd("1e300 1 1"), CorruptImageError, "the sizes '1e300 1 1'"),
    "zip of digits": ("DHW", lambda: hostile.zipped({"1" * 5000 + ".png": b"?"}), UnsupportedFormatError, "are text"),
    "zip of a larger slice": ("DHW", hostile.slices_of_two_sizes, UnsupportedFormatError, "slice 1 has 8 x 8 pixels"),
    "stack of one strip": ("DHW", lambda: hostile.stack_of_shared_strips(100, 60), CorruptImageError, "more than the file's"),
    "stack of one table": ("DHW", lambda: hostile.stack_of_shared_tables(300, 9000), CorruptImageError, "more than the file's"),
    "dicom, deflated": ("DHW", lambda: hostile.dicom(syntax=b"1.2.840.10008.1.2.1.99"), UnsupportedFormatError, "deflated DICOM"),
    "dicom, items": ("DHW", lambda: hostile.dicom(hostile.sequence(5000)), UnsupportedFormatError, "more than 4,000 items"),
    "dicom, no rows": ("DHW", lambda: hostile.dicom(rows_tag=0x0F), CorruptImageError, "no valid DICOM"),
    "dicom, a larger JPEG": ("DHW", lambda: hostile.dicom_of_jpeg(9000), CorruptImageError, "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_little_memory(name: str) -> None:
    axes, make, error, words = REFUSED[name]
    data = make()

    def read() -> None:
        with pytest.raises(ImageError, match=words) as refused:
            read_sample(data, 50_000_000, axes)
        assert isinstance(refused.value, error)

    assert peak_of(read) < 16 * MIB


def test_a_zip_is_inflated_as_far_as_its_table_states() -> None:
    for axes, name in (("T", "values.npy"), ("T", "a.hea"), ("DHW", "a.dcm"), ("HW", "values.npy")):
        data = hostile.lying_zip(name, bytes(8 * MIB), 400)

        def read(data: bytes = data, axes: str = axes) -> None:
            with pytest.raises(CorruptImageError):
                read_sample(data, axes=axes)

        assert peak_of(read) < 2 * MIB, (axes, name)


def test_files_of_a_zip_that_are_no_slices_are_not_inflated() -> None:
    image = hostile.dicom()
    data = hostile.zipped({"notes.txt": bytes(8 * MIB), "1.dcm": image})
    assert peak_of(lambda: read_sample(data, axes="DHW")) < 2 * MIB
    assert read_sample(data, axes="DHW").size == (1, 8, 8)


def test_arrays_beside_the_values_are_not_read() -> None:
    values = np.arange(24).reshape(6, 4)
    for axes, array in (("T", values), ("HW", values), ("DHW", values.reshape(2, 3, 4))):
        data = hostile.npz(values=array, notes=np.array(["text"]), labels=np.zeros(8 * MIB, np.uint8))
        assert peak_of(lambda data=data, axes=axes: read_sample(data, axes=axes)) < 2 * MIB
        np.testing.assert_array_equal(read_sample(data, axes=axes).values.reshape(array.shape), array)


def test_a_gzip_needs_no_second_copy_of_the_voxels() -> None:
    """They were inflated into one piece, and copied from there."""
    data = gzip.compress(hostile.nifti((300, 300, 300)) + bytes(27_000_000), 1, mtime=0)
    assert peak_of(lambda: read_sample(data, axes="DHW")) < 27_000_000 + 24 * MIB


def test_empty_members_of_a_gzip_are_not_copied_again_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, 1000, np.uint8)
    data = hostile.gzip_of_empty_members(hostile.nifti((10, 10, 10)) + voxels.tobytes(), 3000)
    copied = 0

    class Inflater:
        def __init__(self, wbits: int) -> None:
            self.inner = zlib.decompressobj(wbits=wbits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def decompress(self, part: bytes, limit: int) -> bytes:
            nonlocal copied
            copied += len(part)
            return self.inner.decompress(part, limit)

    monkeypatch.setattr(volume_limits, "zlib", SimpleNamespace(decompressobj=Inflater, error=zlib.error))
    found = read_sample(data, axes="DHW").values
    assert sorted(found.ravel()) == sorted(voxels)
    assert copied < 20 * MIB  # 180 MB when what follows a member was passed on whole


def test_a_file_of_a_record_is_read_once_whatever_the_order_of_its_signals() -> None:
    """Signals of two files in turn: each file was read and decoded for each of its signals."""
    files, reads = {"a.dat": bytes([129, 130, 131, 132]), "b.dat": bytes([138, 139, 140, 141, 142, 143])}, list[str]()

    def read(name: str) -> bytes:
        reads.append(name)
        return files[name]

    header = parse_header(b"r 4 250\na.dat 80 1/mV\nb.dat 80 1/mV\na.dat 80 1/mV\nb.dat 80 1/mV\n")
    sample = read_record(header, read, ReadLimits(1000))
    assert reads == ["a.dat", "b.dat"]
    # Without a length in the header, it is that of the first file.
    assert sample.values.tolist() == [[1, 10, 2, 11], [3, 12, 4, 13]]


def test_a_signal_may_grow_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "MIN_SAMPLES", 1000)
    slow = Sample(np.zeros((100, 1), np.float32), "T", ("a",), Spacing(values=(10.0,), unit="Hz"))
    assert len(resample.to_rate(slow, 320.0).values) == 3200
    with pytest.raises(ImageTooLargeError, match="At 330 Hz the signal would have 3,300 samples, from 100 in the file"):
        resample.to_rate(slow, 330.0)


def test_many_phases_are_resampled_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """997 kinds of time steps: one after the other, they took a second for each 30 channels, however short the signal."""
    values = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    found = [resample.resample(values, ratio) for ratio in (Fraction(997, 1000), Fraction(503, 41))]
    monkeypatch.setattr(resample, "MIN_PHASES", 10**9)
    for each, ratio in zip(found, (Fraction(997, 1000), Fraction(503, 41)), strict=True):
        np.testing.assert_array_equal(each, resample.resample(values, ratio))


@pytest.mark.parametrize(
    ("comment", "rate"),
    [("# fs .", None), ("# rate: .5", 0.5), ("# 1.25e2 Hz", 125.0), ("#" + "rate " * 9000, None)],
)  # fmt: skip
def test_rates_in_comments(comment: str, rate: float | None) -> None:
    assert read_sample(f"{comment[:300]}\n1\n2\n".encode(), axes="T").rate == rate
