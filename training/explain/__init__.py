"""Look inside a network: views that need torch or a data set, and the page of all views.

A view is a module with `TITLE`, `compute(subject) -> Facts` of one image, and `findings(images) -> list[Finding]`, which gets
the numbers of all images. One file per view, one line in a dict here, and a template of the same name in `templates/`.
"""

from models.explain import BLACK_BOX_VIEWS
from models.explain.facts import View
from training.explain import evolution, failures, fields, journey, kernels, maps, residual, sharing, why

IMAGE_VIEWS: dict[str, View] = {  # `compute(subject)`: of one image
    "certainty": BLACK_BOX_VIEWS["certainty"],
    "journey": journey,
    "fields": fields,
    "why": why,
    "occlusion": BLACK_BOX_VIEWS["occlusion"],
    "kernels": kernels,
    "maps": maps,
    "shifts": BLACK_BOX_VIEWS["shifts"],
}
NETWORK_VIEWS: dict[str, View] = {
    "sharing": sharing,
    "residual": residual,
}  # `compute(subject)`: the same for all images
DATA_VIEWS: dict[str, View] = {"failures": failures}  # `compute(source, samples)`: of images with masks
RUN_VIEWS: dict[str, View] = {"evolution": evolution}  # `compute(run)`: of a run folder
VIEWS: dict[str, View] = DATA_VIEWS | IMAGE_VIEWS | NETWORK_VIEWS | RUN_VIEWS  # in the order of the page
