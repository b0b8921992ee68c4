"""Position of the image: pan, zoom, resize."""

import numpy as np
import pytest

from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.page.conftest import OpenPage
from tests.page.page_driver import PageDriver

pytestmark = pytest.mark.browser

IMAGE = synthetic_image(60, 80)


@pytest.fixture
def driver(open_page: OpenPage, url: str) -> PageDriver:
    sight = open_page(url)
    sight.upload("street.png", encode_image(IMAGE, "PNG"))
    sight.wait_for_result()
    return sight


def test_only_the_first_button_moves_the_image_and_it_stays_visible(driver: PageDriver) -> None:
    """Also when the window shrinks."""
    box = driver.page.locator("#view").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    whole = driver.screenshot()
    driver.page.mouse.move(*middle)
    driver.page.mouse.down(button="right")
    driver.page.mouse.move(middle[0] + 90, middle[1] + 50)
    driver.page.mouse.up(button="right")
    driver.page.mouse.move(2, 2)
    assert np.abs(driver.screenshot().astype(int) - whole).mean() < 1
    driver.page.set_viewport_size({"width": 1400, "height": 700})
    box = driver.page.locator("#view").bounding_box()
    left, right, y = box["x"] + 20, box["x"] + box["width"] - 20, box["y"] + box["height"] / 2
    driver.page.mouse.move(left, y)
    driver.page.mouse.down()
    driver.page.mouse.move(right, y)
    driver.page.mouse.up()
    driver.page.set_viewport_size({"width": 810, "height": 700})
    driver.page.mouse.move(2, 2)
    assert driver.screenshot()[:-100].std(axis=(0, 1)).max() > 10


def test_zooming_in_does_not_shrink_a_tiny_image(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    sight.upload("tiny.png", encode_image(IMAGE[:4, :4], "PNG"))
    sight.wait_for_result()
    whole = sight.screenshot()
    sight.page.click("#zoom-in")
    sight.page.evaluate("document.activeElement.blur()")
    sight.page.mouse.move(2, 2)
    assert np.abs(sight.screenshot().astype(int) - whole)[:-80].max() < 3
