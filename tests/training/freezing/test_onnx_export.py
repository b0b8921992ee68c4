"""A network that cannot be exported is a clear error."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.architectures.base import Network
from models.errors import BundleError
from models.spec import Architecture
from training.freezing.onnx_export import export_onnx


class DataDependentNetwork(nn.Module):
    """A network whose control flow depends on its values."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(images if images.sum() > 0 else -images)


def test_network_with_data_dependent_control_flow(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = Network(DataDependentNetwork(), Architecture(name="branching"), 2).eval()
    with (
        torch.inference_mode(),
        pytest.raises(BundleError, match=r"branching cannot be exported .* Train another encoder"),
    ):
        export_onnx(network, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    assert len(capfd.readouterr().err.splitlines()) < 5
