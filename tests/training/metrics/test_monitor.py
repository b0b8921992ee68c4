"""The setting `monitor`: which metrics choose a checkpoint, and how those that the data cannot give are refused."""

import numpy as np
import pytest

from models.errors import ConfigError
from models.spec import ClassInfo
from training.metrics.confusion import ConfusionMatrix
from training.metrics.monitor import check_monitor, monitored_value, possible_monitors


def make_classes(*names: str) -> list[ClassInfo]:
    return [ClassInfo(name=name, rgb=(0, 0, 0)) for name in names]


@pytest.mark.parametrize(
    ("monitor", "names", "pixels", "pattern"),
    [
        ("miuo", "background car", [9, 1], "it is no metric of these classes; did you mean miou"),
        ("iou_cat", "background car", [9, 1], "it is no metric of these classes; did you mean iou_car"),
        ("dice_car", "background car bus", [9, 0, 3], "hold no pixel of car.* for the classes background, bus"),
        ("foreground_miou", "road car", [9, 1], "no class of road, car is named background. Possible are miou, pixel_"),
    ],
)
def test_monitor_that_the_data_cannot_give_is_refused(
    monitor: str, names: str, pixels: list[int], pattern: str
) -> None:
    with pytest.raises(ConfigError, match=pattern):
        check_monitor(monitor, make_classes(*names.split()), np.array(pixels))


def test_every_possible_monitor_has_a_value() -> None:
    classes, confusion = make_classes("background", "car", "traffic_light"), ConfusionMatrix(3)
    confusion.add(np.uint8([[0, 0, 0, 1, 1, 2]]), np.uint8([[0, 0, 1, 1, 1, 0]]))
    overall, by_class = possible_monitors(classes, np.array([3, 2, 1]))
    for monitor in (*overall, *by_class):
        check_monitor(monitor, classes, np.array([3, 2, 1]))
        assert 0 <= monitored_value(monitor, confusion, classes) <= 1
    values = {name: monitored_value(name, confusion, classes) for name in ("iou_car", "recall_car", "dice_background")}
    assert values == pytest.approx({"iou_car": 2 / 3, "recall_car": 1, "dice_background": 4 / 6}, abs=1e-6)
    assert monitored_value("precision_traffic_light", confusion, classes) == 0  # never predicted
