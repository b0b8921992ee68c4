import pytest
import torch
from torch.nn import functional as F
from training.module import Training, loss, parameter_groups

from models.architectures import build
from models.spec import VOID, InputRule
from training.config import TrainConfig
from training.data.loader import Batch, Shuffled, pad_together
from training.lint import Report
from training.train import scale


def test_loss_is_cross_entropy_at_full_size_over_what_is_not_void() -> None:
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    labels = torch.randint(0, 4, (2, 40, 48), dtype=torch.uint8)
    labels[0, :10] = VOID
    full = F.interpolate(logits, size=(40, 48), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, labels.long(), ignore_index=VOID)
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_an_all_void_batch_is_zero_with_finite_gradients() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 8, 8), VOID, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_loss_is_computed_in_float32_under_autocast() -> None:
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits.bfloat16(), labels)
    assert value.dtype == torch.float32


def test_the_auxiliary_head_is_learned_by_its_share() -> None:
    torch.manual_seed(0)
    network = build("fcn", 3, aux=True, dropout=0.0).eval()
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8)
    main, aux = (loss(logits, labels) for logits in network.training_logits(pictures.permute(0, 3, 1, 2)))
    for share in (0.0, 0.4, 1.0):
        total = Training(network, 3, TrainConfig(aux=True, aux_weight=share)).training_step((pictures, labels), 0)
        assert total.item() == pytest.approx((main + share * aux).item(), rel=1e-5)


def test_norms_and_biases_do_not_decay() -> None:
    network = build("fcn", 3)
    kernels, others = parameter_groups(network, 0.1)
    assert kernels["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert {parameter.ndim for parameter in others["params"]} == {1}
    assert len(kernels["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_the_rate_warms_up_and_decays_to_zero() -> None:
    module = Training(build("fcn", 2), 2, TrainConfig(warmup=10, power=1.0))
    rates = [module.rate(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == 0


def test_order_and_seeds_depend_on_seed_and_epoch_alone() -> None:
    first, second = Shuffled(50, seed=1), Shuffled(50, seed=1)
    assert list(first) == list(second)
    second.set_epoch(1)
    assert list(first) != list(second)
    first.set_epoch(1)
    assert list(first) == list(second)
    assert sorted(place for place, _ in first) == list(range(50))


def test_validation_pads_with_void_to_the_stride() -> None:
    items = [
        Batch(torch.full((h, w, 3), 9, dtype=torch.uint8), torch.ones(h, w, dtype=torch.uint8))
        for h, w in ((33, 50), (20, 70))
    ]
    pictures, labels = pad_together(items)
    assert pictures.shape == (2, 64, 96, 3)
    assert (labels[0, :33, :50] == 1).all()
    assert (labels == VOID).sum() == 2 * 64 * 96 - 33 * 50 - 20 * 70
    assert (pictures == 9).all()


@pytest.mark.parametrize(
    ("words", "sizes", "rule", "crop"),
    [
        ({}, [(360, 480)] * 3, InputRule(rule="fit", side=480), (352, 480)),
        ({"side": 240}, [(360, 480)], InputRule(rule="fit", side=240), (192, 256)),
        ({}, [(3000, 4000)], InputRule(rule="fit", side=1024), (512, 512)),
        ({"input": "native"}, [(100, 90), (200, 180), (300, 300)], InputRule(rule="native"), (192, 192)),
        ({"crop": (64, 64)}, [(360, 480)], InputRule(rule="fit", side=480), (64, 64)),
    ],
)
def test_scale_follows_from_the_pictures(
    words: dict[str, object], sizes: list[tuple[int, int]], rule: InputRule, crop: tuple[int, int]
) -> None:
    assert scale(TrainConfig.model_validate(words), Report([], sizes=sizes)) == (rule, crop)
