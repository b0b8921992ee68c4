"""Train, resume, export and evaluate on a small data set, and the errors on the way."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import training.export
from models.architectures.base import Network
from models.bundle import open_bundle
from models.errors import BundleError, ConfigError, DataError, ParityError, RunError
from models.inference.segmenter import Segmenter
from tests.fixtures_bundles import QUICK_TRAIN_OVERRIDES, QUIET_CONSOLE
from training.config_io import load_config
from training.data import load_split
from training.engine.checkpoint import read_checkpoint
from training.engine.model_factory import load_network, make_torch_segmenter
from training.evaluate import evaluate
from training.export import export
from training.metrics.confusion import ConfusionMatrix
from training.metrics.results import EvaluationMetrics
from training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, read_run_metadata, write_run_metadata
from training.train import train

ROOT = Path(__file__).parents[2]
CAMVID = ROOT / ".." / "shared" / "data" / "camvid"


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_run_folder_has_all_files(run: Path) -> None:
    for name in (
        "config.yaml",
        "run.json",
        "metrics.csv",
        "curves.png",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    ):
        assert (run / name).stat().st_size > 0, name
    assert len(list((run / "samples").glob("*.png"))) == 4
    assert [row["epoch"] for row in read_metrics(run)] == ["1", "2"]
    assert float(read_metrics(run)[1]["loss"]) < float(read_metrics(run)[0]["loss"])
    assert load_config(run / "config.yaml", []) == load_config(None, QUICK_TRAIN_OVERRIDES)


def test_run_is_not_overwritten(run: Path, shapes: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        train(shapes, run, load_config(None, QUICK_TRAIN_OVERRIDES), console=QUIET_CONSOLE)


@pytest.mark.slow
def test_last_checkpoint_is_of_the_last_epoch(shapes: Path, tmp_path: Path) -> None:
    """With almost no learning rate, an earlier epoch may be the best."""
    overrides = [*QUICK_TRAIN_OVERRIDES, "epochs=3", "optimizer=sgd", "lr=1e-9", "warmup=0", "encoder=tu-lcnet_035"]
    run = train(shapes, tmp_path / "run", load_config(None, overrides), console=QUIET_CONSOLE)
    mious = [float(row["miou"]) for row in read_metrics(run)]
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == 12
    assert read_checkpoint(run / BEST_CHECKPOINT)["step"] == 4 * (1 + mious.index(max(mious)))


@pytest.mark.usefixtures("reused_graph")
def test_export_finds_data_that_moved_and_refuses_other_data(run: Path, shapes: Path, tmp_path: Path) -> None:
    moved_run, moved = shutil.copytree(run, tmp_path / "run"), shutil.copytree(shapes, tmp_path / "moved")
    missing = tmp_path / "gone"
    write_run_metadata(read_run_metadata(run).model_copy(update={"data": missing}), moved_run)
    with pytest.raises(DataError, match=rf"{missing}.* is missing.*`maskserve export {moved_run} --data FOLDER`"):
        export(moved_run, tmp_path / "bundle", console=QUIET_CONSOLE)
    changed = moved / "masks/val/val_0001.png"
    Image.fromarray(np.asarray(Image.open(changed))[::-1]).save(changed)  # under the same name
    console = Console(file=io.StringIO(), width=200)
    spec = open_bundle(export(moved_run, tmp_path / "bundle", int8_limit=None, console=console, data=moved)).spec
    assert spec.metrics["val"]["miou"] > 0
    warning = f"Images or masks of {moved} (val) have changed since the training, under the same names; the newest"
    assert f"{warning} file is {changed}" in spec.provenance["warnings"][-1]
    assert f"Warning: {warning}" in console.file.getvalue()  # type: ignore[attr-defined]
    (moved / "images/train/train_0003.jpg").rename(moved / "images/train/other.jpg")
    (moved / "masks/train/train_0003.png").rename(moved / "masks/train/other.png")
    with pytest.raises(RunError, match=r"training images of .*moved are not those .* \(32 then, 32 now"):
        export(moved_run, tmp_path / "second", console=QUIET_CONSOLE, data=moved)


def test_export_says_before_it_starts_that_it_cannot_write(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/bundle cannot be written \(Not a directory\)"):
        export(run, tmp_path / "file" / "bundle", console=QUIET_CONSOLE)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    with pytest.raises(RunError, match=r"bundle cannot be written: it takes up to \d+ MB, and 5 MB are free"):
        export(run, tmp_path / "bundle", console=QUIET_CONSOLE)


def test_missing_gpu_is_refused(shapes: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="no GPU"):
        train(shapes, tmp_path / "run", load_config(None, ["device=cuda"]), console=QUIET_CONSOLE)


def test_evaluation_names_a_mask_with_an_unknown_label(bundle: Path, shapes: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(shapes, tmp_path / "bad")
    Image.fromarray(np.full((144, 192), 77, np.uint8)).save(bad / "masks/test/test_0003.png")
    with pytest.raises(DataError, match=r"test_0003.png holds the label 77"):
        evaluate(bundle, bad, console=QUIET_CONSOLE)


def test_resume_without_a_run_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="resume from"):
        train(shapes, tmp_path / "none", load_config(None, []), resume=True, console=QUIET_CONSOLE)


def test_lint_errors_stop_a_training_before_it_starts(shapes: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(shapes, tmp_path / "bad")
    Image.fromarray(np.full((144, 192), 77, np.uint8)).save(bad / "masks/train/train_0000.png")
    with pytest.raises(DataError, match="data lint"):
        train(bad, tmp_path / "run", load_config(None, QUICK_TRAIN_OVERRIDES), console=QUIET_CONSOLE)
    assert not (tmp_path / "run").exists()


def test_bundle_has_its_provenance(bundle: Path, shapes: Path) -> None:
    spec = open_bundle(bundle).spec
    assert spec.name == "shapes"  # the data set's, not that of the run folder
    assert spec.parity["openvino"]["f32"] >= 0.999
    assert [entry.name for entry in spec.classes] == [entry.name for entry in load_split(shapes, "train").classes]
    assert spec.input.side == 192
    assert spec.provenance["data"] == "shapes"
    assert spec.provenance["config"]["epochs"] == 2
    assert 0 < spec.metrics["val"]["miou"] < 1
    assert (bundle / "report/metrics.csv").read_text().startswith("epoch,")  # for the curves of report.html


def test_bundle_contains_no_local_path(bundle: Path, shapes: Path) -> None:
    files = [path.read_bytes() for path in bundle.rglob("*") if path.is_file()]
    assert files
    assert not [
        needle for needle in (shapes.parent, ROOT / "models") for content in files if str(needle).encode() in content
    ]


def test_exported_network_equals_pytorch_on_unseen_images(bundle: Path, run: Path, shapes: Path) -> None:
    opened = open_bundle(bundle)
    exported, reference = (
        Segmenter.load(opened, precision="f32"),
        make_torch_segmenter(load_network(run), opened.spec.input),
    )
    samples = load_split(shapes, "test")
    for index in range(len(samples)):
        image = samples.image(index)[: 101 + index, : 77 + 13 * index]
        assert np.mean(exported.segment(image).labels == reference.segment(image).labels) >= 0.999


def test_bundle_has_the_weights_of_the_run_without_a_pickle(bundle: Path, run: Path) -> None:
    from safetensors.torch import load_file

    network = load_network(run).state_dict()
    weights = load_file(bundle / "weights.safetensors")
    assert set(weights) == set(network)
    assert all(torch.equal(weights[name], network[name]) for name in weights)
    assert not [path for path in bundle.rglob("*") if path.suffix in (".pt", ".pth", ".ckpt", ".pkl")]


@pytest.mark.usefixtures("reused_graph")
def test_export_that_differs_from_pytorch_is_refused_and_writes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is that of another network than the one that it is compared with."""

    def load_another(folder: Path) -> Network:
        network = load_network(folder)
        torch.nn.init.normal_(network.body.score.weight)  # type: ignore[union-attr, arg-type]
        return network

    monkeypatch.setattr(training.export, "load_network", load_another)
    with pytest.raises(ParityError, match=r"99\.9% are required"):
        export(run, tmp_path / "bundle", console=QUIET_CONSOLE)
    assert list(tmp_path.iterdir()) == []


