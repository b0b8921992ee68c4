"""What an export decides by: every engine's parity, and int8 by what it costs."""

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
from models.bundle import INT8_MODEL_FILE, INT8_WEIGHTS_FILE, MODEL_FILE, open_bundle
from models.engines import ENGINES
from models.engines.selection import choose_engine, usable_precisions
from models.errors import BundleError, EngineError, ParityError
from models.inference.segmenter import Segmenter
from models.spec import InputRule
from training.data import load_split
from training.evaluate import evaluate, evaluate_split
from training.export import calibration_input, export
from training.freezing.quantise import NUM_CALIBRATION_IMAGES
from training.metrics.confusion import ConfusionMatrix


def export_output(run: Path, out: Path, limit: float | None) -> str:
    """Export, and what was said."""
    said = io.StringIO()
    export(run, out, int8_limit=limit, console=Console(file=said, width=1000))
    return said.getvalue()


def test_parity_is_measured_on_every_engine_that_is_here(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.spec.parity.keys() >= ENGINES.keys()
    for engine in ENGINES:
        assert opened.spec.parity[engine].keys() == set(ENGINES[engine].precisions(opened, "cpu"))
        assert opened.spec.parity[engine]["f32"] >= 0.999
    assert all(0.5 < share <= 1 for shares in opened.spec.parity.values() for share in shares.values())


def test_int8_is_kept_where_it_costs_little(bundle: Path, shapes: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.spec.int8 is not None
    assert opened.spec.int8.calibration_images == min(NUM_CALIBRATION_IMAGES, len(load_split(shapes, "train")))
    assert opened.spec.int8.miou >= opened.spec.int8.float_miou - 0.005
    assert {INT8_MODEL_FILE, INT8_WEIGHTS_FILE} <= opened.checksums.keys()
    assert (bundle / INT8_WEIGHTS_FILE).stat().st_size < 0.4 * (bundle / MODEL_FILE).stat().st_size
    choice = choose_engine(opened, "openvino")
    assert choice.precision == "int8" and f"{opened.spec.int8.miou:.4f}" in choice.reason

    validation, silent = load_split(shapes, "val"), Console(quiet=True)
    for precision, miou in (("int8", opened.spec.int8.miou), ("f32", None)):
        matrix, _ = evaluate_split(Segmenter.load(opened, "openvino", precision), validation, silent)
        assert miou is None or matrix.miou() == pytest.approx(miou, abs=1e-6)
    assert opened.spec.metrics["val"]["miou"] == pytest.approx(opened.spec.int8.miou, abs=1e-5)  # of what is served
    assert Segmenter.load(opened, precision="int8").verify_probes(opened) > 0.5


def test_int8_that_costs_too_much_is_left_out_and_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.export.evaluate_split

    def poor(segmenter: Segmenter, samples: Any, console: Console) -> tuple[ConfusionMatrix, list[float]]:
        """As `measure`, but int8 calls every pixel the first class."""
        if segmenter.choice and segmenter.choice.precision == "int8":
            answer = segmenter.run
            segmenter.run = lambda images, logits=False: (answer(images)[0] * 0, None)
        return real(segmenter, samples, console)

    monkeypatch.setattr(training.export, "evaluate_split", poor)
    said = export_output(run, tmp_path / "b", 0.5)
    assert "int8 loses " in said and "points of mIoU" in said and "0.5 are allowed" in said and "paid most" in said
    opened = open_bundle(tmp_path / "b")
    assert opened.spec.int8 is None and "int8" not in opened.spec.parity["openvino"]
    assert not opened.has_file(INT8_MODEL_FILE) and not (tmp_path / "b" / INT8_WEIGHTS_FILE).exists()
    assert choose_engine(opened).precision != "int8"
    assert Segmenter.load(opened, verify_probes=True).choice


def test_without_int8(run: Path, tmp_path: Path) -> None:
    assert "int8:" not in export_output(run, tmp_path / "b", None)
    opened = open_bundle(tmp_path / "b")
    assert opened.spec.int8 is None and not opened.has_file(INT8_MODEL_FILE)
    with pytest.raises(EngineError, match="not int8: the bundle holds no int8 graph for it"):
        Segmenter.load(opened, "openvino", "int8")


def test_an_export_goes_on_without_nncf(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    said = export_output(run, tmp_path / "b", 0.5)
    assert "no int8: int8 needs NNCF" in said
    assert open_bundle(tmp_path / "b").spec.int8 is None


def test_a_number_format_that_is_far_from_the_live_network_is_not_offered(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose bf16 is wrong on some pixels; f32 stays right."""
    real = ENGINES["openvino"].load

    def load(bundle: Any, device: str, precision: str, threads: int, at_once: int) -> Any:
        answer = real(bundle, device, "f32", threads)

        def run(images: Any, logits: bool = False) -> Any:
            labels, scores = answer(images, logits)
            labels = labels.copy()
            if precision != "f32":
                labels[:, ::50] ^= 1  # 2% of the pixels
            return labels, scores

        return run

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    monkeypatch.setattr(ENGINES["openvino"], "precisions", lambda bundle, device: ("f32", "bf16"))
    said = export_output(run, tmp_path / "b", None)
    assert "parity openvino bf16: at least 9" in said and "< 99.5%: not offered" in said
    opened = open_bundle(tmp_path / "b")
    assert 0.96 < opened.spec.parity["openvino"]["bf16"] < 0.995
    assert usable_precisions(opened, "openvino", "cpu") == ("f32",)
    with pytest.raises(EngineError, match=r"not bf16: at export 9\d\.\d\d% of an image's labels"):
        Segmenter.load(opened, "openvino", "bf16")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_stands_behind_the_gate(
    engine: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ENGINES[engine].load

    def load(*arguments: Any) -> Any:
        answer = real(*arguments)
        return lambda images, logits=False: (answer(images)[0] ^ 1, answer(images, True)[1])

    monkeypatch.setattr(ENGINES[engine], "load", load)
    with pytest.raises(ParityError, match=rf"the live one's label \({engine}\); 99\.9% is wanted"):
        export_output(run, tmp_path / "b", None)
    assert not (tmp_path / "b").exists()


def test_an_engine_that_turns_out_not_to_run_here_is_passed_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any) -> Any:
        raise EngineError("libcudnn is not there.")

    monkeypatch.setattr(ENGINES["onnxruntime"], "load", load)
    said = export_output(run, tmp_path / "b", None)
    assert "parity onnxruntime f32: not used: libcudnn is not there." in said
    assert "onnxruntime" not in open_bundle(tmp_path / "b").spec.parity


@pytest.mark.parametrize("size", [(90, 130), (1500, 70), (3000, 2000), (1, 1)])
def test_calibration_sees_what_service_sees(size: tuple[int, int]) -> None:
    """The canvas that the Segmenter shows the network, and no larger one than a tile."""
    seen = []

    def watched(images: Any, logits: bool = False) -> Any:
        seen.append(images[0].copy())
        labels = np.zeros(images.shape[:3], np.uint8)
        return labels, np.zeros((1, 2, *images.shape[1:3]), np.float32) if logits else None

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for rule in (InputRule(rule="native"), InputRule(rule="fit", side=200)):
        seen.clear()
        Segmenter(watched, rule).segment(image)
        canvas = calibration_input(image, rule)
        assert max(canvas.shape[:2]) <= 1024 and canvas.shape[0] % 64 == canvas.shape[1] % 64 == 0
        if len(seen) == 1 and max(seen[0].shape[:2]) <= 1024:
            np.testing.assert_array_equal(canvas, seen[0])


def test_evaluation_with_augmentation_asks_more_and_says_so(bundle: Path, shapes: Path, tmp_path: Path) -> None:
    plain = evaluate(bundle, shapes, "test", console=Console(quiet=True), engine="openvino", precision="f32")
    more = evaluate(
        bundle, shapes, "test", tmp_path, tta="flip,0.75,1,1.25", engine="openvino", precision="f32", console=Console(quiet=True)
    )  # fmt: skip
    assert (plain["tta"], more["tta"]) == (None, "flip,0.75,1,1.25")
    assert plain["miou"] != more["miou"] and abs(plain["miou"] - more["miou"]) < 0.2
    assert more["bundle"]["engine"] == "openvino" and more["bundle"]["precision"] == "f32" and more["bundle"]["reason"]
    segmenter = Segmenter.load(open_bundle(bundle), "openvino", "f32")
    assert segmenter.tta is None


def test_fine_tuning_takes_no_altered_weights(bundle: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(bundle, tmp_path / "altered")
    file = altered / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\x80?")
    spec = open_bundle(altered).spec
    network = build(spec.architecture.name, len(spec.classes), **spec.architecture.options)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(BundleError, match=r"weights\.safetensors is not the file that was exported"):
        load_initial_weights(network, altered, [entry.name for entry in spec.classes])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
