"""Where a training begins: the weights of a file or a bundle, in a network that has just been built.

A file may hold a whole network (a bundle's `weights.safetensors`, a run's `best.ckpt`, torchvision's FCN, an smp or
torchvision model) or a classifier, whose layers become the encoder's. Which of these it is, its tensors' names tell.
"""

from pathlib import Path

import torch
from torch import Tensor

from models.architectures import build, default_options, encoders
from models.architectures.base import Network
from models.architectures.state_dict_keys import canonical_key
from models.architectures.torchvision_models import FCN_KEY_PREFIXES
from models.architectures.weight_files import read_state_dict
from models.bundle import WEIGHTS_FILE, Bundle, open_bundle
from models.errors import WeightsError
from models.spec import Architecture

RESET_HEAD_HINT = "--reset-head keeps everything but the head, which then learns the new classes"


def load_initial_weights(network: Network, source: Path, classes: list[str], reset_head: bool = False) -> str:
    """Load a file's or a bundle's weights into a network in place.

    `classes`: the names that the network is to learn. `reset_head` leaves what depends on their number as it was built.
    Returns: one sentence on what was taken.
    Raises: WeightsError where the weights are of another network or of other classes; BundleError.
    """
    bundle = open_bundle_with_weights(source) if source.is_dir() else None
    state = read_state_dict(bundle.verify_file(WEIGHTS_FILE) if bundle else source)
    whole, head = _match_state_dict(network, state), head_parameter_names(network)
    if _is_complete(network, whole, head):
        if bundle and not reset_head:
            _check_classes(source, [entry.name for entry in bundle.spec.classes], classes)
        _check_shapes(source, network, whole, head, reset_head)
        taken = {name: value for name, value in whole.items() if not (reset_head and name in head)}
        left = [name for name in network.load_state_dict(taken, strict=False).missing_keys if _is_required(name)]
        return f"weights of {source}: {len(taken)} tensors" + (f", {len(left)} start from scratch" if left else "")
    _load_encoder(network, source, bundle, state)
    return f"weights of {source}: the encoder's; the rest starts from scratch"


def open_bundle_with_weights(folder: Path) -> Bundle:
    """Open a bundle that holds its weights by name. Raises: WeightsError, BundleError."""
    bundle = open_bundle(folder)
    if not bundle.has_file(WEIGHTS_FILE):
        raise WeightsError(
            f"{folder} holds no weights by name (it was imported from ONNX), so no training can start there."
        )
    return bundle


def head_parameter_names(network: Network) -> set[str]:
    """The names of the weights whose shape depends on the number of classes."""
    known = network.architecture
    with torch.random.fork_rng():  # what is built to be looked at changes no training
        wider = build(known.name, network.num_classes + 1, **known.options).state_dict()
    return {name for name, value in network.state_dict().items() if value.shape != wider[name].shape}


def _match_state_dict(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the network's names for them, without those that it has no place for."""
    known = {canonical_key(name): value for name, value in state.items()}
    if network.architecture.name == "fcn":
        known |= {
            FCN_KEY_PREFIXES[old] + name.removeprefix(old): known[name]
            for name in known
            for old in FCN_KEY_PREFIXES
            if name.startswith(old)
        }
    return {name: known[canonical_key(name)] for name in network.state_dict() if canonical_key(name) in known}


def _is_complete(network: Network, state: dict[str, Tensor], head: set[str]) -> bool:
    """Whether nothing is missing but a head or an auxiliary head."""
    missing = set(filter(_is_required, network.state_dict())) - set(state) - head
    return all("aux" in name for name in missing)


def _is_required(name: str) -> bool:
    return not name.endswith("num_batches_tracked") and name not in ("mean", "std")


def _check_classes(source: Path, known: list[str], wanted: list[str]) -> None:
    if len(known) != len(wanted):
        raise WeightsError(
            f"{source} was made for {len(known)} classes and this data set has {len(wanted)}; {RESET_HEAD_HINT}."
        )
    for old, new in zip(known, wanted, strict=True):
        if old != new:
            raise WeightsError(f"{source} knows the class {old!r} where this data set has {new!r}; {RESET_HEAD_HINT}.")


def _check_shapes(source: Path, network: Network, state: dict[str, Tensor], head: set[str], reset_head: bool) -> None:
    for name, wanted in network.state_dict().items():
        if name not in state or state[name].shape == wanted.shape or (reset_head and name in head):
            continue
        if name in head and len(state[name]) != len(wanted):
            raise WeightsError(
                f"{source} was made for {len(state[name])} classes and this data set has {network.num_classes}; {RESET_HEAD_HINT}."
            )
        raise WeightsError(
            f"{source} is of another network: its {name} is {tuple(state[name].shape)}, wanted is {tuple(wanted.shape)}."
        )


def _load_encoder(network: Network, source: Path, bundle: Bundle | None, state: dict[str, Tensor]) -> None:
    """Take the encoder of another network, or a classifier's. Raises: WeightsError that says what was wanted."""
    name = str(network.architecture.options.get("encoder", network.architecture.name))
    encoder = getattr(network.body, "encoder", None) or network.body.backbone
    try:
        encoders.load_weights(encoder, name, state, source)
    except WeightsError as error:
        if bundle is None:
            raise
        words = _format_option_differences(bundle.spec.architecture, network.architecture)
        raise WeightsError(f"{error} To go on from this bundle, set {words}.") from error
    expected = {canonical_key(key): value for key, value in state.items() if canonical_key(key) in ("mean", "std")}
    network.load_state_dict(expected, strict=False)  # an encoder goes on seeing images as it learned to


def _format_option_differences(there: Architecture, here: Architecture) -> str:
    """The settings in which another architecture differs from this one: `encoder=resnet18 head=d6`."""
    usual = default_options(there.name)
    told = {
        key: value
        for key, value in there.options.items()
        if value != here.options.get(key, usual.get(key)) and key not in ("aux", "dropout", "init", "weights")
    }
    name = {"architecture": there.name} if there.name != here.name else {}
    return " ".join(f"{key}={value}" for key, value in {**name, **told}.items())
