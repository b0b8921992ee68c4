"""Volumes from the bytes of a file to the bytes of its labels; nibabel, pynrrd and tifffile read them again."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from nibabel.filebasedimages import SerializableImage

from models.bundle import open_bundle
from models.errors import UnsupportedFormatError
from models.imaging.decoder_pool import IS_SUPPORTED, DecoderPool
from models.inference.segmenter import Segmenter
from models.outputs.options import OutputOptions
from models.outputs.pipelines import make_pipeline
from models.outputs.volume_pipeline import VolumePipeline
from models.readers import read_sample
from tests.models.readers.make_volumes import dicom_bytes, zip_bytes
from tests.service.volume_bundle import AFFINE, SPACING, phantom, phantom_labels, write_volume_bundle

IN_RAS = nibabel.Nifti1Image(phantom(), AFFINE)
# (file's axis of each axis of RAS, and whether it runs along it): as they are, all mirrored, and turned in several ways.
TURNS = [
    ((0, 1, 2), (1, 1, 1)),
    ((0, 1, 2), (-1, -1, 1)),
    ((2, 0, 1), (1, -1, 1)),
    ((1, 0, 2), (-1, 1, -1)),
    ((2, 1, 0), (1, 1, 1)),
]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Any]:
    bundle = open_bundle(write_volume_bundle(tmp_path_factory.mktemp("volumes") / "bundle"))
    return Segmenter.load(bundle, "onnxruntime", verify_probes=True), bundle.spec


def pipeline(segmenter: tuple[Segmenter, Any], format: str = "nifti", **options: Any) -> VolumePipeline:
    made = make_pipeline(*segmenter, format, OutputOptions(**options), 10**6, 10**5)
    assert isinstance(made, VolumePipeline)
    return made


def segment(segmenter: tuple[Segmenter, Any], data: bytes, format: str = "nifti", **options: Any) -> bytes:
    result = pipeline(segmenter, format, **options)(data).data
    assert result is not None
    return result


def turned(order: tuple[int, ...], signs: tuple[int, ...]) -> nibabel.Nifti1Image:
    return IN_RAS.as_reoriented(np.array([[order[axis], signs[axis]] for axis in range(3)], float))


def read_nifti(data: bytes, version: type[SerializableImage] = nibabel.Nifti1Image) -> Any:
    return version.from_bytes(gzip.decompress(data))


@pytest.mark.parametrize(("order", "signs"), TURNS)
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 4)])
def test_nifti_gets_its_own_grid_back(
    segmenter: tuple[Segmenter, Any], order: tuple[int, ...], signs: tuple[int, ...], version: type, codes: tuple[int, int]
) -> None:  # fmt: skip
    source = turned(order, signs)
    image = version(np.asarray(source.dataobj), source.affine)
    image.set_qform(source.affine, codes[0])
    image.set_sform(source.affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    result = read_nifti(segment(segmenter, gzip.compress(image.to_bytes())), version)
    labels = np.asarray(result.dataobj)
    assert labels.dtype == np.uint8 and result.shape == image.shape
    expected = nibabel.Nifti1Image(phantom_labels(), AFFINE).as_reoriented(
        np.array([[order[axis], signs[axis]] for axis in range(3)], float)
    )
    np.testing.assert_array_equal(labels, np.asarray(expected.dataobj))
    before, after = (version.from_bytes(each.to_bytes()).header for each in (image, result))
    for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
                  "srow_x", "srow_y", "srow_z", "xyzt_units"):  # fmt: skip
        np.testing.assert_array_equal(before[field], after[field])
    np.testing.assert_array_equal(before["pixdim"][:4], after["pixdim"][:4])
    np.testing.assert_array_equal(result.affine, version.from_bytes(image.to_bytes()).affine)


def nrrd_bytes(space: bool) -> bytes:
    turn = "space: left-posterior-superior\nspace origin: (-5,6,7)\nspace directions: (-1,0,0) (0,-2,0) (0,0,3)\n"
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 8 9 10\nencoding: raw\nendian: little\n"
    place = turn if space else "spacings: 1 2 3\n"
    return f"{head}{place}\n".encode() + phantom().astype("<i2").tobytes(order="F")


def npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def dicom_series() -> bytes:
    """Sagittal slices, which no axis of the file has in the order of RAS."""
    slices = phantom()[:, ::-1, ::-1].transpose(
        0, 2, 1
    )  # R to the next slice; rows down from the head, columns to the back
    corner = (AFFINE @ [0, 8, 9, 1])[:3] * [-1, -1, 1]
    return zip_bytes(
        {
            f"{7 - index}.dcm": dicom_bytes(
                plane, corner - [index, 0, 0], orientation=(0, 1, 0, 0, 0, -1), spacing=(3, 2), SliceThickness=1
            )
            for index, plane in enumerate(slices)
        }
    )


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (nrrd_bytes(True), (8, 9, 10)),
        (npz_bytes(values=phantom(), affine=AFFINE), (8, 9, 10)),
        (dicom_series(), (9, 10, 8)),
    ],
    ids=["nrrd", "npz", "dicom"],
)
def test_other_files_get_a_nifti_on_their_own_grid(
    segmenter: tuple[Segmenter, Any], data: bytes, shape: tuple[int, ...]
) -> None:
    result = read_nifti(segment(segmenter, data))
    assert result.shape == shape  # the columns, rows and slices of the DICOM
    in_ras = nibabel.as_closest_canonical(result)
    np.testing.assert_allclose(in_ras.affine, AFFINE, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(in_ras.dataobj), phantom_labels())


def test_stack_that_says_nothing_is_taken_as_it_lies(segmenter: tuple[Segmenter, Any]) -> None:
    stack = phantom()[::-1, ::-1].T  # pages to the head, rows to the back, columns to the left
    expected = phantom_labels()[::-1, ::-1]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stack.astype(np.uint16), photometric="minisblack")
    for data in (buffer.getvalue(), npz_bytes(values=stack)):
        result = read_nifti(segment(segmenter, data))
        np.testing.assert_array_equal(np.asarray(result.dataobj), expected)
        np.testing.assert_array_equal(result.affine, np.diag([-1, -1, 1, 1]))
        facts = json.loads(segment(segmenter, data, "json"))
        assert facts["spacing"] is None and facts["classes"][1]["ml"] is None
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(segment(segmenter, data, "tiff"))), expected.T)
        arrays = np.load(io.BytesIO(segment(segmenter, data, "npz")))
        assert sorted(arrays) == ["classes", "colors", "labels"]
        np.testing.assert_array_equal(arrays["labels"], expected.T)
    with_spacing = segment(segmenter, npz_bytes(values=stack, spacing=SPACING[::-1]))
    assert read_nifti(with_spacing).header.get_zooms() == (1, 2, 3)
    np.testing.assert_array_equal(
        np.asarray(read_nifti(segment(segmenter, nrrd_bytes(False))).dataobj).shape, (8, 9, 10)
    )


def test_npz_tiff_and_json_lie_on_the_files_grid(segmenter: tuple[Segmenter, Any]) -> None:
    image = turned((2, 0, 1), (1, -1, 1))
    data, expected = image.to_bytes(), np.asarray(read_nifti(segment(segmenter, image.to_bytes())).dataobj)
    arrays = np.load(io.BytesIO(segment(segmenter, data, "npz", confidence=True)))
    np.testing.assert_array_equal(arrays["labels"], expected)
    np.testing.assert_allclose(arrays["affine"], image.affine)
    assert arrays["confidence"].shape == expected.shape and 0.99 < arrays["confidence"].min() <= 1
    assert arrays["classes"].tolist() == ["none", "organ", "lesion"]
    page = segment(segmenter, data, "tiff")
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(page)), expected.T)
    with tifffile.TiffFile(io.BytesIO(page)) as file:
        assert file.imagej_metadata["spacing"] == pytest.approx(image.header.get_zooms()[2])
    facts = json.loads(segment(segmenter, data, "json"))
    assert facts["shape"] == list(image.shape) and facts["spacing"] == pytest.approx(image.header.get_zooms())
    for entry in facts["classes"]:
        inside = np.argwhere(expected == entry["label"])
        assert entry["bbox"] == [*inside.min(axis=0), *(np.ptp(inside, axis=0) + 1)]
        assert entry["voxels"] == len(inside) and entry["ml"] == pytest.approx(len(inside) * 0.006)
        assert 0.99 < entry["mean_confidence"] <= 1


def test_options_leave_out_voxels(segmenter: tuple[Segmenter, Any]) -> None:
    data = IN_RAS.to_bytes()
    kept = np.asarray(read_nifti(segment(segmenter, data, classes=("lesion",))).dataobj)
    np.testing.assert_array_equal(kept, np.where(phantom_labels() == 2, 2, 255))
    unlabeled = json.loads(segment(segmenter, data, "json", min_confidence=1.0))["unlabeled"]
    assert unlabeled["voxels"] > 0


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_child_process_gives_the_same_bytes(segmenter: tuple[Segmenter, Any]) -> None:
    made = pipeline(segmenter)
    decoders = DecoderPool(1, made.max_pixels, max_voxels=made.max_voxels)
    try:
        for data in (gzip.compress(turned((2, 0, 1), (1, -1, 1)).to_bytes()), nrrd_bytes(True)):
            assert made.encode(made.infer(made.decode_in_child(data, decoders))).data == made(data).data
    finally:
        decoders.close()


def test_files_of_one_grid_are_the_channels_of_a_volume() -> None:
    one, other = (IN_RAS.to_bytes(), nibabel.Nifti1Image(-phantom(), AFFINE).to_bytes())
    sample = read_sample(zip_bytes({"a_0001.nii": other, "a_0000.nii.gz": gzip.compress(one)}), axes="DHW")
    assert sample.channels == ("band1", "band2") and sample.size == (10, 9, 8)
    np.testing.assert_array_equal(sample.values[..., 0], -sample.values[..., 1])
    assert sample.values[..., 0].max() == 200 and sample.frame == read_sample(one, axes="DHW").frame
    moved = nibabel.Nifti1Image(phantom(), AFFINE + np.eye(4, k=3)).to_bytes()
    with pytest.raises(UnsupportedFormatError, match=r"up to 1\.0 voxels apart \(channel 2\)"):
        read_sample(zip_bytes({"a_0000.nii": one, "a_0001.nii": moved}), axes="DHW")


def test_cost_counts_the_voxels_of_the_network(segmenter: tuple[Segmenter, Any], tmp_path: Path) -> None:
    made = pipeline(segmenter)
    assert made.cost(made.decode(IN_RAS.to_bytes())) == 1
    large = nibabel.Nifti1Image(np.zeros((40, 40, 40), np.uint8), np.eye(4)).to_bytes()
    assert made.cost(made.decode(large)) == 1 and made.estimate_cost(64**3 * 5) == 5
