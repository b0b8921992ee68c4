"""The parity gate: what `training/export.py` and `training/import_model.py` go through before a bundle stands in any place.

The frozen network, in every engine that this machine has, and the live one label the same images, both through the
Segmenter; where they disagree, nothing is written.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from models.bundle import SPEC_FILE, Bundle, bundle_writer
from models.engines import ENGINES
from models.engines.selection import DEVICES, MIN_AGREEMENT, engine_id, has_gpu
from models.errors import BundleError, DataError, EngineError, ParityError, WeightsError
from models.imaging.decode import IMAGE_SUFFIXES, RGB, Labels, read_image
from models.inference.geometry import resize_image
from models.inference.segmenter import Segmenter, agreement
from models.outputs.png import to_palette_image
from models.spec import BundleSpec, ClassInfo
from training.data.synthetic import generate_scene
from training.freezing.onnx_export import describe_bundle
from training.freezing.onnx_import.graph_reader import shorten_error

SYNTHETIC_SIZE = (480, 640)  # (height, width) in pixels of a parity image where none are given
MAX_PARITY_SIDE = 1024  # pixels: longer images are shrunk before the gate, or their probes would fill the bundle
MIN_F32_AGREEMENT = 0.999
NUM_PROBES = 3
# (height, width) of the parity images as shares of a real image's: odd sizes, both formats, one enlarged.
SIZE_FACTORS = ((1.0, 1.0), (0.61, 0.97), (0.93, 0.43), (0.37, 0.31), (1.51, 1.23))


def make_parity_images(take: Callable[[int], RGB], count: int) -> list[RGB]:
    """Images, RGB uint8 H x W x 3, of odd sizes; `take(index)` gives one of `count`, over which they are spread."""
    images = []
    for place, (high, wide) in enumerate(SIZE_FACTORS):
        image = take(place * count // len(SIZE_FACTORS))
        size = (max(1, int(image.shape[0] * high) | 1), max(1, int(image.shape[1] * wide) | 1))
        images.append(resize_image(image, size))
    return images


def load_parity_images(folder: Path | None) -> list[RGB]:
    """The images that the gate asks about, RGB uint8 H x W x 3: some of a folder's, or drawn. Raises: DataError, ImageError."""
    if folder is None:
        return make_parity_images(lambda index: generate_scene(np.random.default_rng(index), SYNTHETIC_SIZE)[0], 5)
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise DataError(
            f"--images {folder}: holds no image; wanted are files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )

    def take(index: int) -> RGB:
        image = read_image(files[index])
        share = min(1.0, MAX_PARITY_SIDE / max(image.shape[:2]))
        return resize_image(image, (max(1, int(image.shape[0] * share)), max(1, int(image.shape[1] * share))))

    return make_parity_images(take, len(files))


def measure_parity(
    draft: Bundle, images: list[RGB], expected: list[Labels], console: Console, advice: str = ""
) -> dict[str, dict[str, float]]:
    """The share of pixels on which the frozen network equals the live one, by engine and number format.

    `expected`: the live network's labels of the images. Every engine that this machine has is asked; what is not
    measured here is never chosen by itself.
    Raises: ParityError, which ends with `advice`; BundleError where f32 cannot be compiled.
    """
    shares: dict[str, dict[str, float]] = {}
    for device in DEVICES if has_gpu() else ("cpu",):
        for engine in ENGINES:
            try:
                offered = [name for name in ENGINES[engine].precisions(draft, device) if name != "int8"]
            except EngineError:  # not installed here, or not for this bundle
                continue
            for precision in offered:
                name = engine_id(engine, device)
                load = functools.partial(Segmenter.load, draft, engine, precision, device)
                share = worst_agreement(load, name, precision, images, expected, console)
                if share is None:
                    continue
                if precision == "f32" and share < MIN_F32_AGREEMENT:
                    raise ParityError(
                        f"The frozen network gives {share:.3%} of the pixels the live one's label ({name}); "
                        f"{MIN_F32_AGREEMENT:.1%} is wanted: nothing was written. {advice}".rstrip()
                    )
                shares.setdefault(name, {})[precision] = share
    return shares


def worst_agreement(
    load: Callable[[], Segmenter], name: str, precision: str, images: list[RGB], expected: list[Labels],
    console: Console,
) -> float | None:  # fmt: skip
    """The lowest share of an image's labels that are the expected ones: each probe will be asked alone.

    None, and a word about it, for an engine that turns out not to run here, and for a number format other than f32 that
    cannot be compiled. Raises: BundleError for f32.
    """
    tell = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    try:
        frozen = load()
    except (BundleError, EngineError) as error:
        if precision == "f32" and isinstance(error, BundleError):
            raise
        tell(f"parity {name} {precision}: not used: {error}")
        return None
    share = min(agreement(answer, truth) for answer, truth in zip(segment_all(frozen, images), expected, strict=True))
    poor = precision in ("bf16", "fp16") and share < MIN_AGREEMENT
    verdict = f" < {MIN_AGREEMENT:.1%}: not offered" if poor else ""
    tell(f"parity {name} {precision}: at least {share:.4%} of an image's labels are the live network's{verdict}")
    return share


def segment_all(segmenter: Segmenter, images: list[RGB]) -> list[Labels]:
    """What a network says of each image."""
    return [segmenter.segment(image).labels for image in images]


def reference_segmenter(draft: Bundle) -> Segmenter:
    """The Segmenter that labels the probes: of the engine that every machine has, in f32."""
    return Segmenter.load(draft, "openvino", "f32", "cpu")


def write_probes(folder: Path, segmenter: Segmenter, images: list[RGB], classes: list[ClassInfo]) -> set[int]:
    """Write some images, lossless, with the labels that this network gives them; returns the labels that occur."""
    folder.mkdir()
    seen: set[int] = set()
    for place, image in enumerate(images[:NUM_PROBES]):
        labels = segmenter.segment(image).labels
        Image.fromarray(image).save(folder / f"{place}.png")
        to_palette_image(labels, classes).save(folder / f"{place}.labels.png")
        seen.update(np.unique(labels).tolist())
    return seen


def write_bundle(
    out: Path, spec: BundleSpec, write: Callable[[Path], Any], live: Segmenter, images: list[RGB], source: Path, advice: str,
    console: Console,
) -> Path:  # fmt: skip
    """Write a bundle at `out` if its graph, which `write(folder)` puts there, answers as the live network.

    Raises: WeightsError that names `source` where the engine cannot run it; ParityError, which ends with `advice`.
    """
    with bundle_writer(out) as folder:
        with console.status("freezing the network"):
            write(folder)
        draft = Bundle(folder, spec)
        try:
            with console.status("comparing frozen and original"):
                shares = measure_parity(draft, images, segment_all(live, images), console, advice)
            spec = spec.model_copy(update={"parity": shares})
            seen = write_probes(folder / "probes", reference_segmenter(draft), images, spec.classes)
        except BundleError as error:  # it names a file that will be gone
            raise WeightsError(str(error).replace(str(draft.model_path), str(source))) from error
        except RuntimeError as error:  # OpenVINO's own, of a graph that compiles and does not run
            raise WeightsError(f"{source}: OpenVINO cannot run it: {shorten_error(error)}") from error
        (folder / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n")
    names = [entry.name for label, entry in enumerate(spec.classes) if label in seen]
    some = ", ".join(names[:6]) + ", ..." * (len(names) > 6)
    console.print(
        f"the probes show {len(names)} of {len(spec.classes)} classes: {some}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if len(seen) < 2:
        console.print("That proves little; give --images FOLDER with what the network knows.", highlight=False)
    console.print(describe_bundle(out), highlight=False, markup=False)
    return out
