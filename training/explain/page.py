"""The page of an explanation: one HTML file that opens offline, in the layout of the evaluation report."""

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import FileSystemLoader
from markupsafe import Markup
from PIL import Image

from models.atomic_write import name_disk_full
from models.explain.colors import shrink
from models.imaging.decode import RGB
from training.explain import VIEWS
from training.explain.pointer import pointer_data
from training.reports.gallery import jpeg_data_uri
from training.reports.layout import ENVIRONMENT, render_page
from training.reports.layout import TEMPLATE_FOLDER as REPORT_TEMPLATE_FOLDER

if TYPE_CHECKING:
    from training.explain.run import Explanation

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
MAX_SIDE = 640  # pixels of an image on the page; the PNGs beside it have all
FEW_COLORS = 256  # images with fewer colors are smaller as PNG


def write_page(target: Path, result: "Explanation") -> None:
    """Write the page. Raises: DataError for a full disk."""
    environment = ENVIRONMENT.overlay(loader=FileSystemLoader([TEMPLATE_FOLDER, REPORT_TEMPLATE_FOLDER]))
    names = list(result.subjects)
    sections = []
    for view in VIEWS:
        if view not in result.facts:
            continue
        blocks = [
            {
                "name": name,
                "index": names.index(name) if name in names else -1,
                "numbers": facts.numbers,
                "images": {key: image_uri(values) for key, values in facts.images.items()},
                "data": script_json(facts.page_data),
            }
            for name, facts in result.facts[view].items()
        ]
        body = environment.get_template(f"{view}.html").render(
            blocks=blocks, several=len(blocks) > 1, classes=result.source.classes
        )
        sections.append({"view": view, "title": VIEWS[view].TITLE, "body": Markup(body)})
    images = [
        {"name": name, "uri": jpeg_data_uri(shrink(subject.rgb, MAX_SIDE)), "size": subject.size}
        for name, subject in result.subjects.items()
    ]
    pointers = [pointer_data(subject) for subject in result.subjects.values()]
    context = {
        "sections": sections,
        "images": images,
        "findings": result.findings,
        "titles": {view: module.TITLE for view, module in VIEWS.items()},
        "skipped": result.skipped,
        "pointers": script_json(pointers),
        "script": Markup((TEMPLATE_FOLDER / "page.js").read_text(encoding="utf-8")),
    }
    source = result.source
    page = render_page(
        title=f"Look inside {source.name}",
        eyebrow="maskserve explain",
        name=source.name,
        subtitle=f"{len(source.classes)} classes; predictions by {source.description}; "
        + (f"images: {', '.join(names)}" if names else "no image"),
        nav=environment.get_template("nav.html").render(context),
        main=environment.get_template("page.html").render(context),
        style=(TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8"),
    )
    with name_disk_full(target):
        target.write_text(page, encoding="utf-8", errors="backslashreplace")


def image_uri(values: RGB) -> str:
    """An image as a data URI: PNG if it has few colors, else JPEG; shrunk to the page."""
    small = shrink(values, MAX_SIDE)
    image = Image.fromarray(small)
    if image.getcolors(FEW_COLORS) is None and min(small.shape[:2]) > 32:
        return jpeg_data_uri(small)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def script_json(values: Any) -> Markup:
    """JSON for a script element: no name in it can end the element."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
