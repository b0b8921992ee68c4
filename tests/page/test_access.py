"""Accessibility: no violation by axe-core in both themes and at the width of a phone; the keyboard reaches everything."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.page.conftest import OpenPage
from tests.page.page_driver import PageDriver

pytestmark = pytest.mark.browser

PNG = encode_image(synthetic_image(60, 80), "PNG")
NOISE = np.kron(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def check_accessibility(sight: PageDriver) -> None:
    """All rules in the light theme, and contrast, which alone depends on the theme, in the dark one."""
    for theme, options, passes in (("light", {}, 10), ("dark", {"runOnly": ["color-contrast"]}, 0)):
        sight.page.emulate_media(color_scheme=theme)
        found = Axe().run(sight.page, options=options).response
        violations = [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]
        assert violations == [] and len(found["passes"]) > passes, theme


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_no_violation_in_any_state(open_page: OpenPage, two_models_url: str, device: dict) -> None:
    sight = open_page(two_models_url, **device)
    sight.page.wait_for_selector("#model-info:not([hidden])")
    check_accessibility(sight)
    sight.page.select_option("#model", "many")
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    if device:
        assert sight.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert sight.page.locator("#view").bounding_box()["height"] > 280
    sight.page.check("#compare")
    sight.page.click("#model-info summary")
    check_accessibility(sight)
    sight.expected_statuses = (415,)
    sight.upload("notes.txt", b"these are notes")
    sight.wait_for_status("Unsupported file format")
    check_accessibility(sight)


def test_no_violation_in_the_key_dialog(open_page: OpenPage, protected_service: tuple[str, str]) -> None:
    sight = open_page(protected_service[0])
    sight.expected_statuses = (401,)
    sight.page.wait_for_selector("#key-dialog[open]")
    check_accessibility(sight)


def test_tab_reaches_every_control(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    reached = set()
    for _ in range(40):
        sight.page.keyboard.press("Tab")
        reached.add(sight.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {
        "view",
        "zoom-in",
        "zoom-out",
        "fit",
        "opacity",
        "min-confidence",
        "compare",
        "Mask",
        "Overlay",
        "JSON",
    } <= reached
    assert sight.page.locator("#view").get_attribute("aria-describedby") == "summary keyboard-help"


def test_two_fingers_zoom(open_page: OpenPage, url: str) -> None:
    sight = open_page(url, **PHONE)
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    before = sight.screenshot()
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
    after = sight.screenshot()
    assert (before != after).mean() > 0.2
    assert (after[:, 30:60].std(axis=(0, 1)) > 0).all()  # the image still covers the left of the view
    assert not re.search("problem", sight.page.inner_html("#status"))


def focused_element(sight: PageDriver) -> str:
    return str(
        sight.page.evaluate(
            "document.activeElement.id || document.activeElement.type || document.activeElement.tagName"
        )
    )


def test_focus_moves_to_the_image(open_page: OpenPage, two_models_url: str, tmp_path: Path) -> None:
    file = tmp_path / "street.png"
    file.write_bytes(PNG)
    sight = open_page(two_models_url)
    assert (
        sight.page.evaluate("getComputedStyle(document.getElementById('status')).display") != "none"
    )  # screen readers announce it
    sight.page.focus("#empty .choose")
    sight.page.set_input_files("#file", file)
    sight.wait_for_result()
    assert focused_element(sight) == "view"


def test_search_is_kept_when_the_image_is_segmented_again(open_page: OpenPage, two_models_url: str) -> None:
    sight = open_page(two_models_url)
    sight.page.select_option("#model", "many")
    sight.upload("street.png", encode_image(NOISE, "PNG"))
    sight.wait_for_result()
    sight.page.fill("[type=search]", "class 1")
    found = sight.page.locator(".rows li:visible .name").all_inner_texts()
    sight.page.evaluate("document.querySelector('.rows').replaceChildren()")
    sight.page.evaluate("document.getElementById('model').onchange()")
    sight.page.wait_for_selector(".rows li:visible")
    assert focused_element(sight) == "search" and sight.page.input_value("[type=search]") == "class 1"
    assert sight.page.locator(".rows li:visible .name").all_inner_texts() == found
    sight.page.select_option("#model", "few")
    sight.page.focus("[type=search]")
    sight.page.wait_for_selector("[type=search]", state="hidden")
    assert focused_element(sight) == "view"


def test_retries_keep_focus_and_message(open_page: OpenPage, url: str) -> None:
    def busy(route: Any) -> None:
        asked.append(route.request)
        problem = {"title": "Too busy", "status": 503, "detail": "All places are taken."}
        route.fulfill(status=503, headers={"Retry-After": "1"}, content_type="application/problem+json", json=problem)

    sight, asked = open_page(url), []
    sight.expected_statuses = (503,)
    sight.context.route("**/v1/segment*", busy)
    sight.upload("street.png", PNG)
    sight.wait_for_status("Too busy")
    sight.page.evaluate("document.querySelector('#status .problem').id = 'first'")
    sight.page.focus("#stop")
    while len(asked) < 3:
        sight.page.wait_for_timeout(100)
    sight.page.wait_for_selector("#working:has-text('Retrying in 1 s')")
    assert focused_element(sight) == "stop"
    assert sight.page.is_visible("#first") and "etrying" not in sight.page.inner_text("#status")
    sight.page.keyboard.press("Enter")
    sight.wait_for_status("Stopped")
    assert focused_element(sight) == "status"


def test_phone_in_landscape_can_be_scrolled(open_page: OpenPage, url: str) -> None:
    sight = open_page(url, **{**PHONE, "viewport": {"width": 640, "height": 300}})
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    below = 300 - sight.page.locator("aside").bounding_box()["y"]
    assert below > 60  # the image does not scroll


def test_long_list_stays_in_the_window(open_page: OpenPage, two_models_url: str) -> None:
    for device, most in (({"viewport": {"width": 1280, "height": 800}}, 800), (PHONE, 2 * 844)):
        sight = open_page(two_models_url, **device)
        sight.page.select_option("#model", "many")
        sight.upload("street.png", encode_image(NOISE, "PNG"))
        sight.wait_for_result()
        assert sight.page.locator(".rows li").count() > 50
        assert sight.page.evaluate("document.documentElement.scrollHeight") <= most


def test_colors_are_kept_in_forced_colors_mode(open_page: OpenPage, url: str) -> None:
    sight = open_page(url, forced_colors="active")
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    for each in (".swatch", ".bar"):
        colour, ground = sight.page.locator(each).first.evaluate(
            "(it) => [getComputedStyle(it).getPropertyValue('--color'), getComputedStyle(it).backgroundColor]"
        )
        assert re.findall(r"\d+", colour) == re.findall(r"\d+", ground)
