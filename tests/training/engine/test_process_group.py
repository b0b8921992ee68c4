"""Two processes have the loss and the gradients of one with the same batch."""

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

TIMEOUT = timedelta(seconds=120)  # the second process imports torch
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])
EXACT_LOSSES = [name for name in LOSSES if name != "lovasz"]
# (loss, options, scale of the weights); the large scale leaves too few hard pixels, so that ohem_keep decides.
CASES = [
    *[(name, {}, 1.0) for name in [*EXACT_LOSSES, "lovasz", "ce+0.5*dice"]],
    ("ce", {"label_smoothing": 0.1}, 1.0),
    ("ohem", {"ohem_keep": 0.9}, 20.0),
]


def make_batches() -> list[tuple[Tensor, Tensor]]:
    """Features 4 x 5 x 6 x 8 and labels: first with uneven ignored pixels, then with all of the second process ignored."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 5, 6, 8, generator=generator)
    labels = torch.randint(0, 3, (4, 12, 16), generator=generator).to(torch.uint8)
    labels[0, :9] = IGNORE_INDEX
    labels[2:][torch.rand(2, 12, 16, generator=generator) < 0.3] = IGNORE_INDEX
    ignored = labels.clone()
    ignored[2:] = IGNORE_INDEX
    return [(features, labels), (features, ignored)]


def make_model(scale: float) -> nn.Module:
    torch.manual_seed(1)
    layer = nn.Conv2d(5, 3, kernel_size=1)
    with torch.no_grad():
        layer.weight *= scale
    return layer


def losses_and_gradients(part: slice, parallel: bool) -> list[tuple[float, Tensor]]:
    """Loss and gradient of each case on a part of each batch."""
    found = []
    for (features, labels), (loss, options, scale) in ((b, c) for b in make_batches() for c in CASES):
        layer = make_model(scale)
        network = nn.parallel.DistributedDataParallel(layer) if parallel else layer
        value = Criterion(loss, WEIGHTS, **options)(network(features[part]), labels[part])
        value.backward()
        assert isinstance(layer.weight, nn.Parameter) and layer.weight.grad is not None
        found.append((value.item(), layer.weight.grad.clone()))
    return found


def run_process(rank: int, folder: Path) -> list[tuple[float, Tensor]]:
    """One of two processes, connected through a file and the loopback interface."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=TIMEOUT)
    found = losses_and_gradients(slice(2 * rank, 2 * rank + 2), parallel=True)
    dist.destroy_process_group()
    return found


def run_second_process(folder: Path) -> None:
    """The second process; warnings are errors there too."""
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


def test_two_processes_have_the_gradients_of_one(results_by_process: list[list[tuple[float, Tensor]]]) -> None:
    alone = losses_and_gradients(slice(None), parallel=False)
    names = [case[0] for case in CASES] * 2
    for name, one, first, second in zip(names, alone, *results_by_process, strict=True):
        assert first[0] == pytest.approx(second[0], rel=1e-6), name  # each has the loss of the whole batch
        assert torch.equal(first[1], second[1]), name
        if name == "lovasz":
            continue
        assert first[0] == pytest.approx(one[0], rel=1e-5), name
        assert torch.allclose(first[1], one[1], rtol=1e-5, atol=1e-6), name


def test_lovasz_is_the_mean_of_the_processes_weighted_by_labeled_pixels(
    results_by_process: list[list[tuple[float, Tensor]]],
) -> None:
    index = [case[0] for case in CASES].index("lovasz")
    features, labels = make_batches()[0]
    values, counts = [], []
    for half in (slice(0, 2), slice(2, 4)):
        values.append(Criterion("lovasz")(make_model(1.0)(features[half]), labels[half]).item())
        counts.append((labels[half] != IGNORE_INDEX).sum().item())
    expected = sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
    assert results_by_process[0][index][0] == pytest.approx(expected, rel=1e-5)
    # if one process has only ignored pixels, the loss is that of the other
    alone = losses_and_gradients(slice(None), parallel=False)[len(CASES) + index]
    assert results_by_process[1][len(CASES) + index][0] == pytest.approx(alone[0], rel=1e-5)
