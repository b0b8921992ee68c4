"""Label Studio's export "Brush labels to PNG": `task-1-annotation-3-by-1-tag-ball-0.png`, one PNG per label.

The names do not contain that of the image. It is recognized to say so, because no image can be found from these names.
"""

import re

from models.errors import DataError
from training.data.listing import DatasetSource, Evidence
from training.data.tree import MASK_SUFFIXES, FileTree

NAME = re.compile(r"task-\d+-annotation-\d+-by-.*\.png", re.IGNORECASE)


def detect(tree: FileTree) -> Evidence | None:
    """Whether most masks of a folder have such names."""
    found = _exported(tree)
    return Evidence(len(found), f"{len(found):,} PNGs of Label Studio, one per label", strength=2) if found else None


def read(tree: FileTree) -> DatasetSource:
    """Raises: DataError, always."""
    found = _exported(tree)
    example = tree.path(found[0]) if found else "task-1-annotation-1-by-1-tag-label-0.png"
    raise DataError(
        f"{tree.root} has {len(found):,} PNGs of Label Studio's brush export, one per label, such as {example}. Their names do "
        "not say which image they belong to. Export the project again as JSON or COCO, and put that file here."
    )


def _exported(tree: FileTree) -> list[str]:
    return [path for path in tree.files_below("", MASK_SUFFIXES) if NAME.fullmatch(path.rsplit("/", 1)[-1])]
