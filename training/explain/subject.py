"""A network with its weights, one image, and the feature maps between them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.analysis.complexity import receptive_field, trace_network
from models.analysis.summary import Stage, list_stages
from models.architectures.base import Network
from models.architectures.meta_device import copy_to_meta
from models.errors import ConfigError, closest_names, quoted
from models.explain.subject import Subject
from models.inference.geometry import canvas_size, resize_and_pad
from models.sample import Sample
from models.spec import InputRule
from training.data import SegmentationDataset


@dataclass(frozen=True)
class NetworkFacts:
    """What depends on the network alone, and is computed once for all images."""

    network: Network

    @cached_property
    def receptive_field(self) -> int | None:
        """Width in pixels of the theoretical field of a logit; None is the whole image."""
        return receptive_field(self.network)

    @cached_property
    def module_fields(self) -> dict[str, int | None]:
        """The theoretical field of each module's output, in pixels, by module name."""
        return trace_network(copy_to_meta(self.network.body), channels=self.network.num_channels).receptive_fields

    def stages(self, size: tuple[int, int]) -> list[Stage]:
        """The stages for an image of (height, width)."""
        return [stage for stage in list_stages(self.network, size) if stage.name]

    def layers(self) -> dict[str, nn.Conv2d]:
        """The convolutions by module name, in the order of the network."""
        return {name: module for name, module in self.network.body.named_modules() if isinstance(module, nn.Conv2d)}

    def first_layer(self) -> tuple[str, nn.Conv2d]:
        """The convolution that reads the image. Raises: ConfigError for a network without any."""
        layers = self.layers()
        if not layers:
            raise ConfigError("The network has no convolution whose kernels could be shown.")
        name = next(iter(layers))
        return name, layers[name]

    def check_layer(self, name: str) -> str:
        """Raises: ConfigError for a module that the network does not have, with the nearest names."""
        known = [module for module, _ in self.network.body.named_modules() if module]
        if name not in known:
            closest = closest_names(name, known, count=3)
            listed = closest or ", ".join(stage.name for stage in self.stages((64, 64)))
            raise ConfigError(f"The network has no layer {quoted(name)}; {'did you mean' if closest else 'its stages are'} {listed}"
                              f"{'?' if closest else '.'}")  # fmt: skip
        return name


@dataclass(frozen=True)
class NetworkSubject(Subject):
    """A subject whose network can be looked into."""

    facts: NetworkFacts | None = None
    layer: str | None = None  # the layer that the option --layer chose
    samples: SegmentationDataset | None = None  # with --data

    @property
    def inside(self) -> NetworkFacts:
        """The network with its weights; views that use it are shown only if there is one."""
        assert self.facts is not None
        return self.facts

    @cached_property
    def input(self) -> Tensor:
        """The normalised canvas, float32 1 x C x H x W, padded as the segmenter pads it."""
        return network_input(
            self.inside.network, self.segmenter.rule, Sample(self.image, statistics=self.statistics), self.size
        )

    @cached_property
    def stages(self) -> list[Stage]:
        """The network's stages."""
        return self.inside.stages(self.size)

    @cached_property
    def stage_maps(self) -> dict[str, Tensor]:
        """The feature maps of each stage, float32 C x h x w, by the stage's name."""
        wanted = {stage_modules(stage.name)[-1]: stage.name for stage in self.stages}
        with torch.no_grad(), record_outputs(self.inside.network.body, wanted) as outputs:
            self.inside.network.body(self.input)
        return {wanted[name]: maps[0] for name, maps in outputs.items() if maps.ndim == 4}


def network_input(network: Network, rule: InputRule, sample: Sample, size: tuple[int, int]) -> Tensor:
    """A sample resized to `size` and padded, normalised, float32 1 x C x H x W: what the network's body takes."""
    canvas = resize_and_pad(sample.values, size, canvas_size(size, rule))
    images = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None]
    statistics = None if sample.statistics is None else torch.from_numpy(sample.statistics)[None]
    return network.normalise(images, statistics)


def stage_modules(stage: str) -> list[str]:
    """The modules of a stage, the last one being its output: `features.0` to `features.3` for `features.0-3`."""
    match = re.fullmatch(r"(.*?)(\d+)-(\d+)", stage)
    return [f"{match[1]}{index}" for index in range(int(match[2]), int(match[3]) + 1)] if match else [stage]


@contextmanager
def record_outputs(body: nn.Module, names: Any) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that gets the output of the named modules when `body` runs, in the order of their calls.

    The last tensor counts where a module returns several. Outputs stay in the graph, so that gradients can be taken.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            tensor = result[-1] if isinstance(result, list | tuple) else result
            # A ReLU in place that follows would change the recorded values.
            outputs[name] = tensor.clone() if not tensor.requires_grad else tensor

        return hook

    modules = dict(body.named_modules())
    handles = [modules[name].register_forward_hook(keep(name)) for name in names if name in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
