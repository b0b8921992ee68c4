"""Volumes through the service, in the test's own process."""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterator

import nibabel
import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.models.readers.make_volumes import dicom_bytes, dim_bytes, nifti_bytes, patched_nifti, zip_bytes
from tests.service.in_process import start_app
from tests.service.signal_bundle import wfdb_files
from tests.service.tiny_bundle import write_tiny_bundle
from tests.service.volume_bundle import AFFINE, phantom, phantom_labels, write_volume_bundle

MAX_VOXELS = 100_000
CASE = nifti_bytes(phantom(), AFFINE, compress=True)
NOISE = np.random.default_rng(0).integers(0, 30000, (8, 9, 10)).astype(np.int16)
HALF = nifti_bytes(NOISE, AFFINE, compress=True)[:900]
PNG = encode_image(synthetic_image(60, 80), "PNG")
RECORD = zip_bytes(wfdb_files(np.zeros((100, 1), np.float32), 100.0, ("I",)))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service of a model of volumes and one of images."""
    folder = tmp_path_factory.mktemp("bundles")
    write_volume_bundle(folder / "volumes")
    write_tiny_bundle(folder / "images", "images")
    with start_app(folder, default_model="volumes", max_voxels=MAX_VOXELS) as client:
        yield client


def test_nifti_in_nifti_out(client: TestClient) -> None:
    response = client.post("/v1/segment", content=CASE)
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-nifti"
    labels = nibabel.Nifti1Image.from_bytes(gzip.decompress(response.content))
    np.testing.assert_array_equal(np.asarray(labels.dataobj), phantom_labels())
    np.testing.assert_array_equal(labels.affine, AFFINE)
    assert client.post("/v1/segment", files={"image": ("case.nii.gz", CASE)}).content == response.content
    assert "infer;dur=" in response.headers["server-timing"]


def test_batch_names_the_results_after_the_cases(client: TestClient) -> None:
    files = [("images", ("a.nii.gz", CASE)), ("images", ("b.nii.gz", HALF))]
    packed = client.post("/v1/segment/batch", files=files).content
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.namelist() == ["a.nii.gz", "b.problem.json", "manifest.json"]
    facts = client.post("/v1/segment/batch", params={"format": "json"}, files=files[:1]).json()[0]["result"]
    assert [entry["name"] for entry in facts["classes"]] == ["none", "organ", "lesion"]


def test_models_say_what_they_take(client: TestClient) -> None:
    model = client.get("/v1/models/volumes").json()
    assert model["spec"]["input"]["axes"] == "DHW"
    example = client.get(f"/v1/examples/volumes/{model['examples'][0]}").content
    assert client.post("/v1/segment", content=example, params={"format": "json"}).json()["shape"] == [8, 9, 10]


def bomb(voxels: tuple[int, int, int], inflated: int) -> bytes:
    """A NIfTI whose header promises many voxels of 32-bit floats."""
    data = patched_nifti({40: dim_bytes(*voxels), 70: struct.pack("<2h", 16, 32)})
    return gzip.compress(data + bytes(inflated))


SLICE = np.zeros((4, 5), np.int16)
TWO_SERIES = zip_bytes({f"{k}.dcm": dicom_bytes(SLICE, (0, 0, k), series=f"1.{k // 2}") for k in range(4)})
MISSING = zip_bytes({f"{k}.dcm": dicom_bytes(SLICE, (0, 0, k)) for k in (0, 1, 2, 4, 5)})


@pytest.mark.parametrize(
    ("body", "params", "status", "words"),
    [
        (PNG, {}, 415, ["a PNG image", "takes volumes"]),
        (RECORD, {}, 415, ["a WFDB record", "takes volumes"]),
        (CASE, {"model": "images"}, 415, ["a NIfTI volume", "export the slice"]),
        (dicom_bytes(SLICE, (0, 0, 0)), {"model": "images"}, 415, ["a DICOM", "export the slice"]),
        (CASE, {"format": "png"}, 400, ["volumes", "nifti, npz, tiff, json"]),
        (CASE, {"model": "images", "format": "npz"}, 400, ["takes images", "'npz', which is for signals and volumes"]),
        (CASE, {"min_area": 5}, 400, ["'min_area'", "images", "volumes"]),
        (CASE, {"rate": 5}, 400, ["'rate'", "signals"]),
        (CASE, {"classes": "liver"}, 400, ["'liver'", "none, organ, lesion"]),
        (nifti_bytes(np.zeros((4, 5, 6, 7), np.int16)), {}, 415, ["4 axes", "4 x 5 x 6 x 7"]),
        (patched_nifti({80: struct.pack("<3f", 0, 1, 1)}), {}, 422, ["spacing of 0 x 1 x 1"]),
        (patched_nifti({254: struct.pack("<h", 1), 280: struct.pack("<f", np.nan)}), {}, 422, ["affine"]),
        (HALF, {}, 422, ["truncated"]),
        (bomb((2000, 2000, 2500), 0), {}, 413, ["10,000,000,000", f"{MAX_VOXELS:,}"]),
        (bomb((40, 50, 50), 4), {}, 422, ["truncated", "400,000"]),
        (TWO_SERIES, {}, 415, ["2 DICOM series"]),
        (MISSING, {}, 415, ["1 slice is missing"]),
        (zip_bytes({"readme.txt": b"nothing"}), {}, 415, ["1 files", "DICOM"]),
        (b"", {}, 400, ["0 bytes"]),
        (b"\x00\x01\x02\x03nothing", {}, 415, ["NIfTI"]),
    ],
    ids=[
        "photograph", "recording", "volume for images", "DICOM for images", "format of images", "format of volumes",
        "parameter of images", "parameter of signals", "unknown class", "4D", "spacing 0", "affine NaN", "half",
        "40 GB in 1 kB", "too short", "two series", "missing slice", "zip of text", "empty", "noise",
    ],
)  # fmt: skip
def test_bad_requests(
    client: TestClient, body: bytes, params: dict[str, object], status: int, words: list[str]
) -> None:
    response = client.post("/v1/segment", params=params, content=body)
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert all(word in detail for word in words), detail
    assert detail.count(". ") <= 2 and "Traceback" not in detail and "Doe" not in detail


def test_volume_of_one_slice(client: TestClient) -> None:
    one = client.post("/v1/segment", content=nifti_bytes(phantom()[:, :, 4:5], AFFINE))
    assert nibabel.Nifti1Image.from_bytes(gzip.decompress(one.content)).shape == (8, 9, 1)
    facts = client.post("/v1/segment", content=dicom_bytes(SLICE, (0, 0, 0)), params={"format": "json"})
    assert json.loads(facts.content)["shape"] == [5, 4, 1]
