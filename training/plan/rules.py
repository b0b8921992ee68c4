"""The choices of a plan, in the order in which they follow from one another. What the user has said stands, and is built on.

Where a number here is from a trial of ours, docs/training.md holds the trial.
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

# RegNetX (arXiv 2003.13678), a ladder of encoders each of twice the work: at equal minutes the smaller one is the better
# until it has seen the images often enough (docs/training.md: 48.8 mIoU with 400 MF, 43.8 with 800 MF, 40.3 with ResNet-18).
ENCODER_LADDER = ("tu-regnetx_002", "tu-regnetx_004", "tu-regnetx_008", "tu-regnetx_016", "tu-regnetx_032")
FIRST_RUNG = 1  # the rung to begin at

MAX_CROP_AREA = {"cpu": 320 * 320, "cuda": 512 * 512}  # pixels of the largest crop
MAX_FIT_SIDE = {"cpu": 512, "cuda": 1024}  # the largest long side for `fit`
MIN_FIT_SIDE = {"cpu": 384, "cuda": 512}  # the smallest: smaller images are enlarged, which pays at their price
MAX_ENLARGEMENT = 2  # times, at most
MIN_CLASS_WIDTH = 16.0  # pixels: classes that are all as wide are seen as well at a lower scale
DEFAULT_BATCH = {"cpu": 8, "cuda": 16}


@dataclass(frozen=True)
class PlannedSetting:
    """A setting's value, and what it follows from."""

    value: Any
    reason: str


