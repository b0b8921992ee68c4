"""Which engine, device and number format a bundle is run with here, and why."""

import ctypes
import functools
import sys
from dataclasses import dataclass

from models.bundle import Bundle
from models.engines import ENGINES
from models.errors import EngineError
from models.spec import Spec

# Below this share of labels equal to the live network's, measured at export, a number format is not offered.
AGREEMENT = 0.995
PRECISIONS = ("f32", "bf16", "fp16", "int8")
DEVICES = ("cpu", "cuda")
# What `auto` tries in turn. The CPU's default stands before the portable one, and a GPU before both.
ORDER = {"cuda": ("torch", "onnxruntime"), "cpu": ("openvino", "onnxruntime", "torch")}


@dataclass(frozen=True)
class Choice:
    """What runs a bundle on this machine."""

    engine: str
    device: str
    precision: str
    why: str  # one sentence

    @property
    def name(self) -> str:
        """The engine with its device, as in the spec's parity: `openvino`, `torch/cuda`."""
        return full_name(self.engine, self.device)


def choose(bundle: Bundle, engine: str = "auto", precision: str = "auto", device: str = "auto") -> Choice:
    """Settle what was left to `auto`: a GPU before the CPU; the quickest number format that the export found as good.

    Raises: EngineError where this machine lacks what was asked for, with what it has.
    """
    _known("engine", engine, tuple(ENGINES))
    _known("precision", precision, PRECISIONS)
    _known("device", device, DEVICES)
    reasons = []
    for at in [device] if device != "auto" else [*(["cuda"] if has_gpu() else []), "cpu"]:
        for name in ORDER[at] if engine == "auto" else [engine]:
            try:
                offered = offers(bundle, name, at)
            except EngineError as error:
                reasons.append(str(error))
                continue
            if precision == "auto":
                best, why = _best(bundle.spec, name, at, offered)
                return Choice(name, at, best, f"{_why_engine(engine, name, at)}; {why}")
            if precision in offered:
                return Choice(name, at, precision, f"{_why_engine(engine, name, at)}; {precision}: as asked")
            reasons.append(_lacking(bundle, name, at, precision, offered))
    raise EngineError(" ".join(dict.fromkeys(reasons)))


def offers(bundle: Bundle, engine: str, device: str) -> tuple[str, ...]:
    """The number formats that an engine offers for a bundle on this machine's device.

    Without those that were too far from the live network at export. Raises: EngineError where the engine has none.
    """
    measured = bundle.spec.parity.get(full_name(engine, device), {})
    return tuple(
        precision
        for precision in ENGINES[engine].precisions(bundle, device)
        if precision in ("f32", "int8") or measured.get(precision, 1.0) >= AGREEMENT
    )


def full_name(engine: str, device: str) -> str:
    """An engine with its device, in a word."""
    return engine if device == "cpu" else f"{engine}/{device}"


@functools.cache
def has_gpu() -> bool:
    """Whether CUDA's driver is here and counts a device; asked of the driver, for torch takes seconds to import."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def _best(spec: Spec, engine: str, device: str, offered: tuple[str, ...]) -> tuple[str, str]:
    if "int8" in offered and spec.int8 is not None:
        return "int8", f"int8: validation mIoU {spec.int8.miou:.4f}, and {spec.int8.miou_float:.4f} in float"
    if "bf16" in offered:
        share, source = _bf16_share(spec, full_name(engine, device))
        if share is not None and share >= AGREEMENT:
            return "bf16", f"bf16: at export {share:.2%} of a picture's labels were the live network's{source}"
        return "f32", "f32: the export has not found bf16 good enough"
    return "f32", f"f32: {engine} has no bf16 here"


def _bf16_share(spec: Spec, where: str) -> tuple[float | None, str]:
    """The share of equal labels in bf16: of this engine, or else the lowest of those that the export could measure."""
    if "bf16" in spec.parity.get(where, {}):
        return spec.parity[where]["bf16"], ""
    others = {name: shares["bf16"] for name, shares in spec.parity.items() if "bf16" in shares}
    if not others:
        return None, ""
    worst = min(others, key=lambda name: others[name])
    return others[worst], f" on {worst}"


def _why_engine(asked: str, engine: str, device: str) -> str:
    if asked != "auto":
        return f"{engine}: as asked"
    return f"{engine}: there is a GPU" if device == "cuda" else f"{engine}: the first of those installed for a CPU"


def _lacking(bundle: Bundle, engine: str, device: str, precision: str, offered: tuple[str, ...]) -> str:
    share = bundle.spec.parity.get(full_name(engine, device), {}).get(precision)
    reason = "this machine or this bundle lacks it"
    if share is not None and share < AGREEMENT:
        reason = f"at export {share:.2%} of a picture's labels were the live network's, and {AGREEMENT:.1%} must be"
    return f"{full_name(engine, device)} offers {', '.join(offered)} for this bundle, not {precision}: {reason}."


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in ("auto", *names):
        raise EngineError(f"The {what} {name!r} is not known; choose auto, {', '.join(names)}.")
