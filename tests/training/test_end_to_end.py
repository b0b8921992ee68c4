"""Train, resume, export, evaluate: the real thing in small, once a run, and what must be refused on the way."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import training.export
from models.bundle import open_bundle
from models.errors import BundleError, ConfigError, DataError, ParityError, RunError
from models.inference.segmenter import Segmenter
from tests.fixtures_bundles import QUICK_TRAIN_OVERRIDES, QUIET_CONSOLE
from training.config_io import load_config, load_resume_config
from training.data import load_split
from training.engine.checkpoint import read_checkpoint
from training.engine.model_factory import load_network, make_torch_segmenter
from training.evaluate import evaluate
from training.export import export
from training.metrics.confusion import ConfusionMatrix
from training.metrics.results import EvaluationMetrics
from training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT
from training.train import train

ROOT = Path(__file__).parents[2]
CAMVID = ROOT / ".." / "shared" / "data" / "camvid"


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    for name in (
        "config.yaml",
        "run.json",
        "metrics.csv",
        "curves.html",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    ):
        assert (run / name).stat().st_size > 0, name
    assert len(list((run / "samples").glob("*.png"))) == 4
    assert [row["epoch"] for row in read_metrics(run)] == ["1", "2"]
    assert float(read_metrics(run)[1]["loss"]) < float(read_metrics(run)[0]["loss"])
    assert load_config(run / "config.yaml", []) == load_config(None, QUICK_TRAIN_OVERRIDES)


def test_a_run_is_not_overwritten(run: Path, shapes: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        train(shapes, run, load_config(None, QUICK_TRAIN_OVERRIDES), console=QUIET_CONSOLE)


def test_a_stopped_run_goes_on_where_it_was(run: Path, shapes: Path, tmp_path: Path) -> None:
    """One epoch, then resumed for the second, gives the weights of the run that was not stopped."""
    part = train(
        shapes, tmp_path / "part", load_config(None, [*QUICK_TRAIN_OVERRIDES, "epochs=1"]), console=QUIET_CONSOLE
    )
    train(shapes, part, load_resume_config(part, None, ["epochs=2"]), resume=True, console=QUIET_CONSOLE)
    assert [row["epoch"] for row in read_metrics(part)] == ["1", "2"]
    assert read_checkpoint(part / LAST_CHECKPOINT)["step"] == 8


@pytest.mark.slow
def test_last_is_the_last_epoch_also_where_an_earlier_one_was_better(shapes: Path, tmp_path: Path) -> None:
    """At a rate of nothing the mIoU only wanders."""
    words = [*QUICK_TRAIN_OVERRIDES, "epochs=3", "optimizer=sgd", "lr=1e-9", "warmup=0"]
    run = train(shapes, tmp_path / "run", load_config(None, words), console=QUIET_CONSOLE)
    ranked = [float(row["miou"]) for row in read_metrics(run)]
    assert read_checkpoint(run / LAST_CHECKPOINT)["step"] == 12
    assert read_checkpoint(run / BEST_CHECKPOINT)["step"] == 4 * (1 + ranked.index(max(ranked)))


def test_a_run_goes_on_with_its_own_data_alone(run: Path, shapes: Path, tmp_path: Path) -> None:
    other = shutil.copytree(shapes, tmp_path / "other")
    with pytest.raises(RunError, match="was trained on"):
        train(other, run, load_config(None, []), resume=True, console=QUIET_CONSOLE)


def test_a_gpu_that_is_not_there_is_a_sentence(shapes: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="no GPU"):
        train(shapes, tmp_path / "run", load_config(None, ["device=cuda"]), console=QUIET_CONSOLE)


def test_evaluation_names_a_mask_with_a_label_that_is_no_class(bundle: Path, shapes: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(shapes, tmp_path / "bad")
    Image.fromarray(np.full((144, 192), 77, np.uint8)).save(bad / "masks/test/test_0003.png")
    with pytest.raises(DataError, match=r"test_0003.png holds the label 77"):
        evaluate(bundle, bad, console=QUIET_CONSOLE)


def test_resume_needs_a_run(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="resume from"):
        train(shapes, tmp_path / "none", load_config(None, []), resume=True, console=QUIET_CONSOLE)


def test_errors_of_the_lint_stop_a_training_before_it_begins(shapes: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(shapes, tmp_path / "bad")
    Image.fromarray(np.full((144, 192), 77, np.uint8)).save(bad / "masks/train/train_0000.png")
    with pytest.raises(DataError, match="data lint"):
        train(bad, tmp_path / "run", load_config(None, QUICK_TRAIN_OVERRIDES), console=QUIET_CONSOLE)
    assert not (tmp_path / "run").exists()


def test_a_time_limit_ends_a_run_with_its_checkpoints(shapes: Path, tmp_path: Path) -> None:
    run = train(
        shapes,
        tmp_path / "run",
        load_config(None, [*QUICK_TRAIN_OVERRIDES, "epochs=50", "minutes=0.02"]),
        console=QUIET_CONSOLE,
    )
    assert len(read_metrics(run)) < 50
    assert (run / "checkpoints/best.ckpt").exists()


def test_a_bundle_says_where_it_comes_from(bundle: Path, shapes: Path) -> None:
    spec = open_bundle(bundle).spec
    assert spec.parity["openvino"]["f32"] >= 0.999
    assert [entry.name for entry in spec.classes] == [entry.name for entry in load_split(shapes, "train").classes]
    assert spec.input.side == 192
    assert spec.provenance["data"] == "shapes"
    assert spec.provenance["config"]["epochs"] == 2
    assert 0 < spec.metrics["val"]["miou"] < 1
    assert (bundle / "report/metrics.csv").read_text().startswith("epoch,")  # for the curves of report.html


def test_a_bundle_holds_no_path_of_the_machine_that_made_it(bundle: Path, shapes: Path) -> None:
    files = [path.read_bytes() for path in bundle.rglob("*") if path.is_file()]
    assert files
    assert not [
        needle for needle in (shapes.parent, ROOT / "models") for content in files if str(needle).encode() in content
    ]


def test_the_frozen_network_is_the_live_one_on_images_it_has_not_seen(bundle: Path, run: Path, shapes: Path) -> None:
    opened = open_bundle(bundle)
    frozen, alive = Segmenter.load(opened, precision="f32"), make_torch_segmenter(load_network(run), opened.spec.input)
    samples = load_split(shapes, "test")
    for index in range(len(samples)):
        image = samples.image(index)[: 101 + index, : 77 + 13 * index]
        assert np.mean(frozen.segment(image).labels == alive.segment(image).labels) >= 0.999


def test_its_weights_are_the_runs_without_a_pickle(bundle: Path, run: Path) -> None:
    from safetensors.torch import load_file

    network = load_network(run).state_dict()
    weights = load_file(bundle / "weights.safetensors")
    assert set(weights) == set(network)
    assert all(torch.equal(weights[name], network[name]) for name in weights)
    assert not [path for path in bundle.rglob("*") if path.suffix in (".pt", ".pth", ".ckpt", ".pkl")]


def test_export_refuses_and_writes_nothing_where_frozen_and_live_differ(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another network is frozen than the one that it is compared with."""
    freeze = training.export.export_network

    def freeze_another(network: torch.nn.Module, target: Path) -> None:
        other = load_network(run)
        torch.nn.init.normal_(other.body.score.weight)  # type: ignore[union-attr, arg-type]
        freeze(other, target)

    monkeypatch.setattr(training.export, "export_network", freeze_another)
    with pytest.raises(ParityError, match=r"99\.9% are required"):
        export(run, tmp_path / "bundle", console=QUIET_CONSOLE)
    assert list(tmp_path.iterdir()) == []


