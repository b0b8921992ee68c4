"""Errors: the page shows what happened and what to do, and keeps the image."""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.page.conftest import OpenPage

pytestmark = pytest.mark.browser

IMAGE = synthetic_image(60, 80)
PNG = encode_image(IMAGE, "PNG")


def test_unsupported_file_keeps_the_previous_image(open_page: OpenPage, two_models_url: str) -> None:
    sight = open_page(two_models_url)
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    assert sight.page.inner_text("#result-source") == "street.png, model few"
    before = sight.screenshot()
    sight.expected_statuses = (415,)
    sight.upload("notes.txt", b"these are notes")
    assert "JPEG" in sight.wait_for_status("Unsupported file format") and "notes.txt" in sight.page.inner_text(
        "#status"
    )
    assert re.search(r"Request [0-9a-f]{16}", sight.page.inner_text("#status"))
    np.testing.assert_array_equal(sight.screenshot(), before)
    assert sight.page.is_visible("#result")
    sight.expected_statuses = ()
    sight.page.select_option("#model", "many")
    sight.page.wait_for_selector("#result-source:text-is('street.png, model many')")
    assert "Segmented in" in sight.page.inner_text("#status")


def test_unsupported_first_files(open_page: OpenPage, url: str) -> None:
    """Text is not fetched; notes keep the start page; a GIF, which the browser reads, is shown, with the service's advice."""
    sight = open_page(url)
    sight.upload("", None, text="https://example.org/image.jpg")
    assert "Drop or paste an image file" in sight.wait_for_status("No image file found")
    sight.expected_statuses = (415,)
    sight.upload("notes.txt", b"these are notes")
    sight.wait_for_status("notes.txt")
    assert sight.page.is_visible("#empty") and not sight.page.is_visible("#view")
    sight.upload("moving.gif", encode_image(IMAGE, "GIF"))
    sight.wait_for_status("GIF")
    assert "GIF" in sight.wait_for_status("Unsupported file format")
    assert np.abs(sight.image_pixels(60, 80).astype(int) - IMAGE).mean() < 10
    assert not sight.page.is_visible("#result")
    sight.upload("street.png", PNG)
    sight.wait_for_result()


def test_service_that_stops_and_restarts(open_page: OpenPage, url: str) -> None:
    def refuse(route: Any) -> None:
        route.abort("connectionrefused")

    sight = open_page(url)
    sight.upload("first.png", PNG)
    sight.wait_for_result()
    sight.page.evaluate("performance.clearResourceTimings()")
    sight.context.route("**/v1/**", refuse)
    sight.upload("second.png", encode_image(synthetic_image(60, 80, seed=1), "PNG"))
    assert "file is still here" in sight.wait_for_status("No response from the service")
    assert np.abs(sight.image_pixels(60, 80).astype(int) - synthetic_image(60, 80, seed=1)).max() < 4
    sight.errors = [words for words in sight.errors if "ERR_CONNECTION" not in words]
    sight.context.unroute("**/v1/**", refuse)
    sight.page.click("button:text-is('Try again')")
    sight.wait_for_image("second.png")
    assert sight.page.locator(".rows li").count() >= 1


def test_key_is_requested_and_kept_for_the_tab(open_page: OpenPage, protected_service: tuple[str, str]) -> None:
    url, key = protected_service
    sight = open_page(url)
    sight.expected_statuses = (401,)
    sight.page.wait_for_selector("#key-dialog[open]")
    sight.page.fill("#key", "msk_schl\u00fcssel")
    sight.page.keyboard.press("Enter")
    sight.page.wait_for_selector("#key-message:has-text('ASCII')")
    assert sight.page.evaluate("sessionStorage.length") == 0  # it was not sent
    sight.page.fill("#key", "half of a k")
    sight.upload("street.png", PNG)
    sight.page.wait_for_timeout(300)
    assert sight.page.input_value("#key") == "half of a k"
    sight.page.fill("#key", "msk_wrong")
    sight.page.keyboard.press("Enter")
    sight.page.wait_for_selector("#key-message:has-text('is not valid')")
    sight.page.fill("#key", key)
    sight.page.click("#key-dialog .primary")
    sight.page.wait_for_selector("#only-model:has-text('small')")
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    sight.page.reload()
    sight.page.wait_for_selector("#only-model:has-text('small')")
    assert not sight.page.is_visible("#key-dialog")
    assert key in sight.page.evaluate("JSON.stringify(sessionStorage)")
    assert key not in sight.page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    another = sight.context.new_page()
    another.goto(url)
    another.wait_for_selector("#key-dialog[open]")


def test_image_waits_for_the_key(open_page: OpenPage, protected_service: tuple[str, str]) -> None:
    url, key = protected_service
    sight = open_page(url)
    sight.expected_statuses = (401,)
    sight.page.click("#key-dialog .cancel")
    sight.upload("street.png", PNG)
    sight.page.wait_for_selector("#key-dialog[open]")
    sight.page.click("#key-dialog .cancel")
    sight.page.click("#change-key")
    sight.page.fill("#key", key)
    sight.page.keyboard.press("Enter")
    sight.wait_for_result()


