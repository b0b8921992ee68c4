"""Parity check: the frozen network must predict what the original predicts.

The original is a run's PyTorch network, or an imported graph under ONNX Runtime. The frozen one runs in every engine
that this machine has. Both predict the same images through the Segmenter; if they disagree, no bundle is written.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.bundle import Bundle
from models.console import Console
from models.engines.selection import MIN_AGREEMENT, iterate_engine_options
from models.errors import BundleError, DataError, EngineError, ParityError
from models.imaging.decode import IMAGE_SUFFIXES, Labels
from models.inference.geometry import Image, resize_image
from models.inference.segmenter import Segmenter, agreement
from models.readers import SAMPLE_SUFFIXES, read_input_file
from models.spec import InputRule
from training.data.synthetic import generate_scene

SYNTHETIC_SIZE = (480, 640)  # (height, width) in pixels of a parity image if none are given
MAX_PARITY_SIDE = 1024  # pixels: larger images are shrunk first, or their probes would fill the bundle
MAX_PARITY_LENGTH = {"T": 10_000, "DHW": 64}  # time steps, voxels of an axis: of a parity sample before `SIZE_FACTORS`
MIN_F32_AGREEMENT = 0.999
# (height, width) of the parity images as fractions of a real image's: odd sizes, both formats, one enlarged.
SIZE_FACTORS = ((1.0, 1.0), (0.61, 0.97), (0.93, 0.43), (0.37, 0.31), (1.51, 1.23))


def draw_scene(index: int) -> Image:
    """A synthetic photograph, RGB uint8 H x W x 3."""
    return generate_scene(np.random.default_rng(index), SYNTHETIC_SIZE)[0]


def make_parity_images(read: Callable[[int], Image], count: int) -> list[Image]:
    """Images of odd sizes, H x W x C, made from some of `count` images; `read(index)` gives one of them."""
    images = []
    for index, (height_factor, width_factor) in enumerate(SIZE_FACTORS):
        image = read(index * count // len(SIZE_FACTORS))
        size = (max(1, int(image.shape[0] * height_factor) | 1), max(1, int(image.shape[1] * width_factor) | 1))
        images.append(resize_image(image, size))
    return images


def make_parity_samples(read: Callable[[int], Image], count: int, axes: str) -> list[Image]:
    """Signals or volumes of odd lengths, [*axes, C], cut from some of `count` samples; one volume has a single slice.

    One that is longer than its sample repeats it mirrored.
    """
    samples = []
    for index, factors in enumerate(SIZE_FACTORS):
        values = read(index * count // len(SIZE_FACTORS))
        longest = MAX_PARITY_LENGTH[axes]
        lengths = [
            max(1, int(min(length, longest) * factors[axis % 2]) | 1) for axis, length in enumerate(values.shape[:-1])
        ]
        if axes == "DHW" and index == len(SIZE_FACTORS) - 1:
            lengths[0] = 1
        cut = values[tuple(map(slice, lengths))]
        missing = [(0, length - found) for length, found in zip(lengths, cut.shape, strict=False)]
        samples.append(np.ascontiguousarray(np.pad(cut, [*missing, (0, 0)], mode="symmetric")))
    return samples


def load_parity_images(
    folder: Path | None, rule: InputRule | None = None, draw: Callable[[int], Image] = draw_scene
) -> list[Image]:
    """Parity images from a folder, or those that `draw` makes without a folder; H x W x C.

    `rule`: the network's input; None for photographs, RGB uint8. Raises: DataError, ImageError.
    """
    if folder is None:
        return make_parity_images(draw, 5)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES | SAMPLE_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise DataError(
            f"--images {folder}: no image found; the folder needs files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )

    def read(index: int) -> Image:
        image = read_input_file(files[index], rule or InputRule(rule="native")).values
        scale = min(1.0, MAX_PARITY_SIDE / max(image.shape[:2]))
        return resize_image(image, (max(1, int(image.shape[0] * scale)), max(1, int(image.shape[1] * scale))))

    return make_parity_images(read, len(files))


def measure_parity(
    draft: Bundle, images: list[Image], expected: list[Labels], console: Console, advice: str = ""
) -> dict[str, dict[str, float]]:
    """The agreement of the frozen network with the original on the worst image, 0..1, by engine and precision.

    `expected`: the original network's labels of `images`, uint8 H x W each. Every engine that this machine has is
    measured, but not int8; an engine that was not measured is never selected by `auto`.
    Raises: ParityError, which ends with `advice`; BundleError if the graph cannot be compiled in f32.
    """
    parity: dict[str, dict[str, float]] = {}
    for option in iterate_engine_options(draft):
        name, precision = option.engine_id, option.precision
        if option.unavailable or precision == "int8":
            continue
        try:
            frozen = Segmenter.load(draft, option.engine, precision, option.device)
        except (BundleError, EngineError) as error:
            if precision == "f32" and isinstance(error, BundleError):
                raise
            console.print(f"{name} {precision}: not used: {error}", highlight=False, markup=False, soft_wrap=True)
            continue
        worst = worst_agreement(frozen, name, precision, images, expected, console)
        if precision == "f32" and worst < MIN_F32_AGREEMENT:
            raise ParityError(
                f"The frozen network agrees with the original on {worst:.3%} of an image's pixels ({name} f32); "
                f"{MIN_F32_AGREEMENT:.1%} are required, so no bundle was written. {advice}".rstrip()
            )
        parity.setdefault(name, {})[precision] = worst
    return parity


def unpadded_agreement(original: Segmenter, images: list[Image], expected: list[Labels]) -> float | None:
    """The lowest agreement of `expected` with the original network's labels without any padding, 0..1.

    It tells what the padding of the input rule changes. None for a network that does not take images of any size.
    """
    if original.rule.divisor == 1 or original.rule.rule == "exact":
        return 1.0
    unpadded = Segmenter(original.run, original.rule.model_copy(update={"divisor": 1}))
    try:
        return min(
            agreement(unpadded.segment(image).labels, labels) for image, labels in zip(images, expected, strict=True)
        )
    except Exception:  # networks raise exceptions of many types for sizes that they do not accept
        return None


def worst_agreement(
    frozen: Segmenter, name: str, precision: str, images: list[Image], expected: list[Labels], console: Console
) -> float:
    """The lowest agreement of an image's labels with the expected ones, 0..1; prints it.

    The lowest, because the service verifies each probe alone.
    """
    pairs = zip(images, expected, strict=True)
    worst = min(agreement(frozen.segment(image).labels, labels) for image, labels in pairs)
    rejected = precision in ("bf16", "fp16") and worst < MIN_AGREEMENT
    verdict = f", below {MIN_AGREEMENT:.1%}: not used" if rejected else ""
    console.print(
        f"{name} {precision}: agreement with the original network, worst image: {worst:.2%}{verdict}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return worst
