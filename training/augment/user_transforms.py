"""The user's own albumentations transforms: the setting `transforms`, such as `[{name: RandomFog, p: 0.1}]`.

A loader worker applies them in order to the resized image, before the geometry and colors of `policy.py`. Their random numbers
depend only on the seed of the run and the number of the sample, like all others. A mask moves by nearest neighbor, and what a
transform brings in from outside is `IGNORE_INDEX` in the mask and `FILL_COLOR` in the image.

albumentations takes seconds to import, so it is imported only if there are transforms.
"""

import inspect
import random
from typing import Any

import numpy as np

from models.errors import ConfigError, closest_names, first_line, quoted
from models.imaging.decode import Labels
from models.inference.geometry import Image
from models.spec import IGNORE_INDEX, InputRule
from training.augment.params import FILL_COLOR

NEAREST_INTERPOLATIONS = (0, 6)  # cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT
TRIAL_SIZES = ((97, 131), (131, 97), (160, 64))  # (height, width) of the images that `check` tries
TRIAL_SEEDS = range(3)


class UserTransforms:
    """A list of albumentations transforms, built from their names and arguments."""

    def __init__(self, settings: list[dict[str, Any]], rule: InputRule | None = None) -> None:
        """`rule`: the network's input; None for photographs. Raises: ConfigError for an unknown name or wrong arguments."""
        self.channels = len(rule.channels) if rule else 3
        self.dtype = rule.dtype if rule else "uint8"
        self.transforms = [make_transform(entry, self.channels) for entry in settings]

    def __call__(self, image: Image, labels: Labels, seed: tuple[int, ...]) -> tuple[Image, Labels]:
        """Transform H x W x C in the input's dtype and labels uint8 H x W; the size stays.

        Equal seeds give equal results. Raises: ConfigError if a transform changes the size or the type.
        """
        if not self.transforms:
            return image, labels
        generator, py_random = np.random.default_rng(seed), random.Random(repr(seed))
        image, labels = np.array(image), np.array(labels)  # copies: cached images are read-only, and some work in place
        for transform in self.transforms:
            transform.set_random_state(generator, py_random)
            result = transform(image=image, mask=labels)
            check_result(_name(transform), image, result["image"], labels, result["mask"])
            image, labels = result["image"], result["mask"]
        return image, labels

    def check(self) -> None:
        """Try each transform on images of several sizes. Raises: ConfigError that names the one that does not work."""
        for transform in self.transforms:
            probability, transform.p = transform.p, 1.0
            try:
                for size in TRIAL_SIZES:
                    for seed in TRIAL_SEEDS:
                        try_transform(transform, size, seed, self.channels, self.dtype)
            finally:
                transform.p = probability


def make_transform(settings: dict[str, Any], channels: int = 3) -> Any:
    """An albumentations transform from `{name: ..., p: ..., ...}`. Raises: ConfigError."""
    import albumentations as A
    from albumentations.core.transforms_interface import DualTransform, ImageOnlyTransform

    name, arguments = settings["name"], {key: value for key, value in settings.items() if key != "name"}
    bases = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D)
    known = {
        key: kind
        for key, kind in vars(A).items()
        if inspect.isclass(kind) and issubclass(kind, DualTransform | ImageOnlyTransform) and kind not in bases
    }
    if name not in known:
        close = closest_names(name, known, count=3)
        hint = f"did you mean {close}?" if close else "names are those of albumentations 2.0.8, such as RandomFog."
        raise ConfigError(f"The transform {quoted(name)} is not known; {hint}")
    kind = known[name]
    defaults = {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()}
    defaults.pop("strict", None)
    if unknown := [key for key in arguments if key not in defaults]:
        raise ConfigError(f"The transform {name} has no argument {quoted(unknown[0])}; it has {', '.join(defaults)}.")
    if arguments.get("mask_interpolation", 0) not in NEAREST_INTERPOLATIONS:
        raise ConfigError(
            f"The transform {name} would mix labels with mask_interpolation={arguments['mask_interpolation']}; only "
            "nearest neighbor (0) is possible, so leave it out."
        )
    # None is "the mask is not filled": an erased part of the image keeps its labels, unless the user asks for 255.
    if defaults.get("fill_mask") is not None:
        arguments = {"fill": FILL_COLOR if channels == 3 else FILL_COLOR[0], "fill_mask": IGNORE_INDEX, **arguments}
    if arguments.get("fill_mask", IGNORE_INDEX) != IGNORE_INDEX:
        raise ConfigError(
            f"The transform {name} would invent labels with fill_mask={arguments['fill_mask']}; only {IGNORE_INDEX} "
            "(ignored) is possible, so leave it out."
        )
    try:
        return kind(**arguments)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"The transform {name} has a wrong argument: {reason}.") from error


def try_transform(transform: Any, size: tuple[int, int], seed: int, channels: int = 3, dtype: str = "uint8") -> None:
    """Apply a transform twice to an image of noise. Raises: ConfigError."""
    name = _name(transform)
    noise = np.random.default_rng(seed)
    image = noise.integers(0, 256, (*size, channels), dtype=np.uint8).astype(dtype)
    kind = f"an RGB image {dtype}" if channels == 3 else f"an image of {channels} channels of {dtype}"
    labels = np.kron(noise.integers(0, 3, (8, 8), dtype=np.uint8), np.ones((20, 20), np.uint8))[: size[0], : size[1]]
    if needed := transform.targets_as_params:
        needed = [target for target in needed if target not in ("image", "mask")]
    if needed:
        raise ConfigError(
            f"The transform {name} needs {', '.join(needed)}, which training cannot give; only an RGB image and its mask "
            "are available."
        )
    results = []
    for _ in range(2):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            results.append(transform(image=image.copy(), mask=labels.copy()))
        except Exception as error:
            raise ConfigError(
                f"The transform {name} fails on {kind} of {size[1]} x {size[0]}: {type(error).__name__}: "
                f"{first_line(error)[:200]}. Change its arguments, or leave it out."
            ) from error
        check_result(name, image, results[-1]["image"], labels, results[-1]["mask"])
    invented = set(np.unique(results[0]["mask"]).tolist()) - set(np.unique(labels).tolist()) - {IGNORE_INDEX}
    if invented:
        raise ConfigError(f"The transform {name} invents labels ({sorted(invented)[0]}), so it cannot be used.")
    if any((results[0][key] != results[1][key]).any() for key in ("image", "mask")):
        raise ConfigError(f"The transform {name} is not reproducible: equal seeds give unequal results; leave it out.")


def check_result(name: str, image: Image, new_image: Any, labels: Labels, new_labels: Any) -> None:
    """Raises: ConfigError if an image or a mask has another shape or type than before."""
    for what, old, new in (("image", image, new_image), ("mask", labels, new_labels)):
        if old.shape != new.shape or old.dtype != new.dtype:
            before, after = (f"{one.dtype} {' x '.join(map(str, one.shape))}" for one in (old, new))
            raise ConfigError(
                f"The transform {name} turns the {what} from {before} into {after}; size and type must stay. To crop and "
                "scale use the settings crop and scale."
            )


def _name(transform: Any) -> str:
    return type(transform).__name__
