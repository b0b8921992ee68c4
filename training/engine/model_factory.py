"""The network of a run: from its settings when it begins, from its checkpoint when it has ended."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from models.architectures import build, default_options, pretrained_names
from models.architectures.base import Network
from models.architectures.finetune import load_initial_weights
from models.architectures.meta_device import copy_to_meta
from models.architectures.weight_files import unknown_weights_error
from models.errors import ConfigError, RunError
from models.inference.segmenter import Segmenter
from models.spec import ClassInfo, InputRule
from training.config import TrainConfig
from training.config_io import load_config
from training.engine.checkpoint import read_checkpoint
from training.run_folder import BEST_CHECKPOINT


def make_network(config: TrainConfig, classes: list[ClassInfo], console: Console, load_weights: bool) -> Network:
    """The network that the settings describe; `anew` with the weights that a training begins from."""
    options = architecture_options(config)
    file = find_weights_file(config) if load_weights else None
    if file is None:
        hub = config.weights if load_weights and config.weights != "none" else None
        return build(config.architecture, len(classes), **options, weights=hub)
    network = build(config.architecture, len(classes), **options)
    taken = load_initial_weights(network, file, [entry.name for entry in classes], config.reset_head)
    console.print(taken, highlight=False, markup=False)
    return network


def find_weights_file(config: TrainConfig) -> Path | None:
    """The file or bundle that a training begins from; None for no weights, or pretrained ones by name.

    A name that is known stands before a file that happens to be called so; `./imagenet` is the file.
    Raises: WeightsError where there is neither.
    """
    known = ["none", *pretrained_names(config.architecture, config.encoder)]
    file = Path(os.path.expanduser(config.weights))
    if config.weights in known:
        if config.reset_head:
            raise ConfigError("There is no head to reset: set weights=FILE or weights=BUNDLE too.")
        return None
    if not file.exists():
        raise unknown_weights_error(config.weights, "this encoder", known)
    return file


def check_batch_norm(network: Network, batch: int, crop: tuple[int, int]) -> None:
    """Raises: ConfigError where batch norm would meet a single value, as behind a global mean in a batch of one."""
    shadow = copy_to_meta(network).train()
    try:
        shadow.training_logits(torch.empty(batch, 3, *crop, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"Batch norm needs more than the one value a channel that this network has of {batch} image of "
            f"{crop[1]} x {crop[0]}: set batch=2 or more, or a larger crop."
        ) from error


def architecture_options(config: TrainConfig) -> dict[str, Any]:
    """The settings that are options of the architecture; they travel in the bundle's spec.

    Raises: ConfigError for an architecture that is not known, or a setting that it does not have.
    """
    known = default_options(config.architecture)
    for name in sorted(set(default_options("fcn")) - set(known)):
        if getattr(config, name) != TrainConfig.model_fields[name].default:
            raise ConfigError(
                f"The setting {name}={getattr(config, name)} is not one of {config.architecture}, which has {', '.join(known)}."
            )
    return {name: getattr(config, name) for name in known if name != "weights"}


def load_network(run: Path) -> Network:
    """The best network of a run, for inference in float32. Raises: RunError."""
    best, settings = run / BEST_CHECKPOINT, run / "config.yaml"
    if not best.exists() or not settings.exists():
        raise RunError(
            f"{run} is no finished run: {best.relative_to(run)} or {settings.name} is missing. Train one with `maskserve train`."
        )
    config = load_config(settings, [])
    state = read_checkpoint(best)["network"]
    classes = len(read_run_metadata(run)["classes"])
    network = build(config.architecture, classes, **architecture_options(config))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"{best} is not of the network that {settings} describes: one of the two was changed."
        ) from error
    return network.eval()


def read_run_metadata(run: Path) -> dict[str, Any]:
    """What `describe` wrote. Raises: RunError."""
    try:
        content: dict[str, Any] = json.loads((run / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{run}/run.json cannot be read ({error}); train anew.") from error
    return content


def make_torch_segmenter(network: Network, rule: InputRule) -> Segmenter:
    """A Segmenter around the live network, wherever it lies, for comparison with the frozen one."""

    def run(images: Any, logits: bool = False) -> Any:
        with torch.inference_mode():
            labels, scores = network(torch.from_numpy(images).to(network.mean.device))
        return labels.cpu().numpy(), scores.cpu().numpy()

    return Segmenter(run, rule)
