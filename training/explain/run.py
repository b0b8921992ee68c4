"""Look inside a network: `maskserve explain BUNDLE IMAGE...`.

Opens the network, computes every view of every image, draws findings from their numbers, and writes `index.html`, one page
that opens offline, `explain.json` with every number, and `images/` with the single images.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from models.atomic_write import name_disk_full, write_atomically
from models.console import Console
from models.errors import ConfigError, closest_names, escape_line, printable, quoted
from models.explain.facts import Facts, Finding
from models.explain.subject import fit_image
from models.explain.thresholds import THRESHOLDS
from models.readers import read_input_file
from training.data import SegmentationDataset
from training.evaluate import create_output_folder, load_samples
from training.explain import DATA_VIEWS, IMAGE_VIEWS, NETWORK_VIEWS, RUN_VIEWS, VIEWS
from training.explain.page import write_page
from training.explain.selection import choose_views, needs_image, unavailable_views
from training.explain.source import Source, open_source
from training.explain.subject import NetworkFacts, NetworkSubject
from training.reports.progress_bar import progress_bar
from training.run_folder import KERNELS_FILE

PAGE_FILE, NUMBERS_FILE = "index.html", "explain.json"


@dataclass
class Explanation:
    """The results of all views."""

    source: Source
    subjects: dict[str, NetworkSubject] = field(default_factory=dict)  # by image name
    facts: dict[str, dict[str, Facts]] = field(default_factory=dict)  # by view, then by image name ("" for the network)
    skipped: dict[str, str] = field(default_factory=dict)  # views that cannot be shown, with the reason
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content of explain.json."""
        views = {
            view: results[""].numbers
            if list(results) == [""]
            else {name: each.numbers for name, each in results.items()}
            for view, results in self.facts.items()
        }
        findings = [
            {"kind": each.kind, "view": each.view, "value": each.value, "limit": each.limit, "text": each.text,
             "advice": each.advice}
            for each in self.findings
        ]  # fmt: skip
        thresholds = {kind: {"limit": each.limit, "meaning": each.meaning} for kind, each in THRESHOLDS.items()}
        return {
            "name": self.source.name, "predictions": self.source.description, "findings": findings,
            "skipped": self.skipped, "views": views, "thresholds": thresholds,
        }  # fmt: skip


def explain(
    source_path: Path, images: list[Path], out: Path, data: Path | None = None, views: list[str] | None = None,
    at: tuple[int, int] | None = None, layer: str | None = None, evolution: bool = False, split: str = "test",
    data_format: str = "auto", console: Console | None = None, target: str | None = None,
) -> Explanation:  # fmt: skip
    """Compute the views and write page, numbers and images into the folder `out`.

    Args:
        source_path: a bundle or a run folder.
        images: image files; without any, the first images of `data`, or else the bundle's probe images.
        data: a data set with masks, for the views of errors; `split` and `data_format` as in `evaluate`.
        views: names of views; None for all that can be shown.
        at: the pixel (x, y) of each image that views of a single pixel explain; default: the center.
        layer: a module whose kernels and maps are shown in place of all stages.
        target: the name of the class that `why` and `occlusion` explain; default: the one predicted at the pixel.
        evolution: the view of the training is required; without its snapshots there is an error.

    Raises: ConfigError, DataError, RunError, BundleError, EngineError, ImageError.
    """
    console = console or Console()
    chosen = choose_views(views)
    source = open_source(source_path)
    rule = source.segmenter.rule
    samples = replace(load_samples(data, split, data_format, source.classes), input=rule) if data else None
    has_snapshots = source.run is not None and (source.run / KERNELS_FILE).is_file()
    if evolution and not has_snapshots:
        raise ConfigError(
            f"--evolution needs {KERNELS_FILE}, which a training writes into its run folder; {source_path} has none. Name a run."
        )
    skipped = unavailable_views(chosen, source, samples is not None, has_snapshots)
    if views and set(skipped) == set(chosen):
        raise ConfigError("; ".join(f"The view {name} cannot be shown: {why}" for name, why in skipped.items()) + ".")
    chosen = [name for name in chosen if name not in skipped]
    if layer and source.network is None:
        raise ConfigError(f"--layer {layer} needs the network's weights, which this bundle does not have.")
    paths = images or default_images(source, samples)
    if needs_image(chosen) and not paths:
        raise ConfigError("There is no image to look at: name one, or give --data DATA.")
    label = class_label(target, source)
    result = Explanation(source, skipped=skipped)
    network = NetworkFacts(source.network) if source.network is not None else None
    if layer and network:
        network.check_layer(layer)
    for path in paths:
        result.subjects[unique_name(path, result.subjects)] = replace(
            make_subject(path, source, network, at, layer, samples), target=label
        )
    create_output_folder(out)
    compute_views(result, chosen, samples, console)
    write_results(result, out)
    print_findings(result, out, console)
    return result


