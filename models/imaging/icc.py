"""Converts images to sRGB by their ICC profile: a camera's Display P3, a scanner's, a press's CMYK.

The same leaf is (74, 140, 60) in one profile and (52, 141, 50) in another. Without the conversion the network would get
other colors in training than in service.
"""

import hashlib
import io
import threading
from collections import OrderedDict

import numpy as np
from PIL import Image, ImageCms

from models.imaging.icc_limits import has_costly_chain

MAX_PROFILE_BYTES = 4 << 20  # the largest in use, of presses, have 3 MB; a larger one is ignored
PROFILE_COLOR_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode -> color space of a usable profile
# Profiles of sRGB differ in the tables of their curves; a difference of three levels is not visible at any edge.
IDENTITY_TOLERANCE = 3  # levels of 255
MAX_TRANSFORMS = 32  # in the cache; one holds up to 2 MB

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_transform_cache: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()
_lock = threading.Lock()


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image of mode RGB, L or CMYK to sRGB by its profile.

    Returns: an RGB image without transparency; the image itself if it has no profile, a corrupt one, or sRGB's.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in PROFILE_COLOR_SPACES or len(profile) > MAX_PROFILE_BYTES:
        return image
    transform = _cached_transform(profile, image.mode)
    if transform is None:
        return image
    converted: Image.Image = transform.apply(image)
    return converted


def _cached_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB, cached by the profile's hash; None if it is the identity or cannot be built."""
    key = (hashlib.sha256(profile).digest(), mode)
    with _lock:
        if key in _transform_cache:
            _transform_cache.move_to_end(key)
            return _transform_cache[key]
    transform = _build_transform(profile, mode)
    with _lock:
        _transform_cache[key] = transform
        while len(_transform_cache) > MAX_TRANSFORMS:
            _transform_cache.popitem(last=False)
    return transform


def _build_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space != PROFILE_COLOR_SPACES[mode] or has_costly_chain(profile):
            return None
        transform = ImageCms.buildTransform(opened, _SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return None if mode != "CMYK" and _is_identity(transform, mode) else transform
    except Exception:  # ImageCms raises exceptions of any class; the pixels are usable without the profile
        return None


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform changes no color of a grid by more than IDENTITY_TOLERANCE."""
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)  # every 15
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, len(levels), 3)
    grid = colors if mode == "RGB" else levels[None]
    before = np.asarray(Image.fromarray(grid).convert("RGB")).astype(int)
    after = np.asarray(transform.apply(Image.fromarray(grid))).astype(int)
    return bool(np.abs(after - before).max() <= IDENTITY_TOLERANCE)
