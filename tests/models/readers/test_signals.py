"""Readers of signals: each format gives the values, names, units and rate that were written, and bad files one clear sentence."""

import contextlib
import io
import struct
import wave
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample_poly

from models.errors import DataError, ImageError
from models.imaging.sandbox import disable_sandbox, enable_sandbox
from models.readers import read_file, read_input_file, read_sample
from models.readers.limits import ReadLimits
from models.readers.resample import labels_to_length, nearest_steps, resample, to_rate
from models.readers.wfdb import FORMATS, pack_record, parse_header, read_record
from models.sample import Sample
from models.spec import InputRule, Scaling, Spacing

ZSCORE = Scaling(kind="zscore", low=(), high=())
RANDOM = np.random.default_rng(0)
COUNTS = RANDOM.integers(-900, 900, (40, 2))


def lead_rule(channels: tuple[str, ...] = ("lead",), rate: float | None = None) -> InputRule:
    spacing = Spacing(values=(rate,), unit="Hz") if rate else None
    return InputRule(rule="native", axes="T", channels=channels, dtype="float32", scaling=ZSCORE, spacing=spacing)


def record(
    counts: np.ndarray = COUNTS, rate: str = "250", checksums: tuple[int, ...] | None = None
) -> dict[str, bytes]:
    """A record of format 16, with a gain of 100 and a baseline of 5."""
    sums = checksums or tuple(int(np.int64(each).astype(np.int16)) for each in counts.sum(axis=0))
    lines = [f"a {counts.shape[1]} {rate} {len(counts)}"]
    lines += [f"a.dat 16 100(5)/uV 16 0 0 {total} 0 lead {name}" for name, total in zip("xyz", sums, strict=False)]
    return {"a.hea": "\n".join(lines).encode(), "a.dat": counts.astype("<i2").tobytes()}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def wav(values: np.ndarray, code: int, bits: int, rate: int = 8000) -> bytes:
    """Values T x C of a WAV, already encoded as an array of bytes or numbers."""
    data = values.tobytes()
    layout = struct.pack("<HHIIHH", code, values.shape[1], rate, 0, 0, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def edf(signals: list[np.ndarray], per_record: list[int], seconds: str = "1", reserved: bytes = b"") -> bytes:
    """An EDF of 16 bits whose physical range is a tenth of the digital one."""
    count = len(signals)
    records = len(signals[0]) // per_record[0]
    fixed = (
        b"0       " + b"x".ljust(80) + b"y".ljust(80) + b"01.01.2600.00.00" + str(256 * (1 + count)).encode().ljust(8)
    )
    fixed += (
        reserved.ljust(44) + str(records).encode().ljust(8) + seconds.encode().ljust(8) + str(count).encode().ljust(4)
    )
    columns = [
        [f"EEG {index}".encode().ljust(16) for index in range(count)], [b"".ljust(80)] * count, [b"uV".ljust(8)] * count,
        [b"-3276.8".ljust(8)] * count, [b"3276.7".ljust(8)] * count, [b"-32768".ljust(8)] * count, [b"32767".ljust(8)] * count,
        [b"".ljust(80)] * count, [str(each).encode().ljust(8) for each in per_record], [b"".ljust(32)] * count,
    ]  # fmt: skip
    body = b"".join(
        signal[index * size : (index + 1) * size].astype("<i2").tobytes()
        for index in range(records)
        for signal, size in zip(signals, per_record, strict=True)
    )
    return fixed + b"".join(b"".join(column) for column in columns) + body


def npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name: np.asarray(value) for name, value in arrays.items()})
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


EXPECTED = (COUNTS - 5) / 100


