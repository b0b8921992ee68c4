"""What `auto` settles on, for every machine that there may be, and what is said where something is lacking."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle, open_bundle
from models.engines import ENGINES, selection
from models.engines.selection import choose_engine, engine_choices, usable_precisions
from models.errors import EngineError, InsufficientMemoryError, ParityError
from models.inference.segmenter import Segmenter
from models.spec import Int8Metrics

ROOT = Path(__file__).parents[3]
GOOD_PARITY = {"openvino": {"f32": 1.0, "bf16": 0.998}, "onnxruntime": {"f32": 1.0}}
INT8_METRICS = Int8Metrics(miou=0.61, float_miou=0.612, calibration_images=100)

Machine = dict[tuple[str, str], tuple[str, ...]]
CPU_MACHINE: Machine = {
    ("openvino", "cpu"): ("f32", "bf16"),
    ("onnxruntime", "cpu"): ("f32",),
    ("torch", "cpu"): ("f32", "bf16"),
}
INT8_MACHINE: Machine = {**CPU_MACHINE, ("openvino", "cpu"): ("f32", "bf16", "int8")}
F32_ONLY_MACHINE: Machine = dict.fromkeys(CPU_MACHINE, ("f32",))
GPU_MACHINE: Machine = {**CPU_MACHINE, ("torch", "cuda"): ("f32", "bf16", "fp16"), ("onnxruntime", "cuda"): ("f32",)}
ONNXRUNTIME_ONLY_MACHINE: Machine = {("onnxruntime", "cpu"): ("f32",)}


@pytest.fixture
def fake_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    """A machine that has these number formats for an engine on a device: none other can be had here."""

    def pretend(has: Machine) -> None:
        for name, engine in ENGINES.items():

            def precisions(bundle: Bundle, device: str, name: str = name) -> tuple[str, ...]:
                if (name, device) not in has:
                    raise EngineError(f"{name} is not for {device} here.")
                return has[name, device]

            monkeypatch.setattr(engine, "precisions", precisions)
        monkeypatch.setattr(selection, "has_gpu", lambda: any(device == "cuda" for _, device in has))

    return pretend


def bundle_with_spec(tiny_bundle: Path, **facts: Any) -> Bundle:
    opened = open_bundle(tiny_bundle)
    return replace(opened, spec=opened.spec.model_copy(update=facts))


@pytest.mark.parametrize(
    ("has", "facts", "taken"),
    [
        (CPU_MACHINE, {"parity": GOOD_PARITY}, ("openvino", "cpu", "bf16")),
        (CPU_MACHINE, {"parity": {"openvino": {"f32": 1.0, "bf16": 0.99}}}, ("openvino", "cpu", "f32")),
        (
            CPU_MACHINE,
            {"parity": {"openvino": {"f32": 1.0}}},
            ("openvino", "cpu", "f32"),
        ),  # exported where there is no bf16
        (CPU_MACHINE, {"parity": {}}, ("openvino", "cpu", "f32")),
        (F32_ONLY_MACHINE, {"parity": GOOD_PARITY}, ("openvino", "cpu", "f32")),
        (INT8_MACHINE, {"parity": GOOD_PARITY, "int8": INT8_METRICS}, ("openvino", "cpu", "int8")),
        (INT8_MACHINE, {"parity": GOOD_PARITY}, ("openvino", "cpu", "bf16")),  # an int8 graph that nobody has measured
        (GPU_MACHINE, {"parity": GOOD_PARITY}, ("torch", "cuda", "bf16")),  # measured in bf16 on another engine
        (GPU_MACHINE, {"parity": {**GOOD_PARITY, "torch/cuda": {"f32": 1.0, "bf16": 0.98}}}, ("torch", "cuda", "f32")),
        (ONNXRUNTIME_ONLY_MACHINE, {"parity": GOOD_PARITY}, ("onnxruntime", "cpu", "f32")),
    ],
)
def test_what_auto_takes(
    has: Machine, facts: dict[str, Any], taken: tuple[str, str, str], fake_machine: Any, tiny_bundle: Path
) -> None:
    fake_machine(has)
    selection = choose_engine(bundle_with_spec(tiny_bundle, **facts))
    assert (selection.engine, selection.device, selection.precision) == taken
    assert (
        selection.reason.startswith(f"{taken[0]}: the first that can run it here")
        and f"; {taken[2]}: " in selection.reason
    )


@pytest.mark.parametrize(
    ("has", "asked", "taken"),
    [
        (GPU_MACHINE, {"device": "cpu"}, ("openvino", "cpu", "bf16")),
        (GPU_MACHINE, {"engine": "onnxruntime"}, ("onnxruntime", "cuda", "f32")),
        (GPU_MACHINE, {"engine": "openvino"}, ("openvino", "cpu", "bf16")),
        (GPU_MACHINE, {"precision": "fp16"}, ("torch", "cuda", "fp16")),
        (INT8_MACHINE, {"precision": "int8"}, ("openvino", "cpu", "int8")),
        (CPU_MACHINE, {"engine": "torch"}, ("torch", "cpu", "bf16")),
        (ONNXRUNTIME_ONLY_MACHINE, {"precision": "f32"}, ("onnxruntime", "cpu", "f32")),
    ],
)
def test_what_was_asked_for_is_taken(
    has: Machine, asked: dict[str, str], taken: tuple[str, str, str], fake_machine: Any, tiny_bundle: Path
) -> None:
    fake_machine(has)
    selection = choose_engine(bundle_with_spec(tiny_bundle, parity=GOOD_PARITY), **asked)
    assert (selection.engine, selection.device, selection.precision) == taken
    assert "as asked" in selection.reason or asked == {"device": "cpu"}


@pytest.mark.parametrize(
    ("has", "asked", "said"),
    [
        (
            CPU_MACHINE,
            {"engine": "tensorrt"},
            "The engine 'tensorrt' is not known; choose auto, openvino, onnxruntime, torch.",
        ),
        (CPU_MACHINE, {"precision": "f7"}, "The precision 'f7' is not known; choose auto, f32, bf16, fp16, int8."),
        (CPU_MACHINE, {"device": "abacus"}, "The device 'abacus' is not known; choose auto, cpu, cuda."),
        (
            CPU_MACHINE,
            {"engine": "openvino", "precision": "int8"},
            "openvino offers f32, bf16 for this bundle, not int8: ",
        ),
        (CPU_MACHINE, {"device": "cuda"}, "torch is not for cuda here. onnxruntime is not for cuda here."),
        (CPU_MACHINE, {"precision": "fp16"}, "openvino offers f32, bf16 for this bundle, not fp16"),
        (
            GPU_MACHINE,
            {"precision": "int8", "device": "cuda"},
            "torch/cuda offers f32, bf16, fp16 for this bundle, not int8",
        ),
        ({}, {}, "openvino is not for cpu here. onnxruntime is not for cpu here. torch is not for cpu here."),
    ],
)
def test_what_is_lacking_is_said_with_what_is_there(
    has: Machine, asked: dict[str, str], said: str, fake_machine: Any, tiny_bundle: Path
) -> None:
    fake_machine(has)
    with pytest.raises(EngineError) as caught:
        choose_engine(bundle_with_spec(tiny_bundle, parity=GOOD_PARITY), **asked)
    assert said in str(caught.value)


def test_a_number_format_that_the_export_found_wanting_is_not_offered(fake_machine: Any, tiny_bundle: Path) -> None:
    fake_machine(INT8_MACHINE)
    poor = bundle_with_spec(
        tiny_bundle, parity={"openvino": {"f32": 1.0, "bf16": 0.98, "int8": 0.97}}, int8=INT8_METRICS
    )
    assert usable_precisions(poor, "openvino", "cpu") == ("f32", "int8")  # int8 was judged by its mIoU
    assert usable_precisions(poor, "torch", "cpu") == ("f32", "bf16")
    with pytest.raises(EngineError, match=r"offers f32, int8 .* not bf16: at export 98\.00% .* 99\.5% must be"):
        choose_engine(poor, "openvino", "bf16")


def test_the_segmenter_says_what_it_runs_on(tiny_bundle: Path) -> None:
    segmenter = Segmenter.load(open_bundle(tiny_bundle), "onnxruntime")
    assert segmenter.choice is not None
    assert (segmenter.choice.engine_id, segmenter.choice.precision) == ("onnxruntime", "f32")
    assert segmenter.choice.reason == "onnxruntime: as asked; f32: the engine has no other here"


def test_what_was_passed_over_is_told(fake_machine: Any, tiny_bundle: Path) -> None:
    fake_machine({**CPU_MACHINE, ("tensor", "cuda"): ()})  # a GPU that no engine can use
    assert choose_engine(bundle_with_spec(tiny_bundle)).reason.startswith(
        "openvino: the first that can run it here. torch is not for cuda here. onnxruntime is not for cuda here; f32: "
    )


def test_all_that_can_run_a_bundle_stand_in_line(fake_machine: Any, tiny_bundle: Path) -> None:
    fake_machine({**GPU_MACHINE, **INT8_MACHINE})
    line = [
        (c.engine_id, c.precision)
        for c in engine_choices(bundle_with_spec(tiny_bundle, parity=GOOD_PARITY, int8=INT8_METRICS))
    ]
    assert line == [
        ("torch/cuda", "bf16"), ("torch/cuda", "f32"), ("onnxruntime/cuda", "f32"),
        ("openvino", "int8"), ("openvino", "bf16"), ("openvino", "f32"), ("onnxruntime", "f32"),
        ("torch", "bf16"), ("torch", "f32"),
    ]  # fmt: skip


def test_an_engine_that_fails_to_load_makes_room_for_the_next(
    fake_machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu, which counts its CUDA provider as there where the libraries for it are not."""
    fake_machine({**ONNXRUNTIME_ONLY_MACHINE, ("openvino", "cpu"): ("f32",)})

    def load(*arguments: Any) -> None:
        raise EngineError("libcudnn is not there.")

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    segmenter = Segmenter.load(open_bundle(tiny_bundle))
    assert segmenter.choice is not None
    assert segmenter.choice.engine == "onnxruntime"
    assert "(not libcudnn is not there.)" in segmenter.choice.reason
    with pytest.raises(EngineError, match="libcudnn"):
        Segmenter.load(open_bundle(tiny_bundle), "openvino")


