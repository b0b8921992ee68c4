"""`export`: parity in every engine, and int8 only if it costs little."""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import training.export
from models.architectures import build
from models.architectures.finetune import load_initial_weights
from models.bundle import INT8_MODEL_FILE, INT8_WEIGHTS_FILE, MODEL_FILE, Bundle, open_bundle
from models.engines import ENGINES
from models.engines.selection import choose_engine, usable_precisions
from models.errors import BundleError, ConfigError, EngineError, ParityError, RunError
from models.inference.segmenter import Segmenter
from models.spec import InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from training.data import SegmentationDataset, load_split
from training.engine.model_factory import load_network, make_torch_segmenter
from training.evaluate import evaluate, evaluate_split
from training.export import add_int8, export, other_training_images
from training.freezing.calibration import middle_canvas
from training.freezing.parity import make_parity_images, measure_parity
from training.freezing.quantise import NUM_CALIBRATION_IMAGES
from training.import_model import import_model
from training.metrics.bootstrap import PerImageCounts
from training.metrics.confusion import ConfusionMatrix
from training.run_folder import BEST_CHECKPOINT, read_run_metadata, write_run_metadata


@pytest.fixture
def draft(bundle: Path, tmp_path: Path) -> Bundle:
    """The graph of the session's bundle as a draft: not sealed, without parity and int8."""
    folder = tmp_path / "draft"
    folder.mkdir()
    shutil.copy(bundle / MODEL_FILE, folder)
    shutil.copy(bundle / "weights.safetensors", folder)
    return Bundle(folder, open_bundle(bundle).spec.model_copy(update={"parity": {}, "int8": None}))


def parity_output(draft: Bundle, run: Path, shapes: Path) -> tuple[str, dict[str, dict[str, float]]]:
    """What the parity check of a draft prints, and what it measures."""
    stream, validation = io.StringIO(), load_split(shapes, "val")
    images = make_parity_images(validation.image, len(validation))[:2]
    original = make_torch_segmenter(load_network(run), draft.spec.input)
    expected = [original.segment(image).labels for image in images]
    parity = measure_parity(draft, images, expected, Console(file=stream, width=1000), "Advice.")
    return stream.getvalue(), parity


def int8_output(draft: Bundle, shapes: Path) -> str:
    """What `add_int8` prints when it adds no int8."""
    stream, validation = io.StringIO(), load_split(shapes, "val")
    before, _ = evaluate_split(Segmenter.load(draft, "openvino", "f32"), validation, QUIET_CONSOLE)
    added = add_int8(draft, before, load_split(shapes, "train"), validation, 0.5, Console(file=stream, width=1000))
    assert added is None
    assert not draft.has_file(INT8_MODEL_FILE) and not draft.has_file(INT8_WEIGHTS_FILE)
    return stream.getvalue()