@pytest.mark.parametrize("number", sorted(FORMATS))
def test_every_format_of_wfdb_gives_the_samples_that_were_encoded(number: int) -> None:
    bits, invalid, _ = FORMATS[number]
    counts = RANDOM.integers(
        -(1 << bits - 1) + 1, 1 << bits - 1, (7, 3)
    )  # an odd number of samples: 212 has half a group
    counts[2, 1] = invalid
    flat = counts.reshape(-1)
    if number == 212:
        padded = np.concatenate([flat, [0]]) & 0xFFF
        pairs = padded.reshape(-1, 2)
        data = (
            np.stack([pairs[:, 0] & 255, pairs[:, 0] >> 8 | pairs[:, 1] >> 8 << 4, pairs[:, 1] & 255], 1)
            .astype(np.uint8)
            .tobytes()
        )
    elif number == 24:
        data = b"".join(int(each).to_bytes(3, "little", signed=True) for each in flat)
    else:
        data = {16: flat.astype("<i2"), 32: flat.astype("<i4"), 61: flat.astype(">i2"), 80: (flat + 128).astype("u1"),
                160: (flat + (1 << 15)).astype("<u2")}[number].tobytes()  # fmt: skip
    sums = [int(np.int64(each).astype(np.int16)) for each in counts.sum(axis=0)]
    header = "a 3 100 7\n" + "".join(f"a.dat {number} 2(1)/mV 12 0 0 {total} 0 s{i}\n" for i, total in enumerate(sums))
    sample = read_record(parse_header(header.encode()), lambda name: data, ReadLimits(1000))
    expected = np.where(counts == invalid, np.nan, (counts - 1) / 2)
    np.testing.assert_allclose(sample.values, expected, rtol=1e-6)


# The start of each file of the record `binformats` of wfdb-python's sample data (MIT license), and of what `rdsamp`, the program of
# the WFDB library, prints of it. By format: bytes, first sample, step from sample to sample.
RDSAMP = {
    16: ("02800e821a84268632883e8a4a8c568e", -32766, 524),
    24: ("0900801501812102822d03833904844505855106865d0787", -8388599, 65804),
    61: ("8003820f841b862788338a3f8c4b8e57", -32765, 524),
    80: ("0412202e3c4a5866", -124, 14),
    160: ("050011021d0429063508410a4d0c590e", -32763, 524),
    212: ("0698223eba5a76dc92aefeca", -2042, 284),
}


@pytest.mark.parametrize("number", RDSAMP)
def test_bytes_of_the_wfdb_library_are_read_as_it_reads_them(number: int) -> None:
    data, first, step = RDSAMP[number]
    header = parse_header(f"a 1 200 8\na.dat {number} 1/mV\n".encode())
    found = read_record(header, lambda name: bytes.fromhex(data), ReadLimits(100)).values[:, 0]
    np.testing.assert_array_equal(found, first + step * np.arange(8))


def test_a_record_is_read_from_its_header_on_disk_and_from_a_zip_alike(tmp_path: Path) -> None:
    for name, content in record().items():
        (tmp_path / name).write_bytes(content)
    for data in (read_file(tmp_path / "a.hea"), zipped({f"folder/{name}": each for name, each in record().items()})):
        sample = read_sample(data, axes="T")
        np.testing.assert_allclose(sample.values, EXPECTED, rtol=1e-6)
        assert (sample.axes, sample.channels, sample.units, sample.rate) == (
            "T",
            ("lead_x", "lead_y"),
            ("uV", "uV"),
            250.0,
        )


def test_signals_of_other_rates_within_a_record_are_raised_to_the_highest() -> None:
    slow, fast = RANDOM.integers(-99, 99, 30), np.arange(60)
    frames = np.concatenate([slow[:, None], fast.reshape(30, 2)], axis=1)
    header = b"a 2 100 30\na.dat 16 1/mV 0 0 0 0 0 slow\na.dat 16x2 1/mV 0 0 0 0 0 fast\n"
    sample = read_record(parse_header(header), lambda name: frames.astype("<i2").tobytes(), ReadLimits(1000))
    assert sample.rate == 200.0 and len(sample.values) == 60
    np.testing.assert_allclose(sample.values[:, 1], fast)
    np.testing.assert_allclose(sample.values[::2, 0], slow, atol=3)


