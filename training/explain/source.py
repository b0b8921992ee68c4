"""Opens what is explained: a bundle or a run, as a Segmenter and, where there are weights, as a network."""

from dataclasses import dataclass
from pathlib import Path

from models.architectures.base import Network
from models.bundle import CHECKSUM_FILE, WEIGHTS_FILE, Bundle, open_bundle
from models.engines.torch_engine import build_network
from models.errors import RunError
from models.inference.segmenter import Segmenter
from models.spec import AXES, ClassInfo, InputRule
from training.engine.model_factory import load_network, make_torch_segmenter
from training.run_folder import METADATA_FILE, read_run_metadata


@dataclass(frozen=True)
class Source:
    """A network to look into."""

    name: str
    description: str  # engine and precision of the predictions
    segmenter: Segmenter
    classes: list[ClassInfo]
    network: Network | None  # None for a bundle without torch weights
    run: Path | None  # the run folder, if it is there: its snapshots show the evolution
    bundle: Bundle | None


def check_is_of_images(path: Path, rule: InputRule) -> None:
    """Raises: RunError for a network of signals or volumes, whose views would be others."""
    if rule.axes != "HW":
        raise RunError(f"{path} segments {AXES[rule.axes]}; `maskserve explain` shows networks of images only.")


def open_source(path: Path, precision: str = "auto") -> Source:
    """Open a bundle, or a run folder with its best checkpoint. Raises: RunError, BundleError, EngineError."""
    if (path / METADATA_FILE).is_file():
        metadata = read_run_metadata(path)
        check_is_of_images(path, metadata.input)
        best = load_network(path)
        segmenter = make_torch_segmenter(best, metadata.input)
        return Source(
            path.resolve().name, "PyTorch f32, the best checkpoint", segmenter, metadata.classes, best, path, None
        )
    if not (path / CHECKSUM_FILE).is_file():
        raise RunError(
            f"{path} is neither a bundle nor a run folder. Name a folder that `maskserve export` or `maskserve train` wrote."
        )
    bundle = open_bundle(path)
    check_is_of_images(path, bundle.spec.input)
    segmenter = Segmenter.load(bundle, precision=precision)
    assert segmenter.choice is not None  # `load` made it
    network = build_network(bundle) if bundle.has_file(WEIGHTS_FILE) else None
    beside = path.resolve().parent
    run = beside if (beside / METADATA_FILE).is_file() else None
    engine = f"{segmenter.choice.engine} {segmenter.choice.precision}"
    return Source(bundle.spec.name, engine, segmenter, bundle.spec.classes, network, run, bundle)
