"""The engine and precision that `auto` selects on simulated machines, and the errors if nothing matches."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle, open_bundle
from models.engines import ENGINES, selection
from models.engines.selection import (
    EngineOption,
    choose_engine,
    engine_choices,
    iterate_engine_options,
    usable_precisions,
)
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
    """A function that simulates a machine with only these precisions by engine and device."""

    def simulate(has: Machine) -> None:
        for name, engine in ENGINES.items():

            def precisions(bundle: Bundle, device: str, name: str = name) -> tuple[str, ...]:
                if (name, device) not in has:
                    raise EngineError(f"{name} does not run on {device} here.")
                return has[name, device]

            monkeypatch.setattr(engine, "precisions", precisions)
        monkeypatch.setattr(selection, "has_gpu", lambda: any(device == "cuda" for _, device in has))

    return simulate


def bundle_with_spec(tiny_bundle: Path, **facts: Any) -> Bundle:
    opened = open_bundle(tiny_bundle)
    return replace(opened, spec=opened.spec.model_copy(update=facts))


@pytest.mark.parametrize(
    ("has", "facts", "selected"),
    [
        (CPU_MACHINE, {"parity": GOOD_PARITY}, ("openvino", "cpu", "bf16")),
        (CPU_MACHINE, {"parity": {"openvino": {"f32": 1.0, "bf16": 0.99}}}, ("openvino", "cpu", "f32")),
        # Exported on a machine without bf16:
        (CPU_MACHINE, {"parity": {"openvino": {"f32": 1.0}}}, ("openvino", "cpu", "f32")),
        (CPU_MACHINE, {"parity": {}}, ("openvino", "cpu", "f32")),
        (F32_ONLY_MACHINE, {"parity": GOOD_PARITY}, ("openvino", "cpu", "f32")),
        (INT8_MACHINE, {"parity": GOOD_PARITY, "int8": INT8_METRICS}, ("openvino", "cpu", "int8")),
        (INT8_MACHINE, {"parity": GOOD_PARITY}, ("openvino", "cpu", "bf16")),  # an int8 graph without metrics
        (GPU_MACHINE, {"parity": GOOD_PARITY}, ("torch", "cuda", "bf16")),  # measured in bf16 on another engine
        (GPU_MACHINE, {"parity": {**GOOD_PARITY, "torch/cuda": {"f32": 1.0, "bf16": 0.98}}}, ("torch", "cuda", "f32")),
        (ONNXRUNTIME_ONLY_MACHINE, {"parity": GOOD_PARITY}, ("onnxruntime", "cpu", "f32")),
    ],
)
def test_auto(
    has: Machine, facts: dict[str, Any], selected: tuple[str, str, str], fake_machine: Any, tiny_bundle: Path
) -> None:
    fake_machine(has)
    choice = choose_engine(bundle_with_spec(tiny_bundle, **facts))
    assert (choice.engine, choice.device, choice.precision) == selected
    assert choice.reason.startswith(f"{selected[0]}: first available engine")
    assert f"; {selected[2]}: " in choice.reason


@pytest.mark.parametrize(
    ("has", "requested", "selected"),
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
def test_requested_engine_device_or_precision(
    has: Machine, requested: dict[str, str], selected: tuple[str, str, str], fake_machine: Any, tiny_bundle: Path
) -> None:
    fake_machine(has)
    choice = choose_engine(bundle_with_spec(tiny_bundle, parity=GOOD_PARITY), **requested)
    assert (choice.engine, choice.device, choice.precision) == selected
    assert "requested" in choice.reason or requested == {"device": "cpu"}


@pytest.mark.parametrize(
    ("has", "requested", "message"),
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
        (CPU_MACHINE, {"engine": "openvin"}, "torch. Did you mean openvino?"),
        (CPU_MACHINE, {"device": "cuda"}, "torch does not run on cuda here. onnxruntime does not run on cuda here."),
        (CPU_MACHINE, {"precision": "fp16"}, "openvino offers f32, bf16 for this bundle, not fp16"),
        (
            GPU_MACHINE,
            {"precision": "int8", "device": "cuda"},
            "torch/cuda offers f32, bf16, fp16 for this bundle, not int8",
        ),
        (
            {},
            {},
            "openvino does not run on cpu here. onnxruntime does not run on cpu here. torch does not run on cpu here.",
        ),
    ],
)
def test_errors_state_what_is_available(
    has: Machine, requested: dict[str, str], message: str, fake_machine: Any, tiny_bundle: Path
) -> None:
    fake_machine(has)
    with pytest.raises(EngineError) as caught:
        choose_engine(bundle_with_spec(tiny_bundle, parity=GOOD_PARITY), **requested)
    assert message in str(caught.value)


def test_a_precision_that_disagreed_at_export_is_not_offered(fake_machine: Any, tiny_bundle: Path) -> None:
    fake_machine(INT8_MACHINE)
    poor = bundle_with_spec(
        tiny_bundle, parity={"openvino": {"f32": 1.0, "bf16": 0.98, "int8": 0.97}}, int8=INT8_METRICS
    )
    assert usable_precisions(poor, "openvino", "cpu") == ("f32", "int8")  # int8 was judged by its mIoU
    assert usable_precisions(poor, "torch", "cpu") == ("f32", "bf16")
    with pytest.raises(EngineError, match=r"offers f32, int8 .* not bf16: .* at export 98\.00%, below 99\.5%"):
        choose_engine(poor, "openvino", "bf16")


def test_every_option_is_listed_with_the_reason_if_it_is_unavailable(fake_machine: Any, tiny_bundle: Path) -> None:
    fake_machine({("torch", "cuda"): ("f32", "bf16", "fp16"), ("openvino", "cpu"): ("f32", "bf16")})
    bundle = bundle_with_spec(tiny_bundle, parity={"openvino": {"f32": 1.0, "bf16": 0.98}})
    options = list(iterate_engine_options(bundle))
    available = [(option.engine_id, option.precision) for option in options if not option.unavailable]
    assert available == [("torch/cuda", "f32"), ("torch/cuda", "bf16"), ("torch/cuda", "fp16"), ("openvino", "f32")]
    assert options[3] == EngineOption("onnxruntime", "cuda", "", "onnxruntime does not run on cuda here.")
    assert (options[5].engine_id, options[5].precision) == ("openvino", "bf16")
    assert "not bf16: agreement with PyTorch at export 98.00%" in options[5].unavailable
    assert [(option.engine, option.precision) for option in options[6:]] == [("onnxruntime", ""), ("torch", "")]


def test_the_segmenter_reports_its_choice(tiny_bundle: Path) -> None:
    segmenter = Segmenter.load(open_bundle(tiny_bundle), "onnxruntime")
    assert segmenter.choice is not None
    assert (segmenter.choice.engine_id, segmenter.choice.precision) == ("onnxruntime", "f32")
    assert segmenter.choice.reason == "onnxruntime: requested; f32: the only precision of this engine here"


def test_the_reason_names_engines_that_were_skipped(fake_machine: Any, tiny_bundle: Path) -> None:
    fake_machine({**CPU_MACHINE, ("tensor", "cuda"): ()})  # a GPU that no engine can use
    assert choose_engine(bundle_with_spec(tiny_bundle)).reason.startswith(
        "openvino: first available engine (torch does not run on cuda here. onnxruntime does not run on cuda here.); f32: "
    )


def test_choices_are_ordered_by_device_engine_and_precision(fake_machine: Any, tiny_bundle: Path) -> None:
    fake_machine({**GPU_MACHINE, **INT8_MACHINE})
    bundle = bundle_with_spec(tiny_bundle, parity=GOOD_PARITY, int8=INT8_METRICS)
    assert [(choice.engine_id, choice.precision) for choice in engine_choices(bundle)] == [
        ("torch/cuda", "bf16"), ("torch/cuda", "f32"), ("onnxruntime/cuda", "f32"),
        ("openvino", "int8"), ("openvino", "bf16"), ("openvino", "f32"), ("onnxruntime", "f32"),
        ("torch", "bf16"), ("torch", "f32"),
    ]  # fmt: skip


def test_if_an_engine_fails_to_load_the_next_is_used(
    fake_machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example onnxruntime-gpu, which lists its CUDA provider even if the libraries for it are missing."""
    fake_machine({**ONNXRUNTIME_ONLY_MACHINE, ("openvino", "cpu"): ("f32",)})

    def load(*arguments: Any) -> None:
        raise EngineError("libcudnn is missing.")

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    segmenter = Segmenter.load(open_bundle(tiny_bundle))
    assert segmenter.choice is not None
    assert segmenter.choice.engine == "onnxruntime"
    assert "(skipped: libcudnn is missing.)" in segmenter.choice.reason
    with pytest.raises(EngineError, match="libcudnn"):
        Segmenter.load(open_bundle(tiny_bundle), "openvino")


