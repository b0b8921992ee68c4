"""The TIFF reader against rasterio, for types, bands, layouts and compressions; and what it refuses."""

import io
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from models.errors import CorruptImageError, ImageError, ImageTooLargeError, UnsupportedFormatError
from models.imaging.decode import decode_image
from models.readers import read_sample, tiff
from models.readers.limits import ReadLimits
from models.sample import Frame
from models.spec import MAX_CHANNELS
from tests.fixtures_channels import encode_tiff

LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {},
    "tiles": {"tiled": True, "blockxsize": 64, "blockysize": 32},
    "planes": {"interleave": "band"},
    "deflate": {"compress": "deflate", "predictor": 2},
    "deflated floats": {"compress": "deflate", "predictor": 3},
    "lzw": {"compress": "lzw", "predictor": 2, "tiled": True, "blockxsize": 64, "blockysize": 32, "interleave": "band"},
    "packbits": {"compress": "packbits"},
    "zstd": {"compress": "zstd"},
    "big endian": {"ENDIANNESS": "BIG", "compress": "lzw", "predictor": 2},
    "BigTIFF": {"BIGTIFF": "YES"},
    "few rows, lzw": {"compress": "lzw", "blockysize": 3},
    "few rows, deflate": {"compress": "deflate", "blockysize": 3, "interleave": "band"},
}
STORED_AS = {"int8": "int16", "uint32": "float32", "float64": "float32"}


def noise(dtype: str, bands: int, size: tuple[int, int] = (61, 83)) -> np.ndarray:
    values = np.random.default_rng(bands).integers(0, 120, (*size, bands)).cumsum(axis=1)
    return (values % 120 if dtype in ("int8", "uint8") else values).astype(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_values_are_those_that_were_written(layout: str, dtype: str) -> None:
    options = LAYOUTS[layout]
    if options.get("predictor") == (2 if dtype == "float32" else 3):
        options = {name: value for name, value in options.items() if name != "predictor"}
    for bands in (1, 2, 4, 13):
        values = noise(dtype, bands)
        sample = read_sample(encode_tiff(values, **options))
        assert sample.values.dtype == dtype
        assert np.array_equal(sample.values, values)


@pytest.mark.parametrize("layout", ["tiles", "lzw", "few rows, lzw", "few rows, deflate"])
def test_strips_and_tiles_are_decoded_in_several_batches(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "BATCH_BYTES", 10_000)
    values = noise("uint16", 4, (130, 83))
    assert np.array_equal(read_sample(encode_tiff(values, **LAYOUTS[layout])).values, values)


def test_one_tile_may_be_wider_than_the_image() -> None:
    values = noise("uint16", 4, (64, 83))
    data = encode_tiff(values, tiled=True, blockxsize=96, blockysize=64)
    assert np.array_equal(read_sample(data).values, values)


@pytest.mark.parametrize("dtype", STORED_AS)
def test_other_types_become_the_nearest_that_networks_take(dtype: str) -> None:
    values = noise(dtype, 3)
    sample = read_sample(encode_tiff(values))
    assert sample.dtype == STORED_AS[dtype]
    assert np.array_equal(sample.values, values)


def test_names_nodata_and_place_come_from_the_tags() -> None:
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -20, 5_400_000), "nodata": -9999}
    sample = read_sample(encode_tiff(noise("int16", 3), ("nir", "red, edge", "nir"), **place))
    assert sample.channels == ("nir", "red_edge", "band3")  # cleaned, and unique
    assert sample.nodata == -9999
    assert sample.frame == Frame((10, 0, 500_000, 0, -20, 5_400_000), "EPSG:32633")
    assert sample.spacing is not None and (sample.spacing.values, sample.spacing.unit) == ((20, 10), "m")


