"""The losses compared with simple references in one-hot float64."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.spec import IGNORE_INDEX
from training.config import TrainConfig
from training.engine.losses import LOSSES, Criterion

CLASSES = 4
LOSS_SUMS = ["ce+dice", "0.5*ohem+lovasz", "ce+ohem+dice+focal+lovasz"]


def example(seed: int = 0, size: tuple[int, int] = (12, 16)) -> tuple[Tensor, Tensor]:
    """Logits float32 2 x 4 x h x w at half the size, and labels with 20% ignored pixels and without class 3."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, CLASSES, size[0] // 2, size[1] // 2, generator=generator)
    labels = torch.randint(0, CLASSES - 1, (2, *size), generator=generator).to(torch.uint8)
    labels[torch.rand(2, *size, generator=generator) < 0.2] = IGNORE_INDEX
    return logits, labels


def one_hot(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot target of the labeled pixels, both float64 P x C."""
    full = F.interpolate(logits.double(), size=tuple(labels.shape[1:]), mode="bilinear", align_corners=False)
    valid = labels != IGNORE_INDEX
    pixels = full.permute(0, 2, 3, 1)[valid]
    target = labels[valid].long()[:, None] == torch.arange(pixels.shape[1])
    return pixels.softmax(dim=1), target.double()


def reference_ce(p: Tensor, target: Tensor) -> Tensor:
    return -(target * p.log()).sum(dim=1).mean()


def reference_ohem(p: Tensor, target: Tensor) -> Tensor:
    own = (target * p).sum(dim=1).sort().values
    least = math.ceil(len(own) / 16)
    return -own[: max(least, int((own <= 0.9).sum()))].log().mean()


def reference_focal(p: Tensor, target: Tensor) -> Tensor:
    own = (target * p).sum(dim=1)
    return (-((1 - own) ** 2) * own.log()).mean()


def reference_dice(p: Tensor, target: Tensor) -> Tensor:
    present = target.sum(dim=0) > 0
    return (1 - 2 * (p * target).sum(dim=0) / (p + target).sum(dim=0))[present].mean()


def reference_tversky(p: Tensor, target: Tensor) -> Tensor:
    """Equation 4 of arXiv 1706.05721, beta 0.7 of missed pixels."""
    present, hit = target.sum(dim=0) > 0, (p * target).sum(dim=0)
    false, missed = (p * (1 - target)).sum(dim=0), ((1 - p) * target).sum(dim=0)
    return (1 - hit / (hit + 0.3 * false + 0.7 * missed))[present].mean()


def reference_lovasz(p: Tensor, target: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 1705.08790, one prefix of the sorted errors at a time."""
    values = []
    for own, is_class in zip(p.T, target.T, strict=True):
        if not is_class.sum():
            continue
        errors, order = (is_class - own).abs().sort(descending=True)
        target_sorted, jaccard, value = is_class[order], 0.0, torch.zeros((), dtype=torch.float64)
        for k in range(len(errors)):
            wrong = target_sorted[: k + 1]
            after = float(1 - (is_class.sum() - wrong.sum()) / (is_class.sum() + (1 - wrong).sum()))
            value, jaccard = value + errors[k] * (after - jaccard), after
        values.append(value)
    return torch.stack(values).mean()


REFERENCE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": reference_ce, "ohem": reference_ohem, "dice": reference_dice, "focal": reference_focal, "tversky": reference_tversky,
    "lovasz": reference_lovasz,
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_the_reference(name: str) -> None:
    logits, labels = example()
    ours, reference = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value, expected = Criterion(name)(ours, labels), REFERENCE_LOSSES[name](*one_hot(reference, labels))
    value.backward()
    expected.backward()
    assert value.dtype == torch.float32 and value.ndim == 0
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ours.grad is not None and reference.grad is not None
    assert torch.allclose(ours.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lovasz"])  # smp's accepts only float32
def test_gradients_equal_finite_differences(name: str) -> None:
    logits, labels = example(size=(4, 6))
    assert torch.autograd.gradcheck(lambda x: Criterion(name)(x, labels), logits.double().requires_grad_())


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), smoothing=st.sampled_from([0.0, 0.1, 0.9]), weighted=st.booleans())
def test_ce_equals_torchs_weighted_and_smoothed_mean(seed: int, smoothing: float, weighted: bool) -> None:
    logits, labels = example(seed)
    weights = torch.tensor([0.3, 2.0, 0.0, 50.0]) if weighted else None
    full = F.interpolate(logits, size=(12, 16), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, labels.long(), weights, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)
    assert Criterion("ce", weights, label_smoothing=smoothing)(logits, labels).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.parametrize("name", ["ohem", "focal"])
def test_equal_weights_change_nothing(name: str) -> None:
    logits, labels = example()
    plain, weighted = Criterion(name), Criterion(name, torch.full((CLASSES,), 7.0))
    assert weighted(logits, labels).item() == pytest.approx(plain(logits, labels).item(), rel=1e-5)


