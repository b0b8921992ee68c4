"""`report.html`: an evaluation to look at, in one file that opens without a network.

`page.html` is the order of its sections, which the other files of this folder draw; `frame.py` puts them into a page.
"""

from html import escape
from pathlib import Path
from string import Template
from typing import Any

from models.bundle import Bundle
from models.inference.segmenter import Segmenter
from training.data import SegmentationDataset
from training.metrics.bootstrap import CONFIDENCE_LEVEL, NUM_RESAMPLES, PerImageCounts
from training.metrics.confusion import ConfusionMatrix
from training.reports.confusion_matrix import confusion_section
from training.reports.console import metric_warnings
from training.reports.gallery import gallery_section
from training.reports.latency import EngineLatency, engines_section
from training.reports.layout import render_page
from training.reports.line_chart import curves_section
from training.reports.metrics_table import class_table, headline_section

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
NAV = (
    '<a href="#classes">Classes</a> <a href="#confusion">Confusion</a> <a href="#images">Images</a> '
    '<a href="#training">Training</a> <a href="#engines">Engines</a> <a href="#facts">How it was measured</a>'
)
CURVES_FILE = "report/metrics.csv"  # in a bundle


def write_evaluation_report(
    target: Path,
    metrics: dict[str, Any],
    bundle: Bundle,
    segmenter: Segmenter,
    samples: SegmentationDataset,
    matrix: ConfusionMatrix,
    tally: PerImageCounts,
    speeds: list[EngineLatency],
) -> None:
    """Write the page of an evaluation; a few images are segmented again to be drawn."""
    choice = metrics["bundle"]
    subtitle = (
        f"{metrics['images']:,} images of {metrics['data']}, split {metrics['split']}, "
        f"{len(samples.classes)} classes, labelled by {choice['engine']} in {choice['precision']} on {choice['device']}"
    )
    sections = {
        "headline": headline_section(metrics),
        "hints": "".join(f'<p class="hint">{escape(sentence)}</p>' for sentence in metric_warnings(metrics, matrix)),
        "classes": class_table(metrics, samples.classes, tally),
        "confusion": confusion_section(matrix, samples.classes),
        "images": gallery_section(segmenter, samples, tally),
        "training": curves_section(find_training_curves(bundle)),
        "engines": engines_section(
            bundle, speeds, (segmenter.choice.engine_id, choice["precision"]) if segmenter.choice else ("", "")
        ),
        "facts": method_section(metrics, matrix),
    }
    main = Template((TEMPLATE_FOLDER / "page.html").read_text(encoding="utf-8")).substitute(sections)
    title = f"{choice['name']} on {metrics['data']} ({metrics['split']})"
    page = render_page(title, "maskserve evaluation", choice["name"], subtitle, NAV, main)
    target.write_text(page, encoding="utf-8")


def find_training_curves(bundle: Bundle) -> Path | None:
    """The table of the training that made a bundle: its own, or else that of the run that it lies in."""
    if bundle.has_file(CURVES_FILE):
        return bundle.folder / CURVES_FILE
    beside = bundle.folder.resolve().parent / "metrics.csv"
    return beside if beside.is_file() else None


def method_section(metrics: dict[str, Any], matrix: ConfusionMatrix) -> str:
    """What the figures mean, and of what they are."""
    counted = int(matrix.class_counts[1].sum())
    void = matrix.ignored_pixels / (matrix.ignored_pixels + counted) if matrix.ignored_pixels + counted else 0.0
    sentences = [
        f"The bundle {metrics['bundle']['name']} ({metrics['bundle']['hash'][:12]}) labelled every image at its own size, "
        "through the code that serves it, and each pixel was compared with the mask.",
        f"Test-time augmentation: {metrics['tta'] or 'none'}. Engine: {metrics['bundle']['why']}.",
        f"{counted:,} pixels counted; {void:.1%} of all are void in the truth and count nowhere. "
        "An answer that is no class is a miss.",
        f"Intervals hold {CONFIDENCE_LEVEL:.0%} of {NUM_RESAMPLES:,} bootstrap resamples of the images, drawn with replacement.",
        "A mean over classes takes those that occur in the truth or the answers, accuracy those in the truth; what is "
        "absent has no figure, not 0.",
        "Boundary IoU compares only the pixels within 2% of the image's diagonal from a contour (Cheng et al. 2021).",
    ]
    return "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in sentences)
