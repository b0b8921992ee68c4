"""The page for everybody: no violation by axe-core, in both themes and at a phone's width; keys reach everything."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.bundles import drawing
from tests.page.conftest import Open
from tests.page.sight import Sight
from tests.pictures import encoded

pytestmark = pytest.mark.browser

PNG = encoded(drawing(60, 80), "PNG")
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def check(sight: Sight) -> None:
    found = Axe().run(sight.page).response
    told = [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]
    assert told == [] and len(found["passes"]) > 10


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_no_violation_in_any_state(open_page: Open, several: str, theme: str, device: dict) -> None:
    sight = open_page(several, color_scheme=theme, **device)
    sight.page.wait_for_selector("#about:not([hidden])")
    check(sight)
    sight.page.select_option("#model", "many")
    sight.bring("street.png", PNG)
    sight.result()
    sight.page.check("#compare")
    sight.page.click("#about summary")
    check(sight)
    sight.expected = (415,)
    sight.bring("notes.txt", b"these are notes")
    sight.status("This is no picture")
    check(sight)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_violation_where_a_key_is_asked_for(open_page: Open, locked: tuple[str, str], theme: str) -> None:
    sight = open_page(locked[0], color_scheme=theme)
    sight.expected = (401,)
    sight.page.wait_for_selector("#key-asked[open]")
    check(sight)


def test_every_control_is_reached_by_tab_and_has_a_name(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.bring("street.png", PNG)
    sight.result()
    reached = set()
    for _ in range(40):
        sight.page.keyboard.press("Tab")
        reached.add(sight.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"view", "larger", "smaller", "fit", "opacity", "sure", "compare", "Mask", "Overlay", "JSON"} <= reached
    assert sight.page.locator("#view").get_attribute("aria-describedby") == "summary keys"


def test_nothing_is_wider_than_a_phone(open_page: Open, several: str) -> None:
    sight = open_page(several, **PHONE)
    sight.page.select_option("#model", "many")
    sight.bring("street.png", PNG)
    sight.result()
    assert sight.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert sight.page.locator("#view").bounding_box()["height"] > 300


def test_two_fingers_zoom(open_page: Open, url: str) -> None:
    sight = open_page(url, **PHONE)
    sight.bring("street.png", PNG)
    sight.result()
    before = sight.screen()
    hand = sight.context.new_cdp_session(sight.page)
    box = sight.page.locator("#view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def touch(kind: str, *apart: int) -> None:
        points = [{"x": x + side * each, "y": y, "id": at} for each in apart for at, side in enumerate((-1, 1))]
        hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 30)
    for apart in range(40, 131, 10):
        touch("touchMove", apart)
    touch("touchEnd")
    after = sight.screen()
    assert (before != after).mean() > 0.2
    assert (after[:, 30:60].std(axis=(0, 1)) > 0).all()  # the picture still covers the view's left
    assert not re.search("problem", sight.page.inner_html("#status"))
