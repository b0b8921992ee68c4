"""What the sources contain and a run does not read, so that nothing is skipped in silence."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from models.errors import first_line
from models.imaging.decode import IMAGE_SUFFIXES
from models.imaging.detect_format import READABLE_FORMATS
from models.spec import AXES

ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"})
# Files that accompany images: notes, annotations, lists, georeferences, and what systems leave in folders.
COMPANION_SUFFIXES = frozenset(
    {
        ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".geojson", ".xml", ".yaml", ".yml", ".html", ".ini", ".db", ".log",
        ".xmp", ".thm", ".py", ".sh", ".lock", ".parquet", ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".ovr", ".cpg", ".dbf",
        ".shp", ".shx", ".sha256", ".md5",
    }
)  # fmt: skip
MAX_LISTED = 8  # suffixes that a message names


@dataclass
class UnreadFiles:
    """The files and folders of the sources that are not read. `axes`: of the model."""

    axes: str = "HW"
    suffixes: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)  # paths of linked folders, and of folders that cannot be listed
    masks: list[str] = field(default_factory=list)  # a sentence for each data set

    def add(self, name: str) -> None:
        """Count a file that does not have the suffix of an image."""
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        # A record has signal and annotation files of any suffix beside its header.
        counts = suffix not in COMPANION_SUFFIXES if self.axes == "HW" else suffix in ARCHIVE_SUFFIXES | IMAGE_SUFFIXES
        if not path.name.startswith(".") and counts:
            self.suffixes[path.suffix.lower()] += 1

    def add_link(self, folder: Path) -> None:
        """Add a linked folder, which is not followed: it may lead anywhere, and in circles."""
        self.folders.append(f"{folder} (a link to a folder; name it as a SOURCE)")

    def add_error(self, error: OSError) -> None:
        """Add a folder that cannot be listed."""
        self.folders.append(f"{error.filename} ({error.strerror or first_line(error)})")

    def update(self, other: "UnreadFiles") -> None:
        """Add those of another source."""
        self.suffixes.update(other.suffixes)
        self.folders += other.folders
        self.masks += other.masks

    def describe_suffixes(self) -> str:
        """The suffixes with their numbers, the most frequent first; empty for none."""
        listed = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in self.suffixes.most_common(MAX_LISTED)]
        return ", ".join(listed) + (", ..." if len(self.suffixes) > MAX_LISTED else "")

    def messages(self) -> list[str]:
        """A line for each kind."""
        lines = list(self.masks)
        if self.suffixes:
            advice = f"save images as {READABLE_FORMATS}" if self.axes == "HW" else f"the model takes {AXES[self.axes]}"
            if self.axes != "DHW" and self.suffixes.keys() & ARCHIVE_SUFFIXES:
                advice += "; name a zip file as a SOURCE"
            lines.append(f"not read: {self.describe_suffixes()} ({advice})")
        if self.folders:
            more = f" and {len(self.folders) - 1:,} more folders" if len(self.folders) > 1 else ""
            lines.append(f"not read: {self.folders[0]}{more}")
        return lines
