"""Networks from elsewhere, through the gate into a bundle and out over HTTP; torchvision's by name and file."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import get_model_weights

import training.import_model
from models.architectures.base import IMAGENET_MEAN, IMAGENET_STD
from models.architectures.torchvision_models import MODEL_BACKBONES
from models.bundle import Bundle, open_bundle
from models.errors import BundleError, ConfigError, DataError, ParityError, WeightsError
from models.imaging.decode import read_image
from models.inference.geometry import resize_labels
from models.inference.segmenter import Segmenter, agreement
from models.spec import InputRule, default_rgb
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.fixtures_graphs import reference_labels, scene_image, write_onnx_graph
from tests.fixtures_networks import calibrate_norms
from training.data.formats.voc import CLASS_NAMES
from training.freezing.onnx_import.graph_reader import UserHints
from training.freezing.parity import load_parity_images
from training.import_model import import_model, import_onnx

pytestmark = pytest.mark.usefixtures("one_thread")
SMALLEST = "lraspp_mobilenet_v3_large"
WITH_HEAD = "deeplabv3_mobilenet_v3_large"


def write_class_file(folder: Path, count: int) -> str:
    """A file of so many classes."""
    (folder / "names.csv").write_text("".join(f"thing {label},{label},0,9\n" for label in range(count)))
    return str(folder / "names.csv")


def make_torchvision_model(name: str, classes: int = 21, **options: Any) -> nn.Module:
    """A network of torchvision with random weights that tell images apart."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **options)
    return calibrate_norms(network, normalise(np.stack([scene_image(96, 128, seed) for seed in range(4)])))


def normalise(images: np.ndarray) -> torch.Tensor:
    """As torchvision's preset for these weights does it: RGB uint8 N x H x W x 3 -> float N x 3 x H x W."""
    preset = get_model_weights(SMALLEST).DEFAULT.transforms()
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return torchvision.transforms.functional.normalize(values, preset.mean, preset.std)


def predict_labels(network: nn.Module, asked: np.ndarray) -> np.ndarray:
    """The labels that torchvision's own forward gives."""
    with torch.inference_mode():
        return network(normalise(asked[None]))["out"][0].argmax(dim=0).to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """torchvision's smallest network, and a file of its weights."""
    network, file = make_torchvision_model(SMALLEST), tmp_path_factory.mktemp("small") / "small.pth"
    torch.save(network.state_dict(), file)
    return network, file


