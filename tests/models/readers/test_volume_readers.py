import gzip
import io
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd as pynrrd
import numpy as np
import pytest
import tifffile
from PIL import Image

from models.errors import ImageError
from models.readers import archive, dicom, nifti, nrrd, tiff_stack
from models.readers.limits import ReadLimits
from models.readers.orientation import to_file_grid
from models.sample import Sample
from tests.models.readers.make_volumes import dicom_bytes, dim_bytes, nifti_bytes, patched_nifti, zip_bytes

LIMITS = ReadLimits(100_000_000)
DICOM_SERIES = Path(__file__).parents[4] / "shared" / "data" / "dicom"
RANDOM = np.random.default_rng(0)
OBLIQUE = np.array([[0.1, -0.9, 0.3, 5], [0.8, 0.2, 0.4, -7], [-0.3, 0.3, 2.5, 11], [0, 0, 0, 1]])


def in_file_order(sample: Sample) -> np.ndarray:
    assert sample.frame and sample.frame.grid
    return to_file_grid(sample.values, sample.frame.grid)[..., 0]


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", "i1", "u2", "u4", "i8", ">i2", ">f4"])
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_is_read_as_nibabel_reads_it(dtype: str, version: type) -> None:
    array = RANDOM.integers(0, 100, (4, 5, 6)).astype(dtype)
    header = version.header_class(endianness=">" if ">" in dtype else "<")
    header.set_data_dtype(dtype)
    image = version(array, OBLIQUE, header=header)
    expected = version.from_bytes(image.to_bytes())
    for data in (image.to_bytes(), gzip.compress(image.to_bytes())):
        assert nifti.sniff(data)
        sample = nifti.decode(data, LIMITS)
        grid = sample.frame.grid
        assert (in_file_order(sample) == expected.get_fdata()).all()
        np.testing.assert_allclose(grid.affine, expected.affine, atol=1e-6)
        np.testing.assert_allclose(sorted(sample.spacing.values), sorted(expected.header.get_zooms()), rtol=1e-6)
        assert sample.dtype == {"u1": "uint8", "u2": "uint16", "i1": "int16"}.get(
            dtype, "int16" if "i2" in dtype else "float32"
        )


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_nifti_affine_is_the_one_that_nibabel_takes(codes: tuple[int, int]) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header.set_zooms((1.5, 2, 3))
    rotation = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]]) * [1.5, 2, 3]
    image.header.set_qform(nibabel.affines.from_matvec(rotation, [4, 5, 6]), codes[0])
    image.header.set_sform(nibabel.affines.from_matvec(np.diag([1.5, 2, 3]), [1, 2, 3]), codes[1])
    data = image.header.binaryblock + bytes(4) + bytes(240)
    header = nifti.parse_header(data)
    np.testing.assert_allclose(
        header.affine, nibabel.Nifti1Header.from_fileobj(io.BytesIO(data)).get_best_affine(), atol=1e-5
    )


def test_nifti_scales_its_samples_and_converts_micrometers() -> None:
    data = patched_nifti({112: struct.pack("<2f", 0.5, -3.0), 123: b"\3", 352: struct.pack("<h", 8)})
    sample = nifti.decode(data, LIMITS)
    assert (
        sample.dtype == "float32" and in_file_order(sample)[0, 0, 0] == 1.0 and in_file_order(sample)[1, 0, 0] == -3.0
    )
    assert sample.spacing.values == pytest.approx((0.001, 0.001, 0.001))


