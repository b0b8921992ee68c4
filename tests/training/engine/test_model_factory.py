"""The settings of the network: the architecture's options, and initial weights."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from models.architectures import ARCHITECTURES, build, default_options
from models.bundle import open_bundle
from models.errors import ConfigError, RunError, WeightsError
from tests.fixtures_bundles import QUICK_TRAIN_OVERRIDES, QUIET_CONSOLE
from training.config import TrainConfig
from training.config_io import load_config, load_resume_config
from training.data.synthetic import CLASSES, generate_dataset
from training.engine.model_factory import (
    architecture_options,
    check_batch_norm,
    find_weights_file,
    load_network,
    make_network,
)
from training.evaluate import evaluate
from training.export import export
from training.run_folder import read_run_metadata
from training.train import check_planned_model_settings, plan_training, train

NON_DEFAULT_OPTIONS = {
    "encoder": "mobilenet_v2", "output_stride": 16, "head": "aspp", "skips": "16s", "upsampling": "learned",
    "aux": True, "separable": True, "dropout": 0.3, "init": "xavier",
}  # fmt: skip


def test_options_of_fcn_are_settings_with_the_same_defaults() -> None:
    for option, default in default_options("fcn").items():
        field = TrainConfig.model_fields[option]
        assert field.default == ("none" if option == "weights" else default), option
        assert field.description, option


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_can_be_set_by_name(name: str) -> None:
    options = architecture_options(load_config(None, [f"architecture={name}"]))
    assert set(options) == set(default_options(name)) - {"weights"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["architecture=smp/Unett"], r"'smp/Unett' is not known; did you mean smp/Unet,"),
        (["architecture=fnc"], r"did you mean fcn\?"),
        (
            ["architecture=smp/Unet", "head=d6"],
            r"smp/Unet has no setting head=d6; it has encoder, weights, output_stride",
        ),
        (
            ["architecture=torchvision/fcn_resnet50", "encoder=resnet50"],
            r"fcn_resnet50 has no setting encoder=resnet50",
        ),
        (["encoder=resnet81"], r"'resnet81' is not known .* did you mean resnet18"),
        (["encoder=tu-resnet18q"], r"did you mean tu-resnet18"),
    ],
    ids=str,
)
def test_wrong_name_is_refused_before_the_data_is_read(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "no-data", tmp_path / "run", load_config(None, words), console=QUIET_CONSOLE)
    assert not (tmp_path / "run").exists()


def test_settings_of_the_u_net_wait_for_the_axes_of_the_data(small_images: Path) -> None:
    """The plan of signals and volumes chooses the U-Net; that of images does not."""
    assert check_planned_model_settings(load_config(None, ["width=16"]), {"width": 16}) is not None
    assert check_planned_model_settings(load_config(None, []), {}) is None
    with pytest.raises(ConfigError, match=r"fcn has no setting width=16"):
        plan_training(small_images, None, {"width": 16}, QUIET_CONSOLE)
    chosen = ["width=16", "architecture=fcn"]
    with pytest.raises(ConfigError, match=r"fcn has no setting width=16"):
        check_planned_model_settings(load_config(None, chosen), {"width": 16, "architecture": "fcn"})
    with pytest.raises(ConfigError, match=r"fcn has no setting width=16"):
        check_planned_model_settings(load_config(None, ["width=16", "head=d6"]), {"width": 16, "head": "d6"})


@pytest.fixture
def small_images(tmp_path: Path) -> Path:
    generate_dataset(tmp_path / "small", counts={"train": 2, "val": 1}, size=(48, 64))
    return tmp_path / "small"


def test_unknown_head_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"head=asp is not possible: expected linear, fcn, d6, aspp or psp"):
        load_config(None, ["head=asp"])


@pytest.mark.slow
def test_every_option_reaches_network_checkpoint_and_bundle(shapes: Path, tmp_path: Path) -> None:
    """And the bundle does not name the file of its initial weights."""
    weights = tmp_path / "mine.pth"
    torch.save(build("fcn", len(CLASSES), **NON_DEFAULT_OPTIONS).state_dict(), weights)
    words = [f"{key}={value}" for key, value in NON_DEFAULT_OPTIONS.items()] + [f"weights={weights}"]
    run = train(
        shapes, tmp_path / "run", load_config(None, [*QUICK_TRAIN_OVERRIDES, "epochs=1", *words]), console=QUIET_CONSOLE
    )
    network = load_network(run)
    assert network.architecture.options == {**NON_DEFAULT_OPTIONS, "weights": None}
    bundle = open_bundle(export(run, int8_limit=None, console=QUIET_CONSOLE))
    assert str(tmp_path) not in (bundle.folder / "spec.json").read_text()
    assert bundle.spec.architecture == network.architecture
    assert bundle.spec.parity["openvino"]["f32"] >= 0.999
    again = build(bundle.spec.architecture.name, len(CLASSES), **bundle.spec.architecture.options)
    assert set(again.state_dict()) == set(network.state_dict())


@pytest.mark.slow
def test_networks_of_other_libraries_train_export_and_evaluate(shapes: Path, tmp_path: Path) -> None:
    """One of smp; the tests of `import` export one of torchvision."""
    config = load_config(None, [*QUICK_TRAIN_OVERRIDES, "architecture=smp/Unet"])
    run = train(shapes, tmp_path / "run", config, console=QUIET_CONSOLE)
    metrics = evaluate(export(run, int8_limit=None, console=QUIET_CONSOLE), shapes, "test", console=QUIET_CONSOLE)
    assert metrics.images == 6


# initial weights


def fine_tune(data: Path, out: Path, overrides: list[str]) -> Path:
    """One epoch at so low a learning rate that the loaded weights stay recognizable."""
    return train(
        data,
        out,
        load_config(None, [*QUICK_TRAIN_OVERRIDES, "epochs=1", "lr=1e-9", "warmup=0", *overrides]),
        console=QUIET_CONSOLE,
    )


def test_fine_tuning_starts_from_the_weights_of_the_bundle_and_a_resume_does_not_need_them(
    run: Path, bundle: Path, shapes: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    tuned = fine_tune(shapes, tmp_path / "tuned", [f"weights={copy}"])
    before, after = (load_network(one).state_dict() for one in (run, tuned))
    for name, value in before.items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)
    shutil.rmtree(copy)
    train(shapes, tuned, load_resume_config(tuned, None, ["epochs=2"]), resume=True, console=QUIET_CONSOLE)
    with (tuned / "metrics.csv").open(newline="") as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)][-1] == "2"


def test_other_classes_need_a_new_head(bundle: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    generate_dataset(other, counts={"train": 8, "val": 2, "test": 2})
    names = (other / "classes.csv").read_text().splitlines()
    (other / "classes.csv").write_text("\n".join([*names, "comet,9,9,9"]) + "\n")
    with pytest.raises(
        WeightsError, match=rf"{len(CLASSES)} classes and this data set has {len(CLASSES) + 1}; pass --reset-head"
    ):
        fine_tune(other, tmp_path / "no", [f"weights={bundle}"])
    tuned = fine_tune(other, tmp_path / "tuned", [f"weights={bundle}", "reset_head=true"])
    before, after = load_network(run), load_network(tuned)
    assert after.body.score.out_channels == len(CLASSES) + 1
    first, tuned_first = (next(each.body.encoder.parameters()) for each in (before, after))
    torch.testing.assert_close(tuned_first, first, rtol=1e-4, atol=1e-6)


def test_training_prints_its_initial_weights(bundle: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = read_run_metadata(run).classes
    config = load_config(None, [*QUICK_TRAIN_OVERRIDES, f"weights={bundle}"])
    make_network(config, classes, Console(), load_weights=True)
    assert f"weights of {bundle}" in "".join(capsys.readouterr().out.splitlines())


# errors before the data is read


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights=nothing.pth"], r"'nothing.pth' are neither a file or bundle nor known .* none, imagenet, ssl, swsl"),
        (["weights=~nosuch/x.pth"], r"are neither a file or bundle"),
        (["architecture=torchvision/fcn_resnet50", "weights=coco"], r"nor known .* choose from none, imagenet"),
        (["architecture=unet", "weights=imagenet"], r"nor known .* choose from none\."),
    ],
    ids=str,
)
def test_missing_weights_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        train(tmp_path / "no-data", tmp_path / "run", load_config(None, words), console=QUIET_CONSOLE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reset_head=true"], r"reset_head=true has no effect with weights=none: set weights=FILE or BUNDLE"),
        (["reset_head=true", "weights=imagenet"], r"no effect with weights=imagenet"),
        (["architecture=smp/FPN", "output_stride=16"], r"output stride 16 is not possible for smp/FPN; choose 32"),
        (["architecture=smp/FPN", "encoder=alexnet"], r"alexnet works with architecture=fcn only"),
        (["encoder=tu-swin_tiny_patch4_window7_224", "head=aspp"], r"cannot be dilated .* set output_stride=32"),
        (["architecture=resnet50"], r"it is an encoder: architecture=fcn encoder=resnet50"),
        (["architecture=linknet"], r"did you mean smp/Linknet"),
        (["width=64"], r"fcn has no setting width=64; it has encoder, weights"),
    ],
    ids=str,
)
def test_incompatible_settings_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "no-data", tmp_path / "run", load_config(None, words), console=QUIET_CONSOLE)


def test_known_name_takes_precedence_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    assert find_weights_file(load_config(None, ["weights=imagenet"])) is None
    assert find_weights_file(load_config(None, ["weights=./imagenet"])) == Path("./imagenet")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights_file(load_config(None, ["weights=~/imagenet"])) == tmp_path / "imagenet"


@pytest.mark.parametrize(
    ("name", "options", "batch", "crop"),
    [
        ("smp/DeepLabV3", {}, 1, (96, 128)),
        ("torchvision/deeplabv3_mobilenet_v3_large", {}, 1, (96, 128)),
        ("fcn", {}, 1, (32, 32)),
    ],
    ids=str,
)
def test_batch_norm_on_one_value_is_refused(
    name: str, options: dict[str, object], batch: int, crop: tuple[int, int]
) -> None:
    network = build(name, 3, **options)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match=r"from 1 crop of .*: set batch=2 or more, or a larger crop"):
        check_batch_norm(network, batch, crop)
    check_batch_norm(network, 2, (96, 128))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("head", ["linear", "fcn", "d6", "aspp", "psp"])
def test_own_heads_accept_batches_of_one(head: str) -> None:
    check_batch_norm(build("fcn", 3, head=head), 1, (96, 128))


def test_run_with_a_changed_config_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("bundle"))
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("head: fcn", "head: aspp"))
    with pytest.raises(RunError, match=r"best.ckpt holds another network than .*config.yaml describes"):
        load_network(tmp_path / "run")