PCM = RANDOM.integers(-100, 100, (50, 2))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (wav((PCM + 128).astype(np.uint8), 1, 8), PCM / 128),
        (wav((PCM * 256).astype("<i2"), 1, 16), PCM / 128),
        (
            wav(
                np.frombuffer((PCM * 65536 * 256).astype("<i4").tobytes(), np.uint8)
                .reshape(50, 2, 4)[:, :, 1:]
                .copy()
                .reshape(50, 2, 3),
                1,
                24,
            ),
            PCM / 128,
        ),
        (wav((PCM * 16777216).astype("<i4"), 1, 32), PCM / 128),
        (wav((PCM / 128).astype("<f4"), 3, 32), PCM / 128),
        (wav((PCM / 128).astype("<f8"), 3, 64), PCM / 128),
    ],
    ids=["8", "16", "24", "32", "float", "double"],
)
def test_wav_of_every_width(data: bytes, expected: np.ndarray) -> None:
    sample = read_sample(data, axes="T")
    np.testing.assert_allclose(sample.values, expected, atol=1e-6)
    assert (sample.channels, sample.rate) == (("channel1", "channel2"), 8000.0)


def test_a_wav_of_pythons_own_writer_is_read() -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, 22050, 0, "NONE", ""))
        file.writeframes((PCM[:, 0] * 256).astype("<i2").tobytes())
    sample = read_sample(stream.getvalue(), axes="T")
    assert sample.rate == 22050.0
    np.testing.assert_allclose(sample.values[:, 0], PCM[:, 0] / 128)


def test_edf_with_a_slower_channel() -> None:
    fast, slow = RANDOM.integers(-999, 999, 200), np.repeat([50, -50], 10)
    sample = read_sample(edf([fast, slow], [100, 10]), axes="T")
    assert (sample.channels, sample.units, sample.rate) == (("EEG_0", "EEG_1"), ("uV", "uV"), 100.0)
    np.testing.assert_allclose(sample.values[:, 0], fast / 10, atol=1e-4)
    assert abs(sample.values[40:60, 1].mean() - 5) < 0.5 and len(sample.values) == 200


DATE = "2026-01-01T00:00:"
ROWS = list(enumerate(COUNTS.tolist()))
TEXT = [f"{index / 250:.3f},{x},{y}" for index, (x, y) in enumerate(COUNTS.tolist())]


@pytest.mark.parametrize(
    ("text", "rate", "channels"),
    [
        ("time,x,y\n" + "\n".join(TEXT), 250.0, ("x", "y")),
        ("time_ms,x [mV],y (mV)\n" + "\n".join(f"{4 * i},{x},{y}" for i, (x, y) in ROWS), 250.0, ("x", "y")),
        ("\n".join(TEXT), 250.0, ("channel1", "channel2")),
        ("# fs: 128 Hz\nx\ty\n" + "\n".join(f"{x}\t{y}" for x, y in COUNTS.tolist()), 128.0, ("x", "y")),
        ("sample;x;y\n" + "\n".join(f"{i};{x},0;{y},0" for i, (x, y) in ROWS), None, ("x", "y")),
        ("timestamp,x,y\n" + "\n".join(f"{DATE}{i // 4:02d}.{i % 4 * 25:02d},{x},{y}" for i, (x, y) in ROWS), 4.0, ("x", "y")),
    ],
    ids=["seconds", "milliseconds", "no header", "comment", "decimal comma", "dates"],
)  # fmt: skip
def test_csv_with_and_without_time(text: str, rate: float | None, channels: tuple[str, ...]) -> None:
    sample = read_sample(text.encode(), axes="T")
    np.testing.assert_allclose(sample.values, COUNTS)
    assert (sample.rate, sample.channels) == (rate, channels)
    if rate is None:
        assert read_sample(text.encode(), axes="T", rate=99.0).rate == 99.0
    else:
        with pytest.raises(ImageError, match=f"states a sampling rate of {rate:g} Hz, the request rate=99"):
            read_sample(text.encode(), axes="T", rate=99.0)


def test_an_empty_cell_is_a_missing_value() -> None:
    sample = read_sample(b"x,y\n1,2\n,4\n5,nan\n", axes="T")
    np.testing.assert_array_equal(sample.values, [[1, 2], [np.nan, 4], [5, np.nan]])


def test_arrays_of_one_and_two_axes() -> None:
    assert read_sample(npy(COUNTS[:, 0]), axes="T").values.shape == (40, 1)
    sample = read_sample(npz(values=COUNTS, rate=500, channels=["a", "b"], valid=np.arange(40) > 3), axes="T")
    assert (sample.rate, sample.channels) == (500.0, ("a", "b"))
    assert sample.valid is not None and sample.valid.sum() == 36
    assert read_sample(npy(COUNTS)).axes == "HW"  # the same bytes, for a network of images