def test_gzip_of_several_members_is_read() -> None:
    data = nifti_bytes(np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    joined = gzip.compress(data[:400]) + gzip.compress(data[400:])
    assert (in_file_order(nifti.decode(joined, LIMITS)).ravel() == np.arange(120)).all()


def test_gzip_may_hold_more_than_the_header_promises() -> None:
    data = nifti_bytes(np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    assert (in_file_order(nifti.decode(gzip.compress(data + bytes(99)), LIMITS)).ravel() == np.arange(120)).all()


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "<f4", ">f8", "<i4"])
def test_nrrd_is_read_as_pynrrd_reads_it(dtype: str, encoding: str, tmp_path: Path) -> None:
    array, file = RANDOM.integers(0, 100, (4, 5, 6)).astype(dtype), tmp_path / "a.nrrd"
    header = {
        "space": "left-posterior-superior", "space directions": OBLIQUE[:3, :3].T, "space origin": [1.0, 2.0, 3.0],
        "encoding": encoding, "endian": "big" if ">" in dtype else "little",
    }  # fmt: skip
    pynrrd.write(str(file), array, header)
    sample = nrrd.decode(file.read_bytes(), LIMITS)
    assert nrrd.sniff(file.read_bytes()) and (in_file_order(sample) == array).all()
    lps = np.array(sample.frame.grid.affine)
    np.testing.assert_allclose(lps[:3, :3], OBLIQUE[:3, :3] * [[-1], [-1], [1]], atol=1e-9)
    np.testing.assert_allclose(lps[:3, 3], [-1, -2, 3])


def test_nrrd_without_a_space_is_a_stack_and_a_list_axis_its_channels(tmp_path: Path) -> None:
    array, file = RANDOM.integers(0, 100, (2, 4, 5, 6)).astype(np.int16), tmp_path / "a.nrrd"
    pynrrd.write(
        str(file), array, {"kinds": ["list", "domain", "domain", "domain"], "spacings": [np.nan, 1.0, 2.0, 3.0]}
    )
    sample = nrrd.decode(file.read_bytes(), LIMITS)
    assert sample.spacing.values == (3.0, 2.0, 1.0) and sample.channels == ("band1", "band2") and sample.frame is None
    assert (sample.values == array.transpose(3, 2, 1, 0)).all()


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_stack_is_read_with_the_spacing_of_imagej(dtype: str, compression: str | None) -> None:
    array, buffer = RANDOM.integers(0, 100, (3, 40, 50)).astype(dtype), io.BytesIO()
    tifffile.imwrite(
        buffer, array, imagej=compression is None, compression=compression, resolution=(2.0, 4.0), photometric="minisblack",
        metadata={"spacing": 3.0, "unit": "mm", "axes": "ZYX"} if compression is None else None,
    )  # fmt: skip
    sample = tiff_stack.decode(buffer.getvalue(), LIMITS)
    assert (sample.values[..., 0] == array).all() and sample.dtype == array.dtype.name and sample.axes == "DHW"
    assert sample.spacing is None if compression else sample.spacing.values == pytest.approx((3.0, 0.25, 0.5))


@pytest.mark.skipif(not DICOM_SERIES.is_dir(), reason="needs ../shared/data/dicom")
def test_real_series_is_read_from_a_folder_in_order_of_its_positions() -> None:
    sample = archive.decode(archive.pack_folder(DICOM_SERIES), LIMITS)
    assert sample.size == (32, 51, 35) and sample.spacing.values == (1.0, 1.0, 1.0)
    import pydicom

    for position in (1, 2, 32):
        expected = pydicom.dcmread(DICOM_SERIES / f"{position}.dcm").pixel_array
        assert (sample.values[position - 1, :, :, 0] == expected).all()


def series(positions: list[float], **changes: object) -> dict[str, bytes]:
    """A series of slices of 4 x 5 pixels, each of the value of its position, in the order of their names."""
    made = {}
    for index, position in enumerate(positions):
        pixels = np.full((4, 5), position, np.int16)
        made[f"{index}.dcm"] = dicom_bytes(pixels, (0, 0, position), **changes)
    return made


