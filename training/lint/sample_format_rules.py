"""Rules for images whose samples are not the usual 8 bits of gray or RGB: what the decoder makes of them may surprise."""

from collections.abc import Callable

from models.spec import IGNORE_INDEX
from training.data.scan.sample_format import RGB_BANDS, SampleFormat
from training.lint.findings import Finding, LintReport

FULL_16_BITS, MAX_DARK = 65535, 8192  # an eighth of the range
FLOAT_SCALES = (1.0, 255.0, 65535.0)  # the decoder scales floats by the first that holds them
Location = tuple[str, int]


def check_sample_formats(report: LintReport) -> list[Finding]:
    """The findings about 16-bit, float, multi-band and nodata images; one of each kind."""
    return [*_check_dark(report), *_check_floats(report), *_check_bands(report), *_check_nodata(report)]


def _select(report: LintReport, wanted: Callable[[SampleFormat], bool]) -> list[Location]:
    return [
        (split, index)
        for split, all_stats in report.sample_stats.items()
        for index, stats in enumerate(all_stats)
        if wanted(stats.sample_format)
    ]


def _image(report: LintReport, location: Location) -> str:
    return str(report.datasets[location[0]].pairs[location[1]].image)


def _formats(report: LintReport, found: list[Location]) -> list[SampleFormat]:
    return [report.sample_stats[split][index].sample_format for split, index in found]


def _check_dark(report: LintReport) -> list[Finding]:
    """Images of 12 bits in 16, as cameras, microscopes and DICOM converters write them."""
    sixteen = _select(report, lambda each: each.kind == "uint16" and not each.planes)
    dark = [place for place, each in zip(sixteen, _formats(report, sixteen), strict=True) if 0 < each.high < MAX_DARK]
    if not dark or len(dark) * 2 < len(sixteen):
        return []
    highest = max(each.high for each in _formats(report, dark))
    detail = (
        f"{len(dark):,} of {len(sixteen):,} images of 16 bits use 0 to {highest:,.0f} of {FULL_16_BITS:,}, such as "
        f"{_image(report, dark[0])}; they are read as nearly black."
    )
    return [Finding("warning", "dark 16-bit images", detail, locations=(dark[0],))]


def _check_floats(report: LintReport) -> list[Finding]:
    found = _select(report, lambda each: each.kind not in ("uint8", "uint16"))
    if not found:
        return []
    highest = {location: each.high for location, each in zip(found, _formats(report, found), strict=True)}
    scales = {next((scale for scale in FLOAT_SCALES if high <= scale), high) for high in highest.values()}
    least, most = min(highest, key=highest.__getitem__), max(highest, key=highest.__getitem__)
    detail = (
        f"{len(found):,} images have {_formats(report, found)[0].kind} samples, with maxima from {highest[least]:g} "
        f"({_image(report, least)}) to {highest[most]:g} ({_image(report, most)})."
    )
    if len(scales) > 1:
        detail += " They are scaled by different factors, so one brightness gives different levels."
    return [Finding("warning", "float images", detail, locations=(least, most) if least != most else (least,))]


def _check_bands(report: LintReport) -> list[Finding]:
    found = []
    planes = _select(report, lambda each: each.planes)
    more = _select(report, lambda each: each.bands > RGB_BANDS and not each.planes)
    for title, selected in (
        ("has {bands} bands, one after the other, of which only the first is read, as gray", planes),
        ("has {bands} bands; a fourth is read as transparency, over white", more),
    ):
        if selected:
            bands = _formats(report, selected)[0].bands
            detail = (
                f"{_image(report, selected[0])} {title.format(bands=bands)}; {len(selected):,} images are like this."
            )
            found.append(Finding("warning", "image bands", detail, locations=(selected[0],)))
    return found


def _check_nodata(report: LintReport) -> list[Finding]:
    """Images with a nodata value whose masks ignore nothing: the border is then learned as a class."""
    found = [
        (split, index)
        for split, index in _select(report, lambda each: bool(each.nodata))
        if IGNORE_INDEX not in report.sample_stats[split][index].values.tolist()
    ]
    if not found:
        return []
    nodata = _formats(report, found)[0].nodata
    detail = (
        f"{len(found):,} images have nodata ({nodata}), such as {_image(report, found[0])}, and their masks ignore no pixel: "
        "missing pixels are trained on with the label that the mask has there."
    )
    return [Finding("warning", "nodata is not ignored", detail, locations=(found[0],))]
