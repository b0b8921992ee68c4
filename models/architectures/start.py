"""Where a training begins: the weights of a file or a bundle, in a network that has just been built.

A file may hold a whole network (a bundle's `weights.safetensors`, a run's `best.ckpt`, torchvision's FCN, an smp or
torchvision model) or a classifier, whose layers become the encoder's. Which of these it is, its tensors' names tell.
"""

from pathlib import Path

import torch
from torch import Tensor

from models.architectures import build, encoders
from models.architectures.network import Network
from models.architectures.torchvision import KEYS
from models.architectures.weights import read
from models.bundle import Bundle, open_bundle
from models.errors import WeightsError
from models.spec import Architecture

REMEDY = "--reset-head keeps everything but the head, which then learns the new classes"


def start(network: Network, source: Path, classes: list[str], reset_head: bool = False) -> str:
    """Load a file's or a bundle's weights into a network in place.

    `classes`: the names that the network is to learn. `reset_head` leaves what depends on their number as it was built.
    Returns: one sentence on what was taken.
    Raises: WeightsError where the weights are of another network or of other classes; BundleError.
    """
    bundle = open_bundle(source) if source.is_dir() else None
    if bundle and not bundle.weights.is_file():
        raise WeightsError(
            f"{source} holds no weights by name (it was imported from ONNX), so no training can start there."
        )
    state = read(bundle.weights if bundle else source)
    if bundle and not reset_head:
        _same_classes(source, [entry.name for entry in bundle.spec.classes], classes)
    head = head_of(network)
    whole = _as_whole(network, state)
    if _covers(network, whole, head):
        _same_shapes(source, network, whole, head, reset_head)
        taken = {name: value for name, value in whole.items() if not (reset_head and name in head)}
        left = [name for name in network.load_state_dict(taken, strict=False).missing_keys if _counts(name)]
        return f"weights of {source}: {len(taken)} tensors" + (f", {len(left)} start from scratch" if left else "")
    _load_encoder(network, source, bundle, state, whole)
    return f"weights of {source}: the encoder's; the head starts from scratch"


def head_of(network: Network) -> set[str]:
    """The names of the weights whose shape depends on the number of classes."""
    known = network.architecture
    with torch.device("meta"):
        wider = build(known.name, network.classes + 1, **known.options).state_dict()
    return {name for name, value in network.state_dict().items() if value.shape != wider[name].shape}


def _as_whole(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the network's names for them, under whichever of the known namings most of them have a place."""
    wanted = network.state_dict()
    namings = [
        {name.removeprefix("network."): value for name, value in state.items()},  # a bundle's, a checkpoint's
        {f"body.{name}": value for name, value in state.items()},  # smp's, torchvision's
        {
            f"body.{KEYS[old]}{name.removeprefix(old)}": state[name]
            for name in state
            for old in KEYS
            if name.startswith(old)
        },
    ]
    fitting = [{name: value for name, value in naming.items() if name in wanted} for naming in namings]
    return max(fitting, key=len)


def _covers(network: Network, state: dict[str, Tensor], head: set[str]) -> bool:
    """Whether nothing but the head, an auxiliary head, or the normalisation is missing."""
    missing = set(filter(_counts, network.state_dict())) - set(state) - head
    return not [name for name in missing if "aux" not in name]


def _counts(name: str) -> bool:
    return not name.endswith("num_batches_tracked") and name not in ("mean", "std")


def _same_classes(source: Path, known: list[str], wanted: list[str]) -> None:
    if len(known) != len(wanted):
        raise WeightsError(f"{source} was made for {len(known)} classes and this data set has {len(wanted)}; {REMEDY}.")
    for old, new in zip(known, wanted, strict=True):
        if old != new:
            raise WeightsError(f"{source} knows the class {old!r} where this data set has {new!r}; {REMEDY}.")


def _same_shapes(source: Path, network: Network, state: dict[str, Tensor], head: set[str], reset_head: bool) -> None:
    for name, wanted in network.state_dict().items():
        if name not in state or state[name].shape == wanted.shape:
            continue
        if name not in head:
            raise WeightsError(
                f"{source} is of another network: its {name} is {tuple(state[name].shape)}, wanted is {tuple(wanted.shape)}."
            )
        if not reset_head:
            raise WeightsError(
                f"{source} was made for {len(state[name])} classes and this data set has {network.classes}; {REMEDY}."
            )


def _load_encoder(
    network: Network, source: Path, bundle: Bundle | None, state: dict[str, Tensor], whole: dict[str, Tensor]
) -> None:
    """Take the file for a classifier's. Raises: WeightsError that says what was wanted."""
    name = str(network.architecture.options.get("encoder", network.architecture.name))
    encoder = getattr(network.body, "encoder", None) or network.body.backbone
    try:
        encoders.load(encoder, name, state, source)
    except WeightsError as error:
        missing = sorted(set(filter(_counts, network.state_dict())) - set(whole))
        hint = (
            f" To go on from this bundle, set {_words(bundle.spec.architecture, network.architecture)}."
            if bundle
            else ""
        )
        raise WeightsError(
            f"{source} fits neither this network, of which {len(missing)} tensors are missing (such as {missing[0]}), "
            f"nor its encoder, {name}.{hint}"
        ) from error


def _words(there: Architecture, here: Architecture) -> str:
    """The settings in which another architecture differs from this one: `encoder=resnet18 head=d6`."""
    told = {"architecture": there.name, **{key: value for key, value in there.options.items() if value is not None}}
    ours = {"architecture": here.name, **here.options}
    return " ".join(f"{key}={value}" for key, value in told.items() if value != ours.get(key))
