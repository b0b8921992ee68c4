"""Which views are shown: those that were asked for, as far as the network and the options allow."""

from models.errors import ConfigError, closest_names, quoted
from training.explain import DATA_VIEWS, IMAGE_VIEWS, RUN_VIEWS, VIEWS
from training.explain.source import Source

BLACK_BOX = {"certainty", "occlusion", "shifts", "failures"}  # the others need weights


def choose_views(names: list[str] | None) -> list[str]:
    """The views by name, all without `names`. Raises: ConfigError for an unknown one, with the nearest."""
    for name in names or ():
        if name not in VIEWS:
            closest = closest_names(name, VIEWS)
            hint = f"did you mean {closest}? The views are" if closest else "the views are"
            raise ConfigError(f"The view {quoted(name)} is not known; {hint} {', '.join(VIEWS)}.")
    return [name for name in VIEWS if not names or name in names]


def unavailable_views(chosen: list[str], source: Source, has_data: bool, has_snapshots: bool) -> dict[str, str]:
    """The views of `chosen` that cannot be shown, with the reason."""
    reasons = {}
    for name in chosen:
        if source.network is None and name not in BLACK_BOX and name not in RUN_VIEWS:
            reasons[name] = (
                "it needs weights.safetensors, which this bundle does not have (it was made from an ONNX graph)"
            )
        elif name in DATA_VIEWS and not has_data:
            reasons[name] = "it needs images with masks: --data DATA"
        elif name in RUN_VIEWS and not has_snapshots:
            reasons[name] = "it needs the run folder, with the kernels.npz that a training writes"
    return reasons


def needs_image(chosen: list[str]) -> bool:
    """Whether any view looks at an image."""
    return any(name in IMAGE_VIEWS for name in chosen)
