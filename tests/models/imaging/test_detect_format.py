"""Format detection, and the advice for formats that are not supported."""

import base64
import gzip
import struct

import pytest

from models.errors import UnsupportedFormatError
from models.imaging.decode import FORMATS, decode_image
from models.imaging.detect_format import SIGNATURE_OFFSETS, UNSUPPORTED_SIGNATURES, detect_format
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image, grey_page, isobmff_box, make_tiff

JPEG = encode_image(synthetic_image(8, 8), "JPEG")


def ftyp_box(major: bytes, *compatible: bytes) -> bytes:
    return isobmff_box(b"ftyp", major, bytes(4), *compatible) + bytes(100)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_detected_by_its_first_bytes(format: str) -> None:
    data = encode_image(synthetic_image(8, 8), format)
    assert detect_format(data) == format
    assert detect_format(data[:64]) == format


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (b"II+\0\x08\0\0\0" + bytes(8), "TIFF"),
        (b"MM\0+\0\x08\0\0" + bytes(8), "TIFF"),
        (ftyp_box(b"avif", b"mif1"), "AVIF"),
        (ftyp_box(b"avis", b"msf1"), "AVIF"),
        (ftyp_box(b"mif1", b"miaf", b"avif"), "AVIF"),
        (ftyp_box(b"avif")[:12], "AVIF"),
        (b"BM" + bytes(10), "BMP"),
    ],
    ids=["bigtiff", "bigtiff, other order", "avif", "sequence", "mif1", "cut avif", "cut bmp"],
)
def test_other_signatures_of_supported_formats(data: bytes, format: str) -> None:
    assert detect_format(data) == format


