"""Cross-validation: the fold tables, the runs and their summary."""

import json
import shutil
from pathlib import Path

import pytest

from models.errors import DataError, RunError
from models.spec import ClassInfo, InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.maskserve.command_line import run_maskserve
from training.cross_validation import find_fold_runs, find_fold_tables, summarise_folds, write_summary
from training.data.synthetic import generate_dataset
from training.run_folder import ImageList, RunEnd, RunMetadata, write_run_metadata


def write_tables(folder: Path, *val_images: str) -> None:
    folder.mkdir()
    for fold, images in enumerate(val_images):
        rows = [f"val\t{image}.jpg\t{image}.png" for image in images.split()]
        (folder / f"fold{fold}.tsv").write_text("\n".join(["split\timage\tmask", *rows, "train\tz.jpg\tz.png", ""]))


def test_fold_tables_are_found_and_wrong_ones_refused(tmp_path: Path) -> None:
    write_tables(tmp_path / "good", "a b", "c", "d")
    assert [table.name for table in find_fold_tables(tmp_path / "good")] == ["fold0.tsv", "fold1.tsv", "fold2.tsv"]
    (tmp_path / "good" / "fold1.tsv").unlink()
    with pytest.raises(DataError, match=r"fold1.tsv is missing, but there is fold2.tsv; write them with"):
        find_fold_tables(tmp_path / "good")
    write_tables(tmp_path / "one", "a")
    with pytest.raises(DataError, match=r"holds 1 fold table, but --folds needs"):
        find_fold_tables(tmp_path / "one")
    write_tables(tmp_path / "twice", "a b", "b")
    with pytest.raises(DataError, match=r"b.jpg is in val of .*fold0.tsv and of .*fold1.tsv"):
        find_fold_tables(tmp_path / "twice")


def write_run(run: Path, rows: list[tuple[float, float, str]], monitor: str, finished: bool = True) -> None:
    """A run folder as a training leaves it. `rows`: mIoU, IoU of the ground and cell of the IoU of rare."""
    run.mkdir(parents=True)
    lines = [f"{index + 1},9,0.1,{miou},{ground},{rare}" for index, (miou, ground, rare) in enumerate(rows)]
    (run / "metrics.csv").write_text("\n".join(["epoch,step,loss,miou,iou_ground,iou_rare", *lines, ""]))
    end = RunEnd(setting="epochs", epochs=2, minutes=1, monitor=monitor) if finished else None
    classes = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("ground", "rare")]
    images, rule = ImageList(count=1, sha256=""), InputRule(rule="native")
    metadata = RunMetadata(
        data=run, classes=classes, input=rule, crop=(32, 32), precision="f32", images=images, end=end
    )
    write_run_metadata(metadata, run)


def test_summary_is_of_the_best_validations(tmp_path: Path) -> None:
    """The best by the monitor, not by mIoU; a class that is absent in one fold has the mean of the others."""
    runs = [tmp_path / "fold0", tmp_path / "fold1"]
    write_run(runs[0], [(0.9, 0.5, ""), (0.4, 0.6, "")], "iou_ground")
    write_run(runs[1], [(0.2, 0.8, "0.3"), (0.3, 0.7, "0.4")], "iou_ground")
    write_summary(runs, tmp_path, QUIET_CONSOLE)
    summary = json.loads((tmp_path / "folds.json").read_text())
    assert summary["monitor"] == "iou_ground"
    assert summary["mean"] == pytest.approx({"miou": 0.3, "iou_ground": 0.7, "iou_rare": 0.3})
    assert summary["sd"] == {"miou": 0.141421, "iou_ground": 0.141421, "iou_rare": None}
    assert [fold["run"] for fold in summary["folds"]] == ["fold0", "fold1"]
    assert find_fold_runs(tmp_path) == runs and find_fold_runs(runs[0]) == []
    write_run(tmp_path / "fold2", [(0.1, 0.1, "")], "miou", finished=False)
    with pytest.raises(RunError, match=r"fold2 is not finished; continue with --resume"):
        summarise_folds([*runs, tmp_path / "fold2"])


@pytest.mark.slow
def test_folds_are_trained_resumed_and_summarised(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 8, "val": 2}, size=(48, 64))
    done = run_maskserve("data", "split", "s", "many", "--folds", "20", "--test", "0", cwd=tmp_path)
    assert done.returncode == 1 and "10 groups cannot fill 20 splits" in done.stderr and "or fewer folds" in done.stderr
    assert run_maskserve("data", "split", "s", "tables", "--folds", "2", "--test", "0", cwd=tmp_path).returncode == 0
    settings = ("epochs=1", "batch=4", "workers=0", "crop=32,64", "encoder=tu-lcnet_035", "tensorboard=false")
    command = ("train", "tables", "--folds", "--out", "run")
    done = run_maskserve(*command, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "run" / "folds.json").read_text())
    assert len(first["folds"]) == 2 and 0 <= first["mean"]["miou"] <= 1

    assert "already holds a run" in run_maskserve(*command, *settings, cwd=tmp_path).stderr
    kept = (tmp_path / "run" / "fold0" / "metrics.csv").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "run" / "fold1")
    done = run_maskserve(*command, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "fold0" / "metrics.csv").stat().st_mtime_ns == kept
    again = json.loads((tmp_path / "run" / "folds.json").read_text())
    assert again["folds"][0] == first["folds"][0] and again["folds"][1].keys() == first["folds"][1].keys()
