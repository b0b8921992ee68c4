"""Recordings through the service, in the test's own process."""

import io
import json
import struct
import zipfile
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.outputs import OUTPUT_FORMATS
from models.outputs.signal_pipeline import SignalPipeline
from models.sample import Sample
from models.spec import Spacing
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.service.in_process import start_app
from tests.service.signal_bundle import EVENTS, TOLERANCE, npz_bytes, signal, wfdb_files, write_signal_bundle, zip_bytes
from tests.service.tiny_bundle import write_tiny_bundle

RATE = 200.0  # Hz, twice the network's
LEADS = ("I", "II")
VALUES = np.repeat(np.stack([signal(), -signal()], axis=1), 2, axis=0)
FILES = wfdb_files(VALUES, RATE, LEADS)
RECORD = zip_bytes(FILES)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service of a model of one lead, one of two, and one of images."""
    folder = tmp_path_factory.mktemp("bundles")
    write_signal_bundle(folder / "signals")
    write_signal_bundle(folder / "pair", "pair", ("I", "II"))
    write_tiny_bundle(folder / "images", "images")
    with start_app(folder, default_model="signals") as client:
        yield client


def post(client: TestClient, body: bytes, **params: object) -> object:
    response = client.post("/v1/segment", params=params, content=body)
    assert response.status_code == 200, response.text
    return response.json() if response.headers["content-type"] == "application/json" else response.content


def check_events(events: list[dict], lead: str | None, swapped: bool = False) -> None:
    """Compare with the events of the signal, at RATE."""
    assert len(events) == len(EVENTS)
    for event, (label, onset, offset) in zip(events, EVENTS, strict=True):
        assert (event["lead"], event["label"]) == (lead, 3 - label if swapped else label)
        assert event["class"] == ["none", "up", "down"][event["label"]]
        assert abs(event["onset"] - 2 * onset) <= 2 * TOLERANCE and abs(event["offset"] - 2 * offset) <= 2 * TOLERANCE
        assert event["onset_seconds"] == pytest.approx(event["onset"] / RATE)
        assert event["offset_seconds"] == pytest.approx(event["offset"] / RATE) and 0.9 < event["confidence"] <= 1


def test_events_of_each_lead_on_the_time_base_of_the_file(client: TestClient) -> None:
    answer = post(client, RECORD)
    assert {name: answer[name] for name in ("model", "rate", "length", "seconds", "leads", "unlabeled")} == {
        "model": "signals", "rate": RATE, "length": 2000, "seconds": 10.0, "leads": ["I", "II"], "unlabeled": 0,
    }  # fmt: skip
    check_events(answer["events"][:3], "I")
    check_events(answer["events"][3:], "II", swapped=True)
    assert post(client, RECORD, lead="ii")["events"] == answer["events"][3:]


@pytest.mark.parametrize(
    ("body", "params"),
    [
        (npz_bytes(values=VALUES[:, :1], rate=RATE), {}),
        (npz_bytes(values=VALUES[:, :1]), {"rate": RATE}),
        (f"# rate={RATE:g}\nI\n{chr(10).join(map(str, VALUES[:, 0]))}\n".encode(), {}),
    ],
    ids=["npz", "npz without a rate", "csv"],
)
def test_other_files_give_the_same_events(client: TestClient, body: bytes, params: dict[str, float]) -> None:
    events = post(client, body, **params)["events"]
    check_events(events, events[0]["lead"])


def test_model_of_several_leads_takes_them_by_name(client: TestClient) -> None:
    three = wfdb_files(np.stack([VALUES[:, 0], np.zeros(2000), VALUES[:, 0]], axis=1), RATE, ("II", "V1", "I"))
    check_events(post(client, zip_bytes(three), model="pair")["events"], None)


def test_every_format(client: TestClient) -> None:
    events = post(client, RECORD)["events"]
    labels = np.load(io.BytesIO(post(client, RECORD, format="npy")))
    assert (labels.shape, labels.dtype) == ((2000, 2), np.uint8)
    arrays = np.load(io.BytesIO(post(client, RECORD, format="npz", trace=True)))
    np.testing.assert_array_equal(arrays["labels"], labels)
    np.testing.assert_allclose(arrays["values"], VALUES, atol=5e-4)
    assert (
        arrays["rate"] == RATE and arrays["leads"].tolist() == ["I", "II"] and arrays["units"].tolist() == ["mV", "mV"]
    )
    first = events[0]
    assert arrays["confidence"][first["onset"] : first["offset"], 0].mean() == pytest.approx(
        first["confidence"], abs=1e-4
    )
    assert (labels[first["onset"] : first["offset"], 0] == first["label"]).all() and labels[first["offset"], 0] == 0
    lines = post(client, RECORD, format="csv").decode().splitlines()
    assert lines[0].startswith("onset,offset,class,confidence,lead") and len(lines) == 1 + len(events)
    assert lines[1].startswith(f"{first['onset']},{first['offset']},up,")
    assert "values" not in np.load(io.BytesIO(post(client, RECORD, format="npz")))


def test_options(client: TestClient) -> None:
    assert {event["class"] for event in post(client, RECORD, classes="up")["events"]} == {"up"}
    unsure = post(client, RECORD, min_confidence=0.9)
    assert unsure["unlabeled"] > 0 and len(unsure["events"]) == 6


def test_batch(client: TestClient) -> None:
    files = [("images", ("a.zip", RECORD)), ("images", ("b.csv", b"no,numbers\nhere,1\n"))]
    good, bad = client.post("/v1/segment/batch", files=files).json()
    assert good["result"] == post(client, RECORD) and bad["problem"]["status"] == 422
    packed = client.post("/v1/segment/batch", params={"format": "csv"}, files=files[:1]).content
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.read("a.csv") == post(client, RECORD, format="csv")


def test_models_say_what_they_take(client: TestClient) -> None:
    inputs = {model["name"]: model["spec"]["input"] for model in client.get("/v1/models").json()}
    assert {name: entry["axes"] for name, entry in inputs.items()} == {"images": "HW", "pair": "T", "signals": "T"}
    assert inputs["signals"]["spacing"] == {"values": [100.0], "unit": "Hz"} and inputs["pair"]["channels"] == [
        "I",
        "II",
    ]
    (example,) = client.get("/v1/models/signals").json()["examples"]
    check = client.get(f"/v1/examples/signals/{example}")
    assert check.headers["content-type"] == "application/octet-stream"
    assert len(post(client, check.content)["events"]) == len(EVENTS)


PNG = encode_image(synthetic_image(60, 80), "PNG")
EDF = b"0       " + b" " * 176 + b"256     " + b" " * 72


@pytest.mark.parametrize(
    ("body", "params", "status", "words"),
    [
        (PNG, {}, 415, ["a PNG image", "takes signals"]),
        (RECORD, {"model": "images"}, 415, ["a WFDB record", "takes images"]),
        (RECORD, {"format": "png"}, 400, ["signals", "'png'", "events, npy, npz, csv, wfdb"]),
        (PNG, {"model": "images", "format": "csv"}, 400, ["images", "'csv'", "png, overlay"]),
        (RECORD, {"alpha": 0.5}, 400, ["'alpha'", "images"]),
        (PNG, {"model": "images", "lead": "II"}, 400, ["'lead'", "signals"]),
        (RECORD, {"lead": "V7"}, 400, ["'V7'", "'I', 'II'"]),
        (RECORD, {"rate": 0}, 400, ["rate", "more than 0"]),
        (RECORD, {"classes": "qrs"}, 400, ["'qrs'", "none, up, down"]),
        (zip_bytes(wfdb_files(VALUES[:, :1], RATE, ("V1",))), {"model": "pair"}, 422, ["I, II", "V1"]),
        (npz_bytes(values=VALUES), {}, 422, ["rate"]),
        (npz_bytes(values=VALUES, rate=0.0), {}, 422, ["rate", "above 0"]),
        (npz_bytes(values=VALUES, rate=1e9), {}, 422, ["Hz"]),
        (b"", {}, 400, ["0 bytes"]),
        (b"\x00\x01\x02\x03nothing", {}, 415, ["WFDB"]),
        (FILES["rec.hea"], {}, 422, [".dat"]),
        (zip_bytes({"rec.hea": FILES["rec.hea"]}), {}, 422, ["rec.dat"]),
        (zip_bytes({**FILES, "rec.dat": FILES["rec.dat"][:100]}), {}, 422, ["rec.dat"]),
        (zip_bytes({"../rec.hea": FILES["rec.hea"], "../rec.dat": FILES["rec.dat"]}), {}, 415, ["../rec"]),
        (zip_bytes({**FILES, "rec.dat": bytes(400 << 20)}), {}, 413, ["unpack"]),
        (RECORD[: len(RECORD) // 2], {}, 422, ["zip"]),
        (npz_bytes(values=np.zeros((1, 1), np.float32), rate=RATE), {}, 422, ["1 time step"]),
        (npz_bytes(values=np.zeros((500, 0), np.float32), rate=RATE), {}, 422, ["no channels"]),
        (npz_bytes(values=np.zeros((2, 400), np.float32), rate=RATE), {}, 415, ["ranspose"]),
        (EDF, {}, 422, ["EDF"]),
        (b"RIFF" + struct.pack("<I", 4) + b"WAVE", {}, 422, ["WAV"]),
        (b"I,II\n1,x\n", {}, 422, ["ine 2", "'x'"]),
    ],
    ids=[
        "photograph", "record for images", "format of images", "format of signals", "parameter of images",
        "parameter of signals", "unknown lead", "rate 0", "unknown class", "too few leads", "no rate", "rate 0 in the file",
        "rate beyond", "empty", "noise", "header alone", "no dat", "short dat", "names outside", "bomb", "half", "one step",
        "no channels", "transposed", "short edf", "short wav", "text in csv",
    ],
)  # fmt: skip
def test_bad_requests(
    client: TestClient, body: bytes, params: dict[str, object], status: int, words: list[str]
) -> None:
    response = client.post("/v1/segment", params=params, content=body)
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert all(word in detail for word in words), detail
    assert detail.count(". ") <= 2 and "Traceback" not in detail


def test_missing_samples(client: TestClient) -> None:
    """A gap of one lead holds nothing; where all are missing, the labels are 255."""
    values = VALUES.copy()
    values[400:450, 0] = np.nan
    values[1500:1600] = np.nan
    labels = np.load(io.BytesIO(post(client, npz_bytes(values=values, rate=RATE), format="npy")))
    assert (labels[1510:1590] == 255).all()
    assert json.dumps(post(client, npz_bytes(values=np.full_like(VALUES, np.nan), rate=RATE))["events"]) == "[]"


def test_a_slow_recording_waits_for_what_it_becomes() -> None:
    """60,000 time steps are one unit of the queue, at the network's rate: 100 Hz."""
    network = SimpleNamespace(segmenter=SimpleNamespace(rule=SimpleNamespace(rate=100.0)))
    for rate, cost in ((None, 2.0), (100.0, 2.0), (400.0, 2.0), (10.0, 20.0)):
        spacing = None if rate is None else Spacing(values=(rate,), unit="Hz")
        sample = Sample(np.zeros((60_000, 2), np.float32), "T", ("a", "b"), spacing)
        assert SignalPipeline.cost(network, sample) == cost  # type: ignore[arg-type]


def test_a_recording_that_would_become_too_large_is_refused(client: TestClient) -> None:
    slow = npz_bytes(values=np.zeros(140_000, np.float32), rate=0.5)
    response = client.post("/v1/segment", content=slow)
    assert response.status_code == 413, response.text
    assert "At 100 Hz the signal would have 28,000,000 samples, from 140,000" in response.json()["detail"]


def test_formats_have_what_the_pipeline_needs() -> None:
    for formats in OUTPUT_FORMATS.values():
        for output in formats.values():
            assert output.MEDIA_TYPE and output.SUFFIX.startswith(".") and callable(output.encode)
            assert isinstance(output.NEEDS_CONFIDENCE, bool)
