"""`import`: networks of torchvision, ONNX files, the parity check, and the way to a mask over HTTP."""

import io
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
from models.architectures import build
from models.architectures.base import IMAGENET_MEAN, IMAGENET_STD, Network
from models.architectures.finetune import load_initial_weights
from models.architectures.torchvision_models import MODEL_BACKBONES
from models.bundle import open_bundle
from models.errors import BundleError, ConfigError, DataError, ParityError, WeightsError
from models.imaging.decode import read_image
from models.inference.geometry import resize_labels
from models.inference.segmenter import Segmenter, agreement
from models.spec import InputRule, default_rgb
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.fixtures_graphs import reference_labels, scene_image, write_onnx_graph
from tests.fixtures_images import encode_image
from tests.fixtures_networks import calibrate_norms
from tests.maskserve.command_line import assert_fails, run_maskserve
from tests.service.in_process import start_app
from training.data.formats.voc import CLASS_NAMES
from training.freezing.bundle_writer import BundleSource
from training.freezing.onnx_import.graph_reader import UserHints
from training.freezing.parity import load_parity_images
from training.import_model import import_model, import_onnx

pytestmark = pytest.mark.usefixtures("one_thread")
SMALLEST = "lraspp_mobilenet_v3_large"
WITH_HEAD = "deeplabv3_mobilenet_v3_large"


def write_class_file(folder: Path, count: int) -> str:
    """A class file with `count` classes."""
    (folder / "names.csv").write_text("".join(f"thing {label},{label},0,9\n" for label in range(count)))
    return str(folder / "names.csv")


def make_torchvision_model(name: str, classes: int = 21, **options: Any) -> nn.Module:
    """A network of torchvision with random weights that predict several classes."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **options)
    return calibrate_norms(network, normalise(np.stack([scene_image(96, 128, seed) for seed in range(4)])))


def normalise(images: np.ndarray) -> torch.Tensor:
    """Normalise as torchvision's preset does: RGB uint8 N x H x W x 3 -> float N x 3 x H x W."""
    preset = get_model_weights(SMALLEST).DEFAULT.transforms()
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return torchvision.transforms.functional.normalize(values, preset.mean, preset.std)


def predict_labels(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """The labels of torchvision's own forward pass."""
    with torch.inference_mode():
        return network(normalise(image[None]))["out"][0].argmax(dim=0).to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """torchvision's smallest network, and a file of its weights."""
    network, file = make_torchvision_model(SMALLEST), tmp_path_factory.mktemp("small") / "small.pth"
    torch.save(network.state_dict(), file)
    return network, file


@pytest.fixture(scope="module")
def small_source(small_model: tuple[nn.Module, Path], images: Path) -> tuple[BundleSource, Network]:
    """What `import` makes the bundle of that network from, and the network that it would export, which takes long."""
    sources, networks = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.import_model, "write_bundle", lambda target, source, console: sources.append(source))
        patch.setattr(training.import_model, "export_network", lambda network, folder: networks.append(network))
        source, weights = f"torchvision/{SMALLEST}", small_model[1]
        import_model(source, None, Path("bundle"), weights, images=images, console=QUIET_CONSOLE)
        sources[0].write_graph(Path())
    return sources[0], networks[0]


# torchvision


@pytest.mark.slow
def test_imported_bundle_predicts_as_torchvision(
    small_model: tuple[nn.Module, Path], images: Path, tmp_path: Path
) -> None:
    """And its weights can start a training."""
    source, weights = f"torchvision/{SMALLEST}", small_model[1]
    bundle = open_bundle(import_model(source, None, tmp_path / "bundle", weights, images=images, console=QUIET_CONSOLE))
    segmenter = Segmenter.load(bundle, precision="f32")
    check_native_predictions(segmenter, small_model[0])
    assert bundle.spec.unpadded_agreement == 1
    assert segmenter.verify_probes(bundle) >= 0.99
    assert bundle.spec.parity["openvino"]["f32"] >= 0.999
    network = build(bundle.spec.architecture.name, 21, **bundle.spec.architecture.options)
    load_initial_weights(network, bundle.folder, list(CLASS_NAMES))
    stored = load_file(bundle.weights_path)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


def check_native_predictions(segmenter: Segmenter, original: nn.Module) -> None:
    """The segmenter's network predicts as torchvision itself, without any padding."""
    native = Segmenter(segmenter.run, InputRule(rule="native", divisor=segmenter.rule.divisor))
    for size in ((128, 192), (97, 131), (120, 203), (301, 50)):
        image = scene_image(*size)
        expected = predict_labels(original, image)
        assert len(np.unique(expected)) > 3
        assert agreement(native.segment(image).labels, expected) >= 0.999


