"""What goes wrong: the page says what happened and what to do, and keeps the picture."""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.server_process import free_port, running
from tests.fixtures_bundles import drawing
from tests.fixtures_images import encoded
from tests.page.conftest import Open
from tests.page.page_driver import Sight

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
    sight.status("Too many requests at once")
    sight.page.wait_for_selector("#working:has-text('Asked again in')")
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


def test_a_file_that_is_no_picture_leaves_the_one_before_to_be_asked_about(open_page: Open, several: str) -> None:
    sight = open_page(several)
    sight.bring("street.png", PNG)
    sight.result()
    assert sight.page.inner_text("#of") == "street.png, by few"
    sight.expected = (415,)
    sight.bring("notes.txt", b"these are notes")
    sight.status("This is no picture")
    sight.expected = ()
    sight.page.select_option("#model", "many")
    sight.page.wait_for_selector("#of:text-is('street.png, by many')")
    assert "Labelled in" in sight.page.inner_text("#status")


def test_a_first_file_that_is_no_picture_leaves_the_page_as_it_was(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.expected = (415,)
    sight.bring("notes.txt", b"these are notes")
    sight.status("This is no picture")
    assert sight.page.is_visible("#empty") and not sight.page.is_visible("#view")
    sight.bring("street.png", PNG)
    sight.result()


def test_a_picture_stays_when_its_file_goes(open_page: Open, several: str, tmp_path: Path) -> None:
    file = tmp_path / "street.png"
    file.write_bytes(PNG)
    sight = open_page(several)
    sight.page.set_input_files("#file", file)
    sight.result()
    file.unlink()
    sight.page.select_option("#model", "many")
    sight.page.wait_for_selector("#of:text-is('street.png, by many')")


def test_a_file_that_cannot_be_read(open_page: Open, url: str, tmp_path: Path) -> None:
    file = tmp_path / "street.png"
    file.write_bytes(PNG)
    sight = open_page(url)
    sight.page.wait_for_selector("#about:not([hidden])")
    sight.page.evaluate("document.getElementById('file').onchange = null")
    sight.page.set_input_files("#file", file)
    file.unlink()
    sight.page.evaluate("""() => {
        const transfer = new DataTransfer();
        transfer.items.add(document.getElementById("file").files[0]);
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }""")
    assert "choose it again" in sight.status("The file cannot be read")
    assert not sight.page.is_visible("button:text-is('Try again')")
    sight.complaints = [words for words in sight.complaints if "ERR_FILE_NOT_FOUND" not in words]


def test_the_camera_is_opened_once(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.page.evaluate("""() => {
        const devices = navigator.mediaDevices, own = devices.getUserMedia.bind(devices);
        window.streams = [];
        devices.getUserMedia = async (wish) => {
            const stream = await own(wish);
            window.streams.push(stream);
            return stream;
        };
        const open = document.querySelector("#empty .photograph");
        open.click();
        open.click();
    }""")
    sight.page.click("#camera .take")
    sight.result()
    assert sight.page.evaluate("window.streams.map((stream) => stream.active)") == [False]


def test_nothing_is_taken_before_the_camera_shows_anything(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.page.evaluate("navigator.mediaDevices.getUserMedia = async () => new MediaStream()")
    sight.page.click("#empty .photograph")
    assert sight.page.locator("#camera .take").is_disabled()


def gone(route: Any) -> None:
    problem = {"title": "There is no such model", "status": 404, "detail": "It has gone."}
    route.fulfill(status=404, content_type="application/problem+json", json=problem)


def test_a_model_that_has_gone(open_page: Open, several: str) -> None:
    sight = open_page(several)
    sight.expected = (404,)
    sight.context.route("**/v1/segment*", gone, times=1)
    sight.bring("street.png", PNG)
    sight.status("There is no such model")
    sight.page.click("button:text-is('Ask few')")
    sight.result()


def test_a_look_at_the_models_that_fails_and_comes_back(open_page: Open, several: str) -> None:
    sight = open_page(several)
    sight.page.wait_for_selector("#about:not([hidden])")
    sight.expected = (404, 500)
    sight.context.route("**/v1/segment*", gone, times=1)
    sight.context.route("**/v1/models", lambda route: route.fulfill(status=500, headers={"Retry-After": "1"}), times=1)
    sight.bring("street.png", PNG)
    sight.status("The answer was 500")
    sight.result()


def test_what_cannot_be_a_key_is_not_sent(open_page: Open, locked: tuple[str, str]) -> None:
    sight = open_page(locked[0])
    sight.expected = (401,)
    sight.page.wait_for_selector("#key-asked[open]")
    sight.page.fill("#key", "msk_schl\u00fcssel")
    sight.page.keyboard.press("Enter")
    sight.page.wait_for_selector("#key-why:has-text('ASCII')")
    assert sight.page.evaluate("sessionStorage.length") == 0
    sight.page.fill("#key", "half of a k")
    sight.bring("street.png", PNG)
    sight.page.wait_for_timeout(300)
    assert sight.page.input_value("#key") == "half of a k"


def test_what_takes_long_can_be_stopped(open_page: Open, url: str) -> None:
    sight, held = open_page(url), list[Any]()
    sight.context.route("**/v1/segment*", lambda route: held.append(route), times=1)
    sight.bring("street.png", PNG)
    sight.page.wait_for_selector("#working:not([hidden])")
    assert not sight.page.is_visible("#stop")
    sight.page.click("#stop")
    sight.status("Stopped")
    assert not sight.page.is_visible("#working")
    sight.page.click("button:text-is('Try again')")
    sight.result()
    assert len(held) == 1


def test_files_that_come_faster_than_they_are_read(open_page: Open, several: str) -> None:
    """Whatever of them is seen at the end, it is what another model is asked about."""
    sight = open_page(several)
    sight.expected = (415,)
    for again in range(5):
        for wait, (name, data) in enumerate([("a.png", PNG), ("b.png", PNG), ("notes.txt", b"these are notes")]):
            sight.bring(name, data)
            sight.page.wait_for_timeout(again * wait * 5)
        sight.status("This is no picture")
        if sight.page.is_visible("#view"):
            for model in ("many", "few"):
                sight.page.select_option("#model", model)
                sight.page.wait_for_selector(f"#of:has-text('.png, by {model}')")