def test_dicom_is_rescaled_sorted_and_put_into_canonical_orientation() -> None:
    sagittal = (0, 1, 0, 0, 0, -1)  # rows run to the back, columns to the feet: the normal runs to the right
    files = {
        f"{index}.dcm": dicom_bytes(
            np.arange(20, dtype=np.int16).reshape(4, 5) + 100 * index, (10 - 2 * index, 0, 0), sagittal, (0.5, 0.25),
            RescaleSlope=2, RescaleIntercept=-1000,
        )
        for index in (2, 0, 1)
    }  # fmt: skip
    sample = archive.decode(zip_bytes(files), LIMITS)
    assert sample.size == (4, 5, 3) and sample.spacing.values == pytest.approx((0.5, 0.25, 2.0))
    assert sample.dtype == "float32"
    # D runs up, so from the last row; H to the back; W to the left, so from slice 2, which lies at x = 6, to slice 0 at 10.
    assert sample.values[0, 0, :, 0].tolist() == [2 * (15 + 200) - 1000, 2 * (15 + 100) - 1000, 2 * 15 - 1000]
    assert sample.values[0, :, 2, 0].tolist() == [2 * (15 + step) - 1000 for step in range(5)]


def test_slices_of_a_zip_are_read_in_natural_order() -> None:
    files = {}
    for index in (10, 2, 1):
        buffer = io.BytesIO()
        Image.fromarray(np.full((6, 7), index, np.uint8)).save(buffer, "png")
        files[f"slice{index}.png"] = buffer.getvalue()
    sample = archive.decode(zip_bytes(files), LIMITS)
    assert sample.values[:, 0, 0, 0].tolist() == [1, 2, 10] and sample.size == (3, 6, 7)


def nan_affine() -> bytes:
    return patched_nifti({280: struct.pack("<12f", *[float("nan")] * 12), 254: struct.pack("<h", 1)})


def compressed(array: np.ndarray) -> bytes:
    return nifti_bytes(array, compress=True)


