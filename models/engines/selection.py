"""Which engine, device and number format a bundle is run with here, and why."""

import ctypes
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from models.bundle import Bundle
from models.engines import ENGINES
from models.errors import EngineError
from models.spec import BundleSpec

# Below this share of labels equal to the live network's, measured at export, a number format is not offered.
MIN_AGREEMENT = 0.995
PRECISIONS = ("f32", "bf16", "fp16", "int8")
DEVICES = ("cpu", "cuda")
# What `auto` tries in turn. The CPU's default stands before the portable one, and a GPU before both.
ENGINE_PREFERENCE = {"cuda": ("torch", "onnxruntime"), "cpu": ("openvino", "onnxruntime", "torch")}


@dataclass(frozen=True)
class EngineChoice:
    """What runs a bundle on this machine."""

    engine: str
    device: str
    precision: str
    reason: str  # one sentence

    @property
    def engine_id(self) -> str:
        """The engine with its device, as in the spec's parity: `openvino`, `torch/cuda`."""
        return engine_id(self.engine, self.device)


def choose_engine(bundle: Bundle, engine: str = "auto", precision: str = "auto", device: str = "auto") -> EngineChoice:
    """The first of `choices`. Raises: EngineError."""
    return next(engine_choices(bundle, engine, precision, device))


def engine_choices(
    bundle: Bundle, engine: str = "auto", precision: str = "auto", device: str = "auto"
) -> Iterator[EngineChoice]:
    """What can run a bundle here, the best first: a GPU before the CPU, and the quickest number format before others.

    What is left to `auto` is settled by what the export measured. One is looked for when the one before did not do: a
    service that has OpenVINO never opens torch. Raises: EngineError where nothing can run it as it was asked for, with
    what there is.
    """
    _check_known("engine", engine, tuple(ENGINES))
    _check_known("precision", precision, PRECISIONS)
    _check_known("device", device, DEVICES)
    found, lacking = False, []
    for at in [device] if device != "auto" else [*(["cuda"] if has_gpu() else []), "cpu"]:
        for name in ENGINE_PREFERENCE[at] if engine == "auto" else [engine]:
            try:
                offered = usable_precisions(bundle, name, at)
            except EngineError as error:
                lacking.append(str(error))
                continue
            if precision not in ("auto", *offered):
                lacking.append(_explain_missing_precision(bundle, name, at, precision, offered))
                continue
            first = (
                "as asked" if engine != "auto" else " ".join(["the first that can run it here.", *lacking]).rstrip(".")
            )
            ranked = (
                _rank_precisions(bundle.spec, name, at, offered) if precision == "auto" else [(precision, "as asked")]
            )
            for kind, why in ranked:
                found = True
                yield EngineChoice(name, at, kind, f"{name}: {first}; {kind}: {why}")
    if not found:
        raise EngineError(" ".join(dict.fromkeys(lacking)))


def usable_precisions(bundle: Bundle, engine: str, device: str) -> tuple[str, ...]:
    """The number formats that an engine offers for a bundle on this machine's device.

    Without those that were too far from the live network at export. Raises: EngineError where the engine has none.
    """
    measured = bundle.spec.parity.get(engine_id(engine, device), {})
    return tuple(
        precision
        for precision in ENGINES[engine].precisions(bundle, device)
        if precision in ("f32", "int8") or measured.get(precision, 1.0) >= MIN_AGREEMENT
    )


def engine_id(engine: str, device: str) -> str:
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


def _rank_precisions(spec: BundleSpec, engine: str, device: str, offered: tuple[str, ...]) -> list[tuple[str, str]]:
    """The number formats that the export found good, the quickest first, each with its reason."""
    ranked, plain = [], "the engine has no other here"
    if "int8" in offered and spec.int8 is not None:
        ranked.append(("int8", f"validation mIoU {spec.int8.miou:.4f}, and {spec.int8.float_miou:.4f} in float"))
    if "bf16" in offered:
        share, source = _bf16_agreement(spec, engine_id(engine, device))
        plain = "the export has not found bf16 good enough"
        if share is not None and share >= MIN_AGREEMENT:
            ranked.append(("bf16", f"at export {share:.2%} of an image's labels were the live network's{source}"))
            plain = "the most exact"
    return [*ranked, ("f32", plain)]


def _bf16_agreement(spec: BundleSpec, where: str) -> tuple[float | None, str]:
    """The share of equal labels in bf16: of this engine, or else the lowest of those that the export could measure."""
    if "bf16" in spec.parity.get(where, {}):
        return spec.parity[where]["bf16"], ""
    others = {name: shares["bf16"] for name, shares in spec.parity.items() if "bf16" in shares}
    if not others:
        return None, ""
    worst = min(others, key=lambda name: others[name])
    return others[worst], f" on {worst}"


def _explain_missing_precision(
    bundle: Bundle, engine: str, device: str, precision: str, offered: tuple[str, ...]
) -> str:
    share = bundle.spec.parity.get(engine_id(engine, device), {}).get(precision)
    reason = "the bundle holds no int8 graph for it" if precision == "int8" else "it does not compute in that here"
    if share is not None and share < MIN_AGREEMENT:
        reason = f"at export {share:.2%} of an image's labels were the live network's, and {MIN_AGREEMENT:.1%} must be"
    return f"{engine_id(engine, device)} offers {', '.join(offered)} for this bundle, not {precision}: {reason}."


def _check_known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in ("auto", *names):
        raise EngineError(f"The {what} {name!r} is not known; choose auto, {', '.join(names)}.")