@pytest.fixture(scope="module")
def imported_bundle(
    small_model: tuple[nn.Module, Path], images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    target = tmp_path_factory.mktemp("brought") / "bundle"
    return open_bundle(
        import_model(f"torchvision/{SMALLEST}", None, target, small_model[1], images=images, console=QUIET_CONSOLE)
    )


# torchvision


def test_a_network_of_torchvision_answers_as_in_torchvision(
    imported_bundle: Bundle, small_model: tuple[nn.Module, Path]
) -> None:
    segmenter, asked = Segmenter.load(imported_bundle, precision="f32"), scene_image()
    expected = predict_labels(small_model[0], asked)
    assert len(np.unique(expected)) > 3
    native = Segmenter(segmenter.run, InputRule(rule="native"))
    assert agreement(native.segment(asked).labels, expected) >= 0.999
    assert segmenter.verify_probes(imported_bundle) >= 0.99
    assert imported_bundle.spec.parity["openvino"]["f32"] >= 0.999


def test_its_bundle_says_what_it_is(imported_bundle: Bundle, small_model: tuple[nn.Module, Path]) -> None:
    spec, state = imported_bundle.spec, small_model[0].state_dict()
    assert (spec.name, spec.architecture.name) == (SMALLEST, f"torchvision/{SMALLEST}")
    assert [entry.name for entry in spec.classes] == list(CLASS_NAMES)
    assert [entry.rgb for entry in spec.classes] == [default_rgb(label) for label in range(21)]
    assert spec.provenance["weights"] == "small.pth"
    stored = load_file(imported_bundle.weights_path)
    assert {name.removeprefix("body.") for name in stored} == {*state, "mean", "std"}
    assert all(torch.equal(stored[f"body.{name}"], value) for name, value in state.items())


def test_a_training_begins_from_its_weights(imported_bundle: Bundle) -> None:
    from models.architectures import build
    from models.architectures.finetune import load_initial_weights

    network = build(imported_bundle.spec.architecture.name, 21, **imported_bundle.spec.architecture.options)
    load_initial_weights(network, imported_bundle.folder, list(CLASS_NAMES))
    stored = load_file(imported_bundle.weights_path)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", MODEL_BACKBONES)
def test_what_torchvision_says_of_its_weights_is_what_is_taken(name: str) -> None:
    published = get_model_weights(name).DEFAULT
    assert published.name == "COCO_WITH_VOC_LABELS_V1"
    assert ["__background__", *CLASS_NAMES[1:]] == published.meta["categories"]
    preset = published.transforms()
    np.testing.assert_allclose(np.array(preset.mean) * 255, IMAGENET_MEAN, atol=1e-3)
    np.testing.assert_allclose(np.array(preset.std) * 255, IMAGENET_STD, atol=1e-3)
    assert preset.resize_size == [520]


def test_photographs_are_fitted_as_torchvision_does(
    imported_bundle: Bundle, small_model: tuple[nn.Module, Path]
) -> None:
    """A 4:3 photograph's short side comes to 520; its labels return to its size."""
    assert imported_bundle.spec.input == InputRule(rule="fit", side=693)
    asked = scene_image(780, 1040)
    fitted = cv2.resize(asked, (693, 520), interpolation=cv2.INTER_AREA)
    padded = cv2.copyMakeBorder(fitted, 0, 56, 0, 11, cv2.BORDER_REPLICATE)
    expected = resize_labels(predict_labels(small_model[0], padded)[:520, :693], (780, 1040))
    assert agreement(Segmenter.load(imported_bundle, precision="f32").segment(asked).labels, expected) >= 0.999


def test_an_auxiliary_head_comes_along(images: Path, tmp_path: Path) -> None:
    network = make_torchvision_model(WITH_HEAD, classes=5, aux_loss=True)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    source, file = f"torchvision/{WITH_HEAD}", tmp_path / "w.safetensors"
    five = write_class_file(tmp_path, 5)
    bundle = open_bundle(
        import_model(
            source, None, tmp_path / "b", file, five, input_rule="native", images=images, console=QUIET_CONSOLE
        )
    )
    assert bundle.spec.architecture.options["aux"] is True
    assert [entry.name for entry in bundle.spec.classes] == [f"thing {label}" for label in range(5)]
    assert bundle.spec.classes[3].rgb == (3, 0, 9)
    assert any("aux_classifier" in name for name in load_file(bundle.weights_path))
    asked = scene_image()
    assert (
        agreement(Segmenter.load(bundle, precision="f32").segment(asked).labels, predict_labels(network, asked))
        >= 0.999
    )


def test_weights_that_do_not_fit_are_refused(small_model: tuple[nn.Module, Path], images: Path, tmp_path: Path) -> None:
    state = small_model[0].state_dict()

    def refused(words: str, state: Any, name: str = "w.pth", source: str = SMALLEST, **options: Any) -> None:
        torch.save(state, tmp_path / name)
        with pytest.raises(WeightsError, match=words):
            import_model(
                f"torchvision/{source}",
                None,
                tmp_path / "b",
                tmp_path / name,
                images=images,
                console=QUIET_CONSOLE,
                **options,
            )
        assert not (tmp_path / "b").exists()

    seven = write_class_file(tmp_path, 7)
    refused(r"has 21 classes; --classes .*names\.csv names 7", state, classes=seven)
    smaller = {
        name: value[:12] if name.endswith("_classifier.weight") or name.endswith("_classifier.bias") else value
        for name, value in state.items()
    }
    refused(r"has 12 classes, COCO_WITH_VOC_LABELS_V1 has 21, .* add --classes FILE", smaller)
    refused(r"holds no weights of torchvision/deeplab.*: classifier\.4\.weight is not among", state, source=WITH_HEAD)
    first = min(state)
    refused(rf"another network .*: 1 missing \({first}", {name: state[name] for name in state if name != first})
    refused(r"another network .*: 1 too many \(backbone\.x", {**state, "backbone.x": torch.zeros(1)})
    wrong = {**state, "classifier.cbr.0.weight": torch.zeros(2, 2)}
    refused(r"another network .*: 1 of another size \(classifier\.cbr\.0\.weight", wrong)
    refused(r"holds more than tensors", small_model[0])
    published = Path(get_model_weights(SMALLEST).DEFAULT.url).name
    refused(r"d234d4ea\.pth is damaged: its sha256 does not begin with the d234d4ea of its name", state, name=published)
    with pytest.raises(WeightsError, match=r"none\.pth is not there"):
        import_model(
            f"torchvision/{SMALLEST}",
            None,
            tmp_path / "b",
            tmp_path / "none.pth",
            images=images,
            console=QUIET_CONSOLE,
        )


# the gate, and what every source shares


def test_a_graph_that_comes_out_otherwise_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red and blue change places on the way."""
    from dataclasses import replace

    wrap = training.import_model.rewrite_graph
    monkeypatch.setattr(
        training.import_model,
        "rewrite_graph",
        lambda model, entry, *rest: wrap(model, replace(entry, order="bgr"), *rest),
    )
    four, file = write_class_file(tmp_path, 4), write_onnx_graph(tmp_path / "theirs.onnx")
    with pytest.raises(ParityError, match=r"99\.9% is wanted: nothing was written\. .*--images FOLDER"):
        import_onnx(file, tmp_path / "out" / "b", four, UserHints(), images=images, console=QUIET_CONSOLE)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_gate_asks_about_the_images_given(images: Path, tmp_path: Path) -> None:
    four, file = write_class_file(tmp_path, 4), write_onnx_graph(tmp_path / "theirs.onnx")
    bundle = open_bundle(import_onnx(file, tmp_path / "b", four, UserHints(), images=images, console=QUIET_CONSOLE))
    first = sorted(path for path in images.rglob("*.jpg"))[0]
    probe, _ = bundle.probes()[0]
    assert read_image(probe).shape == (97, 129, 3)  # odd sizes are the harder ones
    assert abs(read_image(probe)[:96, :128].astype(int) - read_image(first)).mean() < 8
    drawn = open_bundle(import_onnx(file, tmp_path / "b", four, UserHints(), console=QUIET_CONSOLE))
    assert read_image(drawn.probes()[0][0]).shape == (481, 641, 3)
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "none"):
        with pytest.raises(DataError, match=rf"--images .*{wrong}: holds no image"):
            import_onnx(file, tmp_path / "c", four, UserHints(), images=tmp_path / wrong, console=QUIET_CONSOLE)


def test_large_images_are_shrunk_before_the_gate(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((1500, 3000, 3), np.uint8))
    sizes = [taken.shape for taken in load_parity_images(tmp_path)]
    assert sizes[0] == (513, 1025, 3)
    assert len(sizes) == 5


def test_classes_are_named(tmp_path: Path) -> None:
    assert [entry.name for entry in training.import_model.read_classes("voc")] == list(CLASS_NAMES)
    assert training.import_model.read_classes("voc")[20].rgb == (0, 64, 128)
    (tmp_path / "c.csv").write_text("name,r,g,b\nroad,1,2,3\nsky,4,5,6\n")
    assert [(entry.name, entry.rgb) for entry in training.import_model.read_classes(str(tmp_path / "c.csv"))] == [
        ("road", (1, 2, 3)),
        ("sky", (4, 5, 6)),
    ]
    with pytest.raises(DataError, match="is no file; name one with a class a line, or say voc"):
        training.import_model.read_classes("cityscapes")
    with pytest.raises(ConfigError, match="does not name its classes; add --classes FILE"):
        import_model("onnx", write_onnx_graph(tmp_path / "g.onnx"), tmp_path / "b", console=QUIET_CONSOLE)


def test_it_says_how_a_graph_was_understood(images: Path, tmp_path: Path) -> None:
    """And that images which show one class alone prove little."""
    said, four = io.StringIO(), write_class_file(tmp_path, 4)
    file = write_onnx_graph(tmp_path / "theirs.onnx", layout="nhwc", ending="softmax", also=("aux",))
    told = UserHints.parse(output="y", mean="127.5", std="127.5", order="bgr")
    console = Console(file=said, width=400)
    import_onnx(file, tmp_path / "b", four, told, "fit:320", images, console)
    assert "input x: float32, nhwc, bgr; (0..255 - 127.5,127.5,127.5) / 127.5,127.5,127.5" in said.getvalue()
    assert "output y: probabilities of 4 channels, nchw" in said.getvalue()
    assert "rule fit: the long side of an image is brought to 320 pixels" in said.getvalue()
    assert "parity openvino f32: at least" in said.getvalue()
    assert "proves little" not in said.getvalue()
    import_onnx(
        write_onnx_graph(tmp_path / "one.onnx", ending="one class"),
        tmp_path / "b",
        four,
        UserHints(),
        None,
        images,
        console,
    )
    assert "the probes show 1 of 4 classes: thing 0" in said.getvalue()
    assert "proves little" in said.getvalue()


def test_only_a_bundle_is_overwritten(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    four, file = write_class_file(tmp_path, 4), write_onnx_graph(tmp_path / "theirs.onnx")
    with pytest.raises(BundleError, match="is no bundle"):
        import_onnx(file, tmp_path / "mine", four, UserHints(), images=images, console=QUIET_CONSOLE)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    for _ in range(2):
        import_onnx(file, tmp_path / "b", four, UserHints(), images=images, console=QUIET_CONSOLE)
    open_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("torchvision/fcn_resnet5", "did you mean torchvision/fcn_resnet50"),
        ("deeplabv3_resnet101", "did you mean torchvision/deeplabv3_resnet101"),
        ("onx", "did you mean onnx"),
        ("my/model.onnx", "did you mean `maskserve import onnx my/model.onnx`"),
        ("qqq", r"did you mean onnx, torchvision/fcn_resnet50, .*lraspp"),
    ],
)
def test_the_nearest_names_of_an_unknown_source(source: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        import_model(source, None, tmp_path / "b", console=QUIET_CONSOLE)


def test_options_that_are_no_use_to_a_source_are_refused(tmp_path: Path) -> None:
    def refused(words: str, *given: Any, **options: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            import_model(*given, out=tmp_path / "b", console=QUIET_CONSOLE, **options)

    refused("maskserve import onnx FILE", "onnx", None)
    refused("no --weights", "onnx", tmp_path / "g.onnx", weights=tmp_path / "w.pth")
    refused(r"--weights .*w\.pth", f"torchvision/{SMALLEST}", tmp_path / "w.pth")
    refused("leave them out", f"torchvision/{SMALLEST}", None, told=UserHints(order="bgr"))


# the whole way


def run_cli(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("maskserve"), *words]
    environment = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def test_from_a_file_to_a_mask_over_http(images: Path, tmp_path: Path) -> None:
    """Typed as a person types it; a graph of one size, in labels, answers for an image of any."""
    from maskserve.client import Client
    from service.server_process import background_server

    file = write_onnx_graph(tmp_path / "theirs.onnx", dims=(1, 120, 200), ending="labels")
    write_class_file(tmp_path, 4)
    words = ("import", "onnx", "theirs.onnx", "--classes", "names.csv", "--out", "bundle", "--images", images)
    done = run_cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rule exact: an image is stretched to 120 x 200" in done.stdout
    assert "Next: maskserve serve bundle" in done.stdout
    asked, large = scene_image(120, 200), scene_image(301, 455)
    with background_server(tmp_path / "bundle") as url, Client(url) as client:
        mask = client.segment(asked)
        assert client.segment(large).labels.shape == (301, 455)
    assert agreement(mask.labels, reference_labels(file, asked, meaning="labels")) >= 0.999
    assert [entry["name"] for entry in mask.classes] == [f"thing {label}" for label in range(4)]


def test_where_there_is_no_network_the_file_to_get_is_named(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    nothing = {"no_proxy": "", "NO_PROXY": ""}
    published = get_model_weights(SMALLEST).DEFAULT.url
    words = ("import", f"torchvision/{SMALLEST}", "--out", "b")
    done = run_cli(*words, cwd=tmp_path, TORCH_HOME=str(tmp_path), **nowhere, **nothing)
    assert done.returncode == 1
    assert published in done.stderr
    assert "--weights FILE" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists()


def test_a_cached_file_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / Path(get_model_weights(SMALLEST).DEFAULT.url).name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half of it")
    with pytest.raises(WeightsError, match="is damaged"):
        import_model(f"torchvision/{SMALLEST}", None, tmp_path / "b", console=QUIET_CONSOLE)


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    write_onnx_graph(tmp_path / "theirs.onnx", channels=21)
    write_class_file(tmp_path, 4)
    for words, code, said in (
        (("onnx", "theirs.onnx", "--classes", "names.csv", "--out", "b"), 1, "21 classes as nchw; --classes names 4"),
        (("onnx", "theirs.onnx", "--classes", "voc", "--order", "x", "--out", "b"), 2, "choose rgb or bgr"),
    ):
        done = run_cli("import", *words, cwd=tmp_path)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists()
