"""The worst and the best images: truth, answer and errors over the image, as data in the page itself."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from models.imaging.decode import RGB, Labels
from models.inference.geometry import network_input_size, resize_image, resize_labels
from models.inference.segmenter import Segmenter
from models.spec import IGNORE_INDEX, InputRule, palette
from training.data import SegmentationDataset
from training.metrics.bootstrap import PerImageCounts
from training.reports.html_helpers import swatch

IMAGES_PER_GROUP = 6  # of the worst, and of the best
MAX_DISPLAY_SIDE = 480  # pixels of the long side, at most: with twelve images the page stays at some two megabytes
JPEG_QUALITY = 80  # of the images' JPEG
WRONG_COLOUR, IGNORED_COLOUR = (230, 40, 40), (120, 180, 255)  # RGB in the view of the errors
STRIPE_WIDTH = 4  # pixels: void is striped there, for a plain colour would look like a class


def gallery_section(segmenter: Segmenter, samples: SegmentationDataset, tally: PerImageCounts) -> str:
    """The images with the lowest and the highest mIoU, under a slider for the masks' opacity."""
    worst, best = worst_and_best(tally)
    if not worst:
        return "<p>No image of this split has a pixel that counts.</p>"
    occurring: set[int] = set()
    groups = []
    for title, chosen in (("Worst", worst), ("Best", best)):
        cards = [_card(segmenter, samples, index, tally.mious()[index], occurring) for index in chosen]
        groups.append(f"<h3>{title}, by the image's own mIoU</h3>{''.join(cards)}" if cards else "")
    legend = "".join(f"<li>{swatch(samples.classes[label])}</li>" for label in sorted(occurring))
    return (
        '<div class="controls"><label for="opacity">Opacity of the masks</label>'
        '<input id="opacity" type="range" min="0" max="100" step="5" value="60"><span id="opacity-shown">60%</span></div>'
        f'<ul class="legend">{legend}</ul><p class="note">In the errors, red was answered wrongly, and what is striped is void '
        f"in the truth: it does not count.</p>{''.join(groups)}"
    )


def worst_and_best(tally: PerImageCounts) -> tuple[list[int], list[int]]:
    """The indices of the worst images and of the best, each the most extreme first; no image is in both."""
    mious = tally.mious()
    ranked = [int(index) for index in np.argsort(mious, kind="stable") if not np.isnan(mious[index])]
    few = min(IMAGES_PER_GROUP, (len(ranked) + 1) // 2)
    return ranked[:few], ranked[few:][-IMAGES_PER_GROUP:][::-1]


def _card(segmenter: Segmenter, samples: SegmentationDataset, index: int, miou: float, occurring: set[int]) -> str:
    image, truth = samples.image(index), samples.labels(index)
    answer = segmenter.segment(image).labels
    size = _display_size((image.shape[0], image.shape[1]))
    truth, answer = resize_labels(truth, size), resize_labels(answer, size)
    occurring |= {label for label in np.union1d(truth, answer).tolist() if label < len(samples.classes)}
    name, colours = escape(samples.pairs[index].name), palette(samples.classes)
    panes = (
        ("truth", mask_data_uri(truth, colours)),
        ("answer", mask_data_uri(answer, colours)),
        ("errors", mask_data_uri(error_mask(truth, answer), [(0, 0, 0), WRONG_COLOUR, IGNORED_COLOUR], clear=0)),
    )
    shape = f'style="aspect-ratio:{size[1]}/{size[0]}" role="img"'
    drawn = "".join(
        f'<div class="pane {kind}" {shape} aria-label="{name}: {kind}">'
        f'<div class="photo"></div><img src="{mask}" alt=""><span>{kind}</span></div>'
        for kind, mask in panes
    )
    drawn += f'<div class="pane plain" {shape} aria-label="{name}"><div class="photo"></div></div>'
    return (
        f'<figure class="image" style="--photo:url({jpeg_data_uri(resize_image(image, size))})">'
        f'<figcaption>{name} <span class="muted">mIoU {miou:.3f}</span></figcaption><div class="panes">{drawn}</div></figure>'
    )


def _display_size(size: tuple[int, int]) -> tuple[int, int]:
    return (
        network_input_size(size, InputRule(rule="fit", side=MAX_DISPLAY_SIDE)) if max(size) > MAX_DISPLAY_SIDE else size
    )


def error_mask(truth: Labels, answer: Labels) -> Labels:
    """uint8 H x W: 0 where the answer is right, 1 where it is wrong; where the truth is void, stripes of 2 and 0."""
    rows, columns = np.indices(truth.shape, np.int32)
    stripes = ((rows + columns) // STRIPE_WIDTH % 2 * 2).astype(np.uint8)
    return np.where(truth == IGNORE_INDEX, stripes, (truth != answer).astype(np.uint8))


def jpeg_data_uri(image: RGB) -> str:
    """RGB uint8 H x W x 3 as an address that holds its own data."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return _data_uri("image/jpeg", buffer)


def mask_data_uri(labels: Labels, colours: list[tuple[int, int, int]], clear: int = IGNORE_INDEX) -> str:
    """uint8 H x W in its colours, RGB, as an address that holds its own data; the label `clear` is transparent."""
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in colours for channel in colour])
    buffer = io.BytesIO()
    opaque = bytes(0 if label == clear else 255 for label in range(256))
    image.save(buffer, "PNG", optimize=True, transparency=opaque)
    return _data_uri("image/png", buffer)


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