def test_export_takes_no_folder_that_holds_more_than_a_bundle(run: Path, bundle: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(bundle, tmp_path / "mine")
    (mine / "thesis.tex").touch()
    with pytest.raises(BundleError, match="is no bundle"):
        export(run, mine, console=QUIET_CONSOLE)
    assert (mine / "thesis.tex").exists()


def test_export_overwrites_a_bundle_and_nothing_else(run: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BundleError, match="is no bundle"):
        export(run, tmp_path, console=QUIET_CONSOLE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_the_input_rule_is_chosen_at_export(run: Path, tmp_path: Path) -> None:
    assert open_bundle(export(run, tmp_path / "n", "native", None, QUIET_CONSOLE)).spec.input.rule == "native"
    with pytest.raises(ConfigError, match="fit:SIDE"):
        export(run, tmp_path / "x", "fit:3", None, QUIET_CONSOLE)


def test_what_is_no_run_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a finished run"):
        export(tmp_path, console=QUIET_CONSOLE)


def test_evaluation_is_the_segmenters_answers_at_full_size(bundle: Path, shapes: Path, tmp_path: Path) -> None:
    metrics = evaluate(bundle, shapes, out=tmp_path, precision="f32", console=QUIET_CONSOLE)
    samples, segmenter = load_split(shapes, "test"), Segmenter.load(open_bundle(bundle), precision="f32")
    matrix = ConfusionMatrix(len(samples.classes))
    for index in range(len(samples)):
        matrix.add(samples.labels(index), segmenter.segment(samples.image(index)).labels)
    assert metrics.miou == pytest.approx(matrix.miou(), abs=1e-6)
    assert EvaluationMetrics.load(tmp_path / "metrics.json") == metrics
    assert set(metrics.per_class_iou) == {entry.name for entry in samples.classes}
    assert "<html" in (tmp_path / "report.html").read_text()


def test_evaluation_needs_the_bundles_classes(bundle: Path, shapes: Path, tmp_path: Path) -> None:
    other = shutil.copytree(shapes, tmp_path / "other")
    (other / "classes.csv").write_text("a\nb\nc\nd\ne\nf\n")
    with pytest.raises(DataError, match="the bundle ground"):
        evaluate(bundle, other, console=QUIET_CONSOLE)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the folder ../shared/data/camvid is not there")
@pytest.mark.slow
def test_camvid_in_small(tmp_path: Path) -> None:
    """Real street scenes from the folder to a mask over HTTP, and one enlarged six times."""
    from maskserve.client import Client
    from service.server_process import background_server

    # The few validation images are of those trained on: by images of another sequence a short training picks its best
    # by chance, and the test would pass on one processor and fail on the next.
    small = tmp_path / "camvid"
    for split, source, count in (("train", "train", 12), ("val", "train", 4), ("test", "test", 3)):
        for folder in (split, f"{split}annot"):
            (small / folder).mkdir(parents=True)
        for image in sorted((CAMVID / source).iterdir())[:count]:
            shutil.copy(image, small / split)
            shutil.copy(CAMVID / f"{source}annot" / f"{image.stem}.png", small / f"{split}annot")
    words = [
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
    config = load_config(None, words)
    bundle = export(
        train(small, tmp_path / "run", config, console=QUIET_CONSOLE), int8_limit=None, console=QUIET_CONSOLE
    )
    metrics = evaluate(bundle, small, console=QUIET_CONSOLE)
    assert metrics.per_class_iou["road"] > 0.4
    source = sorted((small / "test").iterdir())[0]
    large = Image.open(source).resize((2880, 2160))
    own = Segmenter.load(open_bundle(bundle))
    with background_server(bundle) as url, Client(url) as client:
        assert (client.segment(source).labels == own.segment(load_split(small, "test").image(0)).labels).mean() > 0.999
        answer = client.segment(large).labels
    assert answer.shape == (2160, 2880)
    assert (answer == own.segment(np.asarray(large)).labels).mean() > 0.999
