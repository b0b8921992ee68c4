"""The files of a data set folder, listed once; every format looks at this listing instead of at the disk.

Hidden files and folders (`.ipynb_checkpoints`, `._a.png`, `__MACOSX`) are left out. Paths are relative to the root, with `/`.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from models.errors import DataError
from models.imaging.decode import IMAGE_SUFFIXES
from models.readers import SAMPLE_SUFFIXES
from training.data.archive import is_archive, unpack

MASK_SUFFIXES = IMAGE_SUFFIXES | {".gif", ".npy"}  # masks are also read from these
IGNORED_NAMES = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "thumbs.db", "desktop.ini"})
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")
TABLE_SUFFIXES = (".csv", ".tsv")
CLASS_FILE = "classes.csv"
# In this order; the first that exists is read.
CLASS_FILES = (
    CLASS_FILE, "classes.txt", "class_names.txt", "class_dict.csv", "_classes.csv", "label_colors.txt", "labelmap.txt",
    "label_names.txt", "labels.txt", "label.txt", "codes.txt", "id2label.json", "classes.json", "labels.json", "class_list.txt",
    "class_names.csv", "labels.csv", "label_names.csv", "class-descriptions.csv", "objectinfo150.txt", "label2id.json",
    "config_v1.2.json", "config_v2.0.json",
)  # fmt: skip
MAX_SHARED_FILES = 200  # files of one suffix in a folder; more are one for each image
ANNOTATION_SUFFIXES = (*TABLE_SUFFIXES, ".txt", ".json", ".xml")


@dataclass(frozen=True)
class FileTree:
    """The folders below `root`; "" is the root itself."""

    root: Path
    files: dict[str, list[str]]  # by folder: names of its files, sorted
    subfolders: dict[str, list[str]]  # by folder: names of its subfolders, sorted
    links: tuple[tuple[str, str], ...] = ()  # (path, target) of links to files and folders outside the root
    broken_links: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # assumptions made to find this folder
    outer: "FileTree | None" = None  # the folder around this one, whose class file counts if this one has none
    _below: dict[tuple[str, frozenset[str] | None], list[str]] = field(default_factory=dict, repr=False, compare=False)
    _lower_names: dict[tuple[bool, str], dict[str, str]] = field(default_factory=dict, repr=False, compare=False)

    def path(self, relative: str) -> Path:
        """The absolute path of a file or folder."""
        return self.root / relative if relative else self.root

    def find_folder(self, folder: str, names: Iterable[str]) -> str | None:
        """The path of the subfolder with the first of these names that exists, ignoring case."""
        found = self._by_lower_name(True, folder)
        return next((join(folder, found[name.lower()]) for name in names if name.lower() in found), None)

    def find_file(self, folder: str, names: Iterable[str]) -> str | None:
        """The path of the file in `folder` with the first of these names that exists, ignoring case."""
        found = self._by_lower_name(False, folder)
        return next((join(folder, found[name.lower()]) for name in names if name.lower() in found), None)

    def _by_lower_name(self, is_folder: bool, folder: str) -> dict[str, str]:
        key = is_folder, folder
        if key not in self._lower_names:
            names = (self.subfolders if is_folder else self.files).get(folder, [])
            self._lower_names[key] = {name.lower(): name for name in reversed(names)}
        return self._lower_names[key]

    def children(self, folder: str) -> list[str]:
        """The paths of the subfolders of a folder."""
        return [join(folder, name) for name in self.subfolders.get(folder, [])]

    def folders_below(self, folder: str) -> Iterator[str]:
        """The folder and all folders in it, parents first."""
        if folder in self.files:
            yield folder
            for child in self.children(folder):
                yield from self.folders_below(child)

    def files_in(self, folder: str, suffixes: Collection[str]) -> list[str]:
        """The paths of the files in a folder that end in one of the (lower case) suffixes."""
        groups = self.names_by_suffix.get(folder, {})
        return sorted(join(folder, name) for suffix in groups.keys() & suffixes for name in groups[suffix])

    def shared_files(self, folder: str, suffixes: Collection[str]) -> list[str]:
        """The files in a folder that may hold the annotations of many images; none if there is one for each image."""
        found = self.files_in(folder, suffixes)
        return found if len(found) <= MAX_SHARED_FILES else []

    def files_below(self, folder: str, suffixes: Collection[str] | None = None) -> list[str]:
        """The paths of all files below a folder, sorted."""
        key = (folder, None if suffixes is None else frozenset(suffixes))
        if key not in self._below:  # several formats ask for the same
            found: list[str] = []
            for below in self.folders_below(folder):
                prefix = f"{below}/" if below else ""
                for suffix, names in self.names_by_suffix[below].items():
                    if suffixes is None or suffix in suffixes:
                        found += [prefix + name for name in names]
            self._below[key] = sorted(found)
        return self._below[key]

    @cached_property
    def names_by_suffix(self) -> dict[str, dict[str, list[str]]]:
        """By folder and suffix, the names of the files: with 100,000 files, formats cannot look at every name."""
        found: dict[str, dict[str, list[str]]] = {}
        for folder, names in self.files.items():
            groups: dict[str, list[str]] = {}
            for name in names:
                groups.setdefault(suffix_of(name), []).append(name)
            found[folder] = groups
        return found

    def images_below(self, folder: str) -> list[str]:
        """The paths of the images below a folder, sorted."""
        return self.files_below(folder, IMAGE_SUFFIXES) or self.files_below(folder, SAMPLE_SUFFIXES)

    @cached_property
    def image_counts(self) -> dict[str, int]:
        """The number of images in each folder, without those of its subfolders."""
        return {
            folder: sum(len(groups[suffix]) for suffix in groups.keys() & IMAGE_SUFFIXES)
            for folder, groups in self.names_by_suffix.items()
        }

    @cached_property
    def num_files(self) -> int:
        """The number of all files."""
        return sum(map(len, self.files.values()))

    def subtree(self, folder: str, note: str = "") -> "FileTree":
        """The tree of a subfolder, with paths relative to it."""
        cut = len(folder) + 1
        below = [name for name in self.files if name == folder or name.startswith(f"{folder}/")]
        return FileTree(
            self.root / folder,
            {name[cut:]: self.files[name] for name in below},
            {name[cut:]: self.subfolders.get(name, []) for name in below},
            tuple((path[cut:], target) for path, target in self.links if path.startswith(f"{folder}/")),
            tuple(path[cut:] for path in self.broken_links if path.startswith(f"{folder}/")),
            notes=(*self.notes, *([note] if note else [])),
            outer=self,
        )


def list_tree(root: Path) -> FileTree:
    """List a data set folder; an archive, which is unpacked; or the folder of an annotation file, without the others next to it.

    Links to folders are followed, but not in circles. Raises: DataError if there is no such folder.
    """
    if is_archive(root):
        return list_tree(unpack(root))
    if root.is_file():
        tree = list_tree(root.parent)
        kept = [
            name
            for name in tree.files[""]
            if name == root.name or suffix_of(name) not in ANNOTATION_SUFFIXES or name.lower() in CLASS_FILES
        ]
        return FileTree(tree.root, tree.files | {"": kept}, tree.subfolders, tree.links, tree.broken_links)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images and masks, or a table (CSV, TSV) of them.")
    files: dict[str, list[str]] = {}
    subfolders: dict[str, list[str]] = {}
    links: list[tuple[str, str]] = []
    broken: list[str] = []
    home = os.path.realpath(root)

    def visit(folder: str, followed: tuple[str, ...]) -> None:
        """List a folder; `followed`: the targets of the links on the way to it."""
        names: list[str] = []
        folders: dict[str, tuple[str, ...]] = {}
        try:
            entries = list(os.scandir(root / folder if folder else root))
        except OSError as error:
            raise DataError(f"{root / folder}: cannot be listed ({error.strerror}); check its permissions.") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in IGNORED_NAMES:
                continue
            way = followed
            if entry.is_symlink():
                target, here = os.path.realpath(entry.path), os.path.realpath(root / folder)
                if not os.path.exists(target) or target in followed or f"{here}/".startswith(f"{target}/"):
                    broken.append(join(folder, entry.name))
                    continue
                if not f"{target}/".startswith(f"{home}/"):
                    links.append((join(folder, entry.name), target))
                way = (*followed, target)
            if entry.is_dir():
                folders[entry.name] = way
            elif (
                entry.is_file() or suffix_of(entry.name) in IMAGE_SUFFIXES
            ):  # a pipe named .json would block its reader
                names.append(entry.name)
        files[folder], subfolders[folder] = sorted(names), sorted(folders)
        for name in subfolders[folder]:
            visit(join(folder, name), folders[name])

    visit("", ())
    return FileTree(root, files, subfolders, tuple(sorted(links)), tuple(sorted(broken)))


def join(folder: str, name: str) -> str:
    """The path of a file in a folder, both relative to the root."""
    return f"{folder}/{name}" if folder else name


def suffix_of(name: str) -> str:
    """The suffix of a name in lower case, with its dot; "" without one; of a compressed file both (`.nii.gz`)."""
    dot = name.rfind(".")
    suffix = name[dot:].lower() if dot > 0 else ""
    if suffix in COMPRESSED_SUFFIXES:
        return "".join(Path(name.lower()).suffixes[-2:])
    return "" if "/" in suffix else suffix


def stem_below(path: str, folder: str) -> str:
    """The path of a file below a folder, without the suffix: the name of an image."""
    below = path[len(folder) + 1 :] if folder else path
    dot = below.rfind(".")
    return below[:dot] if dot > below.rfind("/") + 1 else below


def volume_name(path: str, folder: str) -> str:
    """As `stem_below`, without both suffixes of a compressed file: `a` for `a.nii.gz`."""
    below = path[len(folder) + 1 :] if folder else path
    return below[: len(below) - len(suffix_of(below))]


def count_suffixes(names: Iterable[str]) -> str:
    """The names counted by suffix, the most frequent first: `8 .png, 1 .txt`."""
    counts = Counter(suffix_of(name) or "without a suffix" for name in names)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(6))


def parent_of(path: str) -> str:
    """The folder of a file, "" for the root."""
    return str(PurePosixPath(path).parent) if "/" in path else ""