def test_a_network_that_does_not_fit_into_memory(
    fake_machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    with pytest.raises(InsufficientMemoryError, match=r"not enough memory for this network .*bad_alloc"):
        Segmenter.load(open_bundle(tiny_bundle), "openvino", "f32")


def test_a_precision_that_fails_the_probes_is_skipped(
    fake_machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Int8 may fail them on a CPU that rounds differently: the service then uses the next precision, and logs it."""
    fake_machine(CPU_MACHINE)
    real = ENGINES["openvino"].load

    def load(bundle: Bundle, device: str, precision: str, threads: int, concurrency: int) -> Any:
        run = real(bundle, device, "f32", threads)
        if precision == "f32":
            return run

        def wrong(images: Any, logits: bool = False) -> Any:
            labels, scores = run(images, logits)
            return (labels + 1) % 6, scores

        return wrong

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    bundle = bundle_with_spec(tiny_bundle, parity=GOOD_PARITY)
    unverified, verified = Segmenter.load(bundle), Segmenter.load(bundle, verify_probes=True)
    assert unverified.choice and unverified.choice.precision == "bf16"
    assert verified.choice and verified.choice.precision == "f32"
    assert "of the probe's labels are those in the bundle" in verified.choice.reason
    with pytest.raises(ParityError):
        Segmenter.load(bundle, precision="bf16", engine="openvino", verify_probes=True)


def test_engines_are_imported_only_when_they_are_used(tiny_bundle: Path) -> None:
    """torch alone takes 480 MB of memory and seconds of the service's start."""
    code = (
        "import sys, pathlib; from models.bundle import open_bundle; from models.inference.segmenter import Segmenter\n"
        "from models.engines.selection import has_gpu; assert has_gpu() in (True, False)\n"
        "assert not {'torch', 'openvino', 'onnxruntime'} & set(sys.modules)\n"
        "Segmenter.load(open_bundle(pathlib.Path(sys.argv[1])), device='cpu', verify_probes=True)\n"
        "sys.exit(', '.join({'torch', 'onnxruntime'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code, tiny_bundle], cwd=ROOT, check=True)
