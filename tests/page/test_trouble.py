"""What goes wrong: the page says what happened and what to do, and keeps the picture."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.launch import free_port, running
from tests.bundles import drawing
from tests.page.conftest import Open
from tests.page.sight import Sight
from tests.pictures import encoded

pytestmark = pytest.mark.browser

PICTURE = drawing(60, 80)
PNG = encoded(PICTURE, "PNG")


def test_a_file_that_is_no_picture(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.bring("street.png", PNG)
    sight.result()
    before = sight.screen()
    sight.expected = (415,)
    sight.bring("notes.txt", b"these are notes")
    assert "JPEG" in sight.status("This is no picture") and "notes.txt" in sight.page.inner_text("#status")
    assert re.search(r"Request [0-9a-f]{16}", sight.page.inner_text("#status"))
    np.testing.assert_array_equal(sight.screen(), before)
    assert sight.page.is_visible("#result")


def test_text_is_not_fetched(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.bring("", None, text="https://example.org/picture.jpg")
    assert "bring the picture's file" in sight.status("No picture came")


def test_a_picture_that_only_the_browser_takes(open_page: Open, url: str) -> None:
    """A GIF is shown, and the service's advice beside it."""
    sight = open_page(url)
    sight.expected = (415,)
    sight.bring("moving.gif", encoded(PICTURE, "GIF"))
    assert "GIF" in sight.status("This is no picture")
    assert np.abs(sight.pixels(60, 80).astype(int) - PICTURE).mean() < 10
    assert not sight.page.is_visible("#result")


def test_a_service_that_goes_and_comes_back(open_page: Open, bundle: Path) -> None:
    port = free_port()
    with running(bundle, port) as url:
        sight = open_page(url)
        sight.bring("first.png", PNG)
        sight.result()
    sight.page.evaluate("performance.clearResourceTimings()")
    sight.bring("second.png", encoded(drawing(60, 80, seed=1), "PNG"))
    assert "picture is still here" in sight.status("No answer came")
    assert np.abs(sight.pixels(60, 80).astype(int) - drawing(60, 80, seed=1)).max() < 4
    sight.complaints = [words for words in sight.complaints if "ERR_CONNECTION" not in words]
    with running(bundle, port):
        sight.page.click("button:text-is('Try again')")
        sight.result()
        assert sight.page.locator(".rows li").count() >= 1


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page: Open, locked: tuple[str, str]) -> None:
    url, key = locked
    sight = open_page(url)
    sight.expected = (401,)
    sight.page.wait_for_selector("#key-asked[open]")
    sight.page.fill("#key", "msk_wrong")
    sight.page.keyboard.press("Enter")
    sight.page.wait_for_selector("#key-why:has-text('does not open')")
    sight.page.fill("#key", key)
    sight.page.click("#key-asked .first")
    sight.page.wait_for_selector("#only-model:has-text('small')")
    sight.bring("street.png", PNG)
    sight.result()
    sight.page.reload()
    sight.page.wait_for_selector("#only-model:has-text('small')")
    assert not sight.page.is_visible("#key-asked")
    assert key in sight.page.evaluate("JSON.stringify(sessionStorage)")
    assert key not in sight.page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    another = sight.context.new_page()
    another.goto(url)
    another.wait_for_selector("#key-asked[open]")


def test_a_picture_waits_for_the_key(open_page: Open, locked: tuple[str, str]) -> None:
    url, key = locked
    sight = open_page(url)
    sight.expected = (401,)
    sight.page.click("#key-asked .cancel")
    sight.bring("street.png", PNG)
    sight.page.wait_for_selector("#key-asked[open]")
    sight.page.click("#key-asked .cancel")
    sight.page.click("#change-key")
    sight.page.fill("#key", key)
    sight.page.keyboard.press("Enter")
    sight.result()


@pytest.fixture
def busy(
    open_page: Open, locked: tuple[str, str], slow_sender: Callable[[str, str], socket.socket]
) -> tuple[Sight, socket.socket]:
    """A picture that a service is too busy for, and what keeps it so."""
    url, key = locked
    sight = open_page(url)
    sight.expected = (401, 429)
    sight.page.fill("#key", key)
    sight.page.keyboard.press("Enter")
    sight.page.wait_for_selector("#only-model:has-text('small')")
    holder = slow_sender(url, key)
    sight.page.wait_for_timeout(300)
    sight.bring("street.png", PNG)
    assert "Too many requests at once" in sight.status("Asked again in")
    return sight, holder


def test_a_busy_service_is_asked_again(busy: tuple[Sight, socket.socket]) -> None:
    sight, holder = busy
    sight.page.wait_for_timeout(1500)
    sight.status("Too many requests at once")  # it was asked again, and is as busy
    holder.close()
    sight.result()


def test_waiting_can_be_stopped(busy: tuple[Sight, socket.socket]) -> None:
    sight, holder = busy
    sight.page.click("button:text-is('Stop')")
    holder.close()
    sight.page.wait_for_timeout(1800)
    assert not sight.page.is_visible("#result")
    sight.page.click("button:text-is('Try again')")
    sight.result()
