"""The class file of a data set: the names of its classes, in label order, and possibly their colors and pixel values.

`classes.csv` has one class per line, `name` or `name,r,g,b` (0 to 255). A header line may name the columns and add others
(`class_dict.csv`, Roboflow's `Pixel Value, Class`). Tabs, semicolons and a byte order mark are accepted. Other files that tools
write: one name per line (`classes.txt`, labelme's `class_names.txt`), `r g b name` (`label_colors.txt`), `name:r,g,b:parts:actions`
(CVAT's `labelmap.txt`), JSON of ids and names (`id2label.json`). A class named `void` or `ignore` is none: its label and
color are ignored, and the following classes move up.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from models.errors import DataError, quoted
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.class_parsers import LABELMAP_FILE, ClassRow, parse_json, parse_lines, parse_table
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding, pack_rgb
from training.data.text_file import text_encoding
from training.data.tree import CLASS_FILE, CLASS_FILES, MASK_SUFFIXES, FileTree, suffix_of

CLASS_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".yaml", ".yml")
CLASS_WORDS = frozenset(
    {"class", "classes", "label", "labels", "category", "categories", "palette", "legend", "colormap", "labelmap"}
)
OTHER_WORDS = frozenset(
    {"id", "ids", "idx", "index", "name", "names", "color", "colors", "colour", "colours", "rgb", "map", "mapping", "dict", "list",
     "def", "defs", "definition", "definitions", "description", "descriptions", "info", "seg", "segmentation", "to", "of", "v"}
)  # fmt: skip
INVALID_LABEL = IGNORE_INDEX - 1  # above every class: the lint reports it
IGNORED_NAMES = ("void", "ignore", "__ignore__")
ADE20K_FILE = "objectinfo150.txt"
# Four words or more and a full stop, or ten words: longer than any class name without a comma.
_SENTENCE = re.compile(r"(\S+\s+){3,}\S*[a-zA-Z)][.!?:]|([^\s,;]+\s+){9,}[^\s,;]+")
MAX_PROSE_BYTES = 10_000


def read_class_file(file: Path) -> list[ClassInfo]:
    """The classes of a file, in label order; without colors they get those of PASCAL VOC. Raises: DataError."""
    return _to_class_infos(read_class_rows(file), file)


def find_class_file(tree: FileTree, folders: Sequence[str] = ("",)) -> str | None:
    """The first class file in one of the folders, ignoring case, or beside the data set if it is one folder deeper.

    A file of a similar name counts if it can be parsed; text files of sentences never do. Returns: the path below the root of the
    tree, absolute if the file is outside of it.
    """
    for folder in folders:
        for name in CLASS_FILES:
            file = tree.find_file(folder, (name,))
            if file and not (name.endswith(".txt") and _is_prose(tree.path(file))):
                return file
    for folder in folders:
        for path in tree.shared_files(folder, CLASS_SUFFIXES):
            is_list = not path.endswith(".txt") or not _is_prose(tree.path(path))
            if _is_similar_name(path) and is_list and _can_be_parsed(tree.path(path)):
                return path
    outside = find_class_file(tree.outer) if tree.outer else None
    return str(tree.outer.path(outside).absolute()) if tree.outer and outside else None


def is_class_file(name: str) -> bool:
    """Whether a file that was read for a data set is its class file, by its name."""
    return name.lower() in CLASS_FILES or (suffix_of(name) in CLASS_SUFFIXES and _is_similar_name(name))


def _is_similar_name(path: str) -> bool:
    """Whether the name has only words of class lists: `class_dict_seg.csv`, `label_map.json`, `category_id.txt`."""
    words = set(re.findall("[a-z]+", Path(path).stem.lower()))
    return words <= CLASS_WORDS | OTHER_WORDS and not words.isdisjoint(CLASS_WORDS)


def _can_be_parsed(file: Path) -> bool:
    try:
        rows = read_class_rows(file)
    except DataError:
        return False
    names = [row.name for row in rows]
    return 2 <= len(rows) <= IGNORE_INDEX and not any(suffix_of(name) in MASK_SUFFIXES for name in names)


def _is_prose(file: Path) -> bool:
    """Whether a line of a text file is a sentence, and no class: `labels.txt` may as well be notes about the labels."""
    try:
        with file.open(encoding=text_encoding(file), errors="replace") as stream:
            lines = [line.strip() for line in stream.readlines(MAX_PROSE_BYTES) if not line.startswith("#")]
    except OSError:
        return False
    return any(_SENTENCE.fullmatch(line) for line in lines)


def read_dataset_classes(
    tree: FileTree, folders: Sequence[str] = ("",)
) -> tuple[list[ClassInfo], MaskEncoding, tuple[Path, ...]]:
    """The classes in a data set's class file, the mask encoding that it implies, and the file with its copies.

    Nothing without a file. Some tools write the file into the folder of every split.
    Raises: DataError; also if two of these files of one name differ.
    """
    found = find_class_file(tree, folders)
    if found is None:
        return [], IDENTITY_ENCODING, ()
    file = tree.path(found)
    rows = read_class_rows(file)
    name = Path(found).name.lower()
    copies = [tree.path(path) for folder in folders if (path := tree.find_file(folder, (name,)))]
    for copy in copies:
        if copy != file and read_class_rows(copy) != rows:
            raise DataError(f"{file} and {copy} have different classes; correct one, and copy it over the other.")
    return *classes_and_encoding(rows, file), tuple(dict.fromkeys([file, *copies]))


def classes_and_encoding(rows: list[ClassRow], file: Path) -> tuple[list[ClassInfo], MaskEncoding]:
    """The classes of the rows, and the labels of their values and colors. Raises: DataError."""
    kept = [row for row in rows if row.name.lower() not in IGNORED_NAMES]
    classes = _to_class_infos(kept, file)
    label_by_name = {row.name: label for label, row in enumerate(kept)}
    labels = [label_by_name.get(row.name, IGNORE_INDEX) for row in rows]
    values = [index if row.value is None else row.value for index, row in enumerate(rows)]
    moved = [(value, label) for value, label in zip(values, labels, strict=True) if value != label]
    # A value that the file skips must not be read as the label that has this number.
    moved += [(value, INVALID_LABEL) for value in range(len(kept)) if value not in values and len(kept) < INVALID_LABEL]
    colors = tuple((pack_rgb(row.rgb), label) for row, label in zip(rows, labels, strict=True) if row.rgb)
    return classes, MaskEncoding(tuple(moved), colors)


def class_line(files: Sequence[Path], rgb: str) -> str:
    """What to write for a class of the color `r,g,b`: the line, and the class file that was read."""
    file = next((file for file in files if is_class_file(file.name)), None)
    name = (file or Path(CLASS_FILE)).name
    if Path(name).suffix.lower() in (".json", ".yaml", ".yml"):
        return f"a class with the color {rgb} to {file}"
    forms = {LABELMAP_FILE: f"name:{rgb}::", "label_colors.txt": f"{rgb.replace(',', ' ')} name"}
    return f"a line `{forms.get(name.lower(), f'name,{rgb}')}` to {file or name}"


def class_table(classes: list[ClassInfo]) -> list[tuple[str | int, ...]]:
    """The rows of a class file, header first."""
    return [("name", "r", "g", "b"), *((entry.name, *entry.rgb) for entry in classes)]


def _to_class_infos(rows: list[ClassRow], file: Path) -> list[ClassInfo]:
    if not 2 <= len(rows) <= IGNORE_INDEX:
        raise DataError(f"{file} has {len(rows)} classes; expected 2 to {IGNORE_INDEX}, one per line.")
    return [ClassInfo(name=row.name, rgb=row.rgb or default_rgb(label)) for label, row in enumerate(rows)]


def read_class_rows(file: Path) -> list[ClassRow]:
    """The classes by value. Raises: DataError if the file cannot be parsed, or two classes share a name, color or value."""
    try:
        text = file.read_text(encoding=text_encoding(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a class file in UTF-8 ({error}); save it as UTF-8.") from error
    if file.name.lower() == ADE20K_FILE:
        rows = [ClassRow(IGNORED_NAMES[0], None, 0), *parse_table(text, file)]  # 0 is no class there
    elif file.suffix.lower() in (".json", ".yaml", ".yml"):
        rows = parse_json(text, file)
    elif file.suffix.lower() in (".csv", ".tsv"):
        rows = parse_table(text, file)
    else:
        rows = parse_lines(text, file)
    _check_rows(rows, file)
    return sorted(rows, key=lambda row: row.value or 0) if rows and rows[0].value is not None else rows


def _check_rows(rows: list[ClassRow], file: Path) -> None:
    without_color = next((row.name for row in rows if row.rgb is None), None)
    if without_color and any(row.rgb for row in rows):
        raise DataError(
            f"{file}: {quoted(without_color)} has no color, but other classes have one; write `name,r,g,b` on every line, "
            "or on none."
        )
    names: set[str] = set()
    values: set[int] = set()
    name_by_color: dict[tuple[int, int, int], str] = {}
    for row in rows:
        if row.name in names:
            raise DataError(f"{file}: the class name {quoted(row.name)} occurs twice; give each class its own name.")
        if row.rgb and row.rgb in name_by_color:
            raise DataError(
                f"{file}: {quoted(row.name)} and {quoted(name_by_color[row.rgb])} have the same color "
                f"{','.join(map(str, row.rgb))}; give each class its own color."
            )
        if row.value is not None and row.value in values:
            raise DataError(f"{file}: two classes have the value {row.value}; give each class its own.")
        names.add(row.name)
        if row.value is not None:
            values.add(row.value)
        if row.rgb:
            name_by_color[row.rgb] = row.name
