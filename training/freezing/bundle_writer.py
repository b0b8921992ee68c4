"""Writes a bundle: graph, parity check, probes, spec and checksums. Both `export` and `import` end here."""

import datetime
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from models.atomic_write import name_disk_full
from models.bundle import SPEC_FILE, Bundle, bundle_writer, open_bundle
from models.console import Console
from models.errors import BundleError, ConfigError, WeightsError, escape_line
from models.imaging.decode import Labels
from models.inference.geometry import Image
from models.inference.segmenter import Segmenter
from models.outputs.png import to_palette_image
from models.spec import BundleSpec, ClassInfo
from training.freezing.onnx_import.graph_reader import shorten_error
from training.freezing.parity import measure_parity, unpadded_agreement

NUM_PROBES = 3
# A name is a part of addresses (`/v1/models/NAME`), and NAME@HASH is a version of a model.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class BundleSource:
    """What a bundle is made from."""

    origin: Path  # file of the original network, for error messages
    spec: BundleSpec  # without parity, int8 and metrics
    write_graph: Callable[[Path], object]  # writes the graph, and the weights, into a folder
    original: Segmenter  # the network that the frozen graph must agree with
    images: list[Image]  # parity images, H x W x C as the network takes them; of photographs, RGB uint8
    parity_advice: str  # what to do if the parity check fails
    # Adds to a draft of measured parity, given the original's labels of `images`; returns the final spec.
    complete: Callable[[Bundle, list[Labels]], BundleSpec] | None = None


def check_bundle_name(name: str) -> str:
    """A name that the user gave to a bundle, as it is. Raises: ConfigError if the service could not address it."""
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"--name is '{name}'; expected up to 64 letters (a to z), digits, dots, dashes and underscores, such as roads-2."
        )
    return name


def write_bundle(target: Path, source: BundleSource, console: Console) -> Bundle:
    """Write a bundle at `target`, whole or not at all.

    Raises: ParityError if the frozen graph disagrees with the original; WeightsError if no engine can run it;
    BundleError if `target` is something other than a bundle or an empty folder; OSError that names `target`.
    """
    with name_disk_full(target), bundle_writer(target) as folder:
        with console.status("freezing the network"):
            source.write_graph(folder)
        draft = Bundle(folder, source.spec)
        try:
            with console.status("comparing the frozen network with the original"):
                expected = [source.original.segment(image).labels for image in source.images]
                parity = measure_parity(draft, source.images, expected, console, source.parity_advice)
                unpadded = unpadded_agreement(source.original, source.images, expected)
            print_padding_effect(unpadded, source.spec, console)
            draft = Bundle(folder, source.spec.model_copy(update={"parity": parity, "unpadded_agreement": unpadded}))
            # The reference of the probes: f32 in the engine that every machine has.
            reference = Segmenter.load(draft, "openvino", "f32", "cpu")
            occurring = write_probes(folder / "probes", reference, source.images, source.spec.classes)
        except BundleError as error:  # it names a file in a folder that will be removed
            raise WeightsError(str(error).replace(str(draft.model_path), str(source.origin))) from error
        except RuntimeError as error:  # OpenVINO's own, for a graph that compiles but does not run
            raise WeightsError(f"{source.origin}: OpenVINO cannot run it: {shorten_error(error)}") from error
        spec = source.complete(draft, expected) if source.complete else draft.spec
        (folder / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n")
    print_probe_classes(spec.classes, occurring, console)
    written = open_bundle(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    console.print(f"{target}: {size / 1e6:.1f} MB, {written.hash[:12]}", highlight=False, markup=False, soft_wrap=True)
    return written


def write_probes(folder: Path, segmenter: Segmenter, images: list[Image], classes: list[ClassInfo]) -> set[int]:
    """Write some images, lossless, with the labels that this network predicts; returns the labels that occur."""
    folder.mkdir()
    occurring: set[int] = set()
    for index, image in enumerate(images[:NUM_PROBES]):
        labels = segmenter.segment(image).labels
        if segmenter.rule.is_photograph:
            PILImage.fromarray(image).save(folder / f"{index}.png")
        else:
            np.savez_compressed(folder / f"{index}.npz", values=image, channels=np.array(segmenter.rule.channels))
        if segmenter.rule.axes == "HW":
            to_palette_image(labels, classes).save(folder / f"{index}.labels.png")
        else:
            np.save(folder / f"{index}.labels.npy", labels)
        occurring.update(np.unique(labels).tolist())
    return occurring


def print_probe_classes(classes: list[ClassInfo], occurring: set[int], console: Console) -> None:
    """Print which classes the probes show; probes of a single class prove little."""
    names = [escape_line(entry.name) for label, entry in enumerate(classes) if label in occurring]
    listed = ", ".join(names[:6]) + ", ..." * (len(names) > 6)
    console.print(
        f"The probes show {len(names)} of {len(classes)} classes: {listed}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if len(occurring) < 2:
        console.print(
            "Parity on one class proves little; use images that show more of the classes (import: --images FOLDER).",
            highlight=False,
            soft_wrap=True,
        )


def print_padding_effect(agreement: float | None, spec: BundleSpec, console: Console) -> None:
    """Print by how much padding changes labels; nothing without padding, or if the network needs it."""
    if agreement is not None and agreement < 1:
        console.print(
            f"padding to multiples of {spec.input.divisor}: {agreement:.2%} of the worst image's labels are those of the "
            "network without padding",
            highlight=False,
            soft_wrap=True,
        )


def creation_info(*packages: str) -> dict[str, Any]:
    """When a bundle is made, and with which versions: the beginning of its provenance."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
