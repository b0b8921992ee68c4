"""What cannot be frozen is said in a sentence."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.architectures.base import Network
from models.errors import BundleError
from models.spec import Architecture
from training.freezing.onnx_export import export_onnx


class DataDependentNetwork(nn.Module):
    """A network that looks at its values before it decides what to do, as no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(images if images.sum() > 0 else -images)


def test_a_network_that_no_graph_can_hold(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = Network(DataDependentNetwork(), Architecture(name="moody"), 2).eval()
    with torch.inference_mode(), pytest.raises(BundleError, match=r"moody cannot be frozen .* Train another encoder"):
        export_onnx(network, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    assert len(capfd.readouterr().err.splitlines()) < 5
