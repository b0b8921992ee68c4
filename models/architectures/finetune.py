"""Initial weights: loads a weights file or a bundle into a network that has just been built.

The file may hold a whole network (the `weights.safetensors` of a bundle, the `best.ckpt` of a run, torchvision's FCN, an
smp or torchvision model) or a classifier, whose layers become the encoder's. The names of its tensors decide which.
"""

from pathlib import Path

import torch
from torch import Tensor

from models.architectures import build, default_options, encoders
from models.architectures.base import Network
from models.architectures.ensemble import ENSEMBLE
from models.architectures.input_channels import RGB_COUNT, adapt_weight
from models.architectures.lift import lift_tensors
from models.architectures.state_dict_keys import canonical_key
from models.architectures.torchvision_models import FCN_KEY_PREFIXES
from models.architectures.weight_files import read_state_dict
from models.bundle import WEIGHTS_FILE, Bundle, open_bundle
from models.errors import WeightsError, quoted
from models.spec import Architecture

RESET_HEAD_HINT = "pass --reset-head to load everything but the head, which then learns the new classes"


def load_initial_weights(network: Network, source: Path, classes: list[str], reset_head: bool = False) -> str:
    """Load the weights of a file or bundle into a network in place.

    `classes` are the names of the classes that the network is to learn. With `reset_head` the layers whose shape depends
    on the number of classes keep their new weights.
    Returns: one line on the loaded tensors.
    Raises: WeightsError for weights of another network or of other classes; BundleError.
    """
    bundle = open_bundle_with_weights(source) if source.is_dir() else None
    content = read_state_dict(bundle.verify_file(WEIGHTS_FILE) if bundle else source)
    state, head = _match_state_dict(network, adapt_kernels(network, content)), head_parameter_names(network)
    if _is_complete(network, state, head):
        if bundle and not reset_head:
            _check_classes(source, [entry.name for entry in bundle.spec.classes], classes)
        _check_shapes(source, network, state, head, reset_head)
        loaded = {name: value for name, value in state.items() if not (reset_head and name in head)}
        missing = [name for name in network.load_state_dict(loaded, strict=False).missing_keys if _is_required(name)]
        rest = f", {len(missing)} start from scratch" if missing else ""
        return f"weights of {source}: {len(loaded)} tensors{rest}"
    _load_encoder(network, source, bundle, adapt_kernels(network, content))
    return f"weights of {source}: the encoder only; the rest starts from scratch"


def open_bundle_with_weights(folder: Path) -> Bundle:
    """Open a bundle that holds `weights.safetensors` of one network. Raises: WeightsError for another bundle, BundleError."""
    bundle = open_bundle(folder)
    if bundle.spec.architecture.name == ENSEMBLE:
        raise WeightsError(f"{folder} is an ensemble of networks; to fine-tune, name the bundle of one of them.")
    if not bundle.has_file(WEIGHTS_FILE):
        raise WeightsError(
            f"{folder} has no {WEIGHTS_FILE} (it was imported from ONNX); to fine-tune, name a bundle of `maskserve train`."
        )
    return bundle


def head_parameter_names(network: Network) -> set[str]:
    """The names of the tensors whose shape depends on the number of classes."""
    spec = network.architecture
    with torch.random.fork_rng():  # building the second network must not change the random numbers of the training
        wider, same = (
            build(spec.name, classes, network.input.axes, **spec.options).state_dict()
            for classes in (network.num_classes + 1, network.num_classes)
        )
    return {name for name, value in same.items() if value.shape != wider[name].shape}