HUGE = patched_nifti({40: dim_bytes(3000, 3000, 1111), 70: struct.pack("<h", 64)})
BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero spacing": (lambda: patched_nifti({84: struct.pack("<f", 0)}), "spacing of 1 x 0 x 1"),
    "negative spacing": (lambda: patched_nifti({80: struct.pack("<f", -1)}), "spacing of -1 x 1 x 1"),
    "zero spacing in the affine": (lambda: patched_nifti({280: struct.pack("<12f", *[0.0] * 12)}), "spacing of 0 x 0 x 0 mm"),
    "singular affine": (
        lambda: patched_nifti({280: struct.pack("<12f", 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0)}),
        "puts its axes into one plane",
    ),
    "four axes": (lambda: nifti_bytes(np.zeros((4, 5, 6, 3), np.int16)), "4 axes, 4 x 5 x 6 x 3"),
    "NaN affine": (nan_affine, "affine has values that are not finite"),
    "truncated gzip": (lambda: compressed(RANDOM.integers(0, 99, (9, 9, 9)).astype(np.int32))[:-200], "truncated"),
    "gzip without its checksum": (lambda: compressed(np.zeros((9, 9, 9), np.int16))[:-8], "gzip is truncated"),
    "gzip without its last byte": (lambda: compressed(np.zeros((9, 9, 9), np.int16))[:-1], "gzip is truncated"),
    "corrupt gzip": (lambda: compressed(np.arange(10**4, dtype=np.int32).reshape(10, 20, 50))[:-8] + bytes(8), "gzip is corrupt"),
    "truncated voxels": (lambda: nifti_bytes(np.zeros((9, 9, 9)))[:-1], "truncated: its header promises 5,832 bytes"),
    "40 GB in 1 kB": (lambda: gzip.compress(HUGE), "3000 x 3000 x 1111 = 9,999,000,000 voxels; the limit is 268,435,456"),
    "1 GB in 1 kB": (lambda: gzip.compress(patched_nifti({40: dim_bytes(1000, 1000, 250), 70: b"\x10\0"})), "truncated"),
    "complex": (lambda: nifti_bytes(np.zeros((4, 5, 6), np.complex64)), "datatype 32"),
    "pair": (lambda: patched_nifti({344: b"ni1\0"}), "NIfTI pair"),
    "no voxels": (lambda: patched_nifti({40: dim_bytes(0, 5, 6)}), "has no voxels: 0 x 5 x 6"),
    "nrrd of another file": (lambda: b"NRRD0004\ntype: short\ndata file: a.raw\n\n", "names another file"),
    "nrrd without end": (lambda: b"NRRD0004\ntype: short\n", "no empty line"),
    "nrrd of 4D": (
        lambda: b"NRRD0004\ntype: short\ndimension: 4\nsizes: 4 5 6 7\nencoding: raw\n\n",
        "4 axes, 4 x 5 x 6 x 7, and 4 of them lie in space",
    ),
    "nrrd of 40 GB": (
        lambda: b"NRRD0004\ntype: double\ndimension: 3\nsizes: 3000 3000 1111\nencoding: gzip\n\n" + gzip.compress(b""),
        "9,999,000,000 voxels",
    ),
    "missing slice": (
        lambda: zip_bytes(series([0, 1, 2, 4, 5])),
        r"gap: slices 3 and 4 along its axis are 2 mm apart, and the others 1 mm \(1 slice is missing\)",
    ),
    "two series": (
        lambda: zip_bytes(series([0, 1, 2]) | {"x": dicom_bytes(np.zeros((4, 5), np.int16), (0, 0, 3), series="9")}),
        "2 DICOM series, of 3 and 1 images",
    ),
    "same position twice": (lambda: zip_bytes(series([0, 1, 1, 2])), "Slices 2 and 3 .* the same position"),
    "tilted gantry": (
        lambda: zip_bytes({str(z): dicom_bytes(np.zeros((4, 5), np.int16), (0, 0.2 * z, z)) for z in range(4)}),
        "gantry tilt of 11.3 degrees",
    ),
    "localizer": (
        lambda: zip_bytes(series([0, 1]) | {"x": dicom_bytes(np.zeros((4, 5), np.int16), (0, 0, 3), (0, 1, 0, 0, 0, -1))}),
        "different planes",
    ),
    "enhanced": (lambda: zip_bytes(series([0], NumberOfFrames=3)), "multi-frame DICOM of 3 frames"),
    "no position": (lambda: zip_bytes(series([0], ImagePositionPatient=None)), "does not say how it lies"),
    "other pixels": (lambda: zip_bytes(series([0, 1], PixelData=b"12")), "cannot be decoded"),
    "not DICOM": (lambda: zip_bytes({"Doe_Jane": bytes(128) + b"DICM" + b"\xff" * 99}), "hold no images"),
    "a zip of texts": (lambda: zip_bytes({"a.txt": b"abc"}), "none is a DICOM image"),
    "slices of two sizes": (lambda: zip_bytes({"1.png": png(5), "2.png": png(6)}), "Slices 1 and 2 differ"),
    "pages of two sizes": (lambda: pages((40, 50), (40, 60)), "different sizes, 50 x 40 and 60 x 40"),
}  # fmt: skip


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def pages(*sizes: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for size in sizes:
            writer.write(np.zeros(size, np.uint8), photometric="minisblack", metadata=None)
    return buffer.getvalue()


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_volumes_get_one_sentence_in_bounded_memory(name: str) -> None:
    make, message = BAD_FILES[name]
    data = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = next(reader for reader in (nifti, nrrd, tiff_stack, dicom, archive) if reader.sniff(data))
    with pytest.raises(ImageError, match=message) as raised:
        reader.decode(data, LIMITS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # kB
    assert "Doe" not in str(raised.value) and "4711" not in str(raised.value)
    cause = raised.value.__cause__
    assert cause is None or "Doe" not in str(cause)


@pytest.mark.parametrize(
    ("make", "depth_axis"),
    [
        (lambda: nifti_bytes(np.zeros((7, 6, 1), np.int16)), 0),
        (lambda: patched_nifti({40: dim_bytes(4, 5), 88: struct.pack("<f", 0)}, (4, 5)), 0),
        (lambda: zip_bytes(series([3], SliceThickness=5)), 0),
    ],
)
def test_volume_of_one_slice_is_read(make: Callable[[], bytes], depth_axis: int) -> None:
    data = make()
    sample = (nifti if nifti.sniff(data) else archive).decode(data, LIMITS)
    assert sample.size[depth_axis] == 1 and sample.values.ndim == 4
