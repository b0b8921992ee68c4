"""The network of the three tutorial servers: torchvision's FCN-ResNet-50 as in its documentation, PIL image in, PIL mask out.

TUTORIAL_NETWORK=none omits the network, to measure the cost of the server itself.
"""

import os

import torch
from PIL import Image
from torchvision.models.segmentation import fcn_resnet50
from torchvision.transforms.functional import normalize, pil_to_tensor

CLASSES = 21
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class TutorialSegmenter:
    """Eager float32 with PyTorch's own choice of threads. The weights are random, which does not change the time."""

    def __init__(self) -> None:
        self.network = None
        if os.environ.get("TUTORIAL_NETWORK") != "none":
            self.network = fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES).eval()

    def __call__(self, image: Image.Image) -> Image.Image:
        """Segment an image; the mask is gray, each pixel its label."""
        values = normalize(pil_to_tensor(image.convert("RGB")) / 255, MEAN, STD)
        with torch.inference_mode():
            labels = values[0] if self.network is None else self.network(values[None])["out"][0].argmax(0)
        return Image.fromarray(labels.to(torch.uint8).numpy())
