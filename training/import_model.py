"""Bring your own network: `maskserve import onnx FILE` and `maskserve import torchvision/NAME`.

Reads downwards: an ONNX graph of any make, the networks of torchvision, and what both go through: the classes, the
images, and the gate of `training/freezing/parity.py`. The frozen network must answer as the original does, or nothing is written.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from torch import Tensor, nn

from models.bundle import MODEL_FILE, file_sha256
from models.errors import ConfigError, DataError, WeightsError
from models.inference.segmenter import Segmenter
from models.spec import Architecture, BundleSpec, ClassInfo, InputRule, default_rgb
from training.data.class_file import read_class_file
from training.freezing.onnx_export import creation_info, export_network, parse_input_rule
from training.freezing.onnx_import.graph_reader import (
    InputSpec,
    UserHints,
    format_shape,
    is_quantised,
    producing_operator,
    read_graph,
    resolve_input,
)
from training.freezing.onnx_import.reference import (
    CLASSES_ADVICE,
    OutputSpec,
    make_reference_run,
    open_reference,
    resolve_output,
    run_trials,
)
from training.freezing.onnx_import.rewrite import rewrite_graph
from training.freezing.parity import load_parity_images, write_bundle

# PASCAL VOC's, in the order of its labels; torchvision calls the first `__background__`.
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
NO_HINTS = UserHints()
MAX_EXACT_SIDE = 4096  # pixels of a side that an image may be stretched to
UNFAMILIAR_ADVICE = (
    "On images unlike those that it knows a network may hang between two classes, where rounding decides: "
    "give some that it knows, --images FOLDER."
)
QUANTISED_ADVICE = (
    "It is quantised, and each engine rounds such values in its own way; bring the graph from before that."
)


def import_model(
    source: str, file: Path | None, out: Path, weights: Path | None = None, classes: str | None = None,
    hints: UserHints = NO_HINTS, input_rule: str | None = None, images: Path | None = None, console: Console | None = None,
) -> Path:  # fmt: skip
    """Bring `onnx`, from `file`, or `torchvision/NAME`, with `weights` of its own. Raises: as the two below."""
    console = console or Console()
    if source == "onnx":
        if file is None or weights:
            raise ConfigError("A graph comes with its weights: maskserve import onnx FILE, and no --weights.")
        return import_onnx(file, out, classes, hints, input_rule, images, console)
    if Path(source).suffix == ".onnx":
        raise ConfigError(f"{source} is a file, not a source; did you mean `maskserve import onnx {source}`?")

    from models.architectures.torchvision_models import MODEL_BACKBONES

    known = ["onnx", *(f"torchvision/{name}" for name in MODEL_BACKBONES)]
    if source not in known:
        close = difflib.get_close_matches(source, known, n=3, cutoff=0.4) or known
        raise ConfigError(f"The source {source!r} is not known; did you mean {', '.join(close)}?")
    if file:
        raise ConfigError(
            f"{file} stands where an ONNX file would; weights for {source} are named so: --weights {file}."
        )
    if hints != NO_HINTS:
        raise ConfigError(f"Options of `import onnx` are no use to {source}, which brings its own; leave them out.")
    return import_torchvision(source, out, weights, classes, input_rule, images, console)


def import_onnx(
    file: Path, out: Path, classes: str | None, hints: UserHints, input_rule: str | None = None, images: Path | None = None,
    console: Console | None = None,
) -> Path:  # fmt: skip
    """Bring an ONNX graph into a bundle at `out`.

    `classes` is a file of them or `voc`; `input` is native, fit:SIDE or exact:HEIGHTxWIDTH (pixels).
    Raises: WeightsError for a graph that cannot be read so, ConfigError, DataError, BundleError; ParityError, with
    nothing written, where the graph in the bundle differs from the original under onnxruntime.
    """
    console = console or Console()
    if classes is None:
        raise ConfigError(f"{file} does not name its classes; add --classes FILE (a name a line) or --classes voc.")
    entries = read_classes(classes)
    taken = load_parity_images(images)
    model = read_graph(file)
    entry = resolve_input(file, model, hints, parse_exact_size(input_rule))
    ask = open_reference(file, entry)
    with console.status("trying the original"):
        exit = resolve_output(
            file, entry, hints, len(entries), partial(producing_operator, model), run_trials(ask, file, entry)
        )
    rule = onnx_input_rule(file, entry, input_rule)
    print_onnx_interface(entry, exit, console)
    print_input_rule(rule, console)
    spec = BundleSpec(
        name=file.stem,
        classes=entries,
        input=rule,
        architecture=Architecture(name="onnx"),
        provenance={
            **creation_info("onnx", "onnxruntime", "openvino"),
            "source": file.name,
            "sha256": file_sha256(file),
            "interpretation": {"input": asdict(entry), "output": asdict(exit)},
        },
    )
    advice = QUANTISED_ADVICE if is_quantised(model) else UNFAMILIAR_ADVICE

    def write(folder: Path) -> None:
        onnx.save(rewrite_graph(model, entry, exit, len(entries)), folder / MODEL_FILE)

    live = Segmenter(make_reference_run(file, ask, exit, len(entries)), rule)
    return write_bundle(out, spec, write, live, taken, file, advice, console)


def onnx_input_rule(file: Path, entry: InputSpec, wish: str | None) -> InputRule:
    """The input rule for a graph: its own size where it takes one alone. Raises: ConfigError."""
    if entry.size is None:
        return parse_input_rule(wish, InputRule(rule="native"))
    if wish is not None and parse_exact_size(wish) is None:
        raise ConfigError(
            f"{file} takes images of {entry.size[0]} x {entry.size[1]} (height x width) alone, so --input {wish} is not "
            "possible; leave it out."
        )
    return InputRule(rule="exact", size=entry.size)


def parse_exact_size(wish: str | None) -> tuple[int, int] | None:
    """(height, width) of `exact:HEIGHTxWIDTH`; None where something else is asked for. Raises: ConfigError."""
    if wish is None or wish.partition(":")[0] != "exact":
        return None
    found = re.fullmatch(r"exact:([1-9]\d*)x([1-9]\d*)", wish)
    if not found:
        raise ConfigError(f"The input rule {wish!r} is not possible; wanted is exact:HEIGHTxWIDTH in pixels.")
    height, width = int(found[1]), int(found[2])
    if max(height, width) > MAX_EXACT_SIDE:
        raise ConfigError(f"The input rule {wish!r} is not possible; a side has up to {MAX_EXACT_SIDE} pixels.")
    return height, width


def print_onnx_interface(entry: InputSpec, exit: OutputSpec, console: Console) -> None:
    """Say how a graph was understood, and what would have it understood otherwise."""
    mean, std = (",".join(f"{value:g}" for value in triple) for triple in (entry.mean, entry.std))
    samples = f"(0..{entry.max_pixel_value} - {mean}) / {std} (--order --scale --mean --std)"
    count = "" if exit.kind == "labels" else f" of {exit.channels} channel{'s' * (exit.channels > 1)}, {exit.layout}"
    for line in (
        f"input {entry.name}: {entry.dtype}, {entry.layout}, {entry.order}; "
        + (samples if entry.dtype != "uint8" else "bytes as they are"),
        f"output {exit.name}: {exit.kind}{count} (--output --scores)",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_input_rule(rule: InputRule, console: Console) -> None:
    """Say how an image of any size will meet the network."""
    told = {
        "native": "an image keeps its pixels; --input fit:SIDE brings its long side to that of the training",
        "fit": f"the long side of an image is brought to {rule.side} pixels (--input)",
        "exact": f"an image is stretched to {format_shape(rule.size or ())} (height x width)",
    }
    console.print(f"rule {rule.rule}: {told[rule.rule]}", highlight=False, markup=False, soft_wrap=True)


def import_torchvision(
    source: str, out: Path, weights: Path | None, classes: str | None, input_rule: str | None, images: Path | None,
    console: Console,
) -> Path:  # fmt: skip
    """Bring a network of torchvision, with weights of a file or those that torchvision publishes.

    Raises: WeightsError for weights that cannot be had or read or are of another network; the rest as `bring_onnx`.
    """
    from torchvision.models import get_model_weights

    from models.architectures import build
    from models.architectures.weight_files import fetch_weights
    from models.architectures.weight_files import read_state_dict as read_weights
    from training.engine.model_factory import make_torch_segmenter

    published = get_model_weights(source.removeprefix("torchvision/")).DEFAULT
    taken = load_parity_images(images)
    file = weights or fetch_weights(published.url, f"weights of {source}", "--weights ")
    if file.name == Path(published.url).name:
        check_file_hash(file)
    # A bundle's names begin with `body.`, and it brings the normalisation that this network has anyway.
    state = {
        name.removeprefix("body."): value for name, value in read_weights(file).items() if name not in ("mean", "std")
    }
    count = count_classes(source, state, file)
    entries = torchvision_classes(count, classes, file, published, console)
    network = build(source, count, **({"aux": True} if any(name.startswith("aux_") for name in state) else {})).eval()
    load_weights(network.body, state, source, file)

    # The preset says how long the short side is, the rule how long the other; photographs are mostly 4:3.
    side = round(published.transforms().resize_size[0] * 4 / 3)
    rule = parse_input_rule(input_rule, InputRule(rule="fit", side=side))
    spec = BundleSpec(
        name=source.removeprefix("torchvision/"),
        classes=entries,
        input=rule,
        architecture=network.architecture,
        provenance={
            **creation_info("torch", "torchvision", "onnx", "openvino"),
            "source": source,
            "weights": file.name,
            "sha256": file_sha256(file),
        },
    )
    print_input_rule(rule, console)

    def write(folder: Path) -> None:
        export_network(network, folder)

    return write_bundle(out, spec, write, make_torch_segmenter(network, rule), taken, file, UNFAMILIAR_ADVICE, console)


def check_file_hash(file: Path) -> None:
    """Raises: WeightsError where a file is not the one whose sha256 torchvision has put into its name."""
    digits = file.stem.rpartition("-")[2]
    if file.is_file() and not file_sha256(file).startswith(digits):
        raise WeightsError(
            f"{file} is damaged: its sha256 does not begin with the {digits} of its name; fetch it again."
        )


def count_classes(source: str, state: dict[str, Tensor], file: Path) -> int:
    """How many classes weights are for, by the network's last convolution. Raises: WeightsError."""
    last = "classifier.low_classifier.weight" if "lraspp" in source else "classifier.4.weight"
    if last not in state:
        some = ", ".join(sorted(state)[:3])
        raise WeightsError(
            f"{file} holds no weights of {source}: {last} is not among its {len(state)} tensors ({some}, ...)."
        )
    return len(state[last])


