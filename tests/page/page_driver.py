"""Drives the web page in a browser, and reads what it shows."""

import base64
import io
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

DROP_SCRIPT = """([name, type, text, data]) => {
    const transfer = new DataTransfer();
    if (data === null) transfer.setData("text/plain", text);
    else transfer.items.add(new File([Uint8Array.from(atob(data), (each) => each.charCodeAt(0))], name, { type }));
    const event = NAME === "paste"
        ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
        : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
}"""

# Resolves after two frames, in which everything is drawn that was requested before; a hidden canvas has no frames.
DRAWN_SCRIPT = """() => Promise.race([
    new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))),
    new Promise((done) => setTimeout(done, 300)),
])"""


class PageDriver:
    """The page in a browser window."""

    def __init__(self, context: Any, url: str) -> None:
        self.context = context
        self.errors: list[str] = []
        self.expected_statuses: tuple[int, ...] = ()  # error statuses that the test causes; the browser logs each
        self.host = urlsplit(url).netloc
        self.page = context.new_page()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._on_request)
        self.page.goto(url)

    def upload(self, name: str, data: bytes | None, how: str = "drop", text: str = "") -> None:
        """Drop or paste a file with these bytes; None: only the text."""
        packed = None if data is None else base64.b64encode(data).decode()
        self.page.evaluate(DROP_SCRIPT.replace("NAME", repr(how)), [name, "", text, packed])

    def wait_for_result(self) -> None:
        """Wait until an image is segmented and drawn."""
        self.page.wait_for_selector("#working", state="hidden")
        self.page.wait_for_selector("#result:not([hidden])")
        self.wait_until_drawn()

    def wait_for_image(self, name: str) -> None:
        """Wait until the image of this name is segmented and drawn."""
        self.page.wait_for_selector(f"#result-source:has-text({name!r})")
        self.wait_for_result()

    def wait_until_drawn(self) -> None:
        """Wait until the page, its workers and the page again have drawn what is requested now."""
        self.page.evaluate(DRAWN_SCRIPT)
        for worker in self.page.workers:
            worker.evaluate(DRAWN_SCRIPT)
        self.page.evaluate(DRAWN_SCRIPT)

    def wait_for_status(self, words: str) -> str:
        """Wait until the status contains `words`. Returns: the whole status."""
        self.page.wait_for_selector(f"#status:has-text({words!r})")
        return str(self.page.inner_text("#status"))

    def screenshot(self) -> np.ndarray:
        """The view, RGB uint8 H x W x 3."""
        self.wait_until_drawn()
        shot = self.page.screenshot(clip=self.page.locator("#view").bounding_box())
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))

    def image_pixels(self, height: int, width: int) -> np.ndarray:
        """The color shown at the center of each pixel of a fitted image, RGB uint8 height x width x 3."""
        screen = self.screenshot()
        scale = min(screen.shape[0] / height, screen.shape[1] / width)
        top, left = (screen.shape[0] - height * scale) / 2, (screen.shape[1] - width * scale) / 2
        rows = (top + (np.arange(height) + 0.5) * scale).astype(int)
        columns = (left + (np.arange(width) + 0.5) * scale).astype(int)
        return screen[rows][:, columns]

    def set_slider(self, field: str, value: int) -> None:
        """Move a slider."""
        self.page.evaluate(
            "([id, value]) => { const it = document.getElementById(id); it.value = value; it.dispatchEvent(new Event('input')) }",
            [field, value],
        )

    def download(self, what: str, folder: Path) -> Path:
        """Press a download button. Returns: the file, with the name that the page gives it."""
        with self.page.expect_download() as coming:
            self.page.click(f".save[data-what={what}]")
        path = folder / coming.value.suggested_filename
        coming.value.save_as(path)
        return path

    def _on_console(self, message: Any) -> None:
        if not any(f"status of {status}" in message.text for status in self.expected_statuses):
            self.errors.append(f"{message.type}: {message.text}")

    def _on_request(self, request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme != "blob" and address.netloc != self.host:
            self.errors.append(f"asked {request.url}")