def adapt_kernels(network: Network, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors, the kernels that take RGB adapted to the network's channels (`input_channels.py`).

    Kernels of a network for images are lifted to signals or volumes, if the network takes these (`lift.py`).
    Mean and deviation of RGB are left out: the network has those of its own channels.
    """
    channels = len(network.input.channels)
    if network.input.is_photograph:
        return content
    dims = len(network.input.axes)
    # Of so many axes and three inputs are only these kernels, and transposed convolutions of three classes.
    adapted = {
        name: adapt_weight(value, channels)
        if value.ndim in (4, 2 + dims) and value.shape[1] == RGB_COUNT < value.shape[0] and channels != RGB_COUNT
        else value
        for name, value in content.items()
        if canonical_key(name) not in ("mean", "std")
    }
    return adapted if dims == 2 else lift_tensors(adapted, dims)


def _match_state_dict(network: Network, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a file's tensors to the network's names; drop those that the network does not have."""
    known = {canonical_key(name): value for name, value in content.items()}
    if network.architecture.name == "fcn":
        known |= {
            new + name.removeprefix(old): known[name]
            for name in known
            for old, new in FCN_KEY_PREFIXES.items()
            if name.startswith(old)
        }
    return {name: known[canonical_key(name)] for name in network.state_dict() if canonical_key(name) in known}


def _is_complete(network: Network, state: dict[str, Tensor], head: set[str]) -> bool:
    """Whether nothing but the head or an auxiliary head is missing."""
    missing = set(filter(_is_required, network.state_dict())) - set(state) - head
    return all("aux" in name for name in missing)


def _is_required(name: str) -> bool:
    return not name.endswith("num_batches_tracked") and name not in ("mean", "std")


def _check_classes(source: Path, trained: list[str], wanted: list[str]) -> None:
    if len(trained) != len(wanted):
        raise WeightsError(
            f"{source} has {len(trained)} classes and this data set has {len(wanted)}; {RESET_HEAD_HINT}."
        )
    for old, new in zip(trained, wanted, strict=True):
        if old != new:
            raise WeightsError(
                f"{source} has the class {quoted(old)} and this data set has {quoted(new)}; {RESET_HEAD_HINT}."
            )


def _check_shapes(source: Path, network: Network, state: dict[str, Tensor], head: set[str], reset_head: bool) -> None:
    for name, expected in network.state_dict().items():
        if name not in state or state[name].shape == expected.shape or (reset_head and name in head):
            continue
        if name in head and len(state[name]) != len(expected):
            raise WeightsError(
                f"{source} has {len(state[name])} classes and this data set has {network.num_classes}; {RESET_HEAD_HINT}."
            )
        raise WeightsError(
            f"{source} holds weights of another network: its {name} has shape {tuple(state[name].shape)}, expected "
            f"{tuple(expected.shape)}."
        )


def _load_encoder(network: Network, source: Path, bundle: Bundle | None, content: dict[str, Tensor]) -> None:
    """Load the encoder of another network, or a classifier. Raises: WeightsError with the settings that would match."""
    name = str(network.architecture.options.get("encoder", network.architecture.name))
    encoder = getattr(network.body, "encoder", None) or network.body.backbone
    try:
        encoders.load_weights(encoder, name, content, source)
    except WeightsError as error:
        if bundle is None:
            raise
        settings = _format_option_differences(bundle.spec.architecture, network.architecture)
        raise WeightsError(f"{error} To continue from this bundle, set {settings}.") from error
    # The encoder keeps the normalisation that it was trained with.
    normalisation = {
        canonical_key(key): value for key, value in content.items() if canonical_key(key) in ("mean", "std")
    }
    network.load_state_dict(normalisation, strict=False)


def _format_option_differences(source: Architecture, target: Architecture) -> str:
    """The settings in which `source` differs from `target`, as for the command line: `encoder=resnet18 head=d6`."""
    defaults = default_options(source.name)
    differing = {
        key: value
        for key, value in source.options.items()
        if value != target.options.get(key, defaults.get(key)) and key not in ("aux", "dropout", "init", "weights")
    }
    name = {"architecture": source.name} if source.name != target.name else {}
    return " ".join(f"{key}={value}" for key, value in {**name, **differing}.items())
