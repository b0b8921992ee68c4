"""The numbers of the views: each against a value that is known by construction."""

import numpy as np
import pytest
import torch
from torch import nn

from models.explain.facts import Facts
from models.readers.statistics import sample_statistics
from models.spec import InputRule, Scaling
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.fixtures_channels import CHANNELS, draw_chip
from tests.training.explain.conftest import MakeSubject, small_body
from training.explain import IMAGE_VIEWS, NETWORK_VIEWS, fields, journey, kernels, maps, sharing
from training.explain.run import Explanation, compute_views
from training.explain.source import Source

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("view", [*IMAGE_VIEWS, *NETWORK_VIEWS])
def test_every_view_of_an_image(view: str, make_subject: MakeSubject) -> None:
    subject = make_subject(small_body())
    facts = (IMAGE_VIEWS | NETWORK_VIEWS)[view].compute(subject)
    assert isinstance(facts, Facts) and facts.numbers
    for image in facts.images.values():
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    for finding in (IMAGE_VIEWS | NETWORK_VIEWS)[view].findings([facts.numbers]):
        assert finding.view == view and finding.text.endswith(".") and finding.advice.endswith(".")


@pytest.mark.parametrize("kind", ["window", "zscore"])
def test_every_view_of_four_channels(kind: str, make_subject: MakeSubject) -> None:
    values, _ = draw_chip(0)
    low, high = ((), ()) if kind == "zscore" else ((200.0,) * 4, (3800.0,) * 4)
    rule = InputRule(
        rule="native", divisor=1, channels=CHANNELS, dtype="uint16", scaling=Scaling(kind=kind, low=low, high=high)
    )
    statistics = sample_statistics(values) if kind == "zscore" else None
    subject = make_subject(small_body(), values, rule=rule, statistics=statistics)
    source = Source("chips", "PyTorch", subject.segmenter, subject.classes, subject.inside.network, None, None)
    result = Explanation(source, {"chip": subject})
    compute_views(result, [*IMAGE_VIEWS, *NETWORK_VIEWS], None, QUIET_CONSOLE)
    with torch.no_grad():  # the network's own reading of the values is that of the views
        shift = () if statistics is None else torch.from_numpy(statistics)[None].unbind(1)
        own = subject.inside.network(torch.from_numpy(values)[None], *shift)[1]
    np.testing.assert_allclose(subject.logits(values), own[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(subject.inside.network.body(subject.input).detach().numpy(), own.numpy(), atol=1e-5)
    numbers = result.facts["kernels"]["chip"].numbers
    assert list(numbers["sheets"].values()) == list(CHANNELS) and numbers["shape"] == [8, 4, 3, 3]
    assert result.facts["sharing"][""].numbers["input"] == [4, 64, 64]
    assert result.facts["certainty"]["chip"].numbers["reversed_channels_gain"] is None


def test_a_gray_sheet_shows_the_weights_of_its_channel() -> None:
    weights = torch.zeros(2, 4, 3, 3)
    weights[0, 3, 0, 0], weights[1, 1, 2, 2] = 0.5, -2.0
    images, names = kernels.first_layer_sheets(weights, CHANNELS)
    cell = kernels.KERNEL_SIDE // 3
    by_name = {name: images[key] for key, name in names.items()}
    assert by_name["nir"][0, 0].tolist() == [255] * 3 and by_name["nir"][cell, cell].tolist() == [128] * 3
    assert by_name["green"][3 * cell - 1, 6 * cell + 3].tolist() == [1] * 3 and (by_name["red"] == 128).all()
    rgb = kernels.first_layer_sheets(torch.rand(2, 3, 3, 3), ("red", "green", "blue"))
    assert list(rgb[1]) == ["first-layer"] and np.ptp(rgb[0]["first-layer"][0, 0].astype(int)) > 0  # in color


def test_a_sobel_kernel_lights_an_edge(make_subject: MakeSubject) -> None:
    sobel = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    with torch.no_grad():
        sobel.weight[0] = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        sobel.weight[1] = 0
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, 40:] = 255
    subject = make_subject(nn.Sequential(sobel, nn.Conv2d(2, 2, 1)), image)
    maps = kernels.layer_maps(subject, "0")
    assert maps is not None
    response = maps[0, 2:-2, 2:-2].abs().sum(dim=0)
    assert set(torch.nonzero(response > 0.01 * response.max()).flatten().tolist()) == {37, 38}  # columns 39 and 40
    numbers = kernels.compute(subject).numbers
    assert numbers["dead"] == [1]


@pytest.mark.parametrize("layers", [[(3, 1, 1)], [(3, 2, 1), (3, 2, 1)], [(5, 1, 1), (3, 1, 4)]], ids=str)
def test_the_field_of_a_network_of_ones_is_the_theoretical_one(
    layers: list[tuple[int, int, int]], make_subject: MakeSubject
) -> None:
    convolutions = []
    for kernel, stride, dilation in layers:
        padding = kernel // 2 * dilation
        convolutions.append(nn.Conv2d(3, 3, kernel, stride, padding, dilation, bias=False))
        nn.init.ones_(convolutions[-1].weight)
    subject = make_subject(nn.Sequential(*convolutions))
    (heat,) = fields.gradient_fields(subject, [(48, 32)])
    for axis in (0, 1):
        touched = np.flatnonzero(heat.sum(axis=1 - axis))
        assert touched[-1] - touched[0] + 1 == subject.inside.receptive_field
        assert fields.mass_width(heat, axis, 1.0) == subject.inside.receptive_field


def test_the_effective_width_is_at_most_the_theoretical(make_subject: MakeSubject) -> None:
    numbers = fields.compute(make_subject(small_body())).numbers
    assert 0 < max(numbers["effective_widths"]) <= numbers["theoretical"] == 7


def test_a_field_inside_an_object_sees_no_border() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[10:50, 10:50] = 1  # 40 x 40
    assert fields.blind_fraction(labels, 1, 11) == pytest.approx(30 * 30 / 1600)
    assert fields.blind_fraction(labels, 1, 41) == 0
    assert fields.object_thickness(labels, 2)[1] == [pytest.approx(39, abs=1)]
    row = {"name": "square", "thickness": 39.0, "blind_fraction": 0.56}
    image = {"effective": 9, "theoretical": 11, "objects": [row], "logit_stride": 8, "typical_thickness": 39.0}
    assert [finding.kind for finding in fields.findings([image])] == ["blind pixels"]


def test_the_worked_convolution_is_the_layers_own(make_subject: MakeSubject) -> None:
    subject = make_subject(small_body())
    worked = kernels.compute(subject).page_data["worked"]
    patch, kernel = np.array(worked["patch"])[:, :3, :3], np.array(worked["kernel"])
    assert (patch * kernel).sum() + worked["bias"] == pytest.approx(worked["value"], abs=2e-3)
    with torch.no_grad():
        output = subject.inside.network.body[0](subject.input)[0, worked["kernel_index"]]
    left, top = worked["origin"]
    assert left % 2 == top % 2 == 0
    assert float(output[(top + 1 + 1) // 2, (left + 2) // 2]) == pytest.approx(
        (np.array(worked["patch"])[:, 1:4, 1:4] * kernel).sum() + worked["bias"], abs=2e-3
    )


def test_orientation_selectivity_of_known_kernels() -> None:
    wave = torch.cos(torch.arange(7) * 1.6).expand(7, 7)
    assert kernels.orientation_selectivity(wave[None, None]) > 0.8
    spot = torch.zeros(1, 1, 7, 7)
    spot[0, 0, 3, 3] = 1
    assert kernels.orientation_selectivity(spot) < 0.05


def test_dead_and_duplicate_channels_are_named() -> None:
    torch.manual_seed(0)
    planes = torch.rand(5, 12, 12)
    planes[1], planes[4] = 0.3, 2 * planes[2] + 1
    assert maps.dead_channels(planes) == [1]
    assert maps.duplicate_channels(planes, [1]) == [[2, 4]]
    rows = [{"stages": [{"name": "s", "channels": 5, "dead": dead, "duplicates": []}]} for dead in ([1, 2], [1, 3])]
    assert [finding.text[:18] for finding in maps.findings(rows)] == ["1 of 5 channels of"]  # dead in both images


def test_stages_tell_kernel_stride_padding_and_size(make_subject: MakeSubject) -> None:
    numbers = journey.compute(make_subject(small_body())).numbers
    first = numbers["stages"][0]
    assert first["convolutions"][0] == {
        "kernel": [3, 3], "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "count": 1
    }  # fmt: skip
    assert numbers["stages"][-1]["output"] == [3, 16, 24] and numbers["stages"][-1]["receptive_field"] == 7


def test_sharing_against_a_dense_layer() -> None:
    layer = nn.Conv2d(2, 4, 3, padding=1)
    row = sharing.layer_counts("c", layer, (2, 5, 7), (4, 5, 7))
    dense = nn.Linear(2 * 5 * 7, 4 * 5 * 7)
    assert row["parameters"] == sum(each.numel() for each in layer.parameters())
    assert row["dense_parameters"] == sum(each.numel() for each in dense.parameters())
    assert row["flops"] == 2 * 9 * 2 * 4 * 35
