"""What the lint did not read: the files of the folder that belong to no pair, list or class file; and links out of it."""

from collections import defaultdict
from collections.abc import Iterable

from models.imaging.decode import IMAGE_SUFFIXES
from training.data.dataset import SegmentationDataset
from training.data.tree import FileTree, count_suffixes, suffix_of
from training.lint.findings import Finding

MAX_LISTED_FOLDERS = 12


def unread_files(tree: FileTree, datasets: Iterable[SegmentationDataset]) -> dict[str, list[str]]:
    """The names of the files that were not read, by folder."""
    root = f"{tree.root}/"
    used: set[str] = set()
    for dataset in datasets:
        for pair in dataset.pairs:
            used.update((str(pair.image), str(pair.mask)))
        used.update(map(str, (*dataset.unmatched_images, *dataset.unmatched_masks, *dataset.files)))
    names = {path.removeprefix(root) for path in used}
    found: dict[str, list[str]] = defaultdict(list)
    for folder, files in tree.files.items():
        prefix = f"{folder}/" if folder else ""
        left = [name for name in files if prefix + name not in names]
        if left:
            found[folder] = left
    return dict(found)


def describe_unread(unread: dict[str, list[str]]) -> str:
    """The unread files by folder, counted by suffix: `eval/: 40 .jpg; notes.txt`. Empty if everything was read."""
    parts = []
    ranked = sorted(unread, key=lambda folder: -len(unread[folder]))
    for folder in ranked[:MAX_LISTED_FOLDERS]:
        names = unread[folder]
        if len(names) == 1:
            parts.append(f"{folder}/{names[0]}" if folder else names[0])
        else:
            parts.append(f"{folder or '.'}/: {count_suffixes(names)}")
    rest = [name for folder in ranked[MAX_LISTED_FOLDERS:] for name in unread[folder]]
    if rest:
        parts.append(f"{len(ranked) - MAX_LISTED_FOLDERS:,} more folders: {count_suffixes(rest)}")
    return "; ".join(parts)


def check_coverage(tree: FileTree, unread: dict[str, list[str]]) -> list[Finding]:
    """Findings about images that were not read, and about links."""
    found = []
    images = {
        folder: left
        for folder, names in unread.items()
        if (left := [n for n in names if suffix_of(n) in IMAGE_SUFFIXES])
    }
    if images:
        detail = f"{sum(map(len, images.values())):,} images and masks are not read: {describe_unread(images)}."
        found.append(Finding("note", "images not read", detail))
    for path, target in tree.links:
        found.append(Finding("note", "link out of the folder", f"{tree.path(path)} is a link to {target}."))
    for path in tree.broken_links:
        found.append(Finding("warning", "broken link", f"{tree.path(path)} is a link to nothing, or in a circle."))
    return found