def test_a_network_that_memory_does_not_hold(
    fake_machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    with pytest.raises(InsufficientMemoryError, match=r"too small for this network .*bad_alloc"):
        Segmenter.load(open_bundle(tiny_bundle), "openvino", "f32")


def test_a_number_format_that_answers_the_probes_wrongly_is_passed_over(
    fake_machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As int8 may on a CPU that rounds otherwise: the service then takes the next, and says so."""
    fake_machine(CPU_MACHINE)
    real = ENGINES["openvino"].load

    def load(bundle: Bundle, device: str, precision: str, threads: int, at_once: int) -> Any:
        run = real(bundle, device, "f32", threads)
        if precision == "f32":
            return run

        def wrong(images: Any, logits: bool = False) -> Any:
            labels, scores = run(images, logits)
            return (labels + 1) % 6, scores

        return wrong

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    bundle = bundle_with_spec(tiny_bundle, parity=GOOD_PARITY)
    unproved, proved = Segmenter.load(bundle), Segmenter.load(bundle, verify_probes=True)
    assert unproved.choice and unproved.choice.precision == "bf16"
    assert proved.choice and proved.choice.precision == "f32"
    assert "of the probe's pixels get the label" in proved.choice.reason
    with pytest.raises(ParityError):
        Segmenter.load(bundle, precision="bf16", engine="openvino", verify_probes=True)


@pytest.mark.parametrize("probed", [False, True])
def test_a_service_with_openvino_opens_no_other_engine(probed: bool, tiny_bundle: Path) -> None:
    """torch alone is 480 MB of memory and seconds of a start."""
    code = (
        "import sys, pathlib; from models.bundle import open_bundle; from models.inference.segmenter import Segmenter; "
        f"Segmenter.load(open_bundle(pathlib.Path(sys.argv[1])), device='cpu', probed={probed}); "
        "sys.exit(', '.join({'torch', 'onnxruntime'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code, tiny_bundle], cwd=ROOT, check=True)


def test_nothing_is_imported_to_choose() -> None:
    code = (
        "import sys, models.inference.segmenter; from models.engines.selection import has_gpu; assert has_gpu() in (True, False); "
        "sys.exit(', '.join({'torch', 'openvino', 'onnxruntime'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