def class_label(name: str | None, source: Source) -> int | None:
    """The label of a class; None without a name. Raises: ConfigError for an unknown class, with the nearest."""
    names = [entry.name for entry in source.classes]
    if name is None:
        return None
    if name not in names:
        closest = closest_names(name, names)
        hint = (
            f"did you mean {escape_line(closest)}?" if closest else f"its classes are {escape_line(', '.join(names))}."
        )
        raise ConfigError(f"The network has no class {quoted(name)}; {hint}")
    return names.index(name)


def default_images(source: Source, samples: SegmentationDataset | None) -> list[Path]:
    """The image of the middle of the split, or the bundle's first probe."""
    if samples is not None:
        return [samples.pairs[len(samples) // 2].image]
    if source.bundle is not None:
        return [image for image, _ in source.bundle.probes()[:1]]
    return []


def unique_name(path: Path, taken: dict[str, Any]) -> str:
    """The stem of a file, with a number if it is taken."""
    name, number = printable(path.stem), 2
    while name in taken:
        name, number = f"{printable(path.stem)}-{number}", number + 1
    return name


def make_subject(
    path: Path, source: Source, network: NetworkFacts | None, at: tuple[int, int] | None, layer: str | None,
    samples: SegmentationDataset | None,
) -> NetworkSubject:  # fmt: skip
    """Read an image and resize it as the network sees it. Raises: ImageError, ConfigError."""
    sample = read_input_file(path, source.segmenter.rule)
    image, point, _ = fit_image(sample.values, source.segmenter, at)
    subject = NetworkSubject(
        path.stem, image, source.segmenter, source.classes, point, statistics=sample.statistics, facts=network,
        layer=layer, samples=samples,
    )  # fmt: skip
    strides = [int(stage.stride) for stage in subject.stages if stage.stride] if network else []
    return replace(subject, stride=max(strides, default=8))


def compute_views(
    result: Explanation, chosen: list[str], samples: SegmentationDataset | None, console: Console
) -> None:
    """Compute the chosen views in the order of the page, then the findings."""
    steps = [
        (view, name)
        for view in chosen
        for name in (result.subjects if view in IMAGE_VIEWS else [""])
    ]  # fmt: skip
    first = next(iter(result.subjects.values()), None)
    torch.manual_seed(0)  # the random network of the sanity check
    with progress_bar(console, "looking inside") as show:
        for done, (view, name) in enumerate(steps):
            show(done, len(steps))
            if view in IMAGE_VIEWS:
                facts = IMAGE_VIEWS[view].compute(result.subjects[name])
            elif view in NETWORK_VIEWS:
                facts = NETWORK_VIEWS[view].compute(first)
            elif view in DATA_VIEWS:
                facts = DATA_VIEWS[view].compute(result.source, samples)
            else:
                facts = RUN_VIEWS[view].compute(result.source.run)
            result.facts.setdefault(view, {})[name] = facts
    for view, results in result.facts.items():
        result.findings += VIEWS[view].findings([facts.numbers for facts in results.values()])


def write_results(result: Explanation, out: Path) -> None:
    """Write images, explain.json and the page. Raises: OSError, DataError for a full disk."""
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    for view, results in result.facts.items():
        for name, facts in results.items():
            for image, values in facts.images.items():
                target = folder / "-".join(filter(None, (name, view, image)))
                with name_disk_full(target):
                    Image.fromarray(values).save(f"{target}.png")
            for file, content in facts.files.items():
                write_atomically(out / file, content)
    numbers = json.dumps(result.to_json(), indent=1, allow_nan=False)
    write_atomically(out / NUMBERS_FILE, f"{numbers}\n".encode())
    write_page(out / PAGE_FILE, result)


def print_findings(result: Explanation, out: Path, console: Console) -> None:
    """Print each finding with its advice, the views that are missing, and the files."""
    for finding in result.findings:
        console.print(f"{finding.text} {finding.advice}", highlight=False, markup=False, soft_wrap=True)
    if not result.findings:
        console.print("Nothing was found to be wrong.", highlight=False)
    for view, reason in result.skipped.items():
        console.print(f"Not shown: {view}; {reason}.", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{out}: {PAGE_FILE}, {NUMBERS_FILE}, images/", highlight=False, markup=False, soft_wrap=True)
