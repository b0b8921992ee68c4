"""Colours as an image's ICC profile means them, brought to sRGB: a camera's Display P3, a scanner's, a press's CMYK.

A network sees numbers. The same leaf is (74, 140, 60) in one profile and (52, 141, 50) in another, so that images with profiles
left aside are images of other colours, in training and in service.
"""

import hashlib
import io
import struct
import threading
from collections import OrderedDict

import numpy as np
from PIL import Image, ImageCms

# The largest in use are of presses, some 3 MB; a longer one is no reason to refuse the image.
MAX_PROFILE_BYTES = 4 << 20  # bytes
# Of a profile's floating-point chain (`mpet`), which the ICC's own examples build of 3 to 5. Each is computed for every
# point of the table that lcms makes of the chain: 3,000 of them, 200 KB, took 9 s.
MAX_MPET_ELEMENTS = 32
PROFILE_COLOUR_SPACES = {
    "RGB": "RGB ",
    "L": "GRAY",
    "CMYK": "CMYK",
}  # Pillow's mode -> what the profile must say that it is of
# Profiles that say sRGB differ by their curves' tables; the eye sees three levels on no edge.
IDENTITY_TOLERANCE = 3  # levels of 255
MAX_TRANSFORMS = 32  # transforms; one holds up to 2 MB

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_transform_cache: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()
_lock = threading.Lock()


def to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB, if its profile is another; else, or with a broken profile, as it is.

    The modes RGB, L and CMYK have profiles; the answer is RGB where one was applied. Transparency is not carried over.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in PROFILE_COLOUR_SPACES or len(profile) > MAX_PROFILE_BYTES:
        return image
    transform = _cached_transform(profile, image.mode)
    if transform is None:
        return image
    changed: Image.Image = transform.apply(image)
    return changed


def _cached_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB, kept by the profile's bytes; None where there is nothing to do, or nothing that can be done."""
    key = (hashlib.sha256(profile).digest(), mode)
    with _lock:
        if key in _transform_cache:
            _transform_cache.move_to_end(key)
            return _transform_cache[key]
    made = _build_transform(profile, mode)
    with _lock:
        _transform_cache[key] = made
        while len(_transform_cache) > MAX_TRANSFORMS:
            _transform_cache.popitem(last=False)
    return made


def _build_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if (
            opened.profile.xcolor_space != PROFILE_COLOUR_SPACES[mode]
            or _count_mpet_elements(profile) > MAX_MPET_ELEMENTS
        ):
            return None
        transform = ImageCms.buildTransform(opened, _SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return None if mode != "CMYK" and _is_identity(transform, mode) else transform
    except Exception:  # ImageCms raises what its parsing met; the pixels are good without the profile
        return None


def _count_mpet_elements(profile: bytes) -> int:
    """How many elements the longest floating-point chain of a profile has (ICC.1:2010, 10.14)."""
    (tags,) = struct.unpack_from(">I", profile, 128)
    table = profile[132 : 132 + 12 * min(tags, 100)]  # lcms takes no more
    starts = [start for _, start, _ in struct.iter_unpack(">4sII", table[: len(table) // 12 * 12])]
    chains = [start for start in starts if profile[start : start + 4] == b"mpet"]
    return max((int.from_bytes(profile[start + 12 : start + 16], "big") for start in chains), default=0)


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a grid of colours comes out as it went in, as nearly as no eye can tell."""
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)  # every 15
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, len(levels), 3)
    grid = colours if mode == "RGB" else levels[None]
    before = np.asarray(Image.fromarray(grid).convert("RGB")).astype(int)
    after = np.asarray(transform.apply(Image.fromarray(grid))).astype(int)
    return bool(np.abs(after - before).max() <= IDENTITY_TOLERANCE)
