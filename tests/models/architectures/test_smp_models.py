"""The networks named `smp/...` give the logits of segmentation-models-pytorch's own with the same weights."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from models.architectures import build
from models.architectures.smp_models import SMP_MODELS
from models.errors import ConfigError
from tests.fixtures_networks import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODERS = ["efficientnet-b0", "mobilenet_v2", "tu-resnet10t"]  # dilated in three ways
CASES = [
    *((name, "resnet18", stride) for name, entry in SMP_MODELS.items() for stride in entry.output_strides),
    *(("DeepLabV3", encoder, 8) for encoder in ENCODERS),
]


@pytest.mark.parametrize(("name", "encoder", "stride"), CASES)
@torch.no_grad()
def test_logits_equal_those_of_smp(name: str, encoder: str, stride: int) -> None:
    torch.manual_seed(0)
    options = {"encoder_output_stride": stride} if name.startswith("DeepLab") else {}
    original = getattr(smp, name)(encoder, encoder_weights=None, classes=CLASSES, **options).eval()
    network = build(f"smp/{name}", CLASSES, encoder=encoder, output_stride=stride).eval()
    state = original.state_dict()
    network.body.load_state_dict({key: state[key] for key in network.body.state_dict()})
    original.segmentation_head[1] = nn.Identity()  # the upsampling, which aligns corners

    images = torch.randn(1, 3, 64, 96)
    expected = original(images)
    logits = network.body(images)
    assert expected.std() > 1e-3
    assert (logits - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_encoder_that_smp_cannot_dilate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"The encoder vgg11 cannot be built: .*dilated mode"):
        build("smp/DeepLabV3", CLASSES, encoder="vgg11")
