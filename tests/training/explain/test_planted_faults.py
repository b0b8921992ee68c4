"""Faults that are put into a healthy network or its data are named in the findings, and a healthy one has none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.architectures import build
from models.architectures.base import Network, upsample
from models.sample import Sample
from models.spec import Architecture, InputRule
from tests.conftest import BuildOnce
from tests.fixtures_bundles import QUIET_CONSOLE
from training.config_io import load_config
from training.data import SegmentationDataset, load_split
from training.data.synthetic import generate_dataset
from training.engine.model_factory import load_network, make_torch_segmenter
from training.explain import why
from training.explain.run import Explanation, compute_views
from training.explain.source import Source
from training.explain.subject import NetworkFacts, NetworkSubject
from training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
RULE = InputRule(rule="native")
VIEWS = ["failures", "certainty", "fields", "kernels", "maps", "shifts"]


@dataclass(frozen=True)
class ChangedData(SegmentationDataset):
    """A data set whose images and masks are changed as they are read."""

    change: Callable[[Any, Any], tuple[Any, Any]] = lambda image, mask: (image, mask)

    def sample(self, index: int) -> Sample:
        return Sample(self.change(super().sample(index).values, super().labels(index))[0])

    def labels(self, index: int) -> Any:
        return self.change(super().sample(index).values, super().labels(index))[1]


@pytest.fixture(scope="module")
def data(build_once: BuildOnce) -> SegmentationDataset:
    folder = build_once(
        "planted", lambda folder: generate_dataset(folder, counts={"train": 320, "val": 24, "test": 24})
    )
    return load_split(folder, "test")


@pytest.fixture(scope="module")
def healthy(data: SegmentationDataset, build_once: BuildOnce) -> Network:
    """An FCN-8s that learned the shapes."""
    shapes = data.pairs[0].image.parents[2]
    settings = ["epochs=12", "validate_every=6", "batch=16", "workers=0", "optimizer=adamw", "lr=0.002", "warmup=40"]
    config = load_config(None, [*settings, "encoder=resnet18", "skips=8s", "scale=0.8,1.25", "tensorboard=false"])
    run = build_once("planted-run", lambda folder: train(shapes, folder / "run", config, console=QUIET_CONSOLE)) / "run"
    return load_network(run)


def explained(network: Network, data: SegmentationDataset, images: int = 6) -> Explanation:
    source = Source("twin", "PyTorch", make_torch_segmenter(network, RULE), data.classes, network, None, None)
    facts = NetworkFacts(network)
    result = Explanation(source)
    for index in range(images):
        image = data.image(index)
        point = (image.shape[1] // 2, image.shape[0] // 2)
        result.subjects[str(index)] = NetworkSubject(
            str(index), image, source.segmenter, data.classes, point, stride=32, facts=facts, samples=data
        )
    compute_views(result, VIEWS, data, QUIET_CONSOLE)
    return result


def kinds(network: Network, data: SegmentationDataset) -> set[str]:
    return {finding.kind for finding in explained(network, data).findings}


def changed(data: SegmentationDataset, change: Callable[[Any, Any], tuple[Any, Any]]) -> SegmentationDataset:
    return ChangedData(data.pairs, data.classes, data.mask_encoding, data.mask_reader, change=change)


def test_a_healthy_network_has_no_finding(healthy: Network, data: SegmentationDataset) -> None:
    assert [finding.text for finding in explained(healthy, data).findings] == []


def test_masks_shifted_by_4_pixels(healthy: Network, data: SegmentationDataset) -> None:
    shifted = changed(data, lambda image, mask: (image, np.roll(mask, 4, axis=1)))
    result = explained(healthy, shifted)
    assert "mask shift" in {finding.kind for finding in result.findings}
    numbers = result.facts["failures"][""].numbers
    assert numbers["mask_shift_by_prediction"] == [4, 0] and numbers["mask_shift_by_edges"] == [4, 0]


def test_a_fifth_of_the_kernels_is_dead(healthy: Network, data: SegmentationDataset) -> None:
    network = copy_of(healthy)
    with torch.no_grad():
        next(module for module in network.modules() if isinstance(module, nn.Conv2d)).weight[::5] = 0
    assert {"dead kernels", "dead channels"} <= kinds(network, data)


def test_channels_are_swapped(healthy: Network, data: SegmentationDataset) -> None:
    assert "channel order" in kinds(healthy, changed(data, lambda image, mask: (image[..., ::-1].copy(), mask)))


def test_stride_32_without_skips(healthy: Network, data: SegmentationDataset) -> None:
    coarse = build("fcn", len(data.classes), encoder="resnet18", skips="32s").eval()
    coarse.load_state_dict({name: healthy.state_dict()[name] for name in coarse.state_dict()})
    assert "coarse grid" in kinds(coarse, data)


def test_errors_at_borders_only(healthy: Network, data: SegmentationDataset) -> None:
    """The network is right everywhere but within three pixels of a border, where the masks are too thick."""
    segmenter = make_torch_segmenter(healthy, RULE)
    thick = changed(
        data, lambda image, mask: (image, cv2.dilate(segmenter.segment(image).labels, np.ones((7, 7), np.uint8)))
    )
    assert "border errors" in kinds(healthy, thick)


def test_a_field_that_is_too_small(data: SegmentationDataset) -> None:
    """Three convolutions with a field of 15 pixels, trained until they know the classes by their color."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(24, len(data.classes), 1),
    )  # fmt: skip
    network = Network(body, Architecture(name="by hand"), len(data.classes))
    images = torch.from_numpy(np.stack([data.image(index) for index in range(12)])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([data.labels(index) for index in range(12)])).long()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(60):
        loss = F.cross_entropy(upsample(network.logits(images), masks.shape[1:]), masks)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert {"blind pixels", "small field"} & kinds(network.eval(), data)


def test_grad_cam_lies_inside_the_object(healthy: Network, data: SegmentationDataset) -> None:
    """At least 60% of its mass; for shuffled weights at most the fraction of the image that the object covers, + 0.1."""
    source = make_torch_segmenter(healthy, RULE)
    facts, rows = NetworkFacts(healthy), []
    random = why.shuffled_copy(healthy.body)
    for index in range(12):
        mask = data.labels(index)
        label = int(np.bincount(mask[mask > 0], minlength=2)[1:].argmax() + 1)
        distance = cv2.distanceTransform((mask == label).astype(np.uint8), cv2.DIST_L2, 5)
        y, x = (int(value) for value in np.unravel_index(int(distance.argmax()), distance.shape))
        subject = NetworkSubject("image", data.image(index), source, data.classes, (x, y), stride=32, facts=facts)
        if subject.label_at_point() == label:
            region, layer = why.object_at(subject), why.default_layer(subject)
            passes = [why.forward_pass(body, layer, subject.input) for body in (healthy.body, random)]
            maps = [why.grad_cam(subject, passed, region, label) for passed in passes]
            rows.append([*(why.mass_inside(each, region) for each in maps), region.mean()])
    trained, shuffled, area = np.mean(rows, axis=0)
    assert trained >= 0.6 and shuffled <= area + 0.1, (trained, shuffled, area)


def copy_of(network: Network) -> Network:
    twin = build("fcn", network.num_classes, encoder="resnet18", skips="8s").eval()
    twin.load_state_dict(network.state_dict())
    return twin