def test_focal_uses_class_weights() -> None:
    logits, labels = example()
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0])
    p, target = one_hot(logits, labels)
    own, weight = (target * p).sum(dim=1), (target * weights).sum(dim=1)
    expected = (-weight * (1 - own) ** 2 * own.log()).sum() / weight.sum()
    assert Criterion("focal", weights)(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_ohem_keeps_a_fraction_of_easy_pixels_and_all_hard_ones() -> None:
    logits, labels = example()
    noise = 0.1 * torch.randn(2, CLASSES, 12, 16, generator=torch.Generator().manual_seed(0))
    nearly = noise.scatter_add(1, labels.long().clamp(max=3)[:, None], torch.full((2, 1, 12, 16), 7.0))
    p, target = one_hot(nearly, labels)
    own = (target * p).sum(dim=1)
    assert own.min() > 0.99
    for fraction in (0.1, 1.0):
        hardest = own.sort().values[: math.ceil(fraction * len(own))]
        value = Criterion("ohem", ohem_keep=fraction)(nearly, labels)
        assert value.item() == pytest.approx(-hardest.log().mean().item(), rel=1e-3)
    assert Criterion("ohem", ohem_keep=0.0)(nearly, labels).item() == 0
    assert Criterion("ohem", ohem_threshold=1.0)(logits, labels).item() == pytest.approx(
        Criterion("ce")(logits, labels).item(), rel=1e-5
    )


@pytest.mark.parametrize("loss", [*LOSSES, *LOSS_SUMS])
def test_only_ignored_pixels_give_loss_0_and_gradients_0(loss: str) -> None:
    logits = example()[0].requires_grad_()
    value = Criterion(loss, torch.rand(CLASSES), label_smoothing=0.1)(
        logits, torch.full((2, 12, 16), IGNORE_INDEX, dtype=torch.uint8)
    )
    value.backward()
    assert value.item() == 0 and value.ndim == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_of_ignored_pixels_do_not_matter(loss: str) -> None:  # PaddleSeg #2270, mmsegmentation #3172
    _, labels = example()
    full = torch.randn(2, CLASSES, 12, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    other = torch.where((labels == IGNORE_INDEX)[:, None], 30 * torch.randn(full.shape), full)
    criterion = Criterion(loss, label_smoothing=0.1)
    value = criterion(full, labels)
    value.backward()
    assert criterion(other, labels).item() == pytest.approx(value.item(), rel=1e-5)
    assert full.grad is not None and not full.grad.movedim(1, -1)[labels == IGNORE_INDEX].any()


def test_dice_leaves_absent_classes_out_of_the_mean() -> None:
    # smp counts them as 0; smp #546 averages ignored ones
    logits, labels = example()
    fewer = logits.clone()
    fewer[:, 3] = -1000  # the absent class is never predicted
    assert Criterion("dice")(fewer, labels).item() == pytest.approx(
        Criterion("dice")(fewer[:, :3], labels).item(), rel=1e-5
    )


@pytest.mark.parametrize(("loss", "kind"), list(product([*LOSSES, *LOSS_SUMS], [torch.float16, torch.bfloat16])))
def test_half_precision_is_computed_in_float32(loss: str, kind: torch.dtype) -> None:
    # smp #463: more than 65504 pixels of a class overflow fp16, and smp's Dice is NaN.
    logits = torch.randn(1, 2, 36, 48, generator=torch.Generator().manual_seed(0)).to(kind).requires_grad_()
    labels = torch.zeros(1, 288, 384, dtype=torch.uint8)
    labels[:, :20] = 1
    with torch.autocast("cpu", torch.bfloat16):
        value = Criterion(loss)(logits, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == Criterion(loss)(logits.detach().float(), labels).item()
    assert logits.grad is not None and logits.grad.dtype == kind and logits.grad.isfinite().all()


def test_label_that_is_not_a_class_is_refused() -> None:  # pytorch #194802
    logits, labels = example()
    labels[0, 0, 0] = CLASSES
    with pytest.raises(RuntimeError, match="out of bounds"):
        Criterion("ce")(logits, labels)


def test_extreme_logits_stay_finite() -> None:
    _, labels = example()
    for loss in LOSSES:
        logits = (1e4 * torch.randn(2, CLASSES, 12, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
        value = Criterion(loss)(logits, labels)
        value.backward()
        assert value.isfinite() and logits.grad is not None and logits.grad.isfinite().all(), loss


def test_sum_is_weighted() -> None:
    logits, labels = example()
    value = Criterion("0.5*ohem+lovasz+2*ce")(logits, labels).item()
    ohem, lovasz, ce = (Criterion(name)(logits, labels).item() for name in ("ohem", "lovasz", "ce"))
    assert value == pytest.approx(0.5 * ohem + lovasz + 2 * ce, rel=1e-5)


def test_memory_layout_does_not_matter() -> None:
    logits, labels = example()
    for loss in LOSSES:
        channels_last = logits.contiguous(memory_format=torch.channels_last)
        assert Criterion(loss)(channels_last, labels).item() == Criterion(loss)(logits, labels).item()


def test_criterion_from_config() -> None:
    logits, labels = example()
    config = TrainConfig(loss="ohem", label_smoothing=0.2, ohem_threshold=0.5, ohem_keep=0.3)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = Criterion("ohem", weights, label_smoothing=0.2, ohem_threshold=0.5, ohem_keep=0.3)
    criterion = Criterion.from_config(config, weights)
    assert criterion(logits, labels).item() == expected(logits, labels).item()
    assert criterion.state_dict() == {}


class KernelRecorder(TorchDispatchMode):
    """Records the kernels that run."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.kernels.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_no_kernel_is_refused_by_deterministic_mode_on_cuda() -> None:
    """From the list of torch.use_deterministic_algorithms; torch itself replaces the bilinear kernel (functional.py)."""
    logits, labels = example()
    criterion = Criterion("+".join(LOSSES), torch.rand(CLASSES), label_smoothing=0.1, ohem_keep=0.99)
    with KernelRecorder() as recorder:
        criterion(logits.requires_grad_(), labels).backward()
    assert {"gather", "scatter_add", "topk"} <= {name.rstrip("_") for name in recorder.kernels}
    refused = {"median", "histc", "bincount", "put_", "cross_entropy_loss", "masked_scatter"}
    assert not [name for name in recorder.kernels if name in refused or name.startswith("nll_loss")]
