"""Data sets of unknown origin: a file that a decoder process may not decode is an error of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import DataError
from models.imaging import decoder_pool, decoder_process, sandbox
from models.spec import InputRule
from tests.fixtures_images import make_png
from training.config import TrainConfig
from training.data import load_split
from training.data.loader import build_val_loader, iterate_batches
from training.data.synthetic import generate_dataset
from training.lint import lint

HOSTILE = make_png((4500, 4500), 8, 2, bytes(13501 * 4500))  # 60 KB of file, 81 MB of pixels in Pillow


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data set with a hostile image; the sandbox is on, with little memory, so that it is noticed where it decodes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoder_pool, "BYTES_PER_PIXEL", 0)
    monkeypatch.setattr(decoder_pool, "BASE_BYTES", (64 << 20) - decoder_process.RESERVED_BYTES)
    sandbox.enable_sandbox(children=2)
    generate_dataset(tmp_path / "data", counts={"train": 3, "val": 2}, size=(32, 48))
    yield tmp_path / "data"
    sandbox.disable_sandbox()


def test_lint_reports_a_hostile_image_and_a_hostile_mask(data: Path) -> None:
    image, mask = sorted((data / "images/train").iterdir())[0], sorted((data / "masks/train").iterdir())[1]
    image.write_bytes(HOSTILE)
    mask.write_bytes(HOSTILE)
    errors = [finding.detail for finding in lint(data).errors]
    assert len(errors) == 2 and all("not enough free memory" in error for error in errors), errors
    assert [error.split(":")[0] for error in errors] == [str(image), str(mask)]


def test_worker_of_a_training_reports_a_hostile_image(data: Path) -> None:
    split = load_split(data, "val")
    split.pairs[1].image.write_bytes(HOSTILE)
    loader = build_val_loader(split, InputRule(rule="native"), TrainConfig(workers=1, batch=1, sandbox=True))
    batches = iterate_batches(loader)
    assert next(batches).images.shape[0] == 1
    with pytest.raises(DataError, match="not enough free memory"):
        next(batches)
    batches.close()
