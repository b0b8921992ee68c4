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
from models.engines.selection import choices, choose, offers
from models.errors import EngineError, ParityError, TooLittleMemory
from models.inference.segmenter import Segmenter
from models.spec import Quantised

ROOT = Path(__file__).parents[3]
GOOD = {"openvino": {"f32": 1.0, "bf16": 0.998}, "onnxruntime": {"f32": 1.0}}
COST = Quantised(miou=0.61, miou_float=0.612, pictures=100)

Has = dict[tuple[str, str], tuple[str, ...]]
CPU: Has = {
    ("openvino", "cpu"): ("f32", "bf16"),
    ("onnxruntime", "cpu"): ("f32",),
    ("torch", "cpu"): ("f32", "bf16"),
}
INT8: Has = {**CPU, ("openvino", "cpu"): ("f32", "bf16", "int8")}
OLD: Has = dict.fromkeys(CPU, ("f32",))
GPU: Has = {**CPU, ("torch", "cuda"): ("f32", "bf16", "fp16"), ("onnxruntime", "cuda"): ("f32",)}
PORTABLE: Has = {("onnxruntime", "cpu"): ("f32",)}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Has], None]:
    """A machine that has these number formats for an engine on a device: none other can be had here."""

    def pretend(has: Has) -> None:
        for name, engine in ENGINES.items():

            def precisions(bundle: Bundle, device: str, name: str = name) -> tuple[str, ...]:
                if (name, device) not in has:
                    raise EngineError(f"{name} is not for {device} here.")
                return has[name, device]

            monkeypatch.setattr(engine, "precisions", precisions)
        monkeypatch.setattr(selection, "has_gpu", lambda: any(device == "cuda" for _, device in has))

    return pretend


def bundle_with(tiny_bundle: Path, **facts: Any) -> Bundle:
    opened = open_bundle(tiny_bundle)
    return replace(opened, spec=opened.spec.model_copy(update=facts))


@pytest.mark.parametrize(
    ("has", "facts", "taken"),
    [
        (CPU, {"parity": GOOD}, ("openvino", "cpu", "bf16")),
        (CPU, {"parity": {"openvino": {"f32": 1.0, "bf16": 0.99}}}, ("openvino", "cpu", "f32")),
        (CPU, {"parity": {"openvino": {"f32": 1.0}}}, ("openvino", "cpu", "f32")),  # exported where there is no bf16
        (CPU, {"parity": {}}, ("openvino", "cpu", "f32")),
        (OLD, {"parity": GOOD}, ("openvino", "cpu", "f32")),
        (INT8, {"parity": GOOD, "int8": COST}, ("openvino", "cpu", "int8")),
        (INT8, {"parity": GOOD}, ("openvino", "cpu", "bf16")),  # an int8 graph that nobody has measured
        (GPU, {"parity": GOOD}, ("torch", "cuda", "bf16")),  # measured in bf16 on another engine
        (GPU, {"parity": {**GOOD, "torch/cuda": {"f32": 1.0, "bf16": 0.98}}}, ("torch", "cuda", "f32")),
        (PORTABLE, {"parity": GOOD}, ("onnxruntime", "cpu", "f32")),
    ],
)
def test_what_auto_takes(
    has: Has, facts: dict[str, Any], taken: tuple[str, str, str], machine: Any, tiny_bundle: Path
) -> None:
    machine(has)
    selection = choose(bundle_with(tiny_bundle, **facts))
    assert (selection.engine, selection.device, selection.precision) == taken
    assert (
        selection.why.startswith(f"{taken[0]}: the first that can run it here") and f"; {taken[2]}: " in selection.why
    )


@pytest.mark.parametrize(
    ("has", "asked", "taken"),
    [
        (GPU, {"device": "cpu"}, ("openvino", "cpu", "bf16")),
        (GPU, {"engine": "onnxruntime"}, ("onnxruntime", "cuda", "f32")),
        (GPU, {"engine": "openvino"}, ("openvino", "cpu", "bf16")),
        (GPU, {"precision": "fp16"}, ("torch", "cuda", "fp16")),
        (INT8, {"precision": "int8"}, ("openvino", "cpu", "int8")),
        (CPU, {"engine": "torch"}, ("torch", "cpu", "bf16")),
        (PORTABLE, {"precision": "f32"}, ("onnxruntime", "cpu", "f32")),
    ],
)
def test_what_was_asked_for_is_taken(
    has: Has, asked: dict[str, str], taken: tuple[str, str, str], machine: Any, tiny_bundle: Path
) -> None:
    machine(has)
    selection = choose(bundle_with(tiny_bundle, parity=GOOD), **asked)
    assert (selection.engine, selection.device, selection.precision) == taken
    assert "as asked" in selection.why or asked == {"device": "cpu"}


