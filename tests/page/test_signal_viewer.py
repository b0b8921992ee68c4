"""The view of a recording, compared with the responses of the service to the same file."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.server_process import background_server
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.page.conftest import OpenPage
from tests.page.page_driver import PageDriver
from tests.service.signal_bundle import COLORS, signal, wfdb_files, write_signal_bundle, zip_bytes
from tests.service.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.browser

VALUES = np.stack([signal(), -signal()], axis=1)
FILES = wfdb_files(VALUES, 100.0, ("I", "II"))
RECORD = zip_bytes(FILES)


@pytest.fixture(scope="module")
def signal_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service of a model of signals, its default, and one of images."""
    folder = tmp_path_factory.mktemp("signals")
    write_signal_bundle(folder / "a-signals", "a-signals")
    write_tiny_bundle(folder / "images", "images")
    with background_server(folder) as url:
        yield url


@pytest.fixture
def driver(open_page: OpenPage, signal_url: str) -> PageDriver:
    sight = open_page(signal_url)
    sight.page.wait_for_selector("text=Segment a recording")
    sight.upload("rec.zip", RECORD)
    sight.wait_for_result()
    return sight


def colors_at(sight: PageDriver, fraction: float) -> list[tuple[int, int, int]]:
    """The color of each of the two leads at a fraction of the view's width, away from the trace."""
    box = sight.page.locator("#signal-view").bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(sight.page.screenshot(clip=box))).convert("RGB"))
    rows = [int(shot.shape[0] * part) for part in (0.33, 0.62)]  # between the trace's levels
    return [tuple(shot[row, int(shot.shape[1] * fraction)].tolist()) for row in rows]


def near(color: tuple[int, int, int], name: str) -> bool:
    """Whether a color is that of a class at the opacity of 60%."""
    expected = 0.6 * np.array(COLORS[name]) + 0.4 * 255
    return bool(np.abs(np.array(color) - expected).max() < 12)


def test_events_are_shown_as_colored_spans(driver: PageDriver) -> None:
    first, second = colors_at(driver, 0.25)  # 2.5 s: up in the first lead, down in the second
    assert near(first, "up") and near(second, "down")
    assert colors_at(driver, 0.43)[0] == (255, 255, 255)  # beside the line of 4 s
    driver.page.uncheck(".rows li:has-text('up') input")
    driver.page.mouse.move(5, 5)
    driver.page.wait_for_timeout(300)
    assert colors_at(driver, 0.25)[0] == (255, 255, 255)
    assert driver.page.locator(".rows .name").all_inner_texts()[0] == "none" and "up" in driver.page.inner_text(
        "#summary"
    )


def test_readout_zoom_keys_and_leads(driver: PageDriver) -> None:
    box = driver.page.locator("#signal-view").bounding_box()
    driver.page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.2 * box["height"])
    readout = driver.page.locator("#signal-view output")
    readout.wait_for()
    assert all(word in readout.inner_text() for word in ("up", "confidence", "I · 1 mV", "2.020 s"))
    driver.page.focus("#signal-view")
    for _ in range(12):
        driver.page.keyboard.press("+")
    driver.page.wait_for_timeout(300)
    assert colors_at(driver, 0.45)[0] == (255, 255, 255)  # 4.97 s; the second event begins at 5.02 s
    driver.page.keyboard.press("0")
    driver.page.uncheck(".leads label:has-text('II') input >> nth=0")
    driver.page.wait_for_timeout(300)
    assert near(colors_at(driver, 0.25)[1], "up")  # the first lead fills the view


def test_saved_files_are_those_of_the_service(driver: PageDriver, signal_url: str, tmp_path: Path) -> None:
    def ask(format: str) -> httpx.Response:
        return httpx.post(f"{signal_url}/v1/segment?model=a-signals&format={format}", content=RECORD, timeout=30)

    for text, suffix in (("CSV", "csv"), ("Events", "json")):
        with driver.page.expect_download() as coming:
            driver.page.click(f".signal .save:text-is('{text}')")
        path = tmp_path / coming.value.suggested_filename
        coming.value.save_as(path)
        assert path.name == f"rec.{suffix}"
    assert (tmp_path / "rec.csv").read_text().splitlines()[0] == ask("csv").text.splitlines()[0]
    saved, expected = json.loads((tmp_path / "rec.json").read_text()), ask("events").json()
    for mine, theirs in zip(saved["events"], expected["events"], strict=True):
        assert mine.pop("confidence") == pytest.approx(theirs.pop("confidence"), abs=2e-4)
        assert mine == theirs


def test_record_of_two_files_and_a_photograph(open_page: OpenPage, signal_url: str) -> None:
    sight = open_page(signal_url, color_scheme="dark", viewport={"width": 390, "height": 800})
    sight.page.wait_for_selector("text=Segment a recording")
    payload = [{"name": name, "mimeType": "", "buffer": content} for name, content in FILES.items()]
    sight.page.set_input_files("#file", payload)
    sight.wait_for_result()
    assert "rec.zip" in sight.page.inner_text("#result-source")
    sight.expected_statuses = (415,)
    sight.upload("photo.png", encode_image(synthetic_image(60, 80), "PNG"))
    assert "This is a PNG image; the model takes signals" in sight.wait_for_status("Unsupported file format")
    sight.page.select_option("#model", "images")
    sight.wait_for_result()
    assert sight.page.is_visible("#view") and not sight.page.is_visible("#signal-view")
