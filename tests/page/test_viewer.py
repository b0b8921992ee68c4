"""The viewer, compared with the responses of the service to the same image."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.server_process import ROOT
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.page.conftest import OpenPage
from tests.page.page_driver import PageDriver

pytestmark = pytest.mark.browser

IMAGE = synthetic_image(60, 80)
PNG = encode_image(IMAGE, "PNG")
OPACITY = 0.6  # the initial value of the page


def segment_json(url: str, image: bytes = PNG, **query: str) -> dict:
    return httpx.post(f"{url}/v1/segment", params={"format": "json", **query}, content=image).json()


def segment_labels(url: str, image: bytes = PNG, **query: str) -> np.ndarray:
    return np.load(
        io.BytesIO(httpx.post(f"{url}/v1/segment", params={"format": "npy", **query}, content=image).content)
    )


def expected_overlay(url: str, shown: list[str] | None = None, opacity: float = OPACITY, **query: str) -> np.ndarray:
    """The image under the colors of these classes; None: of all classes."""
    found, out = segment_labels(url, **query), IMAGE.astype(float)
    for entry in segment_json(url, **query)["classes"]:
        if shown is None or entry["name"] in shown:
            mine = found == entry["label"]
            out[mine] = (1 - opacity) * out[mine] + opacity * np.array(entry["rgb"])
    return out


def check_view(sight: PageDriver, expected: np.ndarray, tolerance: float = 3) -> None:
    """Compare until the worker has drawn the image, for a few seconds."""
    for _ in range(40):
        off = np.abs(sight.image_pixels(*expected.shape[:2]) - expected).max()
        if off <= tolerance:
            break
    assert off <= tolerance


@pytest.fixture
def driver(open_page: OpenPage, url: str) -> PageDriver:
    sight = open_page(url)
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    return sight


def test_image_is_shown_under_its_classes(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    assert sight.page.is_visible("#empty") and not sight.page.is_visible("#view")
    sight.upload("pasted.png", PNG, "paste")
    sight.wait_for_result()
    check_view(sight, expected_overlay(url))
    sight.upload("dropped.png", encode_image(IMAGE[:, ::-1], "PNG"), "drop")
    sight.wait_for_image("dropped.png")
    assert np.abs(sight.image_pixels(*IMAGE.shape[:2]) - expected_overlay(url)).max() > 30


def test_legend_equals_the_response(driver: PageDriver, url: str) -> None:
    classes = sorted(segment_json(url)["classes"], key=lambda entry: -entry["fraction"])
    assert driver.page.locator(".rows .name").all_inner_texts() == [entry["name"] for entry in classes]
    for entry, fraction in zip(classes, driver.page.locator(".rows .fraction").all_inner_texts(), strict=True):
        assert float(fraction.strip("<%")) == pytest.approx(entry["fraction"] * 100, abs=0.51)
    assert all(entry["name"] in driver.page.inner_text("#summary") for entry in classes)
    assert "Segmented in" in driver.page.inner_text("#status")
    assert not driver.page.is_visible("#timing")
    driver.page.click("#details summary")
    assert all(stage in driver.page.inner_text("#timing") for stage in ("read", "queue", "decode", "infer", "encode"))


def test_hidden_class_stays_hidden(driver: PageDriver, url: str) -> None:
    names = driver.page.locator(".rows .name").all_inner_texts()
    driver.page.uncheck(f"li:has-text('{names[0]}') input")
    driver.page.mouse.move(5, 5)
    check_view(driver, expected_overlay(url, names[1:]))
    driver.page.click("button:text-is('None')")
    check_view(driver, IMAGE.astype(float))
    driver.page.click("button:text-is('All')")
    check_view(driver, expected_overlay(url))
    driver.page.uncheck(f"li:has-text('{names[0]}') input")
    driver.upload("again.png", PNG)
    driver.wait_for_image("again.png")
    check_view(driver, expected_overlay(url, names[1:]))


def test_class_under_the_pointer_is_highlighted(driver: PageDriver, url: str) -> None:
    name = driver.page.locator(".rows .name").first.inner_text()
    driver.page.hover(f"li:has-text('{name}')")
    alone, seen = expected_overlay(url, [name]), driver.image_pixels(*IMAGE.shape[:2])
    entry = next(entry for entry in segment_json(url)["classes"] if entry["name"] == name)
    mine = segment_labels(url) == entry["label"]
    assert np.abs(seen - alone)[mine].max() <= 3
    assert np.abs(seen - alone)[~mine].mean() < np.abs(expected_overlay(url) - alone)[~mine].mean() / 2


def test_opacity_smooth_edges_and_compare(driver: PageDriver, url: str) -> None:
    driver.set_slider("opacity", 100)
    check_view(driver, expected_overlay(url, opacity=1.0))
    colors = len(np.unique(driver.screenshot()[20:-120, 20:-20].reshape(-1, 3), axis=0))
    driver.page.check("#smooth")
    smooth = len(np.unique(driver.screenshot()[20:-120, 20:-20].reshape(-1, 3), axis=0))
    assert smooth > 3 * colors  # mixed between two pixels
    driver.page.uncheck("#smooth")
    driver.page.check("#compare")
    driver.page.focus("#split")
    driver.page.keyboard.press("ArrowRight")
    assert driver.page.input_value("#split") == "51"
    driver.set_slider("split", 50)
    seen, half = driver.image_pixels(*IMAGE.shape[:2]).astype(float), IMAGE.shape[1] // 2
    assert np.abs(seen - IMAGE)[:, : half - 3].max() <= 3
    assert np.abs(seen - expected_overlay(url, opacity=1.0))[:, half + 3 :].max() <= 3
    driver.page.focus("#split")
    driver.page.keyboard.press("End")
    assert np.abs(driver.image_pixels(*IMAGE.shape[:2]).astype(float) - IMAGE)[:, :-3].max() <= 3


def test_minimum_confidence_hides_pixels(driver: PageDriver, url: str) -> None:
    grey = httpx.post(f"{url}/v1/segment?format=confidence", content=PNG).content
    sure = np.asarray(Image.open(io.BytesIO(grey))).astype(int)
    percent = int(np.median(sure) / 2.55)
    driver.set_slider("min-confidence", percent)
    expected = expected_overlay(url)
    unsure = sure < int(percent * 2.55 + 0.5)
    assert unsure.any() and not unsure.all()
    expected[unsure] = IMAGE[unsure]
    check_view(driver, expected)


def test_readout_shows_the_label_under_the_pointer(driver: PageDriver, url: str) -> None:
    found, names = segment_labels(url), {entry["label"]: entry["name"] for entry in segment_json(url)["classes"]}
    grey = httpx.post(f"{url}/v1/segment?format=confidence", content=PNG).content
    sure = np.asarray(Image.open(io.BytesIO(grey))) / 255
    box = driver.page.locator("#view").bounding_box()
    scale = min(box["height"] / 60, box["width"] / 80)
    left, top = box["x"] + (box["width"] - 80 * scale) / 2, box["y"] + (box["height"] - 60 * scale) / 2
    for x, y in ((3, 4), (70, 5), (40, 30), (10, 55)):
        driver.page.mouse.move(left + (x + 0.5) * scale, top + (y + 0.5) * scale)
        driver.page.wait_for_selector(f"#readout[title='pixel {x}, {y}']")
        name, confidence = driver.page.inner_text("#readout").removesuffix(" confidence").split(" · ")
        assert name == names[found[y, x]]
        assert float(confidence.strip("<%")) == pytest.approx(sure[y, x] * 100, abs=0.51)
    driver.page.mouse.move(box["x"] + 2, box["y"] + box["height"] - 2 if left - box["x"] > 4 else box["y"] + 2)


def test_zoom_and_move_by_wheel_pointer_and_keys(driver: PageDriver, url: str) -> None:
    whole = driver.screenshot()
    box = driver.page.locator("#view").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    driver.page.mouse.move(*middle)
    driver.page.mouse.wheel(0, -400)
    near = driver.screenshot()
    assert np.abs(near.astype(int) - whole).mean() > 3
    driver.page.mouse.down()
    driver.page.mouse.move(middle[0] + 120, middle[1] + 60, steps=4)
    driver.page.mouse.up()
    driver.page.mouse.move(2, 2)
    moved = driver.screenshot()
    assert (np.abs(moved[160:-100, 220:].astype(int) - near[100:-160, 100:-120]) < 4).mean() > 0.9
    driver.page.focus("#view")
    for key in ("ArrowLeft", "ArrowUp", "+", "-"):
        driver.page.keyboard.press(key)
    driver.page.wait_for_selector("#readout:has-text('confidence')")
    driver.page.keyboard.press("0")
    driver.page.evaluate("document.activeElement.blur()")
    assert np.abs(driver.screenshot().astype(int) - whole).mean() < 1


def test_downloads(driver: PageDriver, url: str, tmp_path: Path) -> None:
    mask = driver.download("mask", tmp_path)
    assert mask.name == "street.mask.png"
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), segment_labels(url))
    overlay = driver.download("overlay", tmp_path)
    assert overlay.name == "street.overlay.jpg"
    assert np.abs(np.asarray(Image.open(overlay)).astype(float) - expected_overlay(url)).mean() < 12  # a JPEG
    result = json.loads(driver.download("json", tmp_path).read_text())
    assert {entry["name"]: entry["pixels"] for entry in result["classes"]} == {
        entry["name"]: entry["pixels"] for entry in segment_json(url)["classes"]
    }


def test_photo_from_the_camera(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    sight.page.click("#empty .photograph")
    while not sight.page.evaluate("document.querySelector('video').videoWidth"):
        sight.page.wait_for_timeout(50)
    sight.page.click("#camera .shutter")
    sight.wait_for_result()
    assert sight.screenshot().std() > 10
    assert sight.page.evaluate("document.querySelector('video').srcObject.active") is False  # the camera is off


def test_image_has_the_orientation_of_its_mask(open_page: OpenPage, url: str) -> None:
    """Browsers apply EXIF differently and cannot read TIFF: the image must have the orientation of its mask."""
    sight = open_page(url)
    for format in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
        for orientation in (3, 6):
            exif, name = Image.Exif(), f"{orientation}.{format}"
            exif[0x0112] = orientation
            quality = {"quality": 95} if format in ("JPEG", "WEBP", "AVIF") else {}
            sent = encode_image(IMAGE, format, exif=exif, **quality)
            overlay = httpx.post(f"{url}/v1/segment?format=overlay&alpha=0", content=sent).content
            expected = np.asarray(Image.open(io.BytesIO(overlay))).astype(float)
            sight.upload(name, sent)
            sight.wait_for_image(name)
            sight.set_slider("opacity", 0)
            assert np.abs(sight.image_pixels(*expected.shape[:2]) - expected).mean() < 8, name


def test_another_model_segments_the_same_image(open_page: OpenPage, two_models_url: str) -> None:
    """The image on the screen, not the one before it: legend and colors are those of the service's response to it."""
    sight = open_page(two_models_url)
    sight.upload("before.png", encode_image(synthetic_image(60, 80, seed=1), "PNG"))
    sight.wait_for_result()
    sight.upload("street.png", PNG)
    sight.page.wait_for_selector("#result-source:text-is('street.png, model few')")
    sight.page.select_option("#model", "many")
    sight.page.wait_for_selector("#result-source:text-is('street.png, model many')")
    expected = {entry["name"]: entry["fraction"] for entry in segment_json(two_models_url, model="many")["classes"]}
    names, fractions = (sight.page.locator(f".rows .{each}").all_inner_texts() for each in ("name", "fraction"))
    assert set(names) == expected.keys() and len(names) > 20
    for name, fraction in zip(names, fractions, strict=True):
        assert float(fraction.strip("<%")) == pytest.approx(expected[name] * 100, abs=0.51), name
    check_view(sight, expected_overlay(two_models_url, model="many"))