@pytest.mark.parametrize(
    ("has", "asked", "said"),
    [
        (CPU, {"engine": "tensorrt"}, "The engine 'tensorrt' is not known; choose auto, openvino, onnxruntime, torch."),
        (CPU, {"precision": "f7"}, "The precision 'f7' is not known; choose auto, f32, bf16, fp16, int8."),
        (CPU, {"device": "abacus"}, "The device 'abacus' is not known; choose auto, cpu, cuda."),
        (CPU, {"engine": "openvino", "precision": "int8"}, "openvino offers f32, bf16 for this bundle, not int8: "),
        (CPU, {"device": "cuda"}, "torch is not for cuda here. onnxruntime is not for cuda here."),
        (CPU, {"precision": "fp16"}, "openvino offers f32, bf16 for this bundle, not fp16"),
        (GPU, {"precision": "int8", "device": "cuda"}, "torch/cuda offers f32, bf16, fp16 for this bundle, not int8"),
        ({}, {}, "openvino is not for cpu here. onnxruntime is not for cpu here. torch is not for cpu here."),
    ],
)
def test_what_is_lacking_is_said_with_what_is_there(
    has: Has, asked: dict[str, str], said: str, machine: Any, tiny_bundle: Path
) -> None:
    machine(has)
    with pytest.raises(EngineError) as caught:
        choose(bundle_with(tiny_bundle, parity=GOOD), **asked)
    assert said in str(caught.value)


def test_a_number_format_that_the_export_found_wanting_is_not_offered(machine: Any, tiny_bundle: Path) -> None:
    machine(INT8)
    poor = bundle_with(tiny_bundle, parity={"openvino": {"f32": 1.0, "bf16": 0.98, "int8": 0.97}}, int8=COST)
    assert offers(poor, "openvino", "cpu") == ("f32", "int8")  # int8 was judged by its mIoU
    assert offers(poor, "torch", "cpu") == ("f32", "bf16")
    with pytest.raises(EngineError, match=r"offers f32, int8 .* not bf16: at export 98\.00% .* 99\.5% must be"):
        choose(poor, "openvino", "bf16")


def test_the_segmenter_says_what_it_runs_on(tiny_bundle: Path) -> None:
    segmenter = Segmenter.load(open_bundle(tiny_bundle), "onnxruntime")
    assert segmenter.choice is not None
    assert (segmenter.choice.name, segmenter.choice.precision) == ("onnxruntime", "f32")
    assert segmenter.choice.why == "onnxruntime: as asked; f32: the engine has no other here"


def test_what_was_passed_over_is_told(machine: Any, tiny_bundle: Path) -> None:
    machine({**CPU, ("tensor", "cuda"): ()})  # a GPU that no engine can use
    assert choose(bundle_with(tiny_bundle)).why.startswith(
        "openvino: the first that can run it here. torch is not for cuda here. onnxruntime is not for cuda here; f32: "
    )


def test_all_that_can_run_a_bundle_stand_in_line(machine: Any, tiny_bundle: Path) -> None:
    machine({**GPU, **INT8})
    line = [(c.name, c.precision) for c in choices(bundle_with(tiny_bundle, parity=GOOD, int8=COST))]
    assert line == [
        ("torch/cuda", "bf16"), ("torch/cuda", "f32"), ("onnxruntime/cuda", "f32"),
        ("openvino", "int8"), ("openvino", "bf16"), ("openvino", "f32"), ("onnxruntime", "f32"),
        ("torch", "bf16"), ("torch", "f32"),
    ]  # fmt: skip


def test_an_engine_that_fails_to_load_makes_room_for_the_next(
    machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu, which counts its CUDA provider as there where the libraries for it are not."""
    machine({**PORTABLE, ("openvino", "cpu"): ("f32",)})

    def load(*arguments: Any) -> None:
        raise EngineError("libcudnn is not there.")

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    segmenter = Segmenter.load(open_bundle(tiny_bundle))
    assert segmenter.choice is not None
    assert segmenter.choice.engine == "onnxruntime"
    assert "(not libcudnn is not there.)" in segmenter.choice.why
    with pytest.raises(EngineError, match="libcudnn"):
        Segmenter.load(open_bundle(tiny_bundle), "openvino")


def test_a_network_that_memory_does_not_hold(machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(ENGINES["openvino"], "load", load)
    with pytest.raises(TooLittleMemory, match=r"too small for this network .*bad_alloc"):
        Segmenter.load(open_bundle(tiny_bundle), "openvino", "f32")


def test_a_number_format_that_answers_the_probes_wrongly_is_passed_over(
    machine: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As int8 may on a CPU that rounds otherwise: the service then takes the next, and says so."""
    machine(CPU)
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
    bundle = bundle_with(tiny_bundle, parity=GOOD)
    unproved, proved = Segmenter.load(bundle), Segmenter.load(bundle, probed=True)
    assert unproved.choice and unproved.choice.precision == "bf16"
    assert proved.choice and proved.choice.precision == "f32"
    assert "of the probe's pixels get the label" in proved.choice.why
    with pytest.raises(ParityError):
        Segmenter.load(bundle, precision="bf16", engine="openvino", probed=True)


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