BAD: dict[str, tuple[bytes, str]] = {
    "no dat": (
        zipped({"a.hea": record()["a.hea"]}),
        "names the signal file 'a.dat', which is not in the zip file. Add it.",
    ),
    "header alone": (record()["a.hea"], "without its signal file. Send one zip file"),
    "truncated dat": (
        zipped({**record(), "a.dat": record()["a.dat"][:-9]}),
        "is truncated: it has 37 of 40 time steps",
    ),
    "checksum": (zipped(record(checksums=(1, 2))), "The checksum of the signal 'lead x' in 'a.dat' is wrong"),
    "rate 0": (zipped(record(rate="0")), "sampling rate 0 Hz; expected a number above 0"),
    "climbing name": (zipped({**record(), "../a.txt": b""}), "the file '../a.txt', outside of its folder"),
    "climbing dat": (
        zipped({**record(), "a.hea": record()["a.hea"].replace(b"a.dat", b"../../a.dat")}),
        "'../../a.dat', outside",
    ),
    "no columns": (npy(np.zeros((500, 0), np.float32)), "has no channels"),
    "two records": (zipped({**record(), "b.hea": record()["a.hea"]}), "has 2 headers (.hea)"),
    "no channels": (zipped({"a.hea": b"a 0 250 10\n"}), "has no channels"),
    "one step": (zipped(record(COUNTS[:1])), "has 1 time step; expected at least 2"),
    "unknown format": (zipped({"a.hea": b"a 1 250 10\na.dat 310 1/mV\n"}), "has the format '310'; expected one of"),
    "segments": (zipped({"a.hea": b"a/3 1 250 10\nb 5\n"}), "several segments"),
    "zip by LZMA": (zipped(record(), zipfile.ZIP_LZMA), "compressed by another method than deflate"),
    "truncated zip": (zipped(record())[:-30], "The zip file is truncated or corrupt"),
    "wav chunk": (wav(PCM.astype("<i2"), 1, 16)[:-7], "The WAV is truncated"),
    "wav mp3": (wav(PCM.astype("<i2"), 85, 16), "samples of 16 bits in the format 85; expected PCM"),
    "wav rate": (wav(PCM.astype("<i2"), 1, 16, 0), "sampling rate 0 Hz"),
    "edf gap": (edf([PCM[:, 0]], [10], reserved=b"EDF+D"), "discontinuous"),
    "edf truncated": (edf([PCM[:, 0]], [10])[:-15], "it has 4 of 5 records"),
    "csv text": (b"x,y\n1,2\n3,high\n", "Line 3 of the table has 'high' in column 2 ('y'); expected a number"),
    "csv columns": (b"x,y\n1,2\n3\n", "Line 3 of the table has 1 columns; expected 2"),
    "csv gap": (
        b"time,x\n0,1\n1,1\n2,1\n9,1\n10,1\n",
        "The time jumps by 7 s before line 5 of the table; expected 1 s",
    ),
    "csv backwards": (b"time,x\n0,1\n1,1\n2,1\n1,1\n3,1\n", "does not increase at line 5"),
    "csv one line": (b"x,y\n1,2\n", "has 1 time step"),
    "array axes": (npy(COUNTS.T), "2 time steps of 40 channels; the axes are time, channels. Transpose it."),
    "array of text": (npy(np.array(["a", "b"])), "expected numbers"),
    "npz rate": (npz(values=COUNTS, rate=-1), "sampling rate -1 Hz"),
    "nothing": (b"", "The signal is empty"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(60), "no signal in a known format"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_has_a_sentence_that_says_what_to_do(case: str) -> None:
    data, expected = BAD[case]
    with pytest.raises(ImageError) as caught:
        read_sample(data, axes="T")
    assert expected in str(caught.value) and str(caught.value).rstrip("`").endswith((".", "names")), str(caught.value)


def test_every_prefix_of_a_file_is_read_or_refused() -> None:
    for data in (zipped(record()), wav(PCM.astype("<i2"), 1, 16), edf([PCM[:, 0]], [10]), npz(values=COUNTS, rate=1)):
        for length in range(0, len(data), 37):
            with contextlib.suppress(ImageError):
                read_sample(data[:length], axes="T")


def test_a_limit_of_samples_is_checked_by_the_header() -> None:
    with pytest.raises(ImageError, match="80 samples in 2 channels; the limit is 50"):
        read_sample(zipped(record()), 50, axes="T")


def test_a_record_without_its_dat_on_disk_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "a.hea").write_bytes(record()["a.hea"])
    with pytest.raises(DataError, match=r"a\.hea: its signal file 'a\.dat' cannot be read \(No such file"):
        read_input_file(tmp_path / "a.hea", lead_rule())


def test_the_sandbox_reads_records_as_this_process_does(tmp_path: Path) -> None:
    for name, content in record().items():
        (tmp_path / name).write_bytes(content)
    rule = lead_rule(("lead_y", "lead_x"))
    here = read_input_file(tmp_path / "a.hea", rule)
    enable_sandbox(1)
    try:
        there = read_input_file(tmp_path / "a.hea", rule)
    finally:
        disable_sandbox()
    np.testing.assert_array_equal(here.values, there.values)
    np.testing.assert_array_equal(here.values, np.float32(EXPECTED[:, ::-1]))
    assert (here.channels, here.units, here.spacing) == (there.channels, there.units, there.spacing)


def test_gaps_of_one_lead_hold_its_mean_and_only_steps_without_any_lead_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,10\n,10\n3,\n,\n5,40\n")
    sample = read_input_file(tmp_path / "a.csv", lead_rule(("x", "y")))
    np.testing.assert_allclose(sample.values, [[1, 10], [3, 10], [3, 20], [3, 20], [5, 40]])
    assert sample.valid is not None and sample.valid.tolist() == [True, True, True, False, True]
    assert sample.statistics is not None
    np.testing.assert_allclose(sample.statistics, [[3, 20], [np.std([1, 3, 5]), np.std([10, 10, 40])]], rtol=1e-6)


def test_a_network_of_one_lead_gets_all_leads_of_a_recording(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ii,v1\n" + "\n".join(f"{x},{y}" for x, y in COUNTS.tolist()))
    sample = read_input_file(tmp_path / "a.csv", lead_rule())
    assert sample.channels == ("ii", "v1") and sample.statistics is not None and sample.statistics.shape == (2, 2)


@pytest.mark.parametrize(("up", "down"), [(1, 2), (2, 1), (25, 36), (3, 7), (50, 18)])
def test_resampling_equals_scipys(up: int, down: int) -> None:
    values = np.cumsum(RANDOM.normal(size=(333, 2)), axis=0) + 100
    expected = resample_poly(values, up, down, axis=0, padtype="edge")
    found = resample(values, Fraction(up, down))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(values).max())


def test_what_the_new_rate_cannot_hold_is_removed_and_the_rest_keeps_its_place() -> None:
    times = np.arange(5000) / 500
    slow, fast = np.sin(2 * np.pi * 5 * times), np.sin(2 * np.pi * 180 * times)
    sample = Sample(np.stack([slow, fast], axis=1), "T", ("a", "b"), Spacing(values=(500.0,), unit="Hz"))
    found = to_rate(sample, 250.0)
    assert found.rate == 250.0 and len(found.values) == 2500
    inner = slice(50, -50)
    np.testing.assert_allclose(found.values[inner, 0], slow[::2][inner], atol=2e-3)
    assert np.abs(found.values[inner, 1]).max() < 2e-3  # 180 Hz would be seen as 70 Hz


def test_labels_there_and_back_stay_within_a_step() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 97)
    there = labels[nearest_steps(-(-len(labels) * 25 // 36), len(labels), 25 / 36)]
    back, _ = labels_to_length(there, None, len(labels), 36 / 25)
    changes = np.flatnonzero(np.diff(back.astype(int)))
    assert np.abs(changes - np.flatnonzero(np.diff(labels.astype(int)))).max() <= 1


def test_pack_record_names_the_header_of_a_broken_record() -> None:
    read: Callable[[str], bytes] = {"a.hea": b"nonsense"}.__getitem__
    with pytest.raises(DataError, match=r"a\.hea: The WFDB header cannot be read"):
        pack_record("a.hea", read)