def test_busy_service_is_retried_until_it_responds_or_is_stopped(
    open_page: OpenPage, protected_service: tuple[str, str], start_slow_upload: Callable[[str, str], socket.socket]
) -> None:
    url, key = protected_service
    rejected: list[int] = []
    sight = open_page(url)
    sight.expected_statuses = (401, 429)
    sight.page.fill("#key", key)
    sight.page.keyboard.press("Enter")
    sight.page.wait_for_selector("#only-model:has-text('small')")
    sight.page.on("response", lambda response: rejected.append(response.status) if response.status == 429 else None)

    def upload_while_busy(name: str) -> socket.socket:
        """Returns: the upload that keeps the service busy."""
        holder = start_slow_upload(url, key)
        sight.page.wait_for_timeout(300)
        sight.upload(name, PNG)
        sight.wait_for_status("Too many requests")
        sight.page.wait_for_selector("#working:has-text('Retrying in')")
        return holder

    holder = upload_while_busy("first.png")
    while len(rejected) < 2:  # it was retried
        sight.page.wait_for_timeout(50)
    sight.wait_for_status("Too many requests")
    holder.close()
    sight.wait_for_image("first.png")
    holder = upload_while_busy("second.png")
    sight.page.click("button:text-is('Stop')")
    holder.close()
    sight.page.wait_for_timeout(1800)
    assert "second.png" not in sight.page.inner_text("#result-source")
    sight.page.click("button:text-is('Try again')")
    sight.wait_for_image("second.png")


def test_image_is_kept_when_its_file_is_deleted(open_page: OpenPage, two_models_url: str, tmp_path: Path) -> None:
    file = tmp_path / "street.png"
    file.write_bytes(PNG)
    sight = open_page(two_models_url)
    sight.page.set_input_files("#file", file)
    sight.wait_for_result()
    file.unlink()
    sight.page.select_option("#model", "many")
    sight.page.wait_for_selector("#result-source:text-is('street.png, model many')")


def test_unreadable_file(open_page: OpenPage, url: str, tmp_path: Path) -> None:
    file = tmp_path / "street.png"
    file.write_bytes(PNG)
    sight = open_page(url)
    sight.page.wait_for_selector("#model-info:not([hidden])")
    sight.page.evaluate("document.getElementById('file').onchange = null")
    sight.page.set_input_files("#file", file)
    file.unlink()
    sight.page.evaluate("""() => {
        const transfer = new DataTransfer();
        transfer.items.add(document.getElementById("file").files[0]);
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }""")
    assert "choose it again" in sight.wait_for_status("The file cannot be read")
    assert not sight.page.is_visible("button:text-is('Try again')")
    sight.errors = [words for words in sight.errors if "ERR_FILE_NOT_FOUND" not in words]


def test_camera_is_opened_once(open_page: OpenPage, url: str) -> None:
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
    sight.page.click("#camera .shutter")
    sight.wait_for_result()
    assert sight.page.evaluate("window.streams.map((stream) => stream.active)") == [False]


def test_no_photo_before_the_camera_shows_an_image(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    sight.page.evaluate("navigator.mediaDevices.getUserMedia = async () => new MediaStream()")
    sight.page.click("#empty .photograph")
    assert sight.page.locator("#camera .shutter").is_disabled()


def respond_model_gone(route: Any) -> None:
    problem = {"title": "Model not found", "status": 404, "detail": "It was removed."}
    route.fulfill(status=404, content_type="application/problem+json", json=problem)


def test_model_that_was_removed(open_page: OpenPage, two_models_url: str) -> None:
    sight = open_page(two_models_url)
    sight.expected_statuses = (404,)
    sight.context.route("**/v1/segment*", respond_model_gone, times=1)
    sight.upload("street.png", PNG)
    sight.wait_for_status("Model not found")
    sight.page.click("button:text-is('Retry with few')")
    sight.wait_for_result()


def test_list_of_models_is_retried(open_page: OpenPage, two_models_url: str) -> None:
    sight = open_page(two_models_url)
    sight.page.wait_for_selector("#model-info:not([hidden])")
    sight.expected_statuses = (404, 500)
    sight.context.route("**/v1/segment*", respond_model_gone, times=1)
    sight.context.route("**/v1/models", lambda route: route.fulfill(status=500, headers={"Retry-After": "1"}), times=1)
    sight.upload("street.png", PNG)
    sight.wait_for_status("HTTP 500")
    sight.wait_for_result()


def test_long_request_can_be_stopped(open_page: OpenPage, url: str) -> None:
    sight, held = open_page(url), list[Any]()
    sight.context.route("**/v1/segment*", lambda route: held.append(route), times=1)
    sight.upload("street.png", PNG)
    sight.page.wait_for_selector("#working:not([hidden])")
    assert not sight.page.is_visible("#stop")
    sight.page.click("#stop")
    sight.wait_for_status("Stopped")
    assert not sight.page.is_visible("#working")
    sight.page.click("button:text-is('Try again')")
    sight.wait_for_result()
    assert len(held) == 1


def test_files_that_arrive_faster_than_they_are_read(open_page: OpenPage, two_models_url: str) -> None:
    """Another model gets the file that is shown at the end, whichever it is."""
    sight = open_page(two_models_url)
    sight.expected_statuses = (415,)
    for again in range(5):
        for wait, (name, data) in enumerate([("a.png", PNG), ("b.png", PNG), ("notes.txt", b"these are notes")]):
            sight.upload(name, data)
            sight.page.wait_for_timeout(again * wait * 5)
        sight.wait_for_status("Unsupported file format")
        if sight.page.is_visible("#view"):
            for model in ("many", "few"):
                sight.page.select_option("#model", model)
                sight.page.wait_for_selector(f"#result-source:has-text('.png, model {model}')")
