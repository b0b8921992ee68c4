"""Selects the engine, device and precision that run a bundle on this machine, and states why."""

import ctypes
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from models.bundle import Bundle
from models.engines import ENGINES
from models.errors import EngineError, closest_names, quoted
from models.spec import BundleSpec

# A precision is not offered if at export, on any image, a smaller fraction of labels equalled those of PyTorch.
MIN_AGREEMENT = 0.995
PRECISIONS = ("f32", "bf16", "fp16", "int8")
DEVICES = ("cpu", "cuda")
# The order in which `auto` tries engines; a GPU comes before the CPU.
ENGINE_PREFERENCE = {"cuda": ("torch", "onnxruntime"), "cpu": ("openvino", "onnxruntime", "torch")}


@dataclass(frozen=True)
class EngineChoice:
    """The engine, device and precision that run a bundle."""

    engine: str
    device: str
    precision: str
    reason: str  # one sentence

    @property
    def engine_id(self) -> str:
        """The engine with its device, as in the spec's parity: `openvino`, `torch/cuda`."""
        return engine_id(self.engine, self.device)


@dataclass(frozen=True)
class EngineOption:
    """A combination of engine, device and precision; `unavailable` is the reason why it cannot run a bundle here."""

    engine: str
    device: str
    precision: str  # "" if the engine as a whole is unavailable
    unavailable: str = ""  # "" if the combination can be used

    @property
    def engine_id(self) -> str:
        """The engine with its device: `openvino`, `torch/cuda`."""
        return engine_id(self.engine, self.device)


def iterate_engine_options(bundle: Bundle) -> Iterator[EngineOption]:
    """Yield every engine and precision for a bundle on the devices of this machine, also those that are unavailable.

    Precisions that an engine does not support are left out; those that disagreed with PyTorch at export are unavailable.
    """
    for device in _available_devices():
        for engine in ENGINE_PREFERENCE[device]:
            try:
                supported = ENGINES[engine].precisions(bundle, device)
            except EngineError as error:
                yield EngineOption(engine, device, "", str(error))
                continue
            usable = usable_precisions(bundle, engine, device)
            for precision in supported:
                missing = precision not in usable
                reason = _explain_missing_precision(bundle, engine, device, precision, usable) if missing else ""
                yield EngineOption(engine, device, precision, reason)


def choose_engine(bundle: Bundle, engine: str = "auto", precision: str = "auto", device: str = "auto") -> EngineChoice:
    """The first of `engine_choices`. Raises: EngineError."""
    return next(engine_choices(bundle, engine, precision, device))


def engine_choices(
    bundle: Bundle, engine: str = "auto", precision: str = "auto", device: str = "auto"
) -> Iterator[EngineChoice]:
    """Yield what can run a bundle here, the best first: a GPU before the CPU, and the fastest precision before others.

    `auto` is decided by what the export measured. Choices are computed when they are asked for: a service that has
    OpenVINO never imports torch.
    Raises: EngineError if nothing matches; it states what is available.
    """
    _check_known("engine", engine, tuple(ENGINES))
    _check_known("precision", precision, PRECISIONS)
    _check_known("device", device, DEVICES)
    found = False
    rejected: list[str] = []
    for each_device in _available_devices() if device == "auto" else [device]:
        for name in ENGINE_PREFERENCE[each_device] if engine == "auto" else [engine]:
            try:
                usable = usable_precisions(bundle, name, each_device)
            except EngineError as error:
                rejected.append(str(error))
                continue
            if precision not in ("auto", *usable):
                rejected.append(_explain_missing_precision(bundle, name, each_device, precision, usable))
                continue
            why_engine = "requested"
            if engine == "auto":
                why_engine = "first available engine" + (f" ({' '.join(rejected)})" if rejected else "")
            ranked = [(precision, "requested")]
            if precision == "auto":
                ranked = _rank_precisions(bundle.spec, name, each_device, usable)
            for kind, why_precision in ranked:
                found = True
                yield EngineChoice(name, each_device, kind, f"{name}: {why_engine}; {kind}: {why_precision}")
    if not found:
        raise EngineError(" ".join(dict.fromkeys(rejected)))


def usable_precisions(bundle: Bundle, engine: str, device: str) -> tuple[str, ...]:
    """The precisions that an engine supports for a bundle on a device, without those that disagreed at export.

    Raises: EngineError if the engine cannot run the bundle on the device.
    """
    measured = bundle.spec.parity.get(engine_id(engine, device), {})
    return tuple(
        precision
        for precision in ENGINES[engine].precisions(bundle, device)
        if precision in ("f32", "int8") or measured.get(precision, 1.0) >= MIN_AGREEMENT
    )


def engine_id(engine: str, device: str) -> str:
    """An engine with its device, as in the spec's parity: `openvino`, `torch/cuda`."""
    return engine if device == "cpu" else f"{engine}/{device}"


@functools.cache
def has_gpu() -> bool:
    """Whether CUDA's driver is installed and finds a device. Calls the driver, because torch takes seconds to import."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def _available_devices() -> list[str]:
    return ["cuda", "cpu"] if has_gpu() else ["cpu"]


def _rank_precisions(spec: BundleSpec, engine: str, device: str, usable: tuple[str, ...]) -> list[tuple[str, str]]:
    """The precisions that the export found good, the fastest first, each with its reason."""
    ranked, why_f32 = [], "the only precision of this engine here"
    if "int8" in usable and spec.int8 is not None:
        ranked.append(("int8", f"validation mIoU {spec.int8.miou:.4f} (float {spec.int8.float_miou:.4f})"))
    if "bf16" in usable:
        agreement, source = _bf16_agreement(spec, engine_id(engine, device))
        why_f32 = "bf16 was not measured at export, or disagreed with PyTorch"
        if agreement is not None and agreement >= MIN_AGREEMENT:
            ranked.append(("bf16", f"agreement with PyTorch at export {agreement:.2%}{source}"))
            why_f32 = "the most exact precision"
    return [*ranked, ("f32", why_f32)]


def _bf16_agreement(spec: BundleSpec, name: str) -> tuple[float | None, str]:
    """The agreement of this engine in bf16 at export, or else the lowest of any engine, with the name of that engine."""
    if "bf16" in spec.parity.get(name, {}):
        return spec.parity[name]["bf16"], ""
    others = {other: measured["bf16"] for other, measured in spec.parity.items() if "bf16" in measured}
    if not others:
        return None, ""
    worst = min(others, key=lambda other: others[other])
    return others[worst], f" on {worst}"


def _explain_missing_precision(
    bundle: Bundle, engine: str, device: str, precision: str, usable: tuple[str, ...]
) -> str:
    agreement = bundle.spec.parity.get(engine_id(engine, device), {}).get(precision)
    reason = "the engine does not support it on this machine"
    if precision == "int8":
        reason = "the bundle has no int8 graph for this engine"
    if agreement is not None and agreement < MIN_AGREEMENT:
        reason = f"agreement with PyTorch at export {agreement:.2%}, below {MIN_AGREEMENT:.1%}"
    return f"{engine_id(engine, device)} offers {', '.join(usable)} for this bundle, not {precision}: {reason}."


def _check_known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in ("auto", *names):
        close = closest_names(name, names)
        hint = f" Did you mean {close}?" if close else ""
        raise EngineError(f"The {what} {quoted(name)} is not known; choose auto, {', '.join(names)}.{hint}")