def rename_classes(names: dict[str, str]) -> Callable[[Any], None]:
    def fulfill(route: Any) -> None:
        response = route.fetch()
        text = response.text()
        for before, after in names.items():
            text = text.replace(f'"{before}"', json.dumps(after))
        route.fulfill(response=response, body=text)

    return fulfill


def test_background_is_hidden_until_it_is_checked(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    sight.context.route("**/v1/segment*", rename_classes({"class 0": "Background"}))
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    names = [entry["name"] for entry in segment_json(url)["classes"]]
    assert "class 0" in names and len(names) > 1
    check_view(sight, expected_overlay(url, [name for name in names if name != "class 0"]))
    sight.page.check("li:has-text('Background') input")
    sight.page.mouse.move(5, 5)
    check_view(sight, expected_overlay(url))


def test_code_makes_the_request_of_the_page(driver: PageDriver, url: str, tmp_path: Path) -> None:
    names = driver.page.locator(".rows .name").all_inner_texts()
    driver.page.uncheck(f"li:has-text('{names[0]}') input")
    driver.set_slider("min-confidence", 40)
    driver.page.click("#code summary")
    driver.page.wait_for_selector("#code pre:has-text('curl')")
    panel = driver.page.locator("aside")
    assert panel.evaluate("(panel) => panel.scrollWidth <= panel.clientWidth")  # its box scrolls, not the panel
    (tmp_path / "street.png").write_bytes(PNG)
    options = {
        "min_confidence": "0.4",
        "classes": ",".join(sorted({f"class {label}" for label in range(4)} - {names[0]})),
    }
    expected = segment_labels(url, **options)
    subprocess.run(
        ["sh", "-c", driver.page.inner_text("#code pre")], cwd=tmp_path, check=True, timeout=60, capture_output=True
    )
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected)
    (tmp_path / "mask.png").unlink()
    driver.page.click("#code [data-language=python]")
    python = [sys.executable, "-c", driver.page.inner_text("#code pre")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(python, cwd=tmp_path, check=True, timeout=60, capture_output=True, env=environment)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected)


