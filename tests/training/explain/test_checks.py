"""The numbers behind findings: Grad-CAM, residual blocks, calibration, shifted masks, and the snapshots of a training."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from models.inference.segmenter import Prediction
from models.sample import Sample
from models.spec import ClassInfo, InputRule
from tests.training.explain.conftest import MakeSubject, small_body
from training.engine import kernel_snapshots
from training.engine.kernel_snapshots import KernelSnapshots, read_snapshots
from training.explain import evolution, failures, residual, why
from training.explain.fields import mass_width
from training.metrics.confusion import ConfusionMatrix
from training.metrics.object_size import size_counts
from training.run_folder import KERNELS_FILE

pytestmark = pytest.mark.usefixtures("one_thread")


def test_grad_cam_equals_captums(make_subject: MakeSubject) -> None:
    attribution = pytest.importorskip("captum.attr")
    subject = make_subject(small_body())
    body = subject.inside.network.body
    with torch.no_grad():
        region = torch.rand(body(subject.input).shape[2:])
    expected = attribution.LayerGradCam(lambda values: (body(values) * region).sum(dim=(2, 3)), body[2]).attribute(
        subject.input.clone().requires_grad_(), target=1
    )
    assert torch.allclose(why.layer_cam(why.forward_pass(body, "2", subject.input), region, 1), expected, atol=1e-5)


def test_grad_cam_by_hand(make_subject: MakeSubject) -> None:
    """With a 1x1 classifier as the only layer after the maps, the gradient of a channel is the classifier's weight."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    subject = make_subject(body)
    maps = body[0](subject.input).detach()
    expected = (body[1].weight[1, :, 0, 0].detach()[:, None, None] * maps[0]).sum(dim=0) / maps[0, 0].numel()
    region = torch.zeros(maps.shape[2:])
    region[5, 7] = 1
    passed = why.forward_pass(body, "0", subject.input)
    assert torch.allclose(why.layer_cam(passed, region, 1)[0, 0], expected, atol=1e-5)


def test_rank_correlation_and_mass() -> None:
    values = np.array([[1.0, 2, 3], [4, 4, 9]], np.float32)
    assert why.rank_correlation(values, values**3) == pytest.approx(1)
    assert why.rank_correlation(values, -values) == pytest.approx(-1)
    assert why.rank_correlation(values, np.ones_like(values)) == 0
    assert why.mean_ranks(values).tolist() == [1, 2, 3, 4.5, 4.5, 6]
    assert why.mass_inside(values, values == 9) == pytest.approx(9 / 23)
    row = {"target": "object", "rank_correlation": 0.9, "passes": False}
    assert [finding.kind for finding in why.findings([{"maps": [row]}])] == ["failed check"]


def test_shuffled_weights_are_the_same_values(make_subject: MakeSubject) -> None:
    body = small_body()
    shuffled = why.shuffled_copy(body)
    assert not torch.equal(shuffled[0].weight, body[0].weight)
    assert torch.equal(shuffled[0].weight.flatten().sort()[0], body[0].weight.flatten().sort()[0])


class Block(nn.Module):
    """A residual block; `scale` is a convolution with a stride in place of the shortcut."""

    def __init__(self, scale: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.shortcut = nn.Conv2d(8, 8, 1) if scale else nn.Identity()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(maps) + self.shortcut(maps))


def test_a_switched_off_block_is_the_network_without_it(make_subject: MakeSubject) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Block(False), Block(True), Block(False), nn.Conv2d(8, 3, 1)
    )
    subject = make_subject(body)
    assert residual.residual_blocks(body, subject.input) == ["2", "4"]  # not the one whose shortcut has weights
    rebuilt = nn.Sequential(*(copy.deepcopy(layer) for index, layer in enumerate(body) if index != 4))
    with torch.no_grad(), residual.switched_off(body, "4"):
        assert torch.equal(body(subject.input), rebuilt(subject.input))
    numbers = residual.compute(subject).numbers
    assert numbers["paths"] == [1, 2, 1] and [row["name"] for row in numbers["blocks"]] == ["2", "4"]


