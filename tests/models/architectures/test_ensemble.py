"""Several networks as one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.architectures import build
from models.architectures.base import Network, upsample
from models.architectures.ensemble import combine
from models.architectures.finetune import open_bundle_with_weights
from models.bundle import MODEL_FILE, SPEC_FILE, WEIGHTS_FILE, Bundle, bundle_writer
from models.engines.torch_engine import build_network
from models.errors import WeightsError
from models.spec import BundleSpec, ClassInfo, InputRule, Scaling

FIVE_CHANNELS = InputRule(
    rule="native",
    channels=("a", "b", "c", "d", "e"),
    dtype="uint16",
    scaling=Scaling(kind="window", low=(0.0,) * 5, high=(900.0,) * 5),
)


def members(rule: InputRule) -> list[Network]:
    """Three small networks whose logits have the strides 2, 32 and 2."""
    torch.manual_seed(0)
    made = [
        build("unet", 3, width=4, blocks=1, strides=[2, 2]),
        build("fcn", 3, head="linear"),
        build("unet", 3, width=6, blocks=1, strides=[2, 2]),
    ]
    for network in made:
        network.eval().set_input(rule)
    return made


@pytest.mark.parametrize("rule", [InputRule(rule="native"), FIVE_CHANNELS])
def test_logits_are_the_mean_also_after_the_bundle(rule: InputRule, tmp_path: Path) -> None:
    """Of grids of different strides; the torch engine builds the members from the spec, with the channels of the rule."""
    networks = members(rule)
    ensemble = combine(networks)
    images = torch.randint(0, 256, (2, 64, 96, len(rule.channels))).to(getattr(torch, rule.dtype))
    with torch.no_grad():
        labels, logits = ensemble(images)
        parts = [upsample(network(images)[1], (32, 48)) for network in networks]  # the finest grid
    torch.testing.assert_close(logits, torch.stack(parts).mean(dim=0))
    assert labels.tolist() == upsample(logits, (64, 96)).argmax(dim=1).tolist()

    classes = [ClassInfo(name=f"class {label}", rgb=(label, 0, 0)) for label in range(3)]
    spec = BundleSpec(name="three", classes=classes, input=rule, architecture=ensemble.architecture)
    with bundle_writer(tmp_path / "b") as new:
        save_file({name: value.contiguous() for name, value in ensemble.state_dict().items()}, new / WEIGHTS_FILE)
        (new / SPEC_FILE).write_text(spec.model_dump_json())
        (new / MODEL_FILE).write_bytes(b"not read here")
    bundle = Bundle(tmp_path / "b", BundleSpec.model_validate_json((tmp_path / "b" / SPEC_FILE).read_text()))
    with torch.no_grad():
        torch.testing.assert_close(build_network(bundle)(images)[1], logits)
    with pytest.raises(WeightsError, match="is an ensemble of networks; to fine-tune, name the bundle of one of them"):
        open_bundle_with_weights(tmp_path / "b")


def test_a_member_that_normalises_otherwise_is_named() -> None:
    networks = members(InputRule(rule="native"))
    networks[1].mean += 1
    with pytest.raises(ValueError, match="1"):
        combine(networks)