def test_example_of_the_bundle(open_page: OpenPage, url: str, bundle: Path) -> None:
    """`bundle` and that of the default model have the same examples."""
    sight = open_page(url)
    sight.page.click("#examples button >> nth=0")
    sight.wait_for_result()
    assert sight.page.inner_text("#result-source") == "0.png, model few"
    shown = segment_json(url, (bundle / "probes" / "0.png").read_bytes())
    assert sight.page.locator(".rows li").count() == len(shown["classes"])


def test_view_has_the_shape_of_the_image_on_a_phone(open_page: OpenPage, url: str) -> None:
    sight = open_page(url, viewport={"width": 390, "height": 844})
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    box = sight.page.locator("#view").bounding_box()
    assert box["width"] == 390 and box["height"] == pytest.approx(390 * 60 / 80, abs=1)
    sight.upload("tall.png", encode_image(synthetic_image(400, 80), "PNG"))
    sight.page.wait_for_selector("#result-source:has-text('tall.png')")
    assert sight.page.locator("#view").bounding_box()["height"] < 0.65 * 844


def test_legend_of_many_classes(open_page: OpenPage, two_models_url: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    sight = open_page(two_models_url)
    sight.page.select_option("#model", "many")
    sight.upload("street.png", encode_image(np.kron(colours, np.ones((8, 8, 1), np.uint8)), "PNG"))
    sight.wait_for_result()
    rows = sight.page.locator(".rows li")
    assert rows.count() > 100
    assert sight.page.is_visible(".save[data-what=mask]")  # only the list scrolls
    names = set(rows.locator(".name").all_inner_texts())
    sight.page.fill("[type=search]", "CLASS 11 ")
    found = set(sight.page.locator(".rows li:visible .name").all_inner_texts())
    assert found == {name for name in names if name.startswith("class 11")} and len(found) > 1


def test_slider_draws_a_large_image_only_once_per_frame(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    sight.upload("large.jpg", encode_image(synthetic_image(1500, 2000), "JPEG"))
    sight.wait_for_result()
    sight.page.workers[0].evaluate("""() => {
        const kind = OffscreenCanvasRenderingContext2D.prototype, put = kind.putImageData;
        self.paintings = 0;
        kind.putImageData = function (...given) {
            self.paintings += given[2] === 0; // the band on top
            return put.apply(this, given);
        };
    }""")
    sight.page.evaluate("""() => {
        const sure = document.getElementById("min-confidence");
        for (let value = 100; value > 0; value--) {
            sure.value = value;
            sure.dispatchEvent(new Event("input"));
        }
    }""")
    sight.page.hover("#canvas")
    sight.page.wait_for_selector("#readout:has-text('confidence')")
    sight.wait_until_drawn()
    assert 1 <= sight.page.workers[0].evaluate("self.paintings") <= 10


def test_image_of_one_pixel_width(open_page: OpenPage, url: str) -> None:
    sight = open_page(url)
    for name, size in (("high.png", (5000, 1)), ("wide.png", (1, 5000))):
        sight.upload(name, encode_image(np.resize(IMAGE, (*size, 3)), "PNG"))
        sight.wait_for_image(name)
        assert "Segmented in" in sight.page.inner_text("#status")


def test_long_name_stays_in_its_area(open_page: OpenPage, url: str) -> None:
    def rename(route: Any) -> None:
        response = route.fetch()
        result = response.json()
        for entry in result["classes"]:
            entry["name"] = "\u05d0" + f" class {entry['label']} with a name" * 8
        route.fulfill(response=response, json=result)

    sight = open_page(url)
    sight.context.route("**/v1/segment*", rename)
    sight.upload("street.png", PNG)
    sight.wait_for_result()
    for width in (1000, 390):
        sight.page.set_viewport_size({"width": width, "height": 700})
        sight.page.mouse.move(2, 2)
        sight.page.wait_for_selector("#readout", state="hidden")
        sight.page.hover("#canvas")
        sight.page.wait_for_selector("#readout:has-text('with a name')")
        readout, view = (sight.page.locator(each).bounding_box() for each in ("#readout", "#view"))
        assert readout["x"] >= view["x"] and readout["x"] + readout["width"] <= view["x"] + view["width"]
        assert sight.page.inner_text("#readout").endswith("confidence")
        assert sight.page.locator(".rows li").first.bounding_box()["height"] < 70
