"""The worst and the best images: ground truth, prediction and errors over the image, as data URIs."""

import base64
import io
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from models.imaging.decode import RGB, Labels
from models.inference.geometry import network_input_size, resize_image, resize_labels
from models.inference.segmenter import Segmenter
from models.inference.volumes import segment_volume
from models.readers.composite import to_rgb
from models.spec import IGNORE_INDEX, ClassInfo, InputRule, palette
from training.data import SegmentationDataset
from training.metrics.bootstrap import PerImageCounts
from training.metrics.confusion import iou
from training.reports.layout import render
from training.reports.planes import three_planes

IMAGES_PER_GROUP = 6  # of the worst, and of the best
MAX_DISPLAY_SIDE = 480  # pixels of the long side: with twelve images the page has about two megabytes
JPEG_QUALITY = 80
WRONG_COLOR, IGNORED_COLOR = (230, 40, 40), (120, 180, 255)  # RGB, in the error masks
STRIPE_WIDTH = 4  # pixels: ignored pixels are striped in the error masks, because a plain color looks like a class


def gallery_section(segmenter: Segmenter, samples: SegmentationDataset, tally: PerImageCounts) -> Markup:
    """The images with the lowest and the highest mIoU, with a slider for the masks' opacity."""
    worst, best = worst_and_best(tally)
    mious = tally.mious()
    occurring: set[int] = set()
    groups = [
        {
            "title": title,
            "cards": [
                _card(segmenter, samples, index, occurring)
                | {"miou": mious[index], "worst": worst_class(tally, index, samples.classes)}
                for index in indices
            ],
        }
        for title, indices in (("Worst", worst), ("Best", best))
        if indices
    ]
    return render("gallery.html", groups=groups, legend=[samples.classes[label] for label in sorted(occurring)])


def worst_class(tally: PerImageCounts, index: int, classes: list[ClassInfo]) -> tuple[str, float]:
    """The class in an image's ground truth with the lowest IoU in it, and that IoU; a pixel of the image counts."""
    counts = tally.counts[index, 0]
    rates = np.where(counts[1] > 0, iou(*counts), np.nan)
    label = int(np.nanargmin(rates))
    return classes[label].name, float(rates[label])


def worst_and_best(tally: PerImageCounts) -> tuple[list[int], list[int]]:
    """The indices of the worst and of the best images, each the most extreme first; no image is in both."""
    mious = tally.mious()
    ranked = [int(index) for index in np.argsort(mious, kind="stable") if not np.isnan(mious[index])]
    num_worst = min(IMAGES_PER_GROUP, (len(ranked) + 1) // 2)
    return ranked[:num_worst], ranked[num_worst:][-IMAGES_PER_GROUP:][::-1]


def _card(segmenter: Segmenter, samples: SegmentationDataset, index: int, occurring: set[int]) -> dict[str, Any]:
    """The content of an image's card; adds the labels that it shows to `occurring`."""
    if samples.axes == "DHW":
        sample, target = samples.record_and_labels(index)
        image, (target, prediction) = three_planes(sample, target, segment_volume(segmenter, sample).labels)
    else:
        sample, target = samples.sample_and_labels(index)
        prediction, image = segmenter.segment(sample).labels, to_rgb(sample.values, segmenter.rule)
    size = (image.shape[0], image.shape[1])
    if max(size) > (MAX_DISPLAY_SIDE if samples.axes == "HW" else 2 * MAX_DISPLAY_SIDE):
        size = network_input_size(size, InputRule(rule="fit", side=MAX_DISPLAY_SIDE))
    target, prediction = resize_labels(target, size), resize_labels(prediction, size)
    occurring |= {label for label in np.union1d(target, prediction).tolist() if label < len(samples.classes)}
    colors = palette(samples.classes)
    errors = mask_data_uri(error_mask(target, prediction), [(0, 0, 0), WRONG_COLOR, IGNORED_COLOR], transparent=0)
    return {
        "name": samples.pairs[index].name,
        "photo": jpeg_data_uri(resize_image(image, size)),
        "height": size[0],
        "width": size[1],
        "panes": [
            {"style": "target", "title": "ground truth", "mask": mask_data_uri(target, colors)},
            {"style": "prediction", "title": "prediction", "mask": mask_data_uri(prediction, colors)},
            {"style": "errors", "title": "errors", "mask": errors},
        ],
    }


def error_mask(target: Labels, prediction: Labels) -> Labels:
    """uint8 H x W: 0 if the prediction is right, 1 if it is wrong; stripes of 2 and 0 if the ground truth is ignored."""
    rows, columns = np.indices(target.shape, np.int32)
    stripes = ((rows + columns) // STRIPE_WIDTH % 2 * 2).astype(np.uint8)
    return np.where(target == IGNORE_INDEX, stripes, (target != prediction).astype(np.uint8))


def jpeg_data_uri(image: RGB) -> str:
    """RGB uint8 H x W x 3 as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return _data_uri("image/jpeg", buffer)


def mask_data_uri(labels: Labels, colors: list[tuple[int, int, int]], transparent: int = IGNORE_INDEX) -> str:
    """uint8 H x W as a data URI of a PNG in `colors` (RGB); the label `transparent` is transparent."""
    image = Image.fromarray(labels)
    image.putpalette([channel for color in colors for channel in color])
    buffer = io.BytesIO()
    alpha = bytes(0 if label == transparent else 255 for label in range(256))
    image.save(buffer, "PNG", optimize=True, transparency=alpha)
    return _data_uri("image/png", buffer)


def _data_uri(mime_type: str, buffer: io.BytesIO) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(buffer.getvalue()).decode()}"
