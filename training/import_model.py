"""Import a network that was trained elsewhere: `maskserve import onnx FILE` and `maskserve import torchvision/NAME`.

An ONNX graph is rewritten to the bundle's inputs and outputs; a network of torchvision is built and exported. Both end
in `training/freezing/bundle_writer.py`: the frozen network must predict as the original does, or nothing is written.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from models.bundle import MODEL_FILE, file_sha256
from models.console import Console
from models.errors import ConfigError, DataError, WeightsError, closest_names, escape_line, quoted
from models.inference.segmenter import Segmenter
from models.spec import Architecture, BundleSpec, ClassInfo, InputRule, default_rgb
from training.data.class_file import read_class_file
from training.data.formats.voc import CLASSES as VOC_CLASSES
from training.freezing.bundle_writer import BundleSource, check_bundle_name, creation_info, write_bundle
from training.freezing.input_rule import onnx_input_rule, parse_exact_size, parse_input_rule
from training.freezing.onnx_export import export_network
from training.freezing.onnx_import.graph_reader import (
    InputSpec,
    UserHints,
    format_shape,
    read_graph,
    resolve_input,
)
from training.freezing.onnx_import.graph_walk import is_quantised, producing_operator
from training.freezing.onnx_import.reference import (
    CLASSES_ADVICE,
    OutputSpec,
    make_reference_run,
    open_reference,
    resolve_output,
    run_trials,
    synthetic_image,
)
from training.freezing.onnx_import.rewrite import rewrite_graph
from training.freezing.parity import SYNTHETIC_SIZE, load_parity_images

NO_HINTS = UserHints()
UNFAMILIAR_ADVICE = (
    "On images unlike its training data a network may hesitate between two classes, where rounding decides: "
    "pass images that it knows, --images FOLDER."
)
QUANTISED_ADVICE = "It is quantised, and each engine rounds such values differently; import the graph from before that."


def import_model(
    source: str, file: Path | None, out: Path, weights: Path | None = None, classes: str | None = None,
    hints: UserHints = NO_HINTS, input_rule: str | None = None, images: Path | None = None, console: Console | None = None,
    name: str | None = None,
) -> Path:  # fmt: skip
    """Import `onnx`, from `file`, or `torchvision/NAME`, with `weights` of your own, into a bundle at `out`.

    `name` is that of the model in the service (default: that of the ONNX file, or of torchvision's network).

    Raises: ConfigError for a wrong source or option; otherwise as `import_onnx` and `import_torchvision`.
    """
    console = console or Console()
    chosen_name = None if name is None else check_bundle_name(name)
    if source == "onnx":
        if file is None or weights:
            raise ConfigError("An ONNX graph holds its weights: use `maskserve import onnx FILE`, and no --weights.")
        return import_onnx(file, out, classes, hints, input_rule, images, console, chosen_name)
    if Path(source).suffix == ".onnx":
        raise ConfigError(f"{source} is a file, not a source; did you mean `maskserve import onnx {source}`?")

    from models.architectures.torchvision_models import MODEL_BACKBONES

    known = ["onnx", *(f"torchvision/{name}" for name in MODEL_BACKBONES)]
    if source not in known:
        close = closest_names(source, known, count=3, cutoff=0.4) or ", ".join(known)
        raise ConfigError(f"The source {quoted(source)} is unknown; did you mean {close}?")
    if file:
        raise ConfigError(f"{source} takes no FILE; to use {file} as its weights, write --weights {file}.")
    if hints != NO_HINTS:
        raise ConfigError(f"The options of `import onnx` do not apply to {source}; omit them.")
    return import_torchvision(source, out, weights, classes, input_rule, images, console, chosen_name)


def import_onnx(
    file: Path, out: Path, classes: str | None, hints: UserHints, input_rule: str | None = None, images: Path | None = None,
    console: Console | None = None, name: str | None = None,
) -> Path:  # fmt: skip
    """Import an ONNX graph into a bundle at `out`.

    `classes` is a class file or `voc`; `input_rule` is native, fit:SIDE or exact:HEIGHTxWIDTH (pixels).
    Raises: WeightsError for a graph that cannot be read or run, ConfigError, DataError, BundleError; ParityError, with
    nothing written, if the graph in the bundle disagrees with the original under ONNX Runtime.
    """
    console = console or Console()
    if classes is None:
        raise ConfigError(f"{file} does not name its classes; add --classes FILE (one name per line) or --classes voc.")
    entries = read_classes(classes)
    takes_rgb = hints.channels is None and hints.samples is None
    parity_images = load_parity_images(images) if takes_rgb else []  # their errors come before the graph is read
    model = read_graph(file)
    input_spec = resolve_input(file, model, hints, parse_exact_size(input_rule))
    run_graph = open_reference(file, input_spec)
    with console.status("running the original"):
        trials, divisor = run_trials(run_graph, input_spec)
        output_spec = resolve_output(file, input_spec, hints, len(entries), partial(producing_operator, model), trials)
    rule = with_channels(onnx_input_rule(file, input_spec, input_rule, divisor), input_spec)
    parity_images = parity_images or load_parity_images(
        images, rule, lambda index: synthetic_image(np.random.default_rng(index), SYNTHETIC_SIZE, input_spec)
    )
    print_onnx_interface(input_spec, output_spec, console)
    print_input_rule(rule, console)
    source = BundleSource(
        origin=file,
        spec=BundleSpec(
            name=name or file.stem,
            classes=entries,
            input=rule,
            architecture=Architecture(name="onnx"),
            provenance={
                **creation_info("onnx", "onnxruntime", "openvino"),
                "source": file.name,
                "sha256": file_sha256(file),
                "interpretation": {"input": asdict(input_spec), "output": asdict(output_spec)},
            },
        ),
        write_graph=lambda folder: onnx.save(
            rewrite_graph(model, input_spec, output_spec, len(entries)), folder / MODEL_FILE
        ),
        original=Segmenter(make_reference_run(file, run_graph, output_spec, len(entries)), rule),
        images=parity_images,
        parity_advice=QUANTISED_ADVICE if is_quantised(model) else UNFAMILIAR_ADVICE,
    )
    write_bundle(out, source, console)
    return out


def with_channels(rule: InputRule, input_spec: InputSpec) -> InputRule:
    """The resize rule with the graph's channels. The range is for display of the channels: the graph clips nothing."""
    if input_spec.is_rgb:
        return rule
    if input_spec.samples == "uint8":
        ranges = [(0.0, 255.0)] * len(input_spec.channels)
    else:
        ranges = [(mean - 2 * std, mean + 2 * std) for mean, std in zip(input_spec.mean, input_spec.std, strict=True)]
    low, high = (tuple(values) for values in zip(*ranges, strict=True))
    return InputRule.model_validate(
        {
            **rule.model_dump(),
            "channels": input_spec.channels,
            "dtype": input_spec.samples,
            "scaling": {"kind": "fixed", "low": low, "high": high},
        }
    )


def print_onnx_interface(input_spec: InputSpec, output_spec: OutputSpec, console: Console) -> None:
    """Print how a graph's input and output are interpreted, and the options that change it."""
    mean, std = (",".join(f"{value:g}" for value in triple) for triple in (input_spec.mean, input_spec.std))
    normalisation = f"(0..{input_spec.max_pixel_value} - {mean}) / {std} (--order --scale --mean --std)"
    order: str = input_spec.order
    if not input_spec.is_rgb:
        normalisation = f"(samples - {mean}) / {std} (--mean --std)"
        order = f"{','.join(input_spec.channels)} of {input_spec.samples} (--channels --samples)"
    channels = f" of {output_spec.channels} channel{'s' * (output_spec.channels > 1)}, {output_spec.layout}"
    for line in (
        f"input {input_spec.name}: {input_spec.dtype}, {input_spec.layout}, {order}; "
        + (normalisation if input_spec.dtype != "uint8" else "bytes, not normalised"),
        f"output {output_spec.name}: {output_spec.kind}{'' if output_spec.kind == 'labels' else channels} "
        "(--output --scores)",
    ):
        console.print(escape_line(line), highlight=False, markup=False, soft_wrap=True)


def print_input_rule(rule: InputRule, console: Console) -> None:
    """Print how an image is resized for the network."""
    description = {
        "native": "images keep their size; --input fit:SIDE resizes the long side to that of the training",
        "fit": f"the long side of an image is resized to {rule.side} pixels (--input)",
        "exact": f"images are stretched to {format_shape(rule.size or ())} (height x width)",
    }
    padding = "not padded" if rule.divisor == 1 else f"padded to multiples of {rule.divisor} pixels"
    note = "" if rule.rule == "exact" else f"; {padding}"
    console.print(
        f"input rule {rule.rule}: {description[rule.rule]}{note}", highlight=False, markup=False, soft_wrap=True
    )


def import_torchvision(
    source: str, out: Path, weights: Path | None, classes: str | None, input_rule: str | None, images: Path | None,
    console: Console, name: str | None = None,
) -> Path:  # fmt: skip
    """Import a network of torchvision, with weights of a file or those that torchvision publishes.

    Raises: WeightsError for weights that cannot be fetched or read, or belong to another network; else as `import_onnx`.
    """
    from torchvision.models import get_model_weights

    from models.architectures import build
    from models.architectures.weight_files import fetch_weights, read_state_dict
    from training.engine.model_factory import make_torch_segmenter

    published = get_model_weights(source.removeprefix("torchvision/")).DEFAULT
    parity_images = load_parity_images(images)
    file = weights or fetch_weights(published.url, f"weights of {source}", "--weights ")
    if file.name == Path(published.url).name:
        check_file_hash(file)
    # In a bundle the names begin with `body.`, and it holds the normalisation, which this network has anyway.
    state = {
        name.removeprefix("body."): value
        for name, value in read_state_dict(file).items()
        if name not in ("mean", "std")
    }
    count = count_classes(source, state, file)
    entries = torchvision_classes(count, classes, file, published, console)
    options: dict[str, Any] = {"aux": True} if any(name.startswith("aux_") for name in state) else {}
    network = build(source, count, **options).eval()
    load_weights(network.body, state, source, file)

    # torchvision's preset resizes the short side to 520, the rule the long one: 693 is the same for images of 4:3. As in
    # torchvision, images are not padded.
    side = round(published.transforms().resize_size[0] * 4 / 3)
    rule = parse_input_rule(input_rule, InputRule(rule="fit", side=side, divisor=1))
    print_input_rule(rule, console)
    bundle_source = BundleSource(
        origin=file,
        spec=BundleSpec(
            name=name or source.removeprefix("torchvision/"),
            classes=entries,
            input=rule,
            architecture=network.architecture,
            provenance={
                **creation_info("torch", "torchvision", "onnx", "openvino"),
                "source": source,
                "weights": file.name,
                "sha256": file_sha256(file),
            },
        ),
        write_graph=lambda folder: export_network(network, folder),
        original=make_torch_segmenter(network, rule),
        images=parity_images,
        parity_advice=UNFAMILIAR_ADVICE,
    )
    write_bundle(out, bundle_source, console)
    return out


def check_file_hash(file: Path) -> None:
    """Raises: WeightsError if a file's sha256 is not the one that torchvision puts into its name."""
    digits = file.stem.rpartition("-")[2]
    if file.is_file() and not file_sha256(file).startswith(digits):
        raise WeightsError(
            f"{file} is damaged: its sha256 does not begin with {digits} as its name says; download it again."
        )


def count_classes(source: str, state: dict[str, Tensor], file: Path) -> int:
    """The number of classes of some weights, from the network's last convolution. Raises: WeightsError."""
    last = "classifier.low_classifier.weight" if "lraspp" in source else "classifier.4.weight"
    if last not in state:
        some = ", ".join(sorted(state)[:3])
        raise WeightsError(
            f"{file} does not hold weights of {source}: {last} is not among its {len(state)} tensors ({some}, ...)."
        )
    return len(state[last])


def torchvision_classes(
    count: int, class_file: str | None, file: Path, published: Any, console: Console
) -> list[ClassInfo]:
    """The classes of `class_file`, or else those of the weights that torchvision publishes.

    Raises: WeightsError if their number is not the network's.
    """
    if class_file is not None:
        entries = read_classes(class_file)
        if len(entries) != count:
            raise WeightsError(
                f"{file} has {count} classes; --classes {class_file} names {len(entries)}. {CLASSES_ADVICE}"
            )
        return entries
    names = [name.strip("_") for name in published.meta["categories"]]  # torchvision writes `__background__`
    if len(names) != count:
        raise WeightsError(
            f"{file} has {count} classes, {published.name} has {len(names)}, so its names do not fit; add --classes FILE."
        )
    console.print(f"{count} classes, named as in {published.name} (--classes)", highlight=False)
    return [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(names)]


def load_weights(body: nn.Module, state: dict[str, Tensor], source: str, file: Path) -> None:
    """Load weights into a network; every tensor must fit and none be left over. Raises: WeightsError."""
    try:
        body.load_state_dict(state)
    except RuntimeError as error:
        own = body.state_dict()
        mismatched = [name for name in state if name in own and own[name].shape != state[name].shape]
        groups = {"missing": own.keys() - state, "unexpected": state.keys() - own.keys(), "of another size": mismatched}
        parts = [f"{len(names)} {kind} ({min(names)}, ...)" for kind, names in groups.items() if names]
        raise WeightsError(f"{file} holds weights of another network than {source}: {'; '.join(parts)}.") from error


def read_classes(source: str) -> list[ClassInfo]:
    """The classes of a file (one per line: `name` or `name,r,g,b`), or PASCAL VOC's for `voc`. Raises: DataError."""
    if source == "voc":
        return list(VOC_CLASSES)
    if not Path(source).is_file():
        raise DataError(
            f"--classes {source}: no such file; name a file with one class per line, or voc for PASCAL VOC."
        )
    return read_class_file(Path(source))
