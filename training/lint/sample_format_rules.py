"""Rules for images that are no photographs: other channels, more than 8 bits, floats, nodata, georeference."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.errors import MaskserveError
from models.imaging.decode import decode_file
from models.readers import read_sample
from models.readers.names import is_generic
from models.readers.prepare import MAX_MAGNITUDE
from models.sample import Frame
from models.spec import RGB_CHANNELS
from training.data.scan.sample_format import SampleFormat
from training.lint.findings import Finding, LintReport

FULL_16_BITS, MAX_DARK = 65535, 8192  # an eighth of the range
MIN_SCALE_GAP = 16.0  # between the ranges of two groups of files: 0..1 and 0..255, or 0..1 and 0..10,000
USUAL_NODATA = (-9999.0, -32768.0)  # that are no measurement where everything else is positive
MAX_SHIFT = 0.05  # pixels between an image and its mask
Location = tuple[str, int]


def check_sample_formats(report: LintReport) -> list[Finding]:
    """The findings about channels, types, scales, missing pixels and position; one of each kind."""
    located = [
        ((split, index), stats.sample_format)
        for split, all_stats in report.sample_stats.items()
        for index, stats in enumerate(all_stats)
        if stats.size
    ]
    if not any(form.channels for _, form in located):
        return []
    found = [
        *_check_channels(report, located), *_check_scales(report, located), *_check_stretch(report, located),
        *_check_missing(report, located), *_check_constant(report, located), *_check_georeference(report, located),
    ]  # fmt: skip
    return found


def _image(report: LintReport, location: Location) -> str:
    return str(report.datasets[location[0]].pairs[location[1]].image)


Located = list[tuple[Location, SampleFormat]]


def _check_channels(report: LintReport, located: Located) -> list[Finding]:
    """Files of other channels or another type than most. Names may be in any order."""

    counts = Counter(_channel_key(form) for _, form in located)
    usual, number = counts.most_common(1)[0]
    other = [place for place, form in located if _channel_key(form) != usual]
    findings = []
    if other:
        first = next((place, form) for place, form in located if _channel_key(form) == usual)
        odd = dict(located)[other[0]]
        shared = {name.lower() for name in odd.channels if not is_generic(name)} & {
            n.lower() for n in first[1].channels
        }
        detail = (
            f"{_image(report, other[0])} has {_describe(odd)}, and {number:,} images, such as {_image(report, first[0])}, have "
            f"{_describe(first[1])}; {len(other):,} of {len(located):,} images differ."
        )
        level = "warning" if shared and odd.dtype == first[1].dtype else "error"  # a subset by name may be in all
        findings.append(Finding(level, "different channels", detail, locations=(other[0], first[0])))
    orders = Counter(form.channels for _, form in located if _channel_key(form) == usual)
    if len(orders) > 1 and usual[2]:
        listed = " and ".join(", ".join(names) for names, _ in orders.most_common(2))
        detail = f"The channels are in different orders ({listed}); they are read by name."
        findings.append(Finding("note", "different channels", detail))
    return findings


def _channel_key(form: SampleFormat) -> tuple[str, int, tuple[str, ...]]:
    """Equal for files that can be read as one: the type, the number of channels, and their names if they have some."""
    if form.dtype == "uint8" and form.channels in ((), RGB_CHANNELS, ("gray",)):
        return "uint8", 0, ()
    named = not all(map(is_generic, form.channels))
    return form.dtype, len(form.channels), tuple(sorted(name.lower() for name in form.channels)) if named else ()


def _describe(form: SampleFormat) -> str:
    if not form.channels:
        return "gray or RGB of uint8"
    return f"{len(form.channels)} channels of {form.dtype} ({', '.join(form.channels)})"


def scale_gap(forms: list[SampleFormat]) -> tuple[int, int] | None:
    """The indices of a file of the smaller and of the larger scale, if the files have two scales; None otherwise."""
    spans = [
        max((high - min(low, 0.0) for low, high in zip(form.low, form.high, strict=True)), default=0.0)
        for form in forms
    ]
    order = [index for index in np.argsort(spans).tolist() if spans[index] > 0]
    for before, after in itertools.pairwise(order):
        if spans[after] >= MIN_SCALE_GAP * spans[before]:
            return before, after
    return None


def _check_scales(report: LintReport, located: Located) -> list[Finding]:
    chosen = [(place, form) for place, form in located if form.channels and form.valid > 0]
    gap = scale_gap([form for _, form in chosen])
    if gap is None:
        return []
    (small, least), (large, most) = chosen[gap[0]], chosen[gap[1]]
    detail = (
        f"The files have different scales: {_image(report, small)} goes up to {max(least.high):g}, {_image(report, large)} up to "
        f"{max(most.high):g}."
    )
    return [Finding("warning", "different scales", detail, locations=(small, large))]


def _check_stretch(report: LintReport, located: Located) -> list[Finding]:
    """Images of 12 bits in 16, as cameras, microscopes and DICOM converters write them; and floats, whose range is not known."""
    findings = []
    for dtype in ("uint16", "int16", "float32"):
        chosen = [(place, form) for place, form in located if form.dtype == dtype and form.channels and form.valid > 0]
        if not chosen or scale_gap([form for _, form in chosen]) is not None:  # the scale is a finding of its own
            continue
        first = _image(report, chosen[0][0])
        highest = max(max(form.largest) for _, form in chosen)
        low, high = min(min(form.low) for _, form in chosen), max(max(form.high) for _, form in chosen)
        if dtype == "uint16":
            used = f"{len(chosen):,} images of 16 bits use 0 to {highest:,.0f} of {FULL_16_BITS:,}, such as {first}"
        else:
            used = f"{len(chosen):,} images of {dtype} have values from {low:.6g} to {high:.6g} (99% of each), such as {first}"
        if dtype != "uint16" or 0 < highest < MAX_DARK:
            detail = f"{used}; training stretches the range that they use, which is the same for all."
            findings.append(Finding("note", "stretched samples", detail, locations=(chosen[0][0],)))
    return findings


def _check_missing(report: LintReport, located: Located) -> list[Finding]:
    findings = []
    cases: tuple[tuple[str, str, str, Callable[[SampleFormat], bool]], ...] = (
        ("warning", "image without data", "has no valid pixel", lambda form: form.valid == 0),
        (
            "warning",
            "missing pixels",
            "has samples that are NaN, infinite or beyond 1e20",
            lambda form: form.finite < 1 and not _names_no_number(form),
        ),
        (
            "warning",
            "suspected nodata",
            "has samples of {mark:g}, which no measurement is",
            lambda form: _mark(form) is not None,
        ),
        (
            "note",
            "nodata",
            "marks pixels as missing",
            lambda form: 0 < form.valid < 1 and (form.finite == 1 or _names_no_number(form)),
        ),
    )
    for level, kind, text, applies in cases:
        places = [place for place, form in located if applies(form)]
        if places:
            mark = _mark(dict(located)[places[0]]) or 0.0
            detail = f"{_image(report, places[0])} {text.format(mark=mark)}; images like this: {len(places):,}."
            findings.append(Finding(level, kind, detail, locations=(places[0],)))
    return findings


def _names_no_number(form: SampleFormat) -> bool:
    """Whether the file itself names NaN or a mark such as 1e30 as its value of missing pixels."""
    return form.nodata is not None and not abs(form.nodata) < MAX_MAGNITUDE


def _mark(form: SampleFormat) -> float | None:
    """A value of samples that looks like a mark of missing data which the file does not name."""
    for low, high, smallest, largest in zip(form.low, form.high, form.smallest, form.largest, strict=True):
        if smallest in USUAL_NODATA and smallest != form.nodata and max(low, high) > 0 and largest > 0:
            return smallest
    return None


def _check_constant(report: LintReport, located: Located) -> list[Finding]:
    forms = [form for _, form in located if form.channels and form.valid > 0]
    names = forms[0].channels if forms else ()
    same = [form for form in forms if form.channels == names]
    constant = [
        name
        for index, name in enumerate(names)
        if min(form.smallest[index] for form in same) == max(form.largest[index] for form in same)
    ]
    if constant:
        detail = f"The channel {', '.join(constant)} has the same value in every pixel of all {len(same):,} images."
        return [Finding("warning", "constant channel", detail)]
    places = [
        place for place, form in located if form.valid > 0 and 0 < len(_constant_channels(form)) < len(form.channels)
    ]
    if not places:
        return []
    names_there = ", ".join(_constant_channels(dict(located)[places[0]]))
    detail = f"{_image(report, places[0])} has the same value in every pixel of {names_there}; images like this: {len(places):,}."
    return [Finding("warning", "constant channel", detail, locations=(places[0],))]


def _constant_channels(form: SampleFormat) -> list[str]:
    return [name for name, low, high in zip(form.channels, form.smallest, form.largest, strict=True) if low == high]


def _check_georeference(report: LintReport, located: Located) -> list[Finding]:
    """Masks whose GeoTIFF says that they lie elsewhere than their image."""
    for place, form in located:
        mask = report.datasets[place[0]].pairs[place[1]].mask
        frame = _mask_frame(mask) if form.affine else None
        if frame and frame.crs and form.crs and frame.crs != form.crs:
            detail = (
                f"{mask} is in {frame.crs}, and its image {_image(report, place)} in {form.crs}, by their GeoTIFF tags."
            )
            return [Finding("error", "georeference differs", detail, locations=(place,))]
        other = frame.affine if frame else None
        if not other:
            continue
        size = report.sample_stats[place[0]][place[1]].size or (1, 1)
        pixel = max(abs(form.affine[0]), abs(form.affine[1]), 1e-300)
        corners = ((0, 0), (size[1], size[0]))
        shift = max(
            abs(
                sum(
                    (a - b) * c
                    for a, b, c in zip(form.affine[row : row + 3], other[row : row + 3], (x, y, 1), strict=True)
                )
            )
            for x, y in corners
            for row in (0, 3)
        )
        if shift > MAX_SHIFT * pixel:
            detail = f"{mask} lies up to {shift / pixel:,.1f} pixels from its image {_image(report, place)}, by their GeoTIFF tags."
            return [Finding("error", "georeference differs", detail, locations=(place,))]
    return []


def _mask_frame(mask: Path) -> Frame | None:
    """The georeference of a mask that is a GeoTIFF; None otherwise."""
    if mask.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        return decode_file(mask, read_sample).frame
    except MaskserveError:
        return None
