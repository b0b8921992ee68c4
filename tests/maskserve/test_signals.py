"""Recordings with the client and `maskserve predict`: files, arrays and folders of records, of a bundle and of a service."""

import asyncio
import io
import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from maskserve.client import AsyncClient, Client, InvalidImageError, ServiceError, SignalMask
from models.errors import ConfigError, DataError
from models.outputs.options import OutputOptions
from service.app import create_app
from service.settings import Settings
from tests.maskserve.predict_helpers import read_masks, read_rows, run_predict
from tests.service.in_process import serve_in_thread
from tests.service.signal_bundle import EVENTS, TOLERANCE, signal, wfdb_files, write_signal_bundle, zip_bytes

ROOT = Path(__file__).parents[2]
RATE, LEADS = 200.0, ("I", "II")
VALUES = np.repeat(np.stack([signal(), -signal()], axis=1), 2, axis=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_signal_bundle(tmp_path_factory.mktemp("signals") / "signals")


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    settings = Settings(bundle=bundle, access_log=False)
    with serve_in_thread(create_app(settings), settings) as (host, port):
        yield f"http://{host}:{port}"


def write_record(folder: Path, name: str) -> Path:
    """Write a WFDB record. Returns: its header."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in wfdb_files(VALUES, RATE, LEADS, name).items():
        (folder / file).write_bytes(content)
    return folder / f"{name}.hea"


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def check_mask(mask: SignalMask, leads: tuple[str | None, ...]) -> None:
    """Compare with the events of the signal, at RATE."""
    assert (mask.rate, len(mask.labels), mask.model.split("@")[0]) == (RATE, 2000, "signals")
    assert [event.lead for event in mask.events] == [lead for lead in leads for _ in EVENTS]
    for event, (label, onset, offset) in zip(mask.events, EVENTS, strict=False):
        assert (event.label, event.name) == (label, mask.classes[label]["name"])
        assert abs(event.onset - 2 * onset) <= 2 * TOLERANCE and abs(event.offset - 2 * offset) <= 2 * TOLERANCE
        assert event.onset_seconds == event.onset / RATE and 0.9 < event.confidence <= 1
        first = mask.labels.reshape(2000, -1)[:, 0]
        assert (first[event.onset : event.offset] == label).all() and first[event.offset] == 0


def test_client_segments_files_bytes_and_arrays(url: str, tmp_path: Path) -> None:
    header = write_record(tmp_path, "rec")
    with Client(url) as client:
        from_file = client.segment(header)
        assert isinstance(from_file, SignalMask) and "3 up" in repr(from_file) and "10 s of 2 leads" in repr(from_file)
        check_mask(from_file, LEADS)
        assert from_file.class_fractions()["none"] == pytest.approx(0.74, abs=0.02) and from_file._repr_png_() is None
        content = zip_bytes({file.name: file.read_bytes() for file in tmp_path.iterdir()})
        np.testing.assert_array_equal(client.segment_signal(content).labels, from_file.labels)
        check_mask(client.segment_signal(str(header), lead="I"), ("I",))
        array = client.segment(VALUES[:, 0], rate=RATE)
        assert isinstance(array, SignalMask)
        check_mask(array, (array.leads[0],))
        assert json.loads(client.segment_bytes(header, "events"))["leads"] == list(LEADS)
        assert client.segment_bytes(VALUES, "csv", rate=RATE).startswith(b"onset,offset,class")
        from_file.save(tmp_path / "labels.npz")
        np.testing.assert_array_equal(np.load(tmp_path / "labels.npz")["labels"], from_file.labels)
        with pytest.raises(InvalidImageError, match="rate"):
            client.segment(VALUES[:, 0])
        with pytest.raises(ServiceError, match="takes signals and has no output format 'png'"):
            client.segment(np.zeros((20, 20, 3), np.uint8))
        with pytest.raises(ValueError, match="shape"):
            client.segment_signal(np.zeros((2, 2, 2)), rate=RATE)
        (tmp_path / "rec.dat").unlink()
        with pytest.raises(OSError, match=r"rec\.dat"):
            client.segment(header)
        header.write_text("rec 1 200 2000\n../../secret 16 1000/mV 16 0 0 0 0 I\n")
        with pytest.raises(ValueError, match="not a file beside it"):
            client.segment(header)


@pytest.mark.parametrize("name", ["labels", "confidence", "rate", "leads"])
def test_client_refuses_what_is_no_response(url: str, name: str) -> None:
    with Client(url) as client:
        npz = client.segment_signal(VALUES, rate=RATE).npz
    assert len(SignalMask.from_npz(npz, classes=[], model="m").events) == 6
    with np.load(io.BytesIO(npz)) as archive:
        arrays = dict(archive)
    huge = (
        b"\x93NUMPY\1\0v\0"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117)
        + b"\n"
    )
    other = np.array(-1.0) if name == "rate" else np.zeros((3, 2))
    for content in (huge, npy_bytes(np.array([object()])), npy_bytes(other)):
        files = {f"{key}.npy": npy_bytes(value) for key, value in arrays.items()} | {f"{name}.npy": content}
        with pytest.raises(ValueError, match=r"array|expected"):
            SignalMask.from_npz(zip_bytes(files, zipfile.ZIP_STORED), classes=[], model="m")
    deflated = zip_bytes({f"{key}.npy": npy_bytes(value) for key, value in arrays.items()})
    with pytest.raises(ValueError, match="without compression"):
        SignalMask.from_npz(deflated, classes=[], model="m")


def test_async_client_and_batch(url: str, tmp_path: Path) -> None:
    header = write_record(tmp_path, "rec")

    async def segment() -> tuple[SignalMask, list]:
        async with AsyncClient(url) as client:
            return await client.segment_signal(header, lead="II"), await client.segment_batch(
                [header, b"RIFF\0\0\0\0WAVE"]
            )

    alone, (first, second) = asyncio.run(segment())
    assert [event.lead for event in alone.events] == ["II"] * 3
    check_mask(first, LEADS)
    assert isinstance(second, ServiceError) and "WAV" in second.detail


@pytest.mark.parametrize("format", ["", "csv", "wfdb", "npz"])
def test_predict_writes_events_of_each_record_and_a_manifest(
    format: str, url: str, bundle: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    write_record(source, "a")
    write_record(source / "deep", "b")
    np.save(source / "c.npy", VALUES)
    (source / "a.csv").write_text("onset,offset,class\n1,2,up\n")  # labels, not a recording
    (source / "notes.txt").write_text("notes")
    options = OutputOptions(rate=RATE, leads=("I",)) if format == "csv" else OutputOptions(rate=RATE)
    (source / "c.npy").unlink() if format == "csv" else None  # it does not name its leads
    count = 2 if format == "csv" else 3
    complete, printed = run_predict(bundle, source, out=tmp_path / "local", format=format, options=options)
    assert complete and f"{count} of {count} recordings segmented" in printed, printed
    assert run_predict(url, source, out=tmp_path / "remote", format=format, options=options)[0]
    masks = read_masks(tmp_path / "local")
    suffix = {"": ".json", "csv": ".csv", "wfdb": ".seg", "npz": ".npz"}[format]
    assert set(masks) == {name + suffix for name in ("a", "deep/b", "c")[:count]}
    assert read_masks(tmp_path / "remote") == masks
    rows = {Path(row["path"]).name: row for row in read_rows(tmp_path / "local")}
    assert (rows["a.hea"]["length"], rows["a.hea"]["rate"]) == (2000, RATE)
    assert [(entry["name"], entry["events"]) for entry in rows["a.hea"]["classes"]] == (
        [("up", 2), ("down", 1)] if format == "csv" else [("up", 3), ("down", 3)]
    )
    if format == "":
        remote = {Path(row["path"]).name: row for row in read_rows(tmp_path / "remote")}
        assert remote["a.hea"]["classes"] == rows["a.hea"]["classes"] and remote["a.hea"]["length"] == 2000
    resumed = run_predict(bundle, source, out=tmp_path / "local", format=format, options=options)[1]
    assert f"{count} of them by earlier runs" in resumed


def test_predict_says_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    header = write_record(tmp_path / "in", "a")
    write_record(tmp_path / "in", "b")
    (tmp_path / "in" / "a.dat").unlink()
    complete, printed = run_predict(bundle, tmp_path / "in", out=tmp_path / "out")
    assert not complete and "a.dat" in printed and "1 of 2 recordings segmented" in printed
    for format in ("png", "parquet", "geotiff"):
        with pytest.raises(ConfigError, match="takes signals and has no output format"):
            run_predict(bundle, header, out=tmp_path / "other", format=format)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"contains no recording .*1 \.png.*\.edf, \.hea"):
        run_predict(bundle, tmp_path / "images", out=tmp_path / "other")


def test_recipes_of_the_documentation(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "signals.md").read_text().replace("http://127.0.0.1:3000", url).replace("=II", "=I")
    write_record(tmp_path, "record")
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in ("record.zip", "night.edf"):  # a file's name decides nothing
        (tmp_path / name).write_bytes(zip_bytes(files))
    np.save(tmp_path / "values.npy", VALUES)
    monkeypatch.chdir(tmp_path)
    recipes = re.findall(r"^    (curl .*)$", page, re.MULTILINE)
    for recipe in recipes:
        done = subprocess.run(["bash", "-ec", recipe], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (recipe, done.stderr)
    assert len(recipes) == 3 and len(json.loads((tmp_path / "events.json").read_text())["events"]) == 6
    assert (tmp_path / "events.csv").read_text().count("\n") == 4
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "signals.md", "exec"), {})
    printed = [
        line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")
    ]  # without the access log
    assert printed[0].startswith("down 2.0")