def test_colors_are_named_and_alpha_is_where_data_is() -> None:
    values = noise("uint16", 5)
    values[:, :, 3] = 65535  # GDAL's alpha is the first band after the colors
    values[:7, :, 3] = 0
    sample = read_sample(encode_tiff(values, photometric="RGB", alpha="YES"))
    assert sample.channels == ("red", "green", "blue", "band5")
    assert sample.valid is not None and not sample.valid[:7].any() and sample.valid[7:].all()


def test_photographs_are_recognized_by_their_header() -> None:
    def is_photograph(values: np.ndarray, **options: Any) -> bool:
        return tiff.is_photograph(encode_tiff(values, **options), 10**6)

    assert is_photograph(noise("uint8", 3), photometric="RGB")
    assert is_photograph(
        np.dstack([noise("uint8", 3), np.full((61, 83), 255, np.uint8)]), photometric="RGB", alpha="YES"
    )
    assert is_photograph(noise("uint8", 1))
    assert not is_photograph(noise("uint8", 4), photometric="RGB", alpha="NO")  # red, green, blue, near infrared
    assert not is_photograph(noise("uint8", 3), photometric="RGB", nodata=0)
    assert not is_photograph(noise("uint16", 3), photometric="RGB")


def test_a_band_that_gdal_tags_as_alpha_without_being_opacity_is_a_channel() -> None:
    """GDAL tags the fourth of four bands of 8 bits as alpha; a photograph of it is its colors, not blended with white."""
    values = noise("uint8", 4)
    data = encode_tiff(values, photometric="RGB", alpha="YES")
    sample = read_sample(data)
    assert sample.channels == ("red", "green", "blue", "band4") and sample.valid is None
    assert np.array_equal(sample.values, values)
    assert np.array_equal(decode_image(data), values[:, :, :3])
    values[:, :, 3] = np.where(np.arange(values.shape[1]) < 5, 0, 255)
    shown = decode_image(encode_tiff(values, photometric="RGB", alpha="YES"))
    assert (shown[:, :5] == 255).all() and np.array_equal(shown[:, 5:], values[:, 5:, :3])


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_several_bands_are_no_photograph(interleave: str, dtype: str) -> None:
    """Stored plane by plane, Pillow reads the first band as gray."""
    with pytest.raises(
        UnsupportedFormatError, match=r"The TIFF has 3 bands of (16|32) bits that are not a gray or RGB image"
    ):
        decode_image(encode_tiff(noise(dtype, 3), interleave=interleave))


def test_palettes_and_jpeg_go_to_the_reader_of_images() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 10, 10)).quantize(4).save(buffer, "TIFF")
    sample = read_sample(buffer.getvalue())
    assert sample.channels == ("red", "green", "blue")
    assert sample.values[3, 3].tolist() == [200, 10, 10]


@pytest.mark.parametrize("layout", ["strips", "tiles", "deflate", "lzw", "packbits"])
def test_truncated_and_altered_files_are_errors_and_nothing_else(layout: str) -> None:
    data = encode_tiff(noise("uint16", 4), **LAYOUTS[layout])
    random = np.random.default_rng(0)
    for _ in range(60):
        altered = bytearray(data)
        for place in random.integers(0, len(data), 6):
            altered[place] = random.integers(256)
        for broken in (bytes(altered), data[: int(random.integers(8, len(data)))]):
            try:
                sample = read_sample(broken, max_pixels=100_000)
            except ImageError:
                continue
            assert sample.values.shape[0] * sample.values.shape[1] <= 100_000


def test_sizes_are_checked_before_samples_are_read() -> None:
    limits = ReadLimits(1000)
    with pytest.raises(ImageTooLargeError, match="the limit is 1,000"):
        limits.check(40, 40, 4, 2)
    with pytest.raises(ImageTooLargeError, match="bytes of samples"):
        ReadLimits(10**8).check(10_000, 10_000, 13, 2)
    with pytest.raises(UnsupportedFormatError, match=f"the limit is {MAX_CHANNELS}"):
        limits.check(4, 4, MAX_CHANNELS + 1, 1)
    with pytest.raises(CorruptImageError, match="no samples"):
        limits.check(0, 4, 1, 1)