def test_imported_network_predicts_as_in_torchvision(
    small_source: tuple[BundleSource, Network], small_model: tuple[nn.Module, Path]
) -> None:
    check_native_predictions(small_source[0].original, small_model[0])


def test_spec_and_weights_of_an_imported_network(
    small_source: tuple[BundleSource, Network], small_model: tuple[nn.Module, Path]
) -> None:
    spec, state, stored = small_source[0].spec, small_model[0].state_dict(), small_source[1].state_dict()
    assert (spec.name, spec.architecture.name) == (SMALLEST, f"torchvision/{SMALLEST}")
    assert [entry.name for entry in spec.classes] == list(CLASS_NAMES)
    assert [entry.rgb for entry in spec.classes] == [default_rgb(label) for label in range(21)]
    assert spec.provenance["weights"] == "small.pth"
    assert {name.removeprefix("body.") for name in stored} == {*state, "mean", "std"}
    assert all(torch.equal(stored[f"body.{name}"], value) for name, value in state.items())


@pytest.mark.parametrize("name", MODEL_BACKBONES)
def test_torchvision_metadata_is_as_expected(name: str) -> None:
    published = get_model_weights(name).DEFAULT
    assert published.name == "COCO_WITH_VOC_LABELS_V1"
    assert ["__background__", *CLASS_NAMES[1:]] == published.meta["categories"]
    preset = published.transforms()
    np.testing.assert_allclose(np.array(preset.mean) * 255, IMAGENET_MEAN, atol=1e-3)
    np.testing.assert_allclose(np.array(preset.std) * 255, IMAGENET_STD, atol=1e-3)
    assert preset.resize_size == [520]


def test_photographs_are_resized_as_by_torchvision(
    small_source: tuple[BundleSource, Network], small_model: tuple[nn.Module, Path]
) -> None:
    """The short side of a 4:3 photograph is resized to 520; its labels are resized back."""
    assert small_source[0].spec.input == InputRule(rule="fit", side=693, divisor=1)
    image = scene_image(780, 1040)
    fitted = cv2.resize(image, (693, 520), interpolation=cv2.INTER_AREA)
    expected = resize_labels(predict_labels(small_model[0], fitted), (780, 1040))
    assert agreement(small_source[0].original.segment(image).labels, expected) >= 0.999


@pytest.mark.slow
def test_auxiliary_head_is_imported(images: Path, tmp_path: Path) -> None:
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
    image = scene_image()
    labels = Segmenter.load(bundle, precision="f32").segment(image).labels
    assert agreement(labels, predict_labels(network, image)) >= 0.999


def test_wrong_weights_are_an_error(small_model: tuple[nn.Module, Path], images: Path, tmp_path: Path) -> None:
    state = small_model[0].state_dict()

    def assert_refused(message: str, state: Any, name: str = "w.pth", source: str = SMALLEST, **options: Any) -> None:
        torch.save(state, tmp_path / name)
        with pytest.raises(WeightsError, match=message):
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
    assert_refused(r"has 21 classes; --classes .*names\.csv names 7", state, classes=seven)
    smaller = {
        name: value[:12] if name.endswith("_classifier.weight") or name.endswith("_classifier.bias") else value
        for name, value in state.items()
    }
    assert_refused(r"has 12 classes, COCO_WITH_VOC_LABELS_V1 has 21, .* add --classes FILE", smaller)
    assert_refused(
        r"does not hold weights of torchvision/deeplab.*: classifier\.4\.weight is not among", state, source=WITH_HEAD
    )
    first = min(state)
    assert_refused(rf"another network .*: 1 missing \({first}", {name: state[name] for name in state if name != first})
    assert_refused(r"another network .*: 1 unexpected \(backbone\.x", {**state, "backbone.x": torch.zeros(1)})
    wrong = {**state, "classifier.cbr.0.weight": torch.zeros(2, 2)}
    assert_refused(r"another network .*: 1 of another size \(classifier\.cbr\.0\.weight", wrong)
    assert_refused(r"holds more than tensors", small_model[0])
    published = Path(get_model_weights(SMALLEST).DEFAULT.url).name
    assert_refused(
        r"d234d4ea\.pth is damaged: its sha256 does not begin with d234d4ea as its name says", state, name=published
    )
    with pytest.raises(WeightsError, match=r"none\.pth"):
        import_model(
            f"torchvision/{SMALLEST}",
            None,
            tmp_path / "b",
            tmp_path / "none.pth",
            images=images,
            console=QUIET_CONSOLE,
        )


