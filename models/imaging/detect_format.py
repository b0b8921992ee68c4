"""Detects the format of an image from its first bytes, and names other formats with advice.

Pillow reads some fifty formats and many are attack surface, so nothing reaches a library before this check.
"""

import re
import struct
import zlib

from models.errors import UnsupportedFormatError

READABLE_FORMATS = "JPEG, PNG, WebP, TIFF, BMP or AVIF"

# First bytes of the readable formats. WebP and AVIF are named inside a container that other formats use too.
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF, of more than 4 GB
    b"MM\0+": "TIFF",
}
BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes; a text may begin with `BM` too

# Signature -> what it is, and what to do. Signatures are at the start of the file unless listed here.
SIGNATURE_OFFSETS = {b"ustar": 257, b"DICM": 128, b"n+1\0": 344, b"n+2\0": 4}  # bytes
NIFTI_ADVICE = "a NIfTI volume; export the slice as PNG or TIFF"
UNSUPPORTED_SIGNATURES = {
    b"GIF8": "a GIF; save one frame of it as PNG",
    b"\0\0\1\0": "an icon (ICO); save its largest image as PNG",
    b"\0\0\2\0": "a cursor (CUR) or a TGA; save it as PNG",
    b"icns": "an icon (ICNS); save its largest image as PNG",
    b"%!PS": "PostScript (EPS), a vector format; render it to PNG",
    b"\xc5\xd0\xd3\xc6": "PostScript (EPS), a vector format; render it to PNG",
    b"%PDF": "a PDF; render the page that you want to PNG",
    b"8BPS": "a Photoshop document (PSD); export it as PNG or TIFF",
    b"gimp xcf": "a GIMP document (XCF); export it as PNG or TIFF",
    b"#?RADIANCE": "a Radiance HDR image; tone-map it and save it as PNG or 16-bit TIFF",
    b"#?RGBE": "a Radiance HDR image; tone-map it and save it as PNG or 16-bit TIFF",
    b"\x76\x2f\x31\x01": "an OpenEXR image; tone-map it and save it as PNG or 16-bit TIFF",
    b"\0\0\0\x0cjP  ": "a JPEG 2000; save it as JPEG, PNG or TIFF",
    b"\xff\x4f\xff\x51": "a JPEG 2000; save it as JPEG, PNG or TIFF",
    b"\xff\x0a": "a JPEG XL; save it as JPEG or PNG",
    b"\0\0\0\x0cJXL ": "a JPEG XL; save it as JPEG or PNG",
    b"II\xbc": "a JPEG XR; save it as JPEG, PNG or TIFF",
    b"IIU\0": "a camera's raw file (RW2); develop it and export a JPEG or a TIFF",
    b"IIRO": "a camera's raw file (ORF); develop it and export a JPEG or a TIFF",
    b"FUJIFILMCCD-RAW": "a camera's raw file (RAF); develop it and export a JPEG or a TIFF",
    b"qoif": "a QOI; save it as PNG",
    b"DDS ": "a texture (DDS); save it as PNG",
    b"SIMPLE  =": "a FITS; scale its samples and save it as 16-bit TIFF",
    b"DICM": "a DICOM; export the slice as PNG or TIFF",
    b"n+1\0": NIFTI_ADVICE,
    b"n+2\0": NIFTI_ADVICE,
    b"NRRD000": "an NRRD volume; export the slice as PNG or TIFF",
    b"\x89HDF": "an HDF5; export the image in it as PNG or TIFF",
    b"\x93NUMPY": "a NumPy array; save it as PNG or TIFF",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile (WMF), a vector format; render it to PNG",
    b"\x1aE\xdf\xa3": "a video (WebM or Matroska); send one frame of it as JPEG or PNG",
    b"\0\0\1\xba": "a video (MPEG); send one frame of it as JPEG or PNG",
    b"\0\0\1\xb3": "a video (MPEG); send one frame of it as JPEG or PNG",
    b"FLV\1": "a video (FLV); send one frame of it as JPEG or PNG",
    b"OggS": "Ogg sound or video; send an image",
    b"ID3": "sound (MP3); send an image",
    b"fLaC": "sound (FLAC); send an image",
    b"PK\3\4": "a ZIP archive; unpack it and send the images",
    b"PK\5\6": "an empty ZIP archive; send an image",
    b"\x1f\x8b": "a gzip; unpack it and send the image",
    b"BZh": "a bzip2; unpack it and send the image",
    b"\xfd7zXZ\0": "an xz; unpack it and send the image",
    b"\x28\xb5\x2f\xfd": "a zstd; unpack it and send the image",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it and send the images",
    b"Rar!": "a RAR archive; unpack it and send the images",
    b"ustar": "a tar archive; unpack it and send the images",
    b"\x7fELF": "a program; send an image",
    b"MZ": "a program; send an image",
}

