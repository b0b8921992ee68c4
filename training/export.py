"""Freeze a run into a bundle: `maskserve export RUN`.

The network becomes an ONNX graph. Before anything is written in its place, the frozen graph and the live network label
real pictures of several odd sizes, both through the Segmenter; where they disagree, export refuses. An int8 graph is made
from the frozen one and kept where it costs next to nothing. `training/freezing/onnx_export.py`, `training/freezing/parity.py` and
`training/freezing/quantise.py` hold these steps.
"""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from models.bundle import INT8, INT8_WEIGHTS, SPEC, Bundle, writing
from models.errors import BundleError, EngineError
from models.imaging.decode import RGB, Labels
from models.inference.geometry import fitted_size, resize_picture, to_canvas
from models.inference.segmenter import TILE, Segmenter
from models.spec import ClassInfo, InputRule, Quantised, Spec
from training.config import TrainConfig
from training.config_io import load_config
from training.data import Samples, load
from training.engine.model_factory import live, load_network, read_run
from training.evaluate import measure
from training.freezing.onnx_export import choose_rule, describe, freeze, made_by
from training.freezing.parity import PROBES, exact_one, labelled, parity, parity_pictures, worst_agreement, write_probes
from training.freezing.quantise import CALIBRATION, LIMIT, paid, quantise
from training.metrics.confusion import Confusion
from training.reports.plots import panel

ADVICE = "This is a fault of the exporter or the engine; please report it with the run's config.yaml."


def export(
    run: Path, out: Path | None = None, input: str | None = None, int8_limit: float | None = LIMIT,
    console: Console | None = None,
) -> Path:  # fmt: skip
    """Freeze the best network of a run into a bundle at `out` (default: `RUN/bundle`).

    `input` overrides the run's input rule: `native`, `fit`, or `fit:SIDE` with the long side in pixels. `int8_limit` is
    how many points of validation mIoU int8 may cost; None goes without int8.
    Raises: RunError, DataError, ConfigError, BundleError; ParityError, with nothing written, where frozen and live differ.
    """
    console = console or Console()
    network = load_network(run)
    config, facts = load_config(run / "config.yaml", []), read_run(run)
    classes = [ClassInfo(**entry) for entry in facts["classes"]]
    rule = choose_rule(input, InputRule(**facts["input"]))
    samples = load(Path(facts["data"]), "val", config.format)
    pictures = parity_pictures(samples.picture, len(samples))

    target = out or run / "bundle"
    with writing(target) as folder:
        with console.status("freezing the network"):
            freeze(network, folder)
        spec = Spec(
            name=run.resolve().name,
            classes=classes,
            input=rule,
            architecture=network.architecture,
            provenance=provenance(config, facts),
        )
        draft = Bundle(folder, spec)
        with console.status("comparing frozen and live"):
            expected = labelled(live(network, rule), pictures)
            spec = spec.model_copy(update={"parity": parity(draft, pictures, expected, console, ADVICE)})
        matrix, _ = measure(Segmenter.load(Bundle(folder, spec)), samples, console)
        if int8_limit is not None:
            training = load(Path(facts["data"]), "train", config.format)
            spec, matrix = add_int8(
                Bundle(folder, spec), matrix, training, samples, int8_limit, pictures, expected, console
            )
        spec = spec.model_copy(update={"metrics": {"val": matrix.summary(classes)}})
        write_probes(folder / "probes", exact_one(draft), pictures, classes)
        write_report(folder / "report", Segmenter.load(Bundle(folder, spec)), samples, run)
        (folder / SPEC).write_text(spec.model_dump_json(indent=2) + "\n")
    console.print(f"{describe(target)}, validation mIoU {matrix.miou():.4f}", highlight=False, markup=False)
    return target


def add_int8(
    draft: Bundle, before: Confusion, training: Samples, validation: Samples, limit: float,
    pictures: list[RGB], expected: list[Labels], console: Console,
) -> tuple[Spec, Confusion]:  # fmt: skip
    """Make the int8 graph, and take it away again where it loses more than `limit` points of mIoU.

    Returns: the spec, and the confusion matrix on the validation split, of what is served by default.
    """
    spec, files = draft.spec, [draft.folder / name for name in (INT8, INT8_WEIGHTS)]
    chosen = training.spread(CALIBRATION)
    try:
        with console.status("calibrating int8 on training pictures"):
            quantise(
                draft.model, (calibration_canvas(training.picture(index), spec.input) for index in chosen), files[0]
            )
        frozen = Segmenter.load(draft, "openvino", "int8", "cpu")
    except (BundleError, EngineError) as error:  # it can be done without
        console.print(f"no int8: {error}", highlight=False, markup=False, soft_wrap=True)
        return without_int8(spec, before, files)
    after, _ = measure(frozen, validation, console)
    loss = paid(before, after, spec.classes, limit)
    if loss is not None:
        console.print(loss, highlight=False, markup=False, soft_wrap=True)
        return without_int8(spec, before, files)
    cost = Quantised(miou=after.miou(), miou_float=before.miou(), pictures=len(chosen))
    console.print(
        f"int8: validation mIoU {after.miou():.4f}, and {before.miou():.4f} in float", highlight=False, soft_wrap=True
    )
    share = worst_agreement(lambda: frozen, "openvino", "int8", pictures, expected, console)
    shares = {**spec.parity, "openvino": {**spec.parity["openvino"], "int8": share}}
    return spec.model_copy(update={"int8": cost, "parity": shares}), after


def without_int8(spec: Spec, before: Confusion, files: list[Path]) -> tuple[Spec, Confusion]:
    """The bundle as it was before int8 was tried."""
    for file in files:
        file.unlink(missing_ok=True)
    return spec, before


def calibration_canvas(picture: RGB, rule: InputRule) -> RGB:
    """A picture as the network meets it in service, RGB uint8 H x W x 3; of what goes by tiles, one from the middle."""
    size = fitted_size((picture.shape[0], picture.shape[1]), rule)
    fitted = resize_picture(picture, size)
    top, left = (max(0, side - TILE) // 2 for side in size)
    middle = fitted[top : top + TILE, left : left + TILE]
    return to_canvas(middle, (middle.shape[0], middle.shape[1]))


def provenance(config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """When, from what, and by which versions."""
    return {
        **made_by("torch", "segmentation-models-pytorch", "openvino", "onnx"),
        "data": Path(facts["data"]).name,
        "config": {**config.model_dump(mode="json"), "weights": Path(config.weights).name},
    }


def write_report(folder: Path, segmenter: Segmenter, samples: Samples, run: Path) -> None:
    """Some validation pictures with their truth and the frozen network's answer, and the training's curves."""
    folder.mkdir()
    for place in samples.spread(PROBES):
        picture, truth = samples.picture(place), samples.labels(place)
        sheet = panel(
            picture, truth, segmenter.segment(picture).labels, samples.classes, Path(samples.pairs[place].name).name
        )
        sheet.save(folder / f"val_{place}.png")
    for name in ("curves.png", "metrics.csv"):  # the table is what report.html draws its curves from
        if (run / name).exists():
            shutil.copy(run / name, folder / name)
