"""The rules of a plan, in the order of their dependencies. The user's overrides are kept, and later rules build on them.

docs/training.md holds the experiments behind the numbers here.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.architectures.finetune import open_bundle_with_weights
from models.inference.geometry import network_input_size
from models.spec import InputRule
from training.config import TrainConfig
from training.config_io import config_from_dict
from training.data.loader import STRIDE
from training.plan.fingerprint import FEW_IMAGES, DatasetFingerprint
from training.plan.profiling import MachineProfile

# RegNetX (arXiv 2003.13678), each encoder with twice the work of the one before: in equal time the smaller one is better
# until it has seen the images often enough (docs/training.md: 48.8 mIoU with 400 MF, 43.8 with 800 MF, 40.3 with ResNet-18).
ENCODER_LADDER = ("tu-regnetx_002", "tu-regnetx_004", "tu-regnetx_008", "tu-regnetx_016", "tu-regnetx_032")
FIRST_RUNG = 1  # index of the encoder to start from

MAX_CROP_AREA = {"cpu": 320 * 320, "cuda": 512 * 512}  # pixels of the largest crop
MAX_FIT_SIDE = {"cpu": 512, "cuda": 1024}  # the largest long side for `fit`
MIN_FIT_SIDE = {"cpu": 384, "cuda": 512}  # the smallest: smaller images are enlarged, which is worth its cost
MAX_ENLARGEMENT = 2  # times
MIN_CLASS_WIDTH = 16.0  # pixels: if all classes are wider, a lower scale shows them as well
DEFAULT_BATCH = {"cpu": 8, "cuda": 16}


@dataclass(frozen=True)
class PlannedSetting:
    """A setting's value and its reason."""

    value: Any
    reason: str


@dataclass
class Plan:
    """The settings chosen so far, each with its reason; it starts with the user's overrides."""

    overrides: dict[str, Any]
    settings: dict[str, PlannedSetting] = field(default_factory=dict)
    expected_epochs: float = math.inf  # that the minutes allow
    busy_fraction: float = 0.0  # of the timing of steps, during which other programs had the processor

    def __post_init__(self) -> None:
        self.overrides = {name: value for name, value in self.overrides.items() if value is not None}
        for name, value in self.overrides.items():
            self.settings[name] = PlannedSetting(value, "your setting")

    def set(self, name: str, value: Any, reason: str) -> None:
        """Choose a setting, unless the user overrides it."""
        if name not in self.overrides:
            self.settings[name] = PlannedSetting(value, reason)

    def explain_override(self, name: str, consequence: str) -> None:
        """Add a consequence to the reason of an override."""
        self.settings[name] = PlannedSetting(self.overrides[name], f"your setting: {consequence}")

    def __getitem__(self, name: str) -> Any:
        return getattr(self.config(), name)

    def config(self) -> TrainConfig:
        """The settings so far, and defaults for the others. Raises: ConfigError."""
        return config_from_dict({name: setting.value for name, setting in self.settings.items()})


def choose_architecture(plan: Plan) -> None:
    """The architecture of initial weights from a bundle. Raises: BundleError, WeightsError."""
    weights, folder = plan["weights"], Path(plan["weights"]).expanduser()
    if weights in ("none", "imagenet"):
        return
    if not folder.is_dir():
        plan.set("encoder", plan["encoder"], f"the default; set it if {weights} belongs to another encoder")
        return
    architecture = open_bundle_with_weights(folder).spec.architecture
    plan.set("architecture", architecture.name, "from the bundle of initial weights")
    for name, value in architecture.options.items():
        if name in TrainConfig.model_fields:
            plan.set(name, value, "from the bundle of initial weights")


