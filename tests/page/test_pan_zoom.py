"""Where the picture lies, and what moves it."""

import numpy as np
import pytest

from tests.fixtures_bundles import drawing
from tests.fixtures_images import encoded
from tests.page.conftest import Open
from tests.page.page_driver import Sight

pytestmark = pytest.mark.browser

PICTURE = drawing(60, 80)


@pytest.fixture
def sight(open_page: Open, url: str) -> Sight:
    sight = open_page(url)
    sight.bring("street.png", encoded(PICTURE, "PNG"))
    sight.result()
    return sight


def test_a_picture_that_was_moved_aside_stays_in_a_window_that_shrinks(sight: Sight) -> None:
    sight.page.set_viewport_size({"width": 1400, "height": 700})
    box = sight.page.locator("#view").bounding_box()
    left, right, y = box["x"] + 20, box["x"] + box["width"] - 20, box["y"] + box["height"] / 2
    sight.page.mouse.move(left, y)
    sight.page.mouse.down()
    sight.page.mouse.move(right, y)
    sight.page.mouse.up()
    sight.page.set_viewport_size({"width": 810, "height": 700})
    sight.page.mouse.move(2, 2)
    assert sight.screen()[:-100].std(axis=(0, 1)).max() > 10


def test_a_tiny_picture_is_not_shrunk_by_zooming_in(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.bring("tiny.png", encoded(PICTURE[:4, :4], "PNG"))
    sight.result()
    whole = sight.screen()
    sight.page.click("#larger")
    sight.page.evaluate("document.activeElement.blur()")
    sight.page.mouse.move(2, 2)
    assert np.abs(sight.screen().astype(int) - whole)[:-80].max() < 3


def test_the_first_button_alone_moves_the_picture(sight: Sight) -> None:
    box = sight.page.locator("#view").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    whole = sight.screen()
    sight.page.mouse.move(*middle)
    sight.page.mouse.down(button="right")
    sight.page.mouse.move(middle[0] + 90, middle[1] + 50)
    sight.page.mouse.up(button="right")
    sight.page.mouse.move(2, 2)
    assert np.abs(sight.screen().astype(int) - whole).mean() < 1