def test_shifted_masks_are_measured() -> None:
    mask = np.zeros((80, 100), np.uint8)
    mask[20:50, 30:70], mask[60:70, 10:25] = 1, 2
    image = np.repeat((mask * 90)[..., None], 3, axis=2)
    moved = np.roll(mask, (-3, 4), axis=(0, 1))
    by_edges = failures.best_shift(failures.edge_scores(image, moved), failures.MIN_CONTRAST)
    by_prediction = failures.best_shift(failures.match_scores(mask, moved), failures.MIN_GAIN)
    assert by_edges == by_prediction == (-4, 3)  # where the mask's borders have to go
    assert failures.best_shift(failures.edge_scores(image, mask), failures.MIN_CONTRAST) == (0, 0)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda target: cv2.dilate(target, np.ones((7, 7), np.uint8)), True),  # masks that are too thick
        (
            lambda target: np.where(np.arange(96) % 48 < 24, target, 0).astype(np.uint8),
            False,
        ),  # half of each object is missing
        (lambda target: target, False),
    ],
)
def test_errors_at_borders_only_are_a_finding(change: Callable[[Any], Any], found: bool) -> None:
    target = np.zeros((96, 96), np.uint8)
    target[10:58, 20:80] = target[70:90, 30:60] = 1
    prediction = Prediction(np.zeros((96, 96, 3), np.uint8), change(target), np.full((96, 96), 0.9, np.float32))
    segmenter: Any = SimpleNamespace(segment=lambda *_, **__: prediction, rule=InputRule(rule="native"))
    tally = failures.Tally(ConfusionMatrix(2))
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    failures.add_image(tally, segmenter, "a", 0, Sample(image), target, swap=False)
    numbers = failures.summarise(tally, [ClassInfo(name="a", rgb=(0, 0, 0)), ClassInfo(name="b", rgb=(1, 1, 1))], [])
    assert ("border errors" in {finding.kind for finding in failures.findings([numbers])}) == found


def test_errors_by_distance_and_size() -> None:
    target = np.zeros((40, 40), np.uint8)
    target[:, 20:], target[:, 39] = 1, 255
    distance = failures.border_distance(target)
    assert distance[5, 19:21].tolist() == [1, 1] and distance[5, 10] == pytest.approx(10, abs=0.1)
    assert np.isinf(failures.border_distance(np.zeros((5, 5), np.uint8))).all()
    counts = size_counts(target, (target == 1) & (np.arange(40) < 22))
    assert counts.sum(axis=1).tolist() == [40 * 39, 40 * 2]


def test_the_width_that_holds_a_fraction_of_the_mass() -> None:
    heat = np.zeros((9, 9), np.float32)
    heat[4, [2, 4, 6]] = 1, 8, 1
    assert mass_width(heat, 1, 0.8) == 1 and mass_width(heat, 1, 0.85) == 3 and mass_width(heat, 1, 1.0) == 5
    assert mass_width(heat, 0, 1.0) == 1 and mass_width(np.zeros((3, 3), np.float32), 0) == 0


def test_snapshots_at_powers_of_two_and_validations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, state = nn.Conv2d(3, 4, 3), torch.get_rng_state()
    snapshots = KernelSnapshots(network, tmp_path)
    for step in range(1, 12):
        snapshots.record(step)
        if step in (5, 10):
            with torch.no_grad():
                network.weight.fill_(step)
            snapshots.record(step, "validation")
    snapshots.save()
    assert torch.equal(torch.get_rng_state(), state)  # nothing random is drawn
    saved = read_snapshots(tmp_path / KERNELS_FILE)
    assert list(saved) == [0, 1, 2, 4, 5, 8, 10] and saved[10].dtype == np.float16 and saved[10][0, 0, 0, 0] == 10
    resumed = KernelSnapshots(network, tmp_path, step=7)
    assert list(resumed.kernels) == [0, 1, 2, 4, 5]
    (tmp_path / KERNELS_FILE).write_bytes(b"damaged")
    assert read_snapshots(tmp_path / KERNELS_FILE) == {}
    monkeypatch.setattr(kernel_snapshots, "MAX_BYTES", 12 * 4 * 27 * 2)
    for step in range(20, 400, 3):
        resumed.record(step, "validation")
    kept = sorted(resumed.kernels)
    assert len(kept) <= 12 and kept[:4] == [0, 1, 2, 4] and kept[-1] == 398


def test_a_run_shows_its_evolution(run: Path) -> None:
    assert (run / KERNELS_FILE).stat().st_size < 2e6
    facts = evolution.compute(run)
    steps = [row["step"] for row in facts.numbers["snapshots"]]
    assert steps == [0, 1, 2, 4, 8] and facts.numbers["snapshots"][-1]["miou"] is not None
    assert facts.numbers["snapshots"][0]["moved"] == 0 < facts.numbers["snapshots"][-1]["moved"]
    assert facts.files["evolution.gif"].startswith(b"GIF89a") and len(facts.images) == 5
