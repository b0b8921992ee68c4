"""The encoder of FCN-AlexNet: Krizhevsky 2012, made convolutional by Long, Shelhamer and Darrell 2015 (arXiv 1411.4038).

The first fully connected layer of the classifier, fc6, reads a 6 x 6 x 256 map: it is a 6x6 convolution applied at a
single position. The second one, fc7, is then a 1x1 convolution. The weights are torchvision's, reshaped.
torchvision pads its layers too little for maps of exactly H/4, H/8, ...; here each layer is padded to these sizes, as
the skip sums need, with the same kernels.
"""

from typing import ClassVar

from torch import Tensor, nn

# torchvision's layer -> the layer here
_CLASSIFIER_LAYERS = {
    "features.0": "conv1.1",
    "features.3": "conv2.1",
    "features.6": "conv3.1",
    "features.8": "conv4.0",
    "features.10": "conv5.0",
    "classifier.1": "fc6.2",
    "classifier.4": "fc7.1",
}


class AlexNetEncoder(nn.Module):
    """Images float N x 3 x H x W -> six maps at strides 1, 2, 4, 8, 16, 32; the map of stride 2 has no channels."""

    out_channels: ClassVar = [3, 0, 64, 192, 256, 4096]

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.ZeroPad2d((3, 4, 3, 4)), nn.Conv2d(3, 64, kernel_size=11, stride=4), nn.ReLU())
        self.conv2 = nn.Sequential(_max_pool(), nn.Conv2d(64, 192, kernel_size=5, padding=2), nn.ReLU())
        self.conv3 = nn.Sequential(_max_pool(), nn.Conv2d(192, 384, kernel_size=3, padding=1), nn.ReLU())
        self.conv4 = nn.Sequential(nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU())
        self.conv5 = nn.Sequential(nn.Conv2d(256, 256, kernel_size=3, padding=1), nn.ReLU())
        self.fc6 = nn.Sequential(
            _max_pool(), nn.ZeroPad2d((2, 3, 2, 3)), nn.Conv2d(256, 4096, kernel_size=6), nn.ReLU()
        )
        self.fc7 = nn.Sequential(nn.Dropout(), nn.Conv2d(4096, 4096, kernel_size=1), nn.ReLU())
        for layer in self.modules():  # with torch's default initialisation the signal vanishes over eight layers
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, finest first."""
        count, _, height, width = images.shape
        stride_4 = self.conv1(images)
        stride_8 = self.conv2(stride_4)
        stride_16 = self.conv5(self.conv4(self.conv3(stride_8)))
        stride_32 = self.fc7(self.fc6(stride_16))
        return [images, images.new_empty(count, 0, height // 2, width // 2), stride_4, stride_8, stride_16, stride_32]


def convert_classifier_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the weights of torchvision's classifier `alexnet` for this encoder, without its last layer, fc8."""
    converted = {}
    for old, new in _CLASSIFIER_LAYERS.items():
        weight = state[f"{old}.weight"]
        if new == "fc6.2":
            weight = weight.reshape(4096, 256, 6, 6)
        elif new == "fc7.1":
            weight = weight.reshape(4096, 4096, 1, 1)
        converted[f"{new}.weight"] = weight
        converted[f"{new}.bias"] = state[f"{old}.bias"]
    return converted


def _max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
