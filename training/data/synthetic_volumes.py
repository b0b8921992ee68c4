"""Draws a data set of volumes to try the product with: spheres, tubes and plates in noise, as NIfTI in nnU-Net's layout."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.imaging.decode import Labels
from models.readers import nifti

CLASSES = ("background", "sphere", "tube", "plate")
SPLIT_COUNTS = {"train": 24, "val": 6, "test": 6}
SIZE, SPACING = (32, 40, 40), (1.5, 1.0, 1.0)  # voxels and mm along D, H, W
AFFINE = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])  # arrays are D x H x W in canonical orientation
NOISE = 0.25  # standard deviation, of the height of an object


def generate_volumes(root: Path, seed: int = 0, counts: dict[str, int] | None = None) -> None:
    """Write the data set into an empty folder; `counts`: volumes by split. Raises: DataError if the folder is not empty."""
    if root.exists() and any(root.iterdir()):
        raise DataError(f"{root} is not empty; give a new folder, or delete its files first.")
    counts = counts or SPLIT_COUNTS
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows, number = ["record,split"], 0
    for split, count in counts.items():
        for _ in range(count):
            name = f"case_{number:03d}"
            values, labels = draw_volume(np.random.default_rng((seed, number)))
            (root / "imagesTr" / f"{name}_0000.nii.gz").write_bytes(nifti.write(values.transpose(2, 1, 0), AFFINE))
            (root / "labelsTr" / f"{name}.nii.gz").write_bytes(nifti.write(labels.transpose(2, 1, 0), AFFINE))
            rows.append(f"{name},{split}")
            number += 1
    (root / "splits.csv").write_text("\n".join(rows) + "\n")
    description = {
        "channel_names": {"0": "intensity"},
        "labels": {name: label for label, name in enumerate(CLASSES)},
        "numTraining": number,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")


def draw_volume(random: np.random.Generator) -> tuple[NDArray[np.int16], Labels]:
    """One volume int16 D x H x W, of a scale of its own as in MR, and its labels uint8 D x H x W."""
    labels = np.zeros(SIZE, np.uint8)
    mm = np.stack(
        np.meshgrid(*[np.arange(n) * step for n, step in zip(SIZE, SPACING, strict=True)], indexing="ij"), axis=-1
    )
    extent = np.array(SIZE) * SPACING
    for label in random.permutation([1, 1, 2, 2, 3]):
        center, axis = random.uniform(0.2, 0.8, 3) * extent, random.normal(size=3)
        offset = mm - center
        along = offset @ (axis / np.linalg.norm(axis))
        across = np.sqrt(np.maximum((offset**2).sum(axis=-1) - along**2, 0))
        if label == 1:
            inside = (offset**2).sum(axis=-1) < random.uniform(4, 8) ** 2
        elif label == 2:
            inside = (across < random.uniform(2, 3)) & (np.abs(along) < random.uniform(12, 20))
        else:
            inside = (np.abs(along) < random.uniform(1.2, 2)) & (across < random.uniform(8, 12))
        labels[inside] = label
    # Spheres, tubes and plates are equally bright: only their shape tells them apart.
    clean = (labels > 0) + np.linspace(0, random.uniform(-0.3, 0.3), SIZE[2])
    values = clean + random.normal(0, NOISE, SIZE)
    scale = random.uniform(50, 500)
    return np.rint(scale * (values + 2)).clip(-32768, 32767).astype(np.int16), labels