# the parity check, and the options of every source


def test_graph_that_disagrees_with_the_original_is_not_imported(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red and blue are swapped."""
    from dataclasses import replace

    rewrite = training.import_model.rewrite_graph
    monkeypatch.setattr(
        training.import_model,
        "rewrite_graph",
        lambda model, spec, *rest: rewrite(model, replace(spec, order="bgr"), *rest),
    )
    four, file = write_class_file(tmp_path, 4), write_onnx_graph(tmp_path / "theirs.onnx")
    with pytest.raises(ParityError, match=r"99\.9% are required, so no bundle was written\. .*--images FOLDER"):
        import_onnx(file, tmp_path / "out" / "b", four, UserHints(), images=images, console=QUIET_CONSOLE)
    assert list((tmp_path / "out").iterdir()) == []


def test_parity_images_come_from_the_folder(images: Path, tmp_path: Path) -> None:
    four, file = write_class_file(tmp_path, 4), write_onnx_graph(tmp_path / "theirs.onnx")
    bundle = open_bundle(
        import_model("onnx", file, tmp_path / "b", None, four, images=images, console=QUIET_CONSOLE, name="ours")
    )
    assert bundle.spec.name == "ours"
    first = min(images.rglob("*.jpg"))
    probe, _ = bundle.probes()[0]
    assert read_image(probe).shape == (97, 129, 3)  # odd sizes are harder
    assert abs(read_image(probe)[:96, :128].astype(int) - read_image(first)).mean() < 8
    synthetic = open_bundle(import_onnx(file, tmp_path / "b", four, UserHints(), console=QUIET_CONSOLE))
    assert read_image(synthetic.probes()[0][0]).shape == (481, 641, 3)
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "none"):
        with pytest.raises(DataError, match=rf"--images .*{wrong}: no image found"):
            import_onnx(file, tmp_path / "c", four, UserHints(), images=tmp_path / wrong, console=QUIET_CONSOLE)


def test_large_parity_images_are_shrunk(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((1500, 3000, 3), np.uint8))
    sizes = [image.shape for image in load_parity_images(tmp_path)]
    assert sizes[0] == (513, 1025, 3)
    assert len(sizes) == 5


def test_classes_come_from_a_file_or_voc(tmp_path: Path) -> None:
    assert [entry.name for entry in training.import_model.read_classes("voc")] == list(CLASS_NAMES)
    assert training.import_model.read_classes("voc")[20].rgb == (0, 64, 128)
    (tmp_path / "c.csv").write_text("name,r,g,b\nroad,1,2,3\nsky,4,5,6\n")
    assert [(entry.name, entry.rgb) for entry in training.import_model.read_classes(str(tmp_path / "c.csv"))] == [
        ("road", (1, 2, 3)),
        ("sky", (4, 5, 6)),
    ]
    with pytest.raises(DataError, match="no such file; name a file with one class per line, or voc"):
        training.import_model.read_classes("cityscapes")
    with pytest.raises(ConfigError, match="does not name its classes; add --classes FILE"):
        import_model("onnx", write_onnx_graph(tmp_path / "g.onnx"), tmp_path / "b", console=QUIET_CONSOLE)


def test_interpretation_of_a_graph_is_printed(images: Path, tmp_path: Path) -> None:
    """Also a warning if the parity images show a single class."""
    stream, four = io.StringIO(), write_class_file(tmp_path, 4)
    file = write_onnx_graph(tmp_path / "theirs.onnx", layout="nhwc", ending="softmax", also=("aux",))
    hints = UserHints.parse(output="y", mean="127.5", std="127.5", order="bgr")
    console = Console(file=stream, width=400)
    import_onnx(file, tmp_path / "b", four, hints, "fit:320", images, console)
    assert "input x: float32, nhwc, bgr; (0..255 - 127.5,127.5,127.5) / 127.5,127.5,127.5" in stream.getvalue()
    assert "output y: probabilities of 4 channels, nchw" in stream.getvalue()
    assert (
        "input rule fit: the long side of an image is resized to 320 pixels (--input); not padded" in stream.getvalue()
    )
    assert "openvino f32: agreement with the original network" in stream.getvalue()
    assert "proves little" not in stream.getvalue()
    import_onnx(
        write_onnx_graph(tmp_path / "one.onnx", ending="one class"),
        tmp_path / "b",
        four,
        UserHints(),
        None,
        images,
        console,
    )
    assert "The probes show 1 of 4 classes: thing 0" in stream.getvalue()
    assert "proves little" in stream.getvalue()


def test_folder_that_is_not_a_bundle_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    four, file = write_class_file(tmp_path, 4), write_onnx_graph(tmp_path / "theirs.onnx")
    with pytest.raises(BundleError, match="is not a bundle"):
        import_onnx(file, tmp_path / "mine", four, UserHints(), images=images, console=QUIET_CONSOLE)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision/fcn_resnet5", "did you mean torchvision/fcn_resnet50"),
        ("deeplabv3_resnet101", "did you mean torchvision/deeplabv3_resnet101"),
        ("onx", "did you mean onnx"),
        ("my/model.onnx", "did you mean `maskserve import onnx my/model.onnx`"),
        ("qqq", r"did you mean onnx, torchvision/fcn_resnet50, .*lraspp"),
    ],
)
def test_unknown_source_suggests_the_closest_names(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        import_model(source, None, tmp_path / "b", console=QUIET_CONSOLE)


def test_options_of_another_source_are_an_error(tmp_path: Path) -> None:
    def assert_refused(message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            import_model(*arguments, out=tmp_path / "b", console=QUIET_CONSOLE, **options)

    assert_refused("maskserve import onnx FILE", "onnx", None)
    assert_refused("no --weights", "onnx", tmp_path / "g.onnx", weights=tmp_path / "w.pth")
    assert_refused(r"--weights .*w\.pth", f"torchvision/{SMALLEST}", tmp_path / "w.pth")
    assert_refused("omit them", f"torchvision/{SMALLEST}", None, hints=UserHints(order="bgr"))


# the command line


def test_imported_file_is_served_over_http(images: Path, tmp_path: Path) -> None:
    """A graph that takes one size and outputs labels segments images of any size."""
    file = write_onnx_graph(tmp_path / "theirs.onnx", dims=(1, 120, 200), ending="labels")
    write_class_file(tmp_path, 4)
    arguments = ("import", "onnx", "theirs.onnx", "--classes", "names.csv", "--out", "bundle", "--images", images)
    done = run_maskserve(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "input rule exact: images are stretched to 120 x 200" in done.stdout
    assert "Next: maskserve serve bundle" in done.stdout
    image, large = scene_image(120, 200), scene_image(301, 455)
    with start_app(tmp_path / "bundle") as http:
        labels, large_labels = (
            np.load(io.BytesIO(http.post("/v1/segment?format=npy", content=encode_image(each)).content))
            for each in (image, large)
        )
        (model,) = http.get("/v1/models").json()
    assert large_labels.shape == (301, 455)
    assert agreement(labels, reference_labels(file, image, meaning="labels")) >= 0.999
    assert [entry["name"] for entry in model["spec"]["classes"]] == [f"thing {label}" for label in range(4)]


def test_failed_download_names_the_url_and_the_option(tmp_path: Path) -> None:
    closed_proxy = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = run_maskserve(
        *("import", f"torchvision/{SMALLEST}", "--out", "b"), cwd=tmp_path, TORCH_HOME=str(tmp_path), no_proxy="", NO_PROXY="",
        **closed_proxy,
    )  # fmt: skip
    assert_fails(done, 1, get_model_weights(SMALLEST).DEFAULT.url, "--weights FILE")
    assert not (tmp_path / "b").exists()


def test_damaged_cached_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / Path(get_model_weights(SMALLEST).DEFAULT.url).name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"incomplete")
    with pytest.raises(WeightsError, match="is damaged"):
        import_model(f"torchvision/{SMALLEST}", None, tmp_path / "b", console=QUIET_CONSOLE)


def test_errors_of_the_command_line(tmp_path: Path) -> None:
    write_onnx_graph(tmp_path / "theirs.onnx", channels=21)
    write_class_file(tmp_path, 4)
    command = ("import", "onnx", "theirs.onnx", "--out", "b", "--classes")
    done = run_maskserve(*command, "names.csv", cwd=tmp_path)
    assert_fails(done, 1, "21 classes as nchw; --classes names 4")
    assert_fails(run_maskserve(*command, "voc", "--order", "x", cwd=tmp_path), 2, "choose rgb or bgr")
    assert not (tmp_path / "b").exists()