# Brands of files of ISO boxes (`ftyp`).
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
HEIC_ADVICE = (
    "a HEIC, as iPhones take them; send it as JPEG (on the phone: Settings, Camera, Formats, Most Compatible; or share "
    "the photograph by mail)"
)
VIDEO_ADVICE = "a video (MP4 or QuickTime); send one frame of it as JPEG or PNG"

# Kinds of text, by the first characters in lower case, without leading white space.
TEXT_PATTERNS = [
    (rb"<(\?xml|!--|!doctype svg|svg)[\s\S]*<svg|<svg", "an SVG, a vector format; render it to PNG"),
    (rb"<!doctype html|<html|<head|<body", "an HTML page, perhaps an error page saved as an image; open it in an editor"),
    (rb"<", "XML; send an image"),
    (rb"data:image/[^,]{0,99},", "a data URL; decode its base64 and send the bytes"),
    (rb"(https?|ftp|file|s3|gs)://\S", "a URL, which is not fetched; send the bytes of the image"),
    (rb"/9j/|ivborw0kgg|r0lgod|uklgr|sukq|tu0a|aaaa..z0ex", "an image as base64 text; decode it and send the bytes"),
    (rb"[{\[]", "JSON; send the bytes of the image"),
    (rb"p[1-7f]\s", "a PNM (PPM, PGM, PBM, PFM); save it as PNG"),
    (rb"/\* xpm", "an XPM; save it as PNG"),
    (rb"#define \w+_width", "an XBM; save it as PNG"),
]  # fmt: skip
MAX_TEXT_BYTES = 4096  # bytes of a text that are read


def detect_format(data: bytes) -> str:
    """Pillow's name of the format that the bytes begin like: JPEG, PNG, WEBP, TIFF, BMP or AVIF.

    The rest of the file may be corrupt. Raises: UnsupportedFormatError for other formats; it names them, with advice.
    """
    head = data[:16]
    for first, name in SIGNATURES.items():
        if head.startswith(first):
            if name == "TIFF" and data[8:11] == b"CR\2":  # Canon's raw files begin like a TIFF that holds a thumbnail
                raise unsupported_format_error(data, camera_raw_advice("CR2"))
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and (len(data) < 18 or (data[14] in BMP_HEADER_SIZES and data[15:18] == b"\0\0\0")):
        return "BMP"
    if head[4:8] == b"ftyp":
        brands = _brands(data)
        if AVIF_BRANDS & set(brands) and brands[0] not in HEIC_BRANDS:
            return "AVIF"
    raise unsupported_format_error(data, _describe_unsupported(data))


def unsupported_format_error(data: bytes, description: str) -> UnsupportedFormatError:
    """The error for bytes in another format: `description` names it and says what to do."""
    return UnsupportedFormatError(
        f"These {len(data):,} bytes are {description}. Supported formats are {READABLE_FORMATS}."
    )


def camera_raw_advice(kind: str) -> str:
    """The description of a camera's raw file, with advice."""
    return f"a camera's raw file ({kind}); develop it and export a JPEG or a TIFF"


def _brands(data: bytes) -> list[bytes]:
    """The major brand and the compatible ones of the `ftyp` box that the bytes begin with (ISO/IEC 14496-12, 4.3)."""
    (length,) = struct.unpack(">I", data[:4])
    box = data[8 : min(length, MAX_TEXT_BYTES)] if length >= 16 else data[8:12]
    return [box[offset : offset + 4] for offset in range(0, len(box) - 3, 4) if offset != 4]  # 4: the version


def _describe_unsupported(data: bytes) -> str:
    if data.startswith(b"\x1f\x8b") and _unpack_start(data)[344:348] == b"n+1\0":
        return f"{NIFTI_ADVICE} (.nii.gz)"
    for signature, what in UNSUPPORTED_SIGNATURES.items():
        if data.startswith(signature, SIGNATURE_OFFSETS.get(signature, 0)):
            return what
    if data[4:8] == b"ftyp":
        brands = set(_brands(data))
        return HEIC_ADVICE if brands & HEIC_BRANDS or brands <= {b"mif1", b"msf1", b"miaf"} else VIDEO_ADVICE
    if data[4:8] in (b"moov", b"mdat", b"wide", b"skip", b"free"):
        return VIDEO_ADVICE
    if data[:4] == b"RIFF":
        return "a video (AVI); send one frame of it as JPEG or PNG" if data[8:12] == b"AVI " else "sound; send an image"
    text = data[:MAX_TEXT_BYTES].removeprefix(b"\xef\xbb\xbf").strip().lower()
    for pattern, what in TEXT_PATTERNS:
        if re.match(pattern, text):
            return what
    if text and not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f-\xff]", text):
        return "text; send an image"
    return "not an image in a known format (or a TGA, which has no signature); save it as PNG"


def _unpack_start(data: bytes) -> bytes:
    """The first bytes of what a gzip holds, at most MAX_TEXT_BYTES; nothing if it is damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data[:MAX_TEXT_BYTES], MAX_TEXT_BYTES)
    except zlib.error:
        return b""
