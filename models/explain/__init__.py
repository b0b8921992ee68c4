"""Views of a network as a black box: they need only the Segmenter, so they work for imported and int8 bundles too.

A view is a module with `TITLE`, `compute(subject) -> Facts` of one image, and `findings(images) -> list[Finding]`, which gets
the numbers of all images. One file per view, one line here. The views that need torch are in `training/explain/`, and so are
the templates of all views.
"""

from models.explain import certainty, occlusion, shifts
from models.explain.facts import Facts, Finding, View
from models.explain.subject import Subject

BLACK_BOX_VIEWS: dict[str, View] = {
    "certainty": certainty,
    "occlusion": occlusion,
    "shifts": shifts,
}

__all__ = ["BLACK_BOX_VIEWS", "Facts", "Finding", "Subject", "View"]