def torchvision_classes(count: int, wish: str | None, file: Path, published: Any, console: Console) -> list[ClassInfo]:
    """The names of a network's classes: told, or else those of the weights that torchvision publishes.

    Raises: WeightsError where their number is not the network's.
    """
    if wish is not None:
        entries = read_classes(wish)
        if len(entries) != count:
            raise WeightsError(f"{file} has {count} classes; --classes {wish} names {len(entries)}. {CLASSES_ADVICE}")
        return entries
    names = [name.strip("_") for name in published.meta["categories"]]  # `__background__` is the one with bars
    if len(names) != count:
        raise WeightsError(
            f"{file} has {count} classes, {published.name} has {len(names)}, so its names do not fit; add --classes FILE."
        )
    console.print(f"{count} classes: taken as those of {published.name}; --classes says otherwise", highlight=False)
    return make_classes(names)


def load_weights(body: nn.Module, state: dict[str, Tensor], source: str, file: Path) -> None:
    """Put weights into a network, each into its place and none left over. Raises: WeightsError."""
    try:
        body.load_state_dict(state)
    except RuntimeError as error:
        own = body.state_dict()
        wrong = [name for name in state if name in own and own[name].shape != state[name].shape]
        groups = {"missing": own.keys() - state, "too many": state.keys() - own.keys(), "of another size": wrong}
        parts = [f"{len(names)} {kind} ({min(names)}, ...)" for kind, names in groups.items() if names]
        raise WeightsError(f"{file} holds weights of another network than {source}: {'; '.join(parts)}.") from error


def read_classes(wish: str) -> list[ClassInfo]:
    """The classes of a file (a line each: `name` or `name,r,g,b`), or VOC's for `voc`. Raises: DataError."""
    if wish == "voc":
        return make_classes(VOC_CLASSES)
    if not Path(wish).is_file():
        raise DataError(f"--classes {wish}: is no file; name one with a class a line, or say voc for PASCAL VOC's 21.")
    return read_class_file(Path(wish))


def make_classes(names: Sequence[str]) -> list[ClassInfo]:
    """Classes of these names, in VOC's colours."""
    return [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(names)]
