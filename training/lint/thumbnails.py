"""A finding's images, small, as data in the page itself."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from models.errors import MaskserveError
from models.imaging.decode import Labels
from models.inference.geometry import network_input_size, resize_image
from models.spec import IGNORE_INDEX, InputRule, palette
from training.data.dataset import SegmentationDataset
from training.data.mask_decoding import RawMask
from training.lint.findings import Finding, LintReport
from training.reports.gallery import WRONG_COLOUR, jpeg_data_uri, mask_data_uri

THUMBNAIL_SIDE = 320  # pixels of the long side, at most
UNKNOWN_LABEL = 254  # the place in the palette of what is no class: the last that no class has, but in a set of 255


def render_finding(report: LintReport, finding: Finding) -> str:
    """The image of a finding with its mask over it and the mask alone; two images side by side where it speaks of two."""
    if len(finding.locations) == 2:
        panes = "".join(_image_pane(report.datasets[split], index, split) for split, index in finding.locations)
    else:
        split, index = finding.locations[0]
        panes = _overlay_panes(report.datasets[split], index)
    return f'<figure class="card"><div class="panes">{panes}</div><figcaption>{escape(finding.detail)}</figcaption></figure>'


def _image_pane(samples: SegmentationDataset, index: int, split: str) -> str:
    name = f"{samples.pairs[index].name} ({split})"
    try:
        image = samples.image(index)
    except (MaskserveError, OSError) as error:
        return _placeholder(str(error), name)
    size = thumbnail_size((image.shape[0], image.shape[1]))
    return _pane(size, name, name, photo=jpeg_data_uri(resize_image(image, size)))


def _overlay_panes(samples: SegmentationDataset, index: int) -> str:
    name = samples.pairs[index].name
    size, photo, mask_size, mask = None, "", None, ""
    try:
        image = samples.image(index)
        size = thumbnail_size((image.shape[0], image.shape[1]))
        photo = jpeg_data_uri(resize_image(image, size))
    except (MaskserveError, OSError):
        pass
    try:
        labels = thumbnail_labels(samples.raw_mask(index), samples)
        mask_size = (labels.shape[0], labels.shape[1])
        colours = palette(samples.classes)
        if len(samples.classes) <= UNKNOWN_LABEL:
            colours[UNKNOWN_LABEL] = WRONG_COLOUR
        mask = mask_data_uri(labels, colours)
    except (MaskserveError, OSError):
        pass
    # A mask of another shape is not bent to the image: that it does not fit is what is to be seen.
    fits = size and mask_size and abs(size[0] - mask_size[0]) <= 1 and abs(size[1] - mask_size[1]) <= 1
    first = _pane(size, name, "image", photo, mask if fits else "") if size else _placeholder("", "image")
    second = _pane(mask_size, name, "mask", mask=mask, kind="alone") if mask_size else _placeholder("", "mask")
    return first + second


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels on the page."""
    return network_input_size(size, InputRule(rule="fit", side=THUMBNAIL_SIDE)) if max(size) > THUMBNAIL_SIDE else size


def thumbnail_labels(values: RawMask, samples: SegmentationDataset) -> Labels:
    """uint8 H x W at the page's size, by nearest neighbour: classes, VOID, and STRANGE for what is neither."""
    array: NDArray[np.generic] = values.array
    height, width = thumbnail_size((array.shape[0], array.shape[1]))
    rows = (np.arange(height) + 0.5) * array.shape[0] / height
    columns = (np.arange(width) + 0.5) * array.shape[1] / width
    small = array[rows.astype(int)[:, None], columns.astype(int)[None]]
    there, places = np.unique(small, return_inverse=True)
    labels = []
    for value in there.tolist():
        colour = values.palette[value] if values.kind == "palette" and value < len(values.palette) else None
        label = samples.mask_encoding.decode_value(value, values.kind, colour)
        known = label is not None and (label == IGNORE_INDEX or 0 <= label < len(samples.classes))
        labels.append(label if known else UNKNOWN_LABEL)
    return np.asarray(np.array(labels, np.uint8)[places].reshape(small.shape))


def _pane(size: tuple[int, int], name: str, title: str, photo: str = "", mask: str = "", kind: str = "") -> str:
    drawn = f'<div class="photo" style="--photo:url({photo})"></div>' if photo else ""
    drawn += f'<img src="{mask}" alt="">' if mask else ""
    label = escape(name if name == title else f"{name}: {title}")
    return (
        f'<div class="pane {kind}" style="aspect-ratio:{size[1]}/{size[0]}" role="img" aria-label="{label}">{drawn}'
        f"<span>{escape(title)}</span></div>"
    )


def _placeholder(why: str, title: str) -> str:
    return f'<div class="pane none">{escape(why or "cannot be read")}<span>{escape(title)}</span></div>'
