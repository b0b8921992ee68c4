"""The thresholds of findings, and what healthy networks measure.

Each limit is well outside the range of two healthy networks: the demo (FCN-8s on a ResNet-18, shapes, `configs/demo.yaml`)
and CamVid (`configs/camvid.yaml`, 480 x 360).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """The limit of a measurement; beyond it there is a finding."""

    limit: float
    meaning: str  # what is measured, with its unit
    above: bool = True  # whether a value above the limit is a finding; else one below

    def crossed_by(self, value: float) -> bool:
        """Whether a value gives a finding."""
        return value > self.limit if self.above else value < self.limit


THRESHOLDS: dict[str, Threshold] = {
    "dead kernels": Threshold(0.10, "fraction of the first layer's kernels without effect"),
    "dead channels": Threshold(0.10, "fraction of a stage's channels that are constant over the image"),
    "duplicate channels": Threshold(0.25, "fraction of a stage's channels that repeat another one"),
    "small field": Threshold(0.5, "effective field's width / thickness of a class's objects", above=False),
    "blind pixels": Threshold(0.02, "fraction of a class's pixels in whose theoretical field no border lies"),
    "coarse grid": Threshold(
        0.75, "stride of the logits / median thickness of the objects, of the data if there is some"
    ),
    "unstable labels": Threshold(0.12, "fraction of labels that change when the image moves by 3 pixels"),
    "channel order": Threshold(0.02, "gain in confidence or accuracy from reversing the channels"),
    "uncertain": Threshold(0.45, "mean entropy of the class probabilities / its maximum"),
    "failed check": Threshold(0.5, "rank correlation of a map with that of a random network"),
    "mask shift": Threshold(2.5, "pixels by which the masks lie beside the edges of the images"),
    "border errors": Threshold(0.9, "fraction of the errors within 4 pixels of a border between classes"),
    "overconfident": Threshold(0.10, "expected calibration error"),
    "idle blocks": Threshold(0.001, "fraction of labels that change without a residual block", above=False),
}