def choose_input_rule(plan: Plan, fingerprint: DatasetFingerprint, machine: MachineProfile) -> None:
    """The resize rule for input images, and the long side of `fit`."""
    long, min_side = max(fingerprint.median_size), MIN_FIT_SIDE[machine.device]
    exponent, same_size = fingerprint.width_exponent, fingerprint.size_spread < 1.1
    if "side" in plan.overrides:
        plan.set("input", "fit", "you set a side")
    elif (fitted := _shrunk_short_side(fingerprint, machine)) is not None and fitted < STRIDE:
        height, width = fingerprint.median_size
        reason = f"images are long and narrow, {width} x {height}: resized to fit, {fitted:.2g} pixels of the short side remain"
        plan.set("input", "native", reason)
    elif exponent is not None and exponent < 0.5 and not fingerprint.vertically_asymmetric:
        plan.set("input", "native", f"objects have the same size in larger images (exponent {exponent:.1f})")
    elif exponent is not None and exponent >= 0.5:
        plan.set("input", "fit", f"objects are larger in larger images (exponent {exponent:.1f})")
    elif fingerprint.num_train_images < FEW_IMAGES:
        plan.set("input", "fit", "too few images to tell; assumed to be photographs")
    elif fingerprint.vertically_asymmetric:
        plan.set("input", "fit", "classes lie mostly in one half, upper or lower: photographs, whose scale varies")
    elif fingerprint.median_class_width > MAX_CROP_AREA[machine.device] ** 0.5 / 2:
        plan.set(
            "input",
            "fit",
            f"objects are {fingerprint.median_class_width:.0f} pixels wide, too wide for a crop of native pixels",
        )
    elif same_size and long < min_side:
        plan.set("input", "fit", f"images of {long} pixels are small enough to be enlarged")
    else:
        plan.set("input", "native", "no class prefers the upper or lower half: scanner, microscope or aerial images")
    if plan["input"] == "fit":
        plan.set("side", *_fit_side(fingerprint, machine))


def _shrunk_short_side(fingerprint: DatasetFingerprint, machine: MachineProfile) -> float | None:
    """The short side of an image that `fit` would shrink, in pixels; None if it would not."""
    long, short = max(fingerprint.median_size), min(fingerprint.median_size)
    side, _ = _fit_side(fingerprint, machine)
    return short * side / long if side < long else None


def _fit_side(fingerprint: DatasetFingerprint, machine: MachineProfile) -> tuple[int, str]:
    """The long side for `fit` in pixels, and the reason."""
    long, min_side = max(fingerprint.median_size), MIN_FIT_SIDE[machine.device]
    if long < min_side:
        side = max(STRIDE, min(MAX_ENLARGEMENT * long, min_side))
        return side, f"enlarged from {long}: the finest scores are 8 pixels apart"
    side = min(long, MAX_FIT_SIDE[machine.device])
    if fingerprint.min_class_width * side / long >= MIN_CLASS_WIDTH:
        side = min(side, max(min_side, round(MIN_CLASS_WIDTH * long / fingerprint.min_class_width / STRIDE) * STRIDE))
        return side, f"the thinnest class is still {fingerprint.min_class_width * side / long:.0f} pixels wide"
    if side == long:
        return side, f"the median long side; the thinnest class is {fingerprint.min_class_width:.0f} pixels wide"
    return side, f"reduced from {long} to train fast on {machine.name}"


def planned_input_rule(plan: Plan) -> InputRule:
    """The input rule of the plan so far."""
    return InputRule(rule="fit", side=plan["side"]) if plan["input"] == "fit" else InputRule(rule="native")


