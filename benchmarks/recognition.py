"""Seconds to recognize the format of a folder of 100,000 files: `python -m benchmarks.recognition [LAYOUT ...]`.

Each round runs in a process of its own. The time begins after the imports and ends when the format is known; `open` also
lists the images of all splits. The names of the files are in the cache of the system, because they were just written.
Their contents are those of a few small images. Writes benchmarks/results/recognition.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.usage import print_help_if_requested
from models.engines.host_info import host_info
from tests.fixtures_images import encode_image

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "recognition.json"
FILES = 100_000
ROUNDS = 3
MAX_LINKS = 30_000  # to one file: ext4 allows 65,000
MASK = np.zeros((16, 16), np.uint8)
MASK[4:9, 4:9] = 255
POLYGON = b"0 0.1 0.1 0.5 0.1 0.5 0.5\n"
LABELME = b'{"version": "5", "shapes": [{"label": "a", "points": [[1, 1], [4, 1], [4, 4]]}], "imagePath": "x.jpg"}'
CONTENTS = {".jpg": encode_image(np.full((16, 16, 3), 99, np.uint8), "JPEG"), ".png": encode_image(MASK, "PNG"),
            ".txt": POLYGON, ".json": LABELME}  # fmt: skip
MEASURE = """
import json, sys, time
from pathlib import Path
from models.errors import DataError
from training.data import load_available_splits, recognize_dataset
root = Path(sys.argv[1])
start, name, images = time.perf_counter(), "none", 0
try:
    found = recognize_dataset(root)
    name = found.format
except DataError:
    found = None
recognized = time.perf_counter() - start
if found:
    images = sum(map(len, load_available_splits(root, recognition=found, sample=True).values()))
print(json.dumps([recognized, time.perf_counter() - start, name, images]))
"""


def pairs(image: str, mask: str) -> list[str]:
    """The files of half as many images with one mask each."""
    return [name.format(f"{index:06}") for index in range(FILES // 2) for name in (image, mask)]


def by_split(image: str, mask: str) -> list[str]:
    """As `pairs`, in the folders of three splits: `{split}` in the names."""
    splits = ("train",) * 8 + ("val", "test")
    return [
        name.format(f"{index:06}", split=splits[index % 10]) for index in range(FILES // 2) for name in (image, mask)
    ]


def nuclei() -> list[str]:
    """One folder for each image, with 31 masks of objects."""
    names = [f"{index:08x}" for index in range(FILES // 32)]
    masks = [f"{name}/masks/{number:02}.png" for name in names for number in range(31)]
    return [f"{name}/images/{name}.png" for name in names] + masks


LAYOUTS: dict[str, Callable[[], list[str]]] = {
    "images and masks": lambda: pairs("images/{}.jpg", "masks/{}.png"),
    "folders of splits": lambda: by_split("{split}/images/{}.jpg", "{split}/masks/{}.png"),
    "one folder, by suffix": lambda: pairs("{}.jpg", "{}_mask.png"),
    "nuclei: a folder for each image": nuclei,
    "names that differ": lambda: pairs("images/{}_image.png", "masks/{}_mask.png"),
    "labelme": lambda: pairs("{}.jpg", "{}.json"),
    "YOLO": lambda: by_split("images/{split}/{}.jpg", "labels/{split}/{}.txt"),
    "images alone, in 1,000 folders": lambda: [f"{index % 1000:03}/{index}.jpg" for index in range(FILES)],
}


def write_files(root: Path, names: list[str]) -> None:
    """Write files of these names, as links to a few."""
    sources: dict[str, tuple[Path, int]] = {}
    for folder in {os.path.dirname(name) for name in names}:
        (root / "data" / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        suffix = os.path.splitext(name)[1]
        source, links = sources.get(suffix, (root, MAX_LINKS))
        if links >= MAX_LINKS:
            source, links = root / f"{len(names)}-{name.replace('/', '-')}", 0
            source.write_bytes(CONTENTS[suffix])
        os.link(source, root / "data" / name)
        sources[suffix] = source, links + 1


def measure(data: Path) -> tuple[float, float, str, int]:
    """Seconds to recognize and to open, the format ("none" if none fits), and the number of images."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(data)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    recognized, opened, name, images = json.loads(done.stdout)
    return recognized, opened, name, images


def main() -> None:
    chosen = sys.argv[1:] or list(LAYOUTS)
    measured = {}
    for layout in chosen:
        with tempfile.TemporaryDirectory() as folder:
            names = LAYOUTS[layout]()
            write_files(Path(folder), names)
            rounds = [measure(Path(folder) / "data") for _ in range(ROUNDS)]
        recognized, opened, name, images = min(rounds)
        measured[layout] = {
            "files": len(names), "format": name, "images": images, "recognized_s": round(recognized, 2),
            "opened_s": round(min(each[1] for each in rounds), 2),
        }  # fmt: skip
        print(f"{layout:32}{name:14}{images:8,} images {recognized:6.2f} s, opened {opened:6.2f} s", flush=True)
    if chosen == list(LAYOUTS):
        RESULTS.write_text(json.dumps(host_info() | {"rounds": ROUNDS, "layouts": measured}, indent=2) + "\n")


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    main()
