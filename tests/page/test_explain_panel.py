"""The panel "Look inside", which exists with MASKSERVE_EXPLAIN=on: its images are those of POST /v1/explain."""

import base64
import io
import re
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.page.conftest import OpenPage
from tests.page.page_driver import PageDriver

pytestmark = pytest.mark.browser

PNG = encode_image(synthetic_image(60, 80), "PNG")
READ_CANVAS = """(canvas) => [canvas.width, canvas.height,
    ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]"""


def shown_image(sight: PageDriver, name: str) -> np.ndarray:
    """The pixels of a canvas of the panel, RGB uint8 H x W x 3."""
    width, height, *values = sight.page.locator(f"#explain .explain-{name} canvas").evaluate(READ_CANVAS)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def expected(url: str, **query: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Numbers and images of the service."""
    content = httpx.post(f"{url}/v1/explain", params=query, content=PNG, timeout=60).json()
    images = {
        name: np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for name, png in content["images"].items()
    }
    return content["numbers"], images


def test_the_panel_shows_certainty_and_what_a_clicked_pixel_depends_on(open_page: OpenPage, below_a_path: str) -> None:
    sight = open_page(below_a_path)
    assert not sight.page.is_visible("#explain")  # no image yet
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    sight.page.click("#explain summary")
    status = sight.page.locator("#explain [role=status]")
    status.filter(has_text="Mean confidence").wait_for()
    numbers, images = expected(below_a_path)
    mean = float(re.findall(r"[\d.]+", status.inner_text())[0])
    assert mean == pytest.approx(100 * numbers["confidence"], abs=0.6)
    for name in ("confidence", "entropy", "margin", "spread"):
        np.testing.assert_array_equal(shown_image(sight, name), images[name])

    canvas = sight.page.locator("#explain .explain-entropy canvas")
    box = canvas.bounding_box()
    assert box is not None
    position = {"x": box["width"] * 20.5 / 80, "y": box["height"] * 40.5 / 60}
    with sight.page.expect_request(lambda request: "view=occlusion" in request.url) as asked:
        canvas.click(position=position)
    at = parse_qs(urlsplit(asked.value.url).query)["at"][0]
    assert np.abs(np.array(at.split(","), int) - (20, 40)).max() <= 1  # the pixel under the pointer
    sight.page.wait_for_selector("#explain .explain-occlusion canvas")
    numbers, images = expected(below_a_path, view="occlusion", at=at)
    status.filter(has_text=numbers["class"]).wait_for()
    np.testing.assert_array_equal(shown_image(sight, "occlusion"), images["occlusion"])
    assert np.ptp(images["occlusion"].astype(int)) > 0


def test_there_is_no_panel_by_default(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    scripts: list[str] = []
    sight.page.on("request", lambda request: scripts.append(request.url))
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    assert sight.page.locator("#explain").is_hidden()
    assert not [address for address in scripts if "explain" in address]