# Name -> bytes, and a word of the advice.
UNSUPPORTED_FILES: dict[str, tuple[bytes, str]] = {
    "gif": (encode_image(synthetic_image(8, 8), "GIF"), "GIF; save one frame"),
    "ico": (encode_image(synthetic_image(16, 16), "ICO"), "ICO"),
    "eps": (encode_image(synthetic_image(8, 8), "EPS"), "PostScript"),
    "eps with a preview": (b"\xc5\xd0\xd3\xc6" + bytes(30), "PostScript"),
    "pdf": (encode_image(synthetic_image(8, 8), "PDF"), "PDF; render"),
    "psd": (b"8BPS\0\1" + bytes(30), "Photoshop"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>", "SVG"),
    "svg after a declaration": (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a -->\n<svg/>", "SVG"),
    "xml": (b"<?xml version='1.0'?><annotation/>", "XML"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "HTML"),
    "hdr": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n", "Radiance"),
    "exr": (b"\x76\x2f\x31\x01" + bytes(30), "OpenEXR"),
    "heic": (ftyp_box(b"heic", b"mif1", b"heic"), "iPhone"),
    "heif by another brand": (ftyp_box(b"mif1", b"heix"), "iPhone"),
    "heic that also names avif": (ftyp_box(b"heic", b"mif1", b"avif"), "iPhone"),
    "mp4": (ftyp_box(b"isom", b"mp42"), "video"),
    "quicktime": (ftyp_box(b"qt  "), "video"),
    "old quicktime": (isobmff_box(b"moov", bytes(20)), "video"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(30), "video"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "video"),
    "wav": (b"RIFF\x24\0\0\0WAVEfmt ", "sound"),
    "jpeg 2000": (encode_image(synthetic_image(8, 8), "JPEG2000"), "JPEG 2000"),
    "jpeg 2000 stream": (encode_image(synthetic_image(8, 8), "JPEG2000", no_jp2=True), "JPEG 2000"),
    "jpeg xl": (b"\xff\x0a" + bytes(30), "JPEG XL"),
    "jpeg xl in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), "JPEG XL"),
    "jpeg xr": (b"II\xbc\1" + bytes(30), "JPEG XR"),
    "canon raw": (b"II*\0\x10\0\0\0CR\2\0" + bytes(30), "camera"),
    "dng": (make_tiff(grey_page(16, 8, (254, 4, [1]), (50706, 4, [0x01040000]))), "camera"),
    "raw with its image below": (make_tiff(grey_page(16, 8, (254, 4, [1]), (330, 4, [8]))), "camera"),
    "sensor's samples": (make_tiff(([*grey_page(16, 8)[0][:4], (262, 3, [32803])], bytes(128))), "camera"),
    "ppm": (encode_image(synthetic_image(8, 8), "PPM"), "PNM"),
    "pgm in text": (b"P2\n1 1\n255\n0\n", "PNM"),
    "pfm": (b"PF\n1 1\n-1.0\n" + bytes(12), "PNM"),
    "tga": (encode_image(synthetic_image(8, 8), "TGA"), "TGA"),
    "fits": (b"SIMPLE  =                    T", "FITS"),
    "dicom": (bytes(128) + b"DICM" + bytes(30), "DICOM"),
    "nifti": (bytes(344) + b"n+1\0" + bytes(30), "NIfTI volume; export the slice as PNG"),
    "nifti-2": (b"\x1c\2\0\0n+2\0\r\n\x1a\n" + bytes(500), "NIfTI volume"),
    "nifti-gz": (gzip.compress(bytes(344) + b"n+1\0" + bytes(100_000), mtime=0), "NIfTI volume.*nii.gz"),
    "nrrd": (b"NRRD0005\ntype: uint8\n", "NRRD volume"),
    "numpy": (b"\x93NUMPY\1\0" + bytes(30), "NumPy"),
    "zip": (b"PK\3\4" + bytes(30), "ZIP"),
    "tar": (bytes(257) + b"ustar\0" + bytes(300), "tar"),
    "gzip": (b"\x1f\x8b\x08" + JPEG, "gzip"),
    "url": (b"http://example.org/a.jpg", "not fetched"),
    "file url": (b"file:///etc/passwd", "not fetched"),
    "data url": (b"data:image/jpeg;base64," + base64.b64encode(JPEG), "data URL"),
    "base64": (base64.b64encode(JPEG), "base64"),
    "base64 of an avif": (base64.b64encode(encode_image(synthetic_image(8, 8), "AVIF")), "base64"),
    "json": (b'{"image": "..."}', "JSON"),
    "text": (b"no image at all", "text"),
    "text that begins like a BMP": (b"BMP images are uncompressed.", "text"),
    "text that begins like a TIFF": (b"MMM", "text"),
    "zeros": (bytes(1000), "not an image in a known format"),
    "one byte": (b"\xff", "not an image in a known format"),
    "two bytes of a jpeg": (b"\xff\xd8", "not an image in a known format"),
    "white space": (b" \n\t", "not an image in a known format"),
}


@pytest.mark.parametrize(("data", "word"), UNSUPPORTED_FILES.values(), ids=UNSUPPORTED_FILES)
def test_unsupported_formats_are_named_with_advice(data: bytes, word: str) -> None:
    with pytest.raises(
        UnsupportedFormatError, match=f"^These {len(data):,} bytes are .*{word}.* Supported formats are JPEG, PNG"
    ):
        decode_image(data)


@pytest.mark.parametrize("signature", UNSUPPORTED_SIGNATURES)
def test_every_signature_is_found(signature: bytes) -> None:
    offset = SIGNATURE_OFFSETS.get(signature, 0)
    with pytest.raises(UnsupportedFormatError) as refused:
        detect_format(bytes(offset) + signature + bytes(50))
    assert UNSUPPORTED_SIGNATURES[signature] in str(refused.value)


@pytest.mark.parametrize("length", [0, 1, 8, 15, 2**32 - 1])
def test_a_brands_box_of_any_length(length: int) -> None:
    data = struct.pack(">I", length) + ftyp_box(b"avif", b"mif1")[4:]
    assert detect_format(data) == "AVIF"