@dataclass
class Plan:
    """Settings as they are chosen, each with its reason; the user's own come first."""

    overrides: dict[str, Any]
    settings: dict[str, PlannedSetting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.overrides = {name: value for name, value in self.overrides.items() if value is not None}
        for name, value in self.overrides.items():
            self.settings[name] = PlannedSetting(value, "as you said")

    def set(self, name: str, value: Any, why: str) -> None:
        """Choose, unless the user has."""
        if name not in self.overrides:
            self.settings[name] = PlannedSetting(value, why)

    def explain_override(self, name: str, why: str) -> None:
        """Say what follows from what the user has chosen."""
        self.settings[name] = PlannedSetting(self.overrides[name], f"as you said: {why}")

    def __getitem__(self, name: str) -> Any:
        return getattr(self.config(), name)

    def config(self) -> TrainConfig:
        """The settings so far, the rest by default. Raises: ConfigError."""
        return config_from_dict({name: choice.value for name, choice in self.settings.items()})


def choose_architecture(plan: Plan) -> None:
    """Weights fit the network that they are of. Raises: BundleError, WeightsError."""
    weights, folder = plan["weights"], Path(plan["weights"]).expanduser()
    if weights in ("none", "imagenet"):
        return
    if not folder.is_dir():
        plan.set("encoder", plan["encoder"], f"the usual one: say another where {weights} is of another")
        return
    architecture = open_bundle_with_weights(folder).spec.architecture
    plan.set("architecture", architecture.name, "of the bundle to begin from")
    for name, value in architecture.options.items():
        if name in TrainConfig.model_fields:
            plan.set(name, value, "of the bundle to begin from")


def choose_input_rule(plan: Plan, survey: DatasetFingerprint, machine: MachineProfile) -> None:
    """How images of any size meet the network: the input rule, and the long side that `fit` brings them to."""
    long, least = max(survey.median_size), MIN_FIT_SIDE[machine.device]
    follows, one_size = survey.width_exponent, survey.size_spread < 1.1
    if "side" in plan.overrides:
        plan.set("input", "fit", "you said a side")
    elif follows is not None and follows < 0.5 and not survey.vertically_asymmetric:
        why = f"things keep their pixels where images grow (slope {follows:.1f} of width over size)"
        plan.set("input", "native", why)
    elif follows is not None and follows >= 0.5:
        plan.set("input", "fit", f"things grow with their images (slope {follows:.1f} of width over size)")
    elif survey.num_train_images < FEW_IMAGES:
        plan.set("input", "fit", "too few images to tell, so they are taken to be photographs")
    elif survey.vertically_asymmetric:
        plan.set("input", "fit", "classes have their place above or below: photographs, which come at any scale")
    elif survey.median_class_width > MAX_CROP_AREA[machine.device] ** 0.5 / 2:
        plan.set(
            "input",
            "fit",
            f"things are {survey.median_class_width:.0f} pixels wide, too wide for a crop of native pixels",
        )
    elif one_size and long < least:
        plan.set("input", "fit", f"images of {long} pixels are small enough to be looked at enlarged")
    else:
        plan.set("input", "native", "nothing has its place above or below: a scanner, a microscope, a view from above")
    if plan["input"] == "fit":
        plan.set("side", *_fit_side(survey, machine))


def _fit_side(survey: DatasetFingerprint, machine: MachineProfile) -> tuple[int, str]:
    """The long side for `fit` in pixels, and why."""
    long, least = max(survey.median_size), MIN_FIT_SIDE[machine.device]
    if long < least:
        side = max(STRIDE, min(MAX_ENLARGEMENT * long, least))
        return side, f"of {long}, enlarged: the finest scores stand 8 pixels apart"
    side = min(long, MAX_FIT_SIDE[machine.device])
    if survey.min_class_width * side / long >= MIN_CLASS_WIDTH:
        side = min(side, max(least, round(MIN_CLASS_WIDTH * long / survey.min_class_width / STRIDE) * STRIDE))
        return side, f"at which the thinnest class is still {survey.min_class_width * side / long:.0f} pixels wide"
    if side == long:
        return (
            side,
            f"the images' median long side, where the thinnest class is {survey.min_class_width:.0f} pixels wide",
        )
    return side, f"of {long}, as much as {machine.name} passes quickly"


def planned_input_rule(plan: Plan) -> InputRule:
    """The input rule that was chosen."""
    return InputRule(rule="fit", side=plan["side"]) if plan["input"] == "fit" else InputRule(rule="native")


def choose_crop(plan: Plan, survey: DatasetFingerprint, machine: MachineProfile) -> None:
    """What a step sees of an image: about two thirds of each side, so that no crop shows the same as the one before."""
    fitted = network_input_size(survey.median_size, planned_input_rule(plan))
    sides = [_crop_side(side) for side in fitted]
    why = f"some two thirds of the {'fitted' if plan['input'] == 'fit' else 'median'} image, {fitted[1]} x {fitted[0]}"
    if sides[0] * sides[1] > MAX_CROP_AREA[machine.device]:
        shrink = math.sqrt(MAX_CROP_AREA[machine.device] / (sides[0] * sides[1]))
        sides = [max(STRIDE, int(side * shrink) // STRIDE * STRIDE) for side in sides]
        why = f"as much of the image ({fitted[1]} x {fitted[0]}) as {machine.name} passes quickly"
    plan.set("crop", sides, why)


def _crop_side(side: int) -> int:
    """A small image whole, a larger one in part; in pixels that divide by the deepest stride."""
    whole = math.ceil(side / STRIDE) * STRIDE
    return whole if whole <= 6 * STRIDE else max(6 * STRIDE, round(0.68 * side / STRIDE) * STRIDE)


def choose_augmentation(plan: Plan, survey: DatasetFingerprint) -> None:
    """What may happen to an image without making another thing of it."""
    if survey.horizontally_asymmetric:
        plan.set("flip", 0.0, "a class has its place left or right")
    else:
        plan.set("flip", 0.5, "no class has its place left or right")
    if survey.num_train_images < FEW_IMAGES:
        plan.set("vflip", 0.0, "too few images to tell whether classes have their place above or below")
    elif survey.vertically_asymmetric:
        plan.set("vflip", 0.0, "classes have their place above or below")
    else:
        plan.set("vflip", 0.5, "no class has its place above or below")
    if plan["input"] == "fit":
        plan.set("scale", [0.5, 1.75], "things come near and far")
    else:
        plan.set("scale", [0.7, 1.4], "one scale, and some change of it")
    plan.set("color_jitter", 0.4, "light differs; stronger changes cost more than they bought in short trainings")


def choose_loss(plan: Plan, survey: DatasetFingerprint) -> None:
    """Cross-entropy teaches each pixel, Dice each class."""
    rare = int(survey.pixel_fractions.argmin()) if survey.pixel_fractions.size else 0
    share = f"the rarest class has {survey.pixel_fractions[rare]:.2%} of the pixels"
    plan.set("loss", "ce+dice", f"{share}; dice counts classes alike, whatever they fill")
    plan.set("class_weights", "none", "dice does their work, and does not promise pixels to rare classes")
    height, width = plan["crop"]
    fitted = network_input_size(survey.median_size, planned_input_rule(plan))
    seen = min(1.0, height * width / (fitted[0] * fitted[1]))
    occurring = survey.image_fractions[survey.image_fractions > 0]
    chance = float(occurring.min(initial=1.0)) * seen
    if chance < 0.15:
        plan.set(
            "class_balanced_crops", 0.33, f"a random crop shows the least frequent class with a chance of {chance:.0%}"
        )
    else:
        plan.set("class_balanced_crops", 0.0, f"even the least frequent class is in {chance:.0%} of random crops")


def choose_optimiser(plan: Plan) -> None:
    """AdamW; a pretrained encoder is treated with more care than one from scratch."""
    batch, weights = plan["batch"] * plan["accumulate"], plan["weights"]
    plan.set("weights", "none", "from scratch; weights=imagenet fetches pretrained ones, and needs less data and time")
    plan.set("optimizer", "adamw", "needs the least tuning from scratch (arXiv 1711.05101)")
    if plan["optimizer"] == "sgd":
        peak = 0.02 if weights == "none" else 0.005
        plan.set("lr", round(peak * batch / 8, 5), f"{peak} at a batch of 8, in step with the batch (arXiv 1706.02677)")
        plan.set("weight_decay", 5e-4, "of SGD, where it is part of the gradient")
    else:
        quick = "regnet" in plan["encoder"] and plan["architecture"] == "fcn"
        peak = 0.001 if weights != "none" else 0.01 if quick else 0.002
        begun = "the weights are good already: " if weights != "none" else ""
        plan.set(
            "lr", round(peak * math.sqrt(batch / 8), 5), f"{begun}{peak} at a batch of 8, by the root of the batch"
        )
        plan.set("weight_decay", 0.05, "AdamW's, apart from the gradient")
    if weights == "imagenet" or plan["reset_head"]:
        plan.set("head_lr", 10.0, "the head begins anew, and the encoder does not")
    plan.set("ema", 0.99, "averaged weights are steadier, and cost little")
