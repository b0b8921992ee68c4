"""The images of a finding as thumbnails, embedded in the page as data URIs."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.errors import MaskserveError
from models.imaging.decode import Labels
from models.inference.geometry import network_input_size, resize_image, resize_labels
from models.inference.segmenter import Segmenter
from models.spec import IGNORE_INDEX, InputRule, palette
from training.data.dataset import SegmentationDataset
from training.data.mask_decoding import RawMask
from training.lint.findings import Finding, LintReport
from training.lint.label_noise import suspect_pixels
from training.reports.gallery import WRONG_COLOR, jpeg_data_uri, mask_data_uri
from training.reports.planes import three_planes
from training.reports.traces import draw_trace

THUMBNAIL_SIDE = 320  # pixels of the longer side, at most
TRACE_SIZE = (200, 640)  # (height, width) of a recording, in pixels
UNKNOWN_LABEL = 254  # palette index of pixels without a class; only with 255 classes it is also a class


@dataclass(frozen=True)
class Pane:
    """One thumbnail of a card: an image, a mask, or both; or a message about what could not be read."""

    title: str
    label: str = ""  # for screen readers
    size: tuple[int, int] | None = None  # (height, width) of the thumbnail; None if it could not be read
    photo: str = ""  # data URI of the image
    mask: str = ""  # data URI of the mask
    style: str = ""  # CSS class
    error: str = "cannot be read"


def finding_panes(report: LintReport, finding: Finding) -> list[Pane]:
    """The two images of a finding; or its one image with the mask on top, and the mask alone."""
    if len(finding.locations) == 2:
        return [_image_pane(report.datasets[split], index, split) for split, index in finding.locations]
    split, index = finding.locations[0]
    if report.datasets[split].axes == "T":
        return [_trace_pane(report.datasets[split], index)]
    if report.datasets[split].axes == "DHW":
        return [_planes_pane(report.datasets[split], index)]
    return _overlay_panes(report.datasets[split], index)


def _trace_pane(dataset: SegmentationDataset, index: int) -> Pane:
    """The curves of a recording with its labels behind them."""
    name = dataset.pairs[index].name
    try:
        sample = dataset.sample(index)
    except (MaskserveError, OSError) as error:
        return Pane(name, error=str(error))
    try:
        labels = dataset.labels(index)
    except (MaskserveError, OSError):
        labels = np.full(len(sample.values), IGNORE_INDEX, np.uint8)
    image = draw_trace(sample.values, labels, dataset.classes, TRACE_SIZE, sample.channels)
    return Pane("recording", f"{name}: recording", TRACE_SIZE, photo=jpeg_data_uri(image))


def _planes_pane(dataset: SegmentationDataset, index: int) -> Pane:
    """Three slices of a volume, with its labels if they have its shape."""
    name = dataset.pairs[index].name
    try:
        sample = dataset.sample(index)
    except (MaskserveError, OSError) as error:
        return Pane(name, error=str(error))
    try:
        labels = dataset.labels(index)
    except (MaskserveError, OSError):
        labels = np.zeros(sample.size, np.uint8)
    fits = labels.shape == sample.size
    image, (shown,) = three_planes(sample, labels if fits else np.zeros(sample.size, np.uint8))
    mask = mask_data_uri(shown, palette(dataset.classes), transparent=0) if fits else ""
    size = (image.shape[0], image.shape[1])
    return Pane("volume", f"{name}: three slices", size, photo=jpeg_data_uri(image), mask=mask)


def _image_pane(dataset: SegmentationDataset, index: int, split: str) -> Pane:
    name = f"{dataset.pairs[index].name} ({split})"
    if dataset.axes == "DHW":
        return replace(_planes_pane(dataset, index), title=name)
    try:
        image = dataset.rgb(index)
    except (MaskserveError, OSError) as error:
        return Pane(name, error=str(error))
    size = thumbnail_size((image.shape[0], image.shape[1]))
    return Pane(name, name, size, photo=jpeg_data_uri(resize_image(image, size)))


def _overlay_panes(dataset: SegmentationDataset, index: int) -> list[Pane]:
    name = dataset.pairs[index].name
    size, photo, mask_size, mask = None, "", None, ""
    try:
        image = dataset.rgb(index)
        size = thumbnail_size((image.shape[0], image.shape[1]))
        photo = jpeg_data_uri(resize_image(image, size))
    except (MaskserveError, OSError):
        pass
    try:
        labels = thumbnail_labels(dataset.raw_mask(index), dataset)
        mask_size = (labels.shape[0], labels.shape[1])
        colors = palette(dataset.classes)
        if len(dataset.classes) <= UNKNOWN_LABEL:
            colors[UNKNOWN_LABEL] = WRONG_COLOR
        mask = mask_data_uri(labels, colors)
    except (MaskserveError, OSError):
        pass
    # A mask of another shape is not stretched over the image, so that the mismatch is visible.
    fits = size and mask_size and abs(size[0] - mask_size[0]) <= 1 and abs(size[1] - mask_size[1]) <= 1
    return [
        Pane("image", f"{name}: image", size, photo, mask if fits else ""),
        Pane("mask", f"{name}: mask", mask_size, mask=mask, style="alone"),
    ]


def suspect_panes(dataset: SegmentationDataset, index: int, segmenter: Segmenter) -> list[Pane]:
    """The mask, the prediction and the suspect pixels, each over the image; and the image alone."""
    name = dataset.pairs[index].name
    try:
        image, (sample, target) = dataset.rgb(index), dataset.sample_and_labels(index)
    except (MaskserveError, OSError) as error:  # changed since it was read
        return [Pane(name, error=str(error))]
    prediction = segmenter.segment(sample).labels
    suspect = suspect_pixels(target, prediction).astype(np.uint8)
    size = thumbnail_size((image.shape[0], image.shape[1]))
    photo, colors = jpeg_data_uri(resize_image(image, size)), palette(dataset.classes)
    shown = [
        ("mask", mask_data_uri(resize_labels(target, size), colors), ""),
        ("prediction", mask_data_uri(resize_labels(prediction, size), colors), ""),
        (
            "disagreement",
            mask_data_uri(resize_labels(suspect, size), [(0, 0, 0), WRONG_COLOR], transparent=0),
            "errors",
        ),
    ]
    return [
        Pane("image", f"{name}: image", size, photo),
        *(Pane(title, f"{name}: {title}", size, photo, mask, style) for title, mask, style in shown),
    ]


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the thumbnail in pixels."""
    return network_input_size(size, InputRule(rule="fit", side=THUMBNAIL_SIDE)) if max(size) > THUMBNAIL_SIDE else size


def thumbnail_labels(mask: RawMask, dataset: SegmentationDataset) -> Labels:
    """Labels uint8 H x W at thumbnail size, by nearest neighbor: classes, 255 for ignored, UNKNOWN_LABEL for others."""
    array: NDArray[np.generic] = mask.array
    height, width = thumbnail_size((array.shape[0], array.shape[1]))
    rows = (np.arange(height) + 0.5) * array.shape[0] / height
    columns = (np.arange(width) + 0.5) * array.shape[1] / width
    small = array[rows.astype(int)[:, None], columns.astype(int)[None]]
    values, inverse = np.unique(small, return_inverse=True)
    labels = []
    for value in values.tolist():
        color = mask.palette[value] if mask.kind == "palette" and value < len(mask.palette) else None
        label = dataset.mask_encoding.decode_value(value, mask.kind, color)
        known = label is not None and (label == IGNORE_INDEX or 0 <= label < len(dataset.classes))
        labels.append(label if known else UNKNOWN_LABEL)
    return np.asarray(np.array(labels, np.uint8)[inverse].reshape(small.shape))
