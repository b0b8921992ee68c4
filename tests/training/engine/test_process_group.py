"""Two processes on this machine have the loss and the gradients that one has at the same global batch."""

import multiprocessing
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.spec import IGNORE_INDEX
from training.engine.losses import LOSSES, Criterion

TIMEOUT = timedelta(seconds=120)  # the second process opens torch anew
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])
EXACT_LOSSES = [name for name in LOSSES if name != "lovasz"]
# (loss, settings, sharpness of the logits); the sharp ones leave too few hard pixels, so that OHEM's share is drawn.
CASES = [
    *[(name, {}, 1.0) for name in [*EXACT_LOSSES, "lovasz", "ce+0.5*dice"]],
    ("ce", {"label_smoothing": 0.1}, 1.0),
    ("ohem", {"ohem_keep": 0.9}, 20.0),
]


def make_batches() -> list[tuple[Tensor, Tensor]]:
    """The images (as features 2 x 5 x 6 x 8) and labels of each process: void is uneven, then all of the second's."""
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(4, 5, 6, 8, generator=chance)
    labels = torch.randint(0, 3, (4, 12, 16), generator=chance).to(torch.uint8)
    labels[0, :9] = IGNORE_INDEX
    labels[2:][torch.rand(2, 12, 16, generator=chance) < 0.3] = IGNORE_INDEX
    void = labels.clone()
    void[2:] = IGNORE_INDEX
    return [(features, labels), (features, void)]


def make_model(sharpness: float) -> nn.Module:
    torch.manual_seed(1)
    layer = nn.Conv2d(5, 3, kernel_size=1)
    with torch.no_grad():
        layer.weight *= sharpness
    return layer


def losses_and_gradients(place: slice, parallel: bool) -> list[tuple[float, Tensor]]:
    """Loss and gradient of each case on a part of each batch."""
    found = []
    for (features, labels), (loss, how, sharpness) in ((b, c) for b in make_batches() for c in CASES):
        layer = make_model(sharpness)
        network = nn.parallel.DistributedDataParallel(layer) if parallel else layer
        value = Criterion(loss, WEIGHTS, **how)(network(features[place]), labels[place])
        value.backward()
        assert isinstance(layer.weight, nn.Parameter) and layer.weight.grad is not None
        found.append((value.item(), layer.weight.grad.clone()))
    return found


def run_process(rank: int, folder: Path) -> list[tuple[float, Tensor]]:
    """One of two processes, which meet by a file and talk over the loopback."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=TIMEOUT)
    found = losses_and_gradients(slice(2 * rank, 2 * rank + 2), parallel=True)
    dist.destroy_process_group()
    return found


def run_second_process(folder: Path) -> None:
    """The other process, where warnings are errors too."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.save(run_process(1, folder), folder / "second.pt")


@pytest.fixture(scope="module")
def results_by_process(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[float, Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        other = multiprocessing.get_context("spawn").Process(target=run_second_process, args=(folder,))
        other.start()
        first = run_process(0, folder)
        other.join()
    return [first, torch.load(folder / "second.pt")]


def test_two_processes_learn_as_one(results_by_process: list[list[tuple[float, Tensor]]]) -> None:
    alone = losses_and_gradients(slice(None), parallel=False)
    names = [case[0] for case in CASES] * 2
    for name, one, first, second in zip(names, alone, *results_by_process, strict=True):
        assert first[0] == pytest.approx(second[0], rel=1e-6), name  # each logs the loss of the whole batch
        assert torch.equal(first[1], second[1]), name
        if name == "lovasz":
            continue
        assert first[0] == pytest.approx(one[0], rel=1e-5), name
        assert torch.allclose(first[1], one[1], rtol=1e-5, atol=1e-6), name


def test_lovasz_is_the_mean_of_the_processes_by_their_labelled_pixels(
    results_by_process: list[list[tuple[float, Tensor]]],
) -> None:
    place = [case[0] for case in CASES].index("lovasz")
    features, labels = make_batches()[0]
    values, counts = [], []
    for half in (slice(0, 2), slice(2, 4)):
        values.append(Criterion("lovasz")(make_model(1.0)(features[half]), labels[half]).item())
        counts.append((labels[half] != IGNORE_INDEX).sum().item())
    expected = sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
    assert results_by_process[0][place][0] == pytest.approx(expected, rel=1e-5)
    # where one process holds nothing but void, the loss is the other's
    alone = losses_and_gradients(slice(None), parallel=False)[len(CASES) + place]
    assert results_by_process[1][len(CASES) + place][0] == pytest.approx(alone[0], rel=1e-5)
