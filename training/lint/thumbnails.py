"""A finding's pictures, small, as data in the page itself."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from models.errors import MaskserveError
from models.imaging.decode import Labels
from models.inference.geometry import fitted_size, resize_picture
from models.spec import VOID, InputRule, palette
from training.data.dataset import Samples
from training.data.mask_decoding import Values
from training.lint.findings import Finding, Report
from training.reports.gallery import WRONG, mask_png, photo_jpeg

SIDE = 320  # pixels of the long side, at most
STRANGE = 254  # the place in the palette of what is no class: the last that no class has, but in a set of 255


def card(report: Report, finding: Finding) -> str:
    """The picture of a finding with its mask over it and the mask alone; two pictures side by side where it speaks of two."""
    if len(finding.where) == 2:
        panes = "".join(_photo(report.samples[split], index, split) for split, index in finding.where)
    else:
        split, index = finding.where[0]
        panes = _mask_on_picture(report.samples[split], index)
    return f'<figure class="card"><div class="panes">{panes}</div><figcaption>{escape(finding.detail)}</figcaption></figure>'


def _photo(samples: Samples, index: int, split: str) -> str:
    name = f"{samples.pairs[index].name} ({split})"
    try:
        picture = samples.picture(index)
    except (MaskserveError, OSError) as error:
        return _nothing(str(error), name)
    size = shown_size((picture.shape[0], picture.shape[1]))
    return _pane(size, name, name, photo=photo_jpeg(resize_picture(picture, size)))


def _mask_on_picture(samples: Samples, index: int) -> str:
    name = samples.pairs[index].name
    size, photo, mask_size, mask = None, "", None, ""
    try:
        picture = samples.picture(index)
        size = shown_size((picture.shape[0], picture.shape[1]))
        photo = photo_jpeg(resize_picture(picture, size))
    except (MaskserveError, OSError):
        pass
    try:
        labels = shown_labels(samples.values(index), samples)
        mask_size = (labels.shape[0], labels.shape[1])
        colours = palette(samples.classes)
        if len(samples.classes) <= STRANGE:
            colours[STRANGE] = WRONG
        mask = mask_png(labels, colours)
    except (MaskserveError, OSError):
        pass
    # A mask of another shape is not bent to the picture: that it does not fit is what is to be seen.
    fits = size and mask_size and abs(size[0] - mask_size[0]) <= 1 and abs(size[1] - mask_size[1]) <= 1
    first = _pane(size, name, "picture", photo, mask if fits else "") if size else _nothing("", "picture")
    second = _pane(mask_size, name, "mask", mask=mask, kind="alone") if mask_size else _nothing("", "mask")
    return first + second


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels on the page."""
    return fitted_size(size, InputRule(rule="fit", side=SIDE)) if max(size) > SIDE else size


def shown_labels(values: Values, samples: Samples) -> Labels:
    """uint8 H x W at the page's size, by nearest neighbour: classes, VOID, and STRANGE for what is neither."""
    array: NDArray[np.generic] = values.array
    height, width = shown_size((array.shape[0], array.shape[1]))
    rows = (np.arange(height) + 0.5) * array.shape[0] / height
    columns = (np.arange(width) + 0.5) * array.shape[1] / width
    small = array[rows.astype(int)[:, None], columns.astype(int)[None]]
    there, places = np.unique(small, return_inverse=True)
    labels = []
    for value in there.tolist():
        colour = values.palette[value] if values.kind == "palette" and value < len(values.palette) else None
        label = samples.meaning.label(value, values.kind, colour)
        known = label is not None and (label == VOID or 0 <= label < len(samples.classes))
        labels.append(label if known else STRANGE)
    return np.asarray(np.array(labels, np.uint8)[places].reshape(small.shape))


def _pane(size: tuple[int, int], name: str, title: str, photo: str = "", mask: str = "", kind: str = "") -> str:
    drawn = f'<div class="photo" style="--photo:url({photo})"></div>' if photo else ""
    drawn += f'<img src="{mask}" alt="">' if mask else ""
    label = escape(name if name == title else f"{name}: {title}")
    return (
        f'<div class="pane {kind}" style="aspect-ratio:{size[1]}/{size[0]}" role="img" aria-label="{label}">{drawn}'
        f"<span>{escape(title)}</span></div>"
    )


def _nothing(why: str, title: str) -> str:
    return f'<div class="pane none">{escape(why or "cannot be read")}<span>{escape(title)}</span></div>'
