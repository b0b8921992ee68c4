"""CamVid in the layout of the SegNet tutorial: `train/NAME.png` with `trainannot/NAME.png`, and val, test.

Eleven classes, 0 to 10; 11 is unlabeled (Brostow et al. 2009; Badrinarayanan et al. 2017).
"""

from pathlib import Path

from models.spec import IGNORE_INDEX, ClassInfo
from training.data.dataset import SegmentationDataset, match_files
from training.data.mask_decoding import MaskEncoding

UNLABELED = 11

CLASSES = [
    ClassInfo(name="sky", rgb=(128, 128, 128)),
    ClassInfo(name="building", rgb=(128, 0, 0)),
    ClassInfo(name="pole", rgb=(192, 192, 128)),
    ClassInfo(name="road", rgb=(128, 64, 128)),
    ClassInfo(name="pavement", rgb=(60, 40, 222)),
    ClassInfo(name="tree", rgb=(128, 128, 0)),
    ClassInfo(name="sign", rgb=(192, 128, 128)),
    ClassInfo(name="fence", rgb=(64, 64, 128)),
    ClassInfo(name="car", rgb=(64, 0, 128)),
    ClassInfo(name="pedestrian", rgb=(64, 64, 0)),
    ClassInfo(name="bicyclist", rgb=(0, 128, 192)),
]


def detect(root: Path) -> bool:
    """Whether train and val both have an `annot` folder."""
    return all((root / name).is_dir() for name in ("train", "trainannot", "val", "valannot"))


def has_split(root: Path, split: str) -> bool:
    """Whether the split has a folder."""
    return (root / split).is_dir()


def load(root: Path, split: str) -> SegmentationDataset:
    """Open one split. Raises: DataError if its folders are missing or empty."""
    files = match_files(root / split, root / f"{split}annot")
    return SegmentationDataset(
        files.pairs,
        CLASSES,
        MaskEncoding(((UNLABELED, IGNORE_INDEX),)),
        unmatched_images=files.unmatched_images,
        unmatched_masks=files.unmatched_masks,
    )