def test_parity_is_measured_in_every_installed_engine(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.spec.parity.keys() >= ENGINES.keys()
    for engine in ENGINES:
        assert opened.spec.parity[engine].keys() == set(ENGINES[engine].precisions(opened, "cpu"))
        assert opened.spec.parity[engine]["f32"] >= 0.999
    assert all(0.5 < worst <= 1 for by_precision in opened.spec.parity.values() for worst in by_precision.values())


def test_int8_within_the_limit_is_kept_and_measured(bundle: Path, shapes: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.spec.int8 is not None
    assert opened.spec.int8.calibration_images == min(NUM_CALIBRATION_IMAGES, len(load_split(shapes, "train")))
    assert opened.spec.int8.miou == pytest.approx(opened.spec.int8.float_miou, abs=0.1)
    assert {INT8_MODEL_FILE, INT8_WEIGHTS_FILE} <= opened.checksums.keys()
    assert (bundle / INT8_WEIGHTS_FILE).stat().st_size < 0.4 * (bundle / MODEL_FILE).stat().st_size
    choice = choose_engine(opened, "openvino")
    assert choice.precision == "int8" and f"{opened.spec.int8.miou:.4f}" in choice.reason

    matrix, _ = evaluate_split(Segmenter.load(opened, "openvino", "int8"), load_split(shapes, "val"), QUIET_CONSOLE)
    assert matrix.miou() == pytest.approx(opened.spec.int8.miou, abs=1e-6)
    assert opened.spec.metrics["val"]["miou"] == pytest.approx(opened.spec.int8.miou, abs=1e-5)  # of the default
    assert Segmenter.load(opened, precision="int8").verify_probes(opened) > 0.5


def test_int8_that_costs_too_much_is_left_out(draft: Bundle, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.export.evaluate_split

    def evaluate_poorly(
        segmenter: Segmenter, samples: SegmentationDataset, console: Console
    ) -> tuple[ConfusionMatrix, PerImageCounts]:
        """As `evaluate_split`, but int8 predicts the first class everywhere."""
        if segmenter.choice and segmenter.choice.precision == "int8":
            predict = segmenter.run
            segmenter.run = lambda images, logits=False: (predict(images)[0] * 0, None)
        return real(segmenter, samples, console)

    monkeypatch.setattr(training.export, "evaluate_split", evaluate_poorly)
    output = int8_output(draft, shapes)
    assert "int8 is left out: it loses " in output and "at most 0.5 are allowed" in output
    assert "Largest losses of IoU: " in output


@pytest.mark.usefixtures("reused_graph")
def test_export_in_float_only_with_another_input_rule(run: Path, tmp_path: Path) -> None:
    """Also prints parity, the validation mIoU and the written folder."""
    with pytest.raises(ConfigError, match="fit:SIDE"):
        export(run, tmp_path / "x", "fit:3", None, QUIET_CONSOLE)
    stream = io.StringIO()
    export(run, tmp_path / "b", "native", None, Console(file=stream, width=1000), name="shapes-2.float")
    output, opened = stream.getvalue(), open_bundle(tmp_path / "b")
    assert opened.spec.input.rule == "native"
    assert opened.spec.name == "shapes-2.float"
    assert "int8" not in output and opened.spec.int8 is None and not opened.has_file(INT8_MODEL_FILE)
    assert "openvino f32: agreement with the original network, worst image: " in output
    assert f"Validation mIoU {opened.spec.metrics['val']['miou']:.4f}" in output
    assert f"{tmp_path / 'b'}: " in output and opened.hash[:12] in output
    assert {file.parent.name for file in map(Path, opened.checksums)} == {"", "probes", "report"}
    with pytest.raises(EngineError, match="int8"):
        Segmenter.load(opened, "openvino", "int8")


@pytest.mark.parametrize("name", ["", "a/b", "roads@2", ".hidden", "два", "x" * 65, "a b", "a\n"])
def test_a_name_that_the_service_cannot_address_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)--name is .* expected up to 64 letters"):
        export(tmp_path / "no-run", name=name)
    with pytest.raises(ConfigError, match="--name"):
        import_model("onnx", tmp_path / "none.onnx", tmp_path / "b", name=name)


def test_int8_is_left_out_without_nncf(draft: Bundle, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert "No int8 graph: int8 needs NNCF" in int8_output(draft, shapes)


def test_precision_far_from_the_original_is_not_offered(
    draft: Bundle, run: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose bf16 is wrong on 2% of the pixels, and whose f32 is right."""
    real = ENGINES["openvino"].load

    def load(bundle: Any, device: str, precision: str, *rest: Any) -> Any:
        predict = real(bundle, device, "f32", *rest)

        def run(images: Any, logits: bool = False) -> Any:
            labels, scores = predict(images, logits)
            labels = labels.copy()
            if precision != "f32":
                labels[:, ::50] ^= 1
            return labels, scores

        return run

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    monkeypatch.setattr(ENGINES["openvino"], "precisions", lambda bundle, device: ("f32", "bf16"))
    output, parity = parity_output(draft, run, shapes)
    assert "openvino bf16: agreement with the original network, worst image: 9" in output
    assert "below 99.5%: not used" in output
    assert 0.96 < parity["openvino"]["bf16"] < 0.995
    measured = Bundle(draft.folder, draft.spec.model_copy(update={"parity": parity}))
    assert usable_precisions(measured, "openvino", "cpu") == ("f32",)
    with pytest.raises(EngineError, match=r"not bf16: .*9\d\.\d\d%"):
        Segmenter.load(measured, "openvino", "bf16")


@pytest.mark.parametrize("engine", ENGINES)
def test_disagreement_of_any_engine_is_an_error(
    engine: str, draft: Bundle, run: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ENGINES[engine].load

    def load(*arguments: Any) -> Any:
        predict = real(*arguments)
        return lambda images, logits=False: (predict(images)[0] ^ 1, predict(images, True)[1])

    monkeypatch.setattr(ENGINES[engine], "load", load)
    with pytest.raises(ParityError, match=rf"pixels \({engine} f32\); 99\.9% are required.* Advice\."):
        parity_output(draft, run, shapes)


def test_engine_that_fails_to_load_is_skipped(
    draft: Bundle, run: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any) -> Any:
        raise EngineError("libcudnn is missing.")

    monkeypatch.setattr(ENGINES["onnxruntime"], "load", load)
    output, parity = parity_output(draft, run, shapes)
    assert "onnxruntime f32: not used: libcudnn is missing." in output
    assert "onnxruntime" not in parity and "openvino" in parity


def second_run(run: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a run with other weights; `changes` are of its run.json."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "config.yaml", folder)
    state = torch.load(run / BEST_CHECKPOINT, weights_only=False)
    key = next(name for name, value in state["network"].items() if value.ndim == 1 and name.endswith("bias"))
    state["network"][key] = state["network"][key] + 1
    torch.save(state, folder / BEST_CHECKPOINT)
    write_run_metadata(read_run_metadata(run).model_copy(update=changes), folder)
    return folder


@pytest.mark.slow
def test_several_runs_thresholds_and_temperature_in_one_bundle(run: Path, shapes: Path, tmp_path: Path) -> None:
    """Every engine passes the parity check on the mean of the logits; the calibration is of the evaluation too."""
    stream, other = io.StringIO(), second_run(run, tmp_path / "other")
    console = Console(file=stream, width=1000)
    export(run, tmp_path / "b", None, None, console, f1_thresholds="all", temperature=True, members=[other])
    opened, output = open_bundle(tmp_path / "b"), stream.getvalue()
    assert opened.spec.parity.keys() >= ENGINES.keys()
    assert "Ensemble of 2 networks: " in output and f"2.0 times those of {run}" in output
    assert "trained on other images" not in output and "temperature" in output
    calibration = opened.spec.calibration
    assert calibration and calibration.f1 and calibration.f1[1] >= calibration.f1[0] and calibration.temperature != 1
    metrics = evaluate(tmp_path / "b", shapes, "val", engine="torch", precision="f32", console=QUIET_CONSOLE)
    assert metrics.bundle.calibration == calibration
    assert metrics.miou == pytest.approx(opened.spec.metrics["val"]["miou"], abs=0.01)
    assert metrics.ece == pytest.approx((calibration.ece or (9, 9))[1], abs=0.02)


def test_a_run_that_does_not_fit_the_first_is_named(run: Path, tmp_path: Path) -> None:
    metadata = read_run_metadata(run)
    renamed = [metadata.classes[0].model_copy(update={"name": "moon"}), *metadata.classes[1:]]
    classes = second_run(run, tmp_path / "classes", classes=renamed)
    with pytest.raises(RunError, match=r"classes cannot be in one bundle .* its classes are moon, .*, not "):
        export(run, tmp_path / "b", members=[classes])
    fitted = second_run(run, tmp_path / "fitted", input=InputRule(rule="fit", side=77))
    with pytest.raises(
        RunError, match=r"fitted cannot be in one bundle .* its input rule is fit:77, 3 channels .*, not "
    ):
        export(run, tmp_path / "b", members=[fitted])
    images = metadata.images.model_copy(update={"sha256": "0" * 64})
    fold = second_run(run, tmp_path / "fold1", images=images)
    assert "fold1: trained on other images than " in other_training_images(run, [fold], QUIET_CONSOLE)[0]


@pytest.mark.parametrize("size", [(90, 130), (1500, 70), (3000, 2000), (1, 1)])
def test_middle_canvas_is_what_the_segmenter_passes_to_the_network(size: tuple[int, int]) -> None:
    passed = []

    def record(images: Any, logits: bool = False) -> Any:
        passed.append(images[0].copy())
        labels = np.zeros(images.shape[:3], np.uint8)
        return labels, np.zeros((1, 2, *images.shape[1:3]), np.float32) if logits else None

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for rule in (InputRule(rule="native"), InputRule(rule="fit", side=200)):
        passed.clear()
        Segmenter(record, rule).segment(image)
        canvas = middle_canvas(image, rule)
        assert max(canvas.shape[:2]) <= 1024 and canvas.shape[0] % 32 == canvas.shape[1] % 32 == 0
        if len(passed) == 1 and max(passed[0].shape[:2]) <= 1024:
            np.testing.assert_array_equal(canvas, passed[0])


def test_evaluation_with_test_time_augmentation(bundle: Path, shapes: Path) -> None:
    plain, augmented = (
        evaluate(bundle, shapes, "test", tta=tta, engine="openvino", precision="f32", console=QUIET_CONSOLE)
        for tta in (None, "flip,0.75,1,1.25")
    )
    assert (plain.tta, augmented.tta) == (None, "flip,0.75,1,1.25")
    assert plain.miou is not None and augmented.miou is not None
    assert plain.miou != augmented.miou and abs(plain.miou - augmented.miou) < 0.2
    assert (augmented.bundle.engine, augmented.bundle.precision) == ("openvino", "f32") and augmented.bundle.reason
    assert Segmenter.load(open_bundle(bundle), "openvino", "f32").tta is None


def test_altered_weights_are_not_used_for_fine_tuning(bundle: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(bundle, tmp_path / "altered")
    file = altered / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\x80?")
    spec = open_bundle(altered).spec
    network = build(spec.architecture.name, len(spec.classes), **spec.architecture.options)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        load_initial_weights(network, altered, [entry.name for entry in spec.classes])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