def choose_crop(plan: Plan, fingerprint: DatasetFingerprint, machine: MachineProfile) -> None:
    """The crop: about two thirds of each side, so that every crop differs."""
    fitted = network_input_size(fingerprint.median_size, planned_input_rule(plan))
    sides = [_crop_side(side) for side in fitted]
    reason = (
        f"about two thirds of the {'fitted' if plan['input'] == 'fit' else 'median'} image, {fitted[1]} x {fitted[0]}"
    )
    if sides[0] * sides[1] > MAX_CROP_AREA[machine.device]:
        shrink = math.sqrt(MAX_CROP_AREA[machine.device] / (sides[0] * sides[1]))
        sides = [max(STRIDE, int(side * shrink) // STRIDE * STRIDE) for side in sides]
        reason = f"reduced from the image's {fitted[1]} x {fitted[0]} to train fast on {machine.name}"
    plan.set("crop", sides, reason)


def _crop_side(side: int) -> int:
    """The whole side of a small image, part of a larger one; in pixels divisible by the deepest stride."""
    whole = math.ceil(side / STRIDE) * STRIDE
    return whole if whole <= 6 * STRIDE else max(6 * STRIDE, round(0.68 * side / STRIDE) * STRIDE)


def choose_augmentation(plan: Plan, fingerprint: DatasetFingerprint, has_color: bool = True) -> None:
    """Augmentations that keep the meaning of an image. `has_color`: whether it has the channels red, green and blue."""
    if fingerprint.horizontally_asymmetric:
        plan.set("flip", 0.0, "a class lies mostly in the left or right half")
    else:
        plan.set("flip", 0.5, "classes are symmetric left to right")
    if fingerprint.num_train_images < FEW_IMAGES:
        plan.set("vflip", 0.0, "too few images to tell whether they have an upside")
    elif fingerprint.vertically_asymmetric:
        plan.set("vflip", 0.0, "classes lie mostly in the upper or lower half")
    else:
        plan.set("vflip", 0.5, "classes are symmetric top to bottom")
    if plan["input"] == "fit":
        plan.set("scale", [0.5, 1.75], "object size varies")
    else:
        plan.set("scale", [0.7, 1.4], "all images have one scale; some variation")
    if has_color:
        plan.set("color_jitter", 0.4, "light varies; stronger jitter lowered the accuracy of short trainings")
    else:
        plan.set("color_jitter", 0.0, "the channels are not red, green and blue")


def choose_loss(plan: Plan, fingerprint: DatasetFingerprint) -> None:
    """Cross-entropy weights pixels alike, Dice classes."""
    rare = int(fingerprint.pixel_fractions.argmin()) if fingerprint.pixel_fractions.size else 0
    rarest = f"the rarest class has {fingerprint.pixel_fractions[rare]:.2%} of the pixels"
    plan.set("loss", "ce+dice", f"{rarest}; dice weights all classes alike")
    plan.set("class_weights", "none", "dice has the same effect, without predicting rare classes too often")
    height, width = plan["crop"]
    fitted = network_input_size(fingerprint.median_size, planned_input_rule(plan))
    visible = min(1.0, height * width / (fitted[0] * fitted[1]))
    occurring = fingerprint.image_fractions[fingerprint.image_fractions > 0]
    chance = float(occurring.min(initial=1.0)) * visible
    if chance < 0.15:
        plan.set("class_balanced_crops", 0.33, f"the rarest class is in only {chance:.0%} of random crops")
    else:
        plan.set("class_balanced_crops", 0.0, f"even the rarest class is in {chance:.0%} of random crops")


def choose_optimiser(plan: Plan) -> None:
    """AdamW; a pretrained encoder gets a lower learning rate."""
    batch, weights = plan["batch"] * plan["accumulate"], plan["weights"]
    plan.set(
        "weights", "none", "from scratch; weights=imagenet downloads pretrained weights, which need less data and time"
    )
    plan.set("optimizer", "adamw", "needs the least tuning from scratch (arXiv 1711.05101)")
    if plan["optimizer"] == "sgd":
        peak = 0.02 if weights == "none" else 0.005
        plan.set(
            "lr", round(peak * batch / 8, 5), f"{peak} for a batch of 8, proportional to the batch (arXiv 1706.02677)"
        )
        plan.set("weight_decay", 5e-4, "default of SGD, where it is part of the gradient")
    else:
        is_regnet = "regnet" in plan["encoder"] and plan["architecture"] == "fcn"
        peak = 0.001 if weights != "none" else 0.01 if is_regnet else 0.002
        prefix = "initial weights need small steps: " if weights != "none" else ""
        plan.set(
            "lr",
            round(peak * math.sqrt(batch / 8), 5),
            f"{prefix}{peak} for a batch of 8, proportional to the square root of the batch",
        )
        plan.set("weight_decay", 0.05, "default of AdamW, apart from the gradient")
    if weights == "imagenet" or plan["reset_head"]:
        plan.set("head_lr", 10.0, "the head starts from random weights, the encoder does not")
    plan.set("ema", 0.99, "averaged weights vary less, and cost little")
