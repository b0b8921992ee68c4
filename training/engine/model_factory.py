"""Builds the network of a run: from the settings to train it, from the best checkpoint afterwards."""

import math
import os
from pathlib import Path
from typing import Any

import torch

from models.architectures import ARCHITECTURES, build, default_options, pretrained_names
from models.architectures.base import Network
from models.architectures.finetune import load_initial_weights
from models.architectures.meta_device import copy_to_meta
from models.architectures.weight_files import unknown_weights_error
from models.console import Console
from models.errors import ConfigError, RunError
from models.inference.segmenter import Segmenter
from models.spec import ClassInfo, InputRule
from training.config import TrainConfig
from training.config_io import load_config
from training.engine.checkpoint import read_checkpoint
from training.run_folder import BEST_CHECKPOINT, CONFIG_FILE, read_run_metadata


def make_network(
    config: TrainConfig, classes: list[ClassInfo], console: Console, load_weights: bool, rule: InputRule | None = None
) -> Network:
    """The network that the settings describe; `load_weights` loads its initial weights (not needed for a resume).

    `rule`: its input; None for photographs.
    """
    options, rule = architecture_options(config), rule or InputRule(rule="native")
    file = find_weights_file(config) if load_weights else None
    hub = config.weights if load_weights and file is None and config.weights != "none" else None
    network = build(config.architecture, len(classes), rule.axes, **options, weights=hub)
    network.set_input(rule)
    if file is None:
        return network
    message = load_initial_weights(network, file, [entry.name for entry in classes], config.reset_head)
    console.print(message, highlight=False, markup=False)
    return network


def find_weights_file(config: TrainConfig) -> Path | None:
    """The file or bundle in the setting `weights`; None for none, or for pretrained weights by name.

    A known name takes precedence over a file of that name; `./imagenet` is the file.
    Raises: WeightsError if it is neither; ConfigError.
    """
    known = ["none", *pretrained_names(config.architecture, config.encoder)]
    file = Path(os.path.expanduser(config.weights))
    if config.weights in known:
        if config.reset_head:
            raise ConfigError(
                f"reset_head=true has no effect with weights={config.weights}: set weights=FILE or BUNDLE too."
            )
        return None
    if not file.exists():
        raise unknown_weights_error(config.weights, "this encoder", known)
    return file


def check_batch_norm(network: Network, batch: int, crop: tuple[int, ...]) -> None:
    """Raises: ConfigError if a batch norm would get one value per channel, as after a global mean in a batch of one."""
    if batch > 1:
        return
    shadow = copy_to_meta(network).train()
    try:
        channels = len(network.input.channels)
        statistics = torch.ones(batch, 2, channels, device="meta") if network.input.scaling.kind == "zscore" else None
        shadow.training_logits(torch.empty(batch, channels, *crop, device="meta"), statistics)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"A batch norm of this network gets only one value per channel from {batch} crop of "
            f"{' x '.join(map(str, reversed(crop)))}: set batch=2 or more, or a larger crop."
        ) from error


def architecture_options(config: TrainConfig) -> dict[str, Any]:
    """The settings that are options of the architecture; the bundle's spec keeps them.

    Raises: ConfigError for an unknown architecture, or a setting that it does not have.
    """
    known = default_options(config.architecture)
    options = {option for architecture in ARCHITECTURES for option in default_options(architecture)}
    for name in sorted((options - set(known)) & set(TrainConfig.model_fields)):
        if getattr(config, name) != TrainConfig.model_fields[name].default:
            raise ConfigError(
                f"{config.architecture} has no setting {name}={getattr(config, name)}; it has {', '.join(known)}."
            )
    return {name: getattr(config, name) for name in known if name != "weights"}


def deepest_stride(config: TrainConfig) -> int:
    """The largest stride of a map of the network along any axis: lengths of its input are padded to multiples of it."""
    return max(deepest_strides(config))


def deepest_strides(config: TrainConfig) -> tuple[int, ...]:
    """The largest stride of a map of the network along each axis; three where all axes have one."""
    if config.architecture != "unet" or config.strides is None:
        return (32, 32, 32)
    per_axis = zip(*([step] * 3 if isinstance(step, int) else step for step in config.strides), strict=False)
    return tuple(int(math.prod(steps)) for steps in per_axis)


def load_network(run: Path) -> Network:
    """The best network of a run, for inference in float32. Raises: RunError."""
    best, settings = run / BEST_CHECKPOINT, run / CONFIG_FILE
    if not best.exists() or not settings.exists():
        raise RunError(
            f"{run} is not a finished run: {best.relative_to(run)} or {settings.name} is missing. Train one with `maskserve train`."
        )
    config = load_config(settings, [])
    state = read_checkpoint(best)["network"]
    metadata = read_run_metadata(run)
    network = build(config.architecture, len(metadata.classes), metadata.input.axes, **architecture_options(config))
    network.set_input(metadata.input)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"{best} holds another network than {settings} describes; restore the file that was changed, or train again."
        ) from error
    return network.eval()


def make_torch_segmenter(network: Network, rule: InputRule) -> Segmenter:
    """A Segmenter that runs the PyTorch network on its own device, for comparison with the exported one."""

    def run(images: Any, logits: bool = False, statistics: Any = None) -> Any:
        device = network.mean.device
        further = () if statistics is None else torch.from_numpy(statistics).to(device).unbind(1)
        with torch.inference_mode():
            labels, scores = network(torch.from_numpy(images).to(device), *further)
        return labels.cpu().numpy(), scores.cpu().numpy()

    return Segmenter(run, rule)