def test_export_does_not_overwrite_a_bundle_with_other_files(run: Path, bundle: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(bundle, tmp_path / "mine")
    (mine / "thesis.tex").touch()
    with pytest.raises(BundleError, match="is not a bundle"):
        export(run, mine, console=QUIET_CONSOLE)
    assert (mine / "thesis.tex").exists()


def test_export_overwrites_only_bundles(run: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BundleError, match="is not a bundle"):
        export(run, tmp_path, console=QUIET_CONSOLE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_export_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a finished run"):
        export(tmp_path, console=QUIET_CONSOLE)


def test_evaluation_counts_full_size_predictions(bundle: Path, shapes: Path, tmp_path: Path) -> None:
    metrics = evaluate(bundle, shapes, out=tmp_path, precision="f32", console=QUIET_CONSOLE)
    samples, segmenter = load_split(shapes, "test"), Segmenter.load(open_bundle(bundle), precision="f32")
    matrix = ConfusionMatrix(len(samples.classes))
    for index in range(len(samples)):
        matrix.add(samples.labels(index), segmenter.segment(samples.image(index)).labels)
    assert metrics.miou == pytest.approx(matrix.miou(), abs=1e-6)
    assert EvaluationMetrics.load(tmp_path / "metrics.json") == metrics
    assert set(metrics.per_class_iou) == {entry.name for entry in samples.classes}
    assert "<html" in (tmp_path / "report.html").read_text()


def test_evaluation_with_other_classes_is_refused(bundle: Path, shapes: Path, tmp_path: Path) -> None:
    other = shutil.copytree(shapes, tmp_path / "other")
    (other / "classes.csv").write_text("a\nb\nc\nd\ne\nf\n")
    with pytest.raises(DataError, match="the bundle ground"):
        evaluate(bundle, other, console=QUIET_CONSOLE)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs ../shared/data/camvid")
@pytest.mark.slow
def test_camvid_in_small(tmp_path: Path) -> None:
    """Real street scenes from the folder to a mask over HTTP, and one enlarged six times."""
    from maskserve.client import Client
    from service.server_process import background_server

    # The validation images are also trained on: with images of another sequence, a short training picks its best network
    # by chance, and the test would pass on one processor and fail on another.
    small = tmp_path / "camvid"
    for split, source, count in (("train", "train", 12), ("val", "train", 4), ("test", "test", 3)):
        for folder in (split, f"{split}annot"):
            (small / folder).mkdir(parents=True)
        for image in sorted((CAMVID / source).iterdir())[:count]:
            shutil.copy(image, small / split)
            shutil.copy(CAMVID / f"{source}annot" / f"{image.stem}.png", small / f"{split}annot")
    overrides = [
        "epochs=24",
        "batch=4",
        "workers=0",
        "optimizer=adamw",
        "lr=0.002",
        "warmup=4",
        "side=256",
        "scale=1,1",
        "color_jitter=0",
    ]
    config = load_config(None, overrides)
    bundle = export(
        train(small, tmp_path / "run", config, console=QUIET_CONSOLE), int8_limit=None, console=QUIET_CONSOLE
    )
    metrics = evaluate(bundle, small, console=QUIET_CONSOLE)
    assert metrics.per_class_iou["road"] > 0.4
    source = sorted((small / "test").iterdir())[0]
    large = Image.open(source).resize((2880, 2160))
    local = Segmenter.load(open_bundle(bundle))
    with background_server(bundle) as url, Client(url) as client:
        assert (
            client.segment(source).labels == local.segment(load_split(small, "test").image(0)).labels
        ).mean() > 0.999
        prediction = client.segment(large).labels
    assert prediction.shape == (2160, 2880)
    assert (prediction == local.segment(np.asarray(large)).labels).mean() > 0.999
