"""ICC profiles, built byte by byte, so that their content is known."""

import struct
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.imaging import icc
from models.imaging.decode import decode_image
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image

# Colorants at D50, columns red, green, blue: rows X, Y, Z (the profiles of Apple and of the ICC).
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
D50 = (0.9642, 1.0, 0.8249)


def s15fixed16(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def make_profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC 4.2 profile of the tags (ICC.1:2004-10, 7)."""
    tags = {
        b"desc": b"mluc\0\0\0\0" + struct.pack(">II", 0, 12),
        b"wtpt": b"XYZ \0\0\0\0" + s15fixed16(*D50),
        **tags,
    }
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x04200000, kind, space, pcs) + bytes(12) + b"acsp"
    head += bytes(28) + s15fixed16(*D50)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


SRGB_CURVE = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + s15fixed16(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
GAMMA_18 = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.8 * 256))


def matrix_profile(colorants: np.ndarray, curve: bytes = SRGB_CURVE) -> bytes:
    tags = {}
    for name, column in zip((b"r", b"g", b"b"), colorants.T, strict=True):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + s15fixed16(*column)
        tags[name + b"TRC"] = curve
    return make_profile(b"RGB ", tags)


def press_profile() -> bytes:
    """The profile of a press whose cyan is a dark green, (40, -40, 20) in Lab, and whose other inks are black."""
    table = bytearray()
    for corner in range(16):  # cyan changes slowest, black fastest
        cyan, others = corner >> 3, corner & 7
        table += bytes((0, 128, 128) if others else (102, 88, 148) if cyan else (255, 128, 128))
    identity = bytes(range(256))
    lut = (
        b"mft1\0\0\0\0"
        + bytes((4, 3, 2, 0))
        + s15fixed16(1, 0, 0, 0, 1, 0, 0, 0, 1)
        + identity * 4
        + table
        + identity * 3
    )
    return make_profile(b"CMYK", {b"A2B0": lut}, b"prtr", b"Lab ")


def to_linear(levels: np.ndarray) -> np.ndarray:
    values = levels / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_linear(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_wide_gamut_is_converted_to_srgb(format: str) -> None:
    image = synthetic_image(24, 32)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    decoded = decode_image(encode_image(Image.fromarray(image), format, icc_profile=matrix_profile(P3), **options))
    stored = decode_image(encode_image(Image.fromarray(image), format, **options))
    expected = from_linear(to_linear(stored) @ P3.T @ np.linalg.inv(SRGB).T)
    assert np.abs(decoded - expected).max() < 2.5
    assert np.abs(decoded.astype(int) - stored).max() > 8


def test_a_profile_with_transparency_and_orientation() -> None:
    image = np.dstack([synthetic_image(6, 4), np.full((6, 4), 255, np.uint8)])
    image[0, 0, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode_image(Image.fromarray(image), icc_profile=matrix_profile(P3), exif=exif)
    upright = decode_image(
        encode_image(Image.fromarray(image[..., :3]), icc_profile=matrix_profile(P3), exif=exif)
    ).copy()
    upright[0, -1] = 255
    np.testing.assert_array_equal(decode_image(data), upright)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles(mode: str) -> None:
    grey = np.arange(0, 256, 5, dtype=np.uint8)[None]
    image = {
        "L": lambda: Image.fromarray(grey),
        "LA": lambda: Image.fromarray(grey).convert("LA"),
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
    }[mode]()
    decoded = decode_image(encode_image(image, icc_profile=make_profile(b"GRAY", {b"kTRC": GAMMA_18})))
    assert np.abs(decoded - from_linear((grey / 255) ** 1.8)[..., None]).max() < 1.5


def test_palettes_have_profiles_too() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([200, 60, 40, 40, 160, 60])
    plain = decode_image(encode_image(image.convert("RGB"), icc_profile=matrix_profile(P3)))
    np.testing.assert_array_equal(decode_image(encode_image(image, icc_profile=matrix_profile(P3))), plain)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(format: str) -> None:
    """JPEG's CMYK is Adobe's, which is stored inverted."""
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, :16, 0] = 255
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    decoded = decode_image(
        encode_image(Image.fromarray(inks, "CMYK"), format, icc_profile=press_profile(), **options)
    ).astype(int)
    lab = Image.new("LAB", (1, 1), (102, 88, 148))
    as_lab = ImageCms.profileToProfile(
        lab, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert np.abs(decoded[8, 4] - np.asarray(as_lab)[0, 0]).max() <= 8
    assert decoded[8, 28].min() >= 250
    assert decoded[8, 4, 1] > decoded[8, 4, 0] + 50


def test_adobes_inverted_cmyk_jpegs_are_inverted_back() -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 1] = 255  # magenta
    adobe = encode_image(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
    assert b"Adobe" in adobe
    assert np.abs(decode_image(adobe).astype(int) - (255, 0, 255)).max() <= 3


@pytest.mark.parametrize(
    "srgb",
    [
        lambda: ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        lambda: matrix_profile(SRGB),
    ],
    ids=["lcms", "by hand"],
)
def test_srgb_changes_no_pixel(srgb: Callable[[], bytes]) -> None:
    image = synthetic_image(40, 30)
    np.testing.assert_array_equal(decode_image(encode_image(Image.fromarray(image), icc_profile=srgb())), image)


@pytest.mark.parametrize(
    "unusable",
    [
        b"no profile",
        b"\0" * 500,
        matrix_profile(P3)[:300],
        press_profile(),
        make_profile(b"RGB ", {}),
        make_profile(b"GRAY", {}),
    ],
    ids=["text", "zeros", "cut", "of another space", "without tags", "grey without tags"],
)
def test_an_unusable_profile_is_ignored(unusable: bytes) -> None:
    image = synthetic_image(20, 30)
    np.testing.assert_array_equal(decode_image(encode_image(Image.fromarray(image), icc_profile=unusable)), image)


def mpet_profile(elements: int) -> bytes:
    """A floating-point chain of a matrix that halves the light, and identity matrices."""
    head = b"mpet\0\0\0\0" + struct.pack(">HHI", 3, 3, elements)
    matrices = [
        b"matf\0\0\0\0" + struct.pack(">HH12f", 3, 3, scale, 0, 0, 0, scale, 0, 0, 0, scale, 0, 0, 0)
        for scale in [0.5] + [1.0] * (elements - 1)
    ]
    start = len(head) + 8 * elements
    table = [struct.pack(">II", start + index * 60, 60) for index in range(elements)]
    return head + b"".join(table) + b"".join(matrices)


def test_floating_point_chains_are_applied_up_to_a_limit() -> None:
    image = synthetic_image(8, 8)
    for elements, followed in ((3, True), (3000, False)):
        icc = make_profile(b"RGB ", {b"D2B0": mpet_profile(elements)})
        changed = decode_image(encode_image(Image.fromarray(image), icc_profile=icc)) != image
        assert changed.any() == followed, elements


def test_hostile_profiles_neither_crash_nor_hang() -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(synthetic_image(8, 8))
    inks = image.convert("CMYK")
    for good, source, format in ((matrix_profile(P3), image, "PNG"), (press_profile(), inks, "TIFF")):
        for _ in range(25):
            bad = np.frombuffer(good, np.uint8).copy()
            positions = random.integers(0, min(len(bad), 512), random.integers(1, 9))
            bad[positions] = random.integers(0, 256, len(positions))
            assert decode_image(encode_image(source, format, icc_profile=bad.tobytes())).shape == (8, 8, 3)


def test_the_cache_of_transforms_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icc, "MAX_TRANSFORMS", 3)
    made = []
    make = icc._build_transform
    monkeypatch.setattr(icc, "_build_transform", lambda profile, mode: made.append(mode) or make(profile, mode))
    for gamma in (2.0, 2.1, 2.2, 2.3, 2.3, 2.3):
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
        decode_image(encode_image(Image.fromarray(synthetic_image(4, 4)), icc_profile=matrix_profile(P3, curve)))
    assert len(made) == 4
    assert len(icc._transform_cache) == 3


def test_threads_share_a_transform() -> None:
    data = encode_image(Image.fromarray(synthetic_image(64, 64)), icc_profile=matrix_profile(P3))
    expected, results = decode_image(data), []
    threads = [
        threading.Thread(target=lambda: results.extend(decode_image(data) for _ in range(20)), daemon=True)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 160
    assert all((result == expected).all() for result in results)
