"""`report.html`: an evaluation to look at, in one file that opens without a network.

`page.html` is the order of its sections, which the other files of this folder draw; `frame.py` puts them into a page.
"""

from html import escape
from pathlib import Path
from string import Template
from typing import Any

from models.bundle import Bundle
from models.inference.segmenter import Segmenter
from training.data import Samples
from training.metrics.bootstrap import LEVEL, RESAMPLES, Tally
from training.metrics.confusion import Confusion
from training.reports.confusion_matrix import heatmap
from training.reports.console import hints
from training.reports.gallery import pictures
from training.reports.latency import Speed, engines_section
from training.reports.layout import framed
from training.reports.line_chart import curves
from training.reports.metrics_table import classes_table, headline

FRAME = Path(__file__).parent / "templates"
NAV = (
    '<a href="#classes">Classes</a> <a href="#confusion">Confusion</a> <a href="#pictures">Pictures</a> '
    '<a href="#training">Training</a> <a href="#engines">Engines</a> <a href="#facts">How it was measured</a>'
)
CURVES = "report/metrics.csv"  # in a bundle


def write_page(
    target: Path, metrics: dict[str, Any], bundle: Bundle, segmenter: Segmenter, samples: Samples, matrix: Confusion,
    tally: Tally, speeds: list[Speed],
) -> None:  # fmt: skip
    """Write the page of an evaluation; a few pictures are segmented again to be drawn."""
    choice = metrics["bundle"]
    subtitle = (
        f"{metrics['pictures']:,} pictures of {metrics['data']}, split {metrics['split']}, "
        f"{len(samples.classes)} classes, labelled by {choice['engine']} in {choice['precision']} on {choice['device']}"
    )
    sections = {
        "headline": headline(metrics),
        "hints": "".join(f'<p class="hint">{escape(sentence)}</p>' for sentence in hints(metrics, matrix)),
        "classes": classes_table(metrics, samples.classes, tally),
        "confusion": heatmap(matrix, samples.classes),
        "pictures": pictures(segmenter, samples, tally),
        "training": curves(curves_of(bundle)),
        "engines": engines_section(
            bundle, speeds, (segmenter.choice.name, choice["precision"]) if segmenter.choice else ("", "")
        ),
        "facts": facts(metrics, matrix),
    }
    main = Template((FRAME / "page.html").read_text(encoding="utf-8")).substitute(sections)
    title = f"{choice['name']} on {metrics['data']} ({metrics['split']})"
    page = framed(title, "maskserve evaluation", choice["name"], subtitle, NAV, main)
    target.write_text(page, encoding="utf-8")


def curves_of(bundle: Bundle) -> Path | None:
    """The table of the training that made a bundle: its own, or else that of the run that it lies in."""
    if bundle.has(CURVES):
        return bundle.folder / CURVES
    beside = bundle.folder.resolve().parent / "metrics.csv"
    return beside if beside.is_file() else None


def facts(metrics: dict[str, Any], matrix: Confusion) -> str:
    """What the figures mean, and of what they are."""
    counted = int(matrix.margins[1].sum())
    void = matrix.void / (matrix.void + counted) if matrix.void + counted else 0.0
    sentences = [
        f"The bundle {metrics['bundle']['name']} ({metrics['bundle']['hash'][:12]}) labelled every picture at its own size, "
        "through the code that serves it, and each pixel was compared with the mask.",
        f"Test-time augmentation: {metrics['tta'] or 'none'}. Engine: {metrics['bundle']['why']}.",
        f"{counted:,} pixels counted; {void:.1%} of all are void in the truth and count nowhere. "
        "An answer that is no class is a miss.",
        f"Intervals hold {LEVEL:.0%} of {RESAMPLES:,} bootstrap resamples of the pictures, drawn with replacement.",
        "A mean over classes takes those that occur in the truth or the answers, accuracy those in the truth; what is "
        "absent has no figure, not 0.",
        "Boundary IoU compares only the pixels within 2% of the picture's diagonal from a contour (Cheng et al. 2021).",
    ]
    return "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in sentences)
