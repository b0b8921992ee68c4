"""Says when a training has learned nothing yet."""

from models.spec import ClassInfo
from training.metrics.confusion import ConfusionMatrix

GOOD_EPOCHS = 10  # that a warning about too few recommends
MIN_MIOU_GAIN = 0.01  # over predicting the largest class everywhere, below which nothing was learned


def learning_warnings(
    epochs: float, minutes: float, best_miou: float, confusion: ConfusionMatrix, classes: list[ClassInfo]
) -> list[str]:
    """What shows that a run has learned nothing yet, and what to raise. `confusion`: of the best validation."""
    warnings = []
    if epochs < 1:
        warnings.append(
            f"The network was trained for {epochs:.2g} epochs, so it has not seen every training image once. Raise minutes: "
            f"{minutes * GOOD_EPOCHS / epochs:,.0f} minutes are about {GOOD_EPOCHS} epochs on this machine."
        )
    baseline = confusion.largest_class_miou()
    if best_miou <= baseline + MIN_MIOU_GAIN:
        largest = classes[int(confusion.class_counts[1].argmax())].name
        warnings.append(
            f"The validation mIoU of {best_miou:.3f} is no better than that of predicting {largest} everywhere "
            f"({baseline:.3f}): the network has learned nothing. Raise epochs or minutes; if the loss no longer falls "
            "(curves.png), check the masks and try another lr."
        )
    if len(never := confusion.never_predicted()):
        names = ", ".join(classes[label].name for label in never)
        warnings.append(f"Never predicted in the best validation: {names}. Train longer, or set class_weights=median.")
    return warnings
