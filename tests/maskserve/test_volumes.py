"""Volumes with the client and `maskserve predict`: files, arrays and folders of cases, of a bundle and of a service."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from maskserve.client import Client, ServiceError, VolumeMask
from models.errors import ConfigError, DataError
from models.outputs.options import OutputOptions
from service.app import create_app
from service.settings import Settings
from tests.maskserve.predict_helpers import read_masks, read_rows, run_predict
from tests.models.readers.make_volumes import dicom_bytes, nifti_bytes, zip_bytes
from tests.service.in_process import serve_in_thread
from tests.service.volume_bundle import AFFINE, SPACING, phantom, phantom_labels, write_volume_bundle

CASE = nifti_bytes(phantom(), AFFINE, compress=True)
ML = {
    name: np.count_nonzero(phantom_labels() == label) * 0.006 for label, name in enumerate(("none", "organ", "lesion"))
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume_bundle(tmp_path_factory.mktemp("volumes") / "volumes")


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    settings = Settings(bundle=bundle, access_log=False)
    with serve_in_thread(create_app(settings), settings) as (host, port):
        yield f"http://{host}:{port}"


def write_series(folder: Path) -> None:
    folder.mkdir(parents=True)
    for index in range(3):
        (folder / f"{index}.dcm").write_bytes(dicom_bytes(np.zeros((4, 6), np.int16), (0, 0, 2 * index)))


def test_client_segments_files_bytes_folders_and_arrays(url: str, tmp_path: Path) -> None:
    (tmp_path / "case.nii.gz").write_bytes(CASE)
    write_series(tmp_path / "series")
    with Client(url) as client:
        mask = client.segment(tmp_path / "case.nii.gz")
        assert isinstance(mask, VolumeMask) and mask.confidence is None
        np.testing.assert_array_equal(mask.labels, phantom_labels())
        np.testing.assert_array_equal(mask.affine, AFFINE)
        assert mask.spacing == pytest.approx(SPACING) and mask.class_volumes() == pytest.approx(ML)
        assert "8 x 9 x 10 by volumes@" in repr(mask) and f"organ {ML['organ']:.3g} ml" in repr(mask)
        mask.save(tmp_path / "labels.nii.gz")
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj), phantom_labels())
        with pytest.raises(ValueError, match=r"saved as \.nii\.gz"):
            mask.save(tmp_path / "labels.png")
        sure = client.segment(CASE, confidence=True)
        assert (
            sure.confidence is not None and sure.confidence.shape == sure.labels.shape and sure.confidence.min() > 0.9
        )
        np.testing.assert_array_equal(sure.labels, mask.labels)
        stack = phantom()[::-1, ::-1].T  # D x H x W
        of_array = client.segment(stack, spacing=SPACING[::-1])
        np.testing.assert_array_equal(of_array.labels, phantom_labels()[::-1, ::-1].T)
        assert of_array.class_volumes() == pytest.approx(ML)
        assert client.segment(str(tmp_path / "series")).labels.shape == (6, 4, 3)
        assert client.segment_json(CASE)["shape"] == [8, 9, 10]
        assert client.segment_bytes(stack, "tiff", spacing=SPACING).startswith(b"II")
        first, second = client.segment_batch([CASE, gzip.compress(b"nothing")])
        np.testing.assert_array_equal(first.labels, phantom_labels())
        assert isinstance(second, ServiceError) and second.status == 415
        with Client(url, background=True) as patient:  # as jobs
            np.testing.assert_array_equal(patient.segment(CASE).labels, mask.labels)
            with pytest.raises(ServiceError, match="no volume in a known format"):
                patient.segment(gzip.compress(b"nothing"))
        with pytest.raises(ValueError, match="three numbers above 0"):
            client.segment(stack, spacing=(1, 0, 1))


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1)])
def test_client_reads_the_affine_as_nibabel(codes: tuple[int, int]) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None)
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]]) * [1.5, 2, 3]
    image.header.set_qform(nibabel.affines.from_matvec(turn, [4, 5, 6]), codes[0])
    image.header.set_sform(nibabel.affines.from_matvec(np.diag([1.5, 2, 3]), [1, 2, 3]), codes[1])
    image.header.set_zooms((1.5, 2, 3))
    data = image.header.binaryblock + bytes(4 + 60)
    mask = VolumeMask.from_nifti(gzip.compress(data), classes=[], model="m")
    np.testing.assert_allclose(mask.affine, nibabel.Nifti1Image.from_bytes(data).affine, atol=1e-5)
    for broken in (data[:350], b"\x01\0\0\0" + data[4:344] + bytes(100), data[:44] + b"\xff\x7f\xff\x7f" + data[48:]):
        with pytest.raises(ValueError, match="expected"):
            VolumeMask.from_nifti(gzip.compress(broken), classes=[], model="m")


def test_predict_writes_labels_of_each_case_and_a_manifest(url: str, bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    (source / "a.nii.gz").write_bytes(CASE)
    (source / "deep" / "b.nii.gz").write_bytes(CASE)
    write_series(source / "1.2.3")
    (source / "c.zip").write_bytes(
        zip_bytes({f"{k}.dcm": dicom_bytes(np.zeros((4, 6), np.int16), (0, 0, k)) for k in range(3)})
    )
    for channel in range(2):  # of another case, in two files: this model takes one channel
        (source / f"d_{channel:04}.nii.gz").write_bytes(CASE)
    (source / "notes.txt").write_text("no volume")
    (source / "photo.png").write_bytes(b"no volume")
    results = []
    for model in (bundle, url):
        out = tmp_path / f"out{len(results)}"
        complete, printed = run_predict(model, source, out=out)
        assert not complete and "4 of 5 volumes segmented" in printed and "1 .png (the model takes volumes" in printed
        assert "d_0000.nii.gz: " in printed and "The volume has 2 channels" in printed
        masks, rows = read_masks(out), {row["path"]: row for row in read_rows(out)}
        assert sorted(masks) == ["1.2.3.nii.gz", "a.nii.gz", "c.nii.gz", "deep/b.nii.gz"]
        row = rows[str(source / "a.nii.gz")]
        assert row["shape"] == [8, 9, 10] and row["spacing"] == pytest.approx(SPACING)
        assert {entry["name"]: entry["ml"] for entry in row["classes"]} == pytest.approx(ML)
        results.append((masks, [entry["voxels"] for entry in row["classes"]]))
        (source / "new.nii.gz").write_bytes(CASE)
        assert "5 of 6 volumes segmented, 4 of them by earlier runs" in run_predict(model, source, out=out)[1]
        (source / "new.nii.gz").unlink()
    assert results[0] == results[1]
    run_predict(bundle, source / "c.zip", out=tmp_path / "one", format="json")
    assert json.loads((tmp_path / "one" / "c.json").read_text())["shape"] == [6, 4, 3]


def test_predict_reports_what_it_cannot_do(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 30000, (8, 9, 10)).astype(np.int16)
    (tmp_path / "in" / "half.nii.gz").write_bytes(nifti_bytes(noise, AFFINE, compress=True)[:900])
    complete, printed = run_predict(
        bundle, tmp_path / "in", out=tmp_path / "out", options=OutputOptions(classes=("organ",))
    )
    assert not complete and "half.nii.gz: The volume is truncated" in printed
    with pytest.raises(ConfigError, match="no output format 'png'"):
        run_predict(bundle, tmp_path / "in", out=tmp_path / "other", format="png")
    (tmp_path / "in" / "half.nii.gz").unlink()
    with pytest.raises(DataError, match=r"contains no volume.*\.nii\.gz, \.npy"):
        run_predict(bundle, tmp_path / "in", out=tmp_path / "other")
