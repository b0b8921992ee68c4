"""A picture comes in, and its classes are seen: against what the service says of the same picture."""

import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fixtures_bundles import drawing
from tests.fixtures_images import encoded
from tests.page.conftest import Open
from tests.page.page_driver import Sight

pytestmark = pytest.mark.browser

PICTURE = drawing(60, 80)
PNG = encoded(PICTURE, "PNG")
OPACITY = 0.6  # as the page begins


def facts(url: str, picture: bytes = PNG) -> dict:
    return httpx.post(f"{url}/v1/segment?format=json", content=picture).json()


def labels(url: str, picture: bytes = PNG) -> np.ndarray:
    return np.load(io.BytesIO(httpx.post(f"{url}/v1/segment?format=npy", content=picture).content))


def under_colours(url: str, shown: list[str] | None = None, opacity: float = OPACITY) -> np.ndarray:
    """The picture under the colours of these classes; all of them where none is named."""
    found, out = labels(url), PICTURE.astype(float)
    for entry in facts(url)["classes"]:
        if shown is None or entry["name"] in shown:
            mine = found == entry["label"]
            out[mine] = (1 - opacity) * out[mine] + opacity * np.array(entry["rgb"])
    return out


def check_seen(sight: Sight, expected: np.ndarray, tolerance: float = 3) -> None:
    """The worker draws when it has time: looked at until it is so, or some seconds have passed."""
    for _ in range(20):
        off = np.abs(sight.pixels(*expected.shape[:2]) - expected).max()
        if off <= tolerance:
            break
    assert off <= tolerance


@pytest.fixture
def sight(open_page: Open, url: str) -> Sight:
    sight = open_page(url)
    sight.bring("street.png", PNG)
    sight.result()
    return sight


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_that_is_brought_is_seen_under_its_classes(open_page: Open, url: str, how: str) -> None:
    sight = open_page(url)
    assert sight.page.is_visible("#empty") and not sight.page.is_visible("#view")
    sight.bring("street.png", PNG, how)
    sight.result()
    check_seen(sight, under_colours(url))


def test_the_legend_says_what_the_service_says(sight: Sight, url: str) -> None:
    told = sorted(facts(url)["classes"], key=lambda entry: -entry["share"])
    assert sight.page.locator(".rows .name").all_inner_texts() == [entry["name"] for entry in told]
    for entry, share in zip(told, sight.page.locator(".rows .share").all_inner_texts(), strict=True):
        assert float(share.strip("<%")) == pytest.approx(entry["share"] * 100, abs=0.51)
    assert all(entry["name"] in sight.page.inner_text("#summary") for entry in told)
    assert "Labelled in" in sight.page.inner_text("#status")
    assert all(stage in sight.page.inner_text("#timing") for stage in ("read", "queue", "decode", "infer", "encode"))


def test_a_class_is_put_away_and_stays_away(sight: Sight, url: str) -> None:
    names = sight.page.locator(".rows .name").all_inner_texts()
    sight.page.uncheck(f"li:has-text('{names[0]}') input")
    sight.page.mouse.move(5, 5)
    check_seen(sight, under_colours(url, names[1:]))
    sight.page.click("button:text-is('None')")
    check_seen(sight, PICTURE.astype(float))
    sight.page.click("button:text-is('All')")
    check_seen(sight, under_colours(url))
    sight.page.uncheck(f"li:has-text('{names[0]}') input")
    sight.bring("again.png", PNG)
    sight.page.wait_for_timeout(300)
    sight.result()
    check_seen(sight, under_colours(url, names[1:]))


def test_a_class_that_is_pointed_at_stands_out(sight: Sight, url: str) -> None:
    name = sight.page.locator(".rows .name").first.inner_text()
    sight.page.hover(f"li:has-text('{name}')")
    alone, seen = under_colours(url, [name]), sight.pixels(*PICTURE.shape[:2])
    entry = next(entry for entry in facts(url)["classes"] if entry["name"] == name)
    mine = labels(url) == entry["label"]
    assert np.abs(seen - alone)[mine].max() <= 3
    assert np.abs(seen - alone)[~mine].mean() < np.abs(under_colours(url) - alone)[~mine].mean() / 2


def test_opacity_and_compare(sight: Sight, url: str) -> None:
    sight.slide("opacity", 100)
    check_seen(sight, under_colours(url, opacity=1.0))
    sight.page.check("#compare")
    sight.slide("split", 50)
    seen, half = sight.pixels(*PICTURE.shape[:2]).astype(float), PICTURE.shape[1] // 2
    assert np.abs(seen - PICTURE)[:, : half - 3].max() <= 3
    assert np.abs(seen - under_colours(url, opacity=1.0))[:, half + 3 :].max() <= 3
    sight.page.focus("#split")
    sight.page.keyboard.press("End")
    assert np.abs(sight.pixels(*PICTURE.shape[:2]).astype(float) - PICTURE)[:, :-3].max() <= 3


def test_what_is_less_sure_is_left_bare(sight: Sight, url: str) -> None:
    grey = httpx.post(f"{url}/v1/segment?format=confidence", content=PNG).content
    sure = np.asarray(Image.open(io.BytesIO(grey))).astype(int)
    percent = int(np.median(sure) / 2.55)
    sight.slide("sure", percent)
    expected = under_colours(url)
    unsure = sure < int(percent * 2.55 + 0.5)
    assert unsure.any() and not unsure.all()
    expected[unsure] = PICTURE[unsure]
    check_seen(sight, expected)


def test_what_lies_under_the_pointer_is_read_out(sight: Sight, url: str) -> None:
    found, names = labels(url), {entry["label"]: entry["name"] for entry in facts(url)["classes"]}
    grey = httpx.post(f"{url}/v1/segment?format=confidence", content=PNG).content
    sure = np.asarray(Image.open(io.BytesIO(grey))) / 255
    box = sight.page.locator("#view").bounding_box()
    scale = min(box["height"] / 60, box["width"] / 80)
    left, top = box["x"] + (box["width"] - 80 * scale) / 2, box["y"] + (box["height"] - 60 * scale) / 2
    for x, y in ((3, 4), (70, 5), (40, 30), (10, 55)):
        sight.page.mouse.move(left + (x + 0.5) * scale, top + (y + 0.5) * scale)
        sight.page.wait_for_selector(f"#readout[title='pixel {x}, {y}']")
        name, confidence = sight.page.inner_text("#readout").removesuffix(" sure").split(" · ")
        assert name == names[found[y, x]]
        assert float(confidence.strip("<%")) == pytest.approx(sure[y, x] * 100, abs=0.51)
    sight.page.mouse.move(box["x"] + 2, box["y"] + box["height"] - 2 if left - box["x"] > 4 else box["y"] + 2)


def test_zoom_and_move_by_wheel_pointer_and_keys(sight: Sight, url: str) -> None:
    whole = sight.screen()
    box = sight.page.locator("#view").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    sight.page.mouse.move(*middle)
    sight.page.mouse.wheel(0, -400)
    near = sight.screen()
    assert np.abs(near.astype(int) - whole).mean() > 3
    sight.page.mouse.down()
    sight.page.mouse.move(middle[0] + 120, middle[1] + 60, steps=4)
    sight.page.mouse.up()
    sight.page.mouse.move(2, 2)
    moved = sight.screen()
    assert (np.abs(moved[160:-100, 220:].astype(int) - near[100:-160, 100:-120]) < 4).mean() > 0.9
    sight.page.focus("#view")
    for key in ("ArrowLeft", "ArrowUp", "+", "-"):
        sight.page.keyboard.press(key)
    sight.page.wait_for_selector("#readout:has-text('sure')")
    sight.page.keyboard.press("0")
    sight.page.evaluate("document.activeElement.blur()")
    assert np.abs(sight.screen().astype(int) - whole).mean() < 1


def test_downloads(sight: Sight, url: str, tmp_path: Path) -> None:
    mask = sight.saved("mask", tmp_path)
    assert mask.name == "street.mask.png"
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), labels(url))
    overlay = sight.saved("overlay", tmp_path)
    assert overlay.name == "street.overlay.jpg"
    assert np.abs(np.asarray(Image.open(overlay)).astype(float) - under_colours(url)).mean() < 12  # a JPEG
    told = json.loads(sight.saved("json", tmp_path).read_text())
    assert {entry["name"]: entry["pixels"] for entry in told["classes"]} == {
        entry["name"]: entry["pixels"] for entry in facts(url)["classes"]
    }


def test_a_photo_by_the_camera(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.page.click("#empty .photograph")
    while not sight.page.evaluate("document.querySelector('video').videoWidth"):
        sight.page.wait_for_timeout(50)
    sight.page.click("#camera .take")
    sight.result()
    assert sight.screen().std() > 10
    assert sight.page.evaluate("document.querySelector('video').srcObject.active") is False  # its light goes out


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_what_is_shown_is_what_was_labelled(open_page: Open, url: str, format: str, orientation: int) -> None:
    """Browsers turn pictures by EXIF in their own way, and read no TIFF: the picture must lie as its mask does."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    sent = encoded(PICTURE, format, exif=exif, **({"quality": 95} if format in ("JPEG", "WEBP", "AVIF") else {}))
    overlay = httpx.post(f"{url}/v1/segment?format=overlay&alpha=0", content=sent).content
    expected = np.asarray(Image.open(io.BytesIO(overlay))).astype(float)
    sight = open_page(url)
    sight.bring("picture", sent)
    sight.result()
    sight.slide("opacity", 0)
    sight.page.wait_for_timeout(300)
    assert np.abs(sight.pixels(*expected.shape[:2]) - expected).mean() < 8


def test_another_model_is_asked_about_the_same_picture(open_page: Open, several: str) -> None:
    sight = open_page(several)
    sight.bring("street.png", PNG)
    sight.result()
    first = sight.page.locator(".rows .name").all_inner_texts()
    sight.page.select_option("#model", "many")
    sight.page.locator(".rows li").nth(20).wait_for()
    assert first == [f"class {label}" for label in sorted(range(4), key=lambda label: first.index(f"class {label}"))]


def test_a_legend_of_many_classes(open_page: Open, several: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    sight = open_page(several)
    sight.page.select_option("#model", "many")
    sight.bring("street.png", encoded(np.kron(colours, np.ones((16, 16, 1), np.uint8)), "PNG"))
    sight.result()
    rows = sight.page.locator(".rows li")
    assert rows.count() > 100
    assert sight.page.is_visible(".save[data-what=mask]")  # the list scrolls, and the rest stays where it is
    names = set(rows.locator(".name").all_inner_texts())
    sight.page.fill("[type=search]", "CLASS 11 ")
    found = set(sight.page.locator(".rows li:visible .name").all_inner_texts())
    assert found == {name for name in names if name.startswith("class 11")} and len(found) > 1


def test_a_slider_colours_a_large_picture_no_oftener_than_it_is_seen(open_page: Open, url: str) -> None:
    sight = open_page(url)
    sight.bring("large.jpg", encoded(drawing(1500, 2000), "JPEG"))
    sight.result()
    sight.page.workers[0].evaluate("""() => {
        const kind = OffscreenCanvasRenderingContext2D.prototype, put = kind.putImageData;
        self.paintings = 0;
        kind.putImageData = function (...given) {
            self.paintings += given[2] === 0; // the band on top
            return put.apply(this, given);
        };
    }""")
    sight.page.evaluate("""() => {
        const sure = document.getElementById("sure");
        for (let value = 100; value > 0; value--) {
            sure.value = value;
            sure.dispatchEvent(new Event("input"));
        }
    }""")
    sight.page.hover("#canvas")
    sight.page.wait_for_selector("#readout:has-text('sure')")
    sight.page.wait_for_timeout(300)
    assert 1 <= sight.page.workers[0].evaluate("self.paintings") <= 10


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
def test_a_picture_one_pixel_wide(open_page: Open, url: str, size: tuple[int, int]) -> None:
    sight = open_page(url)
    sight.bring("strip.png", encoded(np.resize(PICTURE, (*size, 3)), "PNG"))
    sight.result()
    assert "Labelled in" in sight.page.inner_text("#status")


def test_a_key_moves_the_comparison_by_a_hundredth(sight: Sight) -> None:
    sight.page.check("#compare")
    sight.page.focus("#split")
    sight.page.keyboard.press("ArrowRight")
    assert sight.page.input_value("#split") == "51"


@pytest.mark.parametrize("width", [1000, 390])
def test_a_long_name_takes_no_more_room_than_there_is(open_page: Open, url: str, width: int) -> None:
    def rename(route: Any) -> None:
        answer = route.fetch()
        told = answer.json()
        for entry in told["classes"]:
            entry["name"] = "\u05d0" + f" class {entry['label']} with a name" * 8
        route.fulfill(response=answer, json=told)

    sight = open_page(url, viewport={"width": width, "height": 700})
    sight.context.route("**/v1/segment*", rename)
    sight.bring("street.png", PNG)
    sight.result()
    sight.page.hover("#canvas")
    sight.page.wait_for_selector("#readout:has-text('with a name')")
    readout, view = (sight.page.locator(each).bounding_box() for each in ("#readout", "#view"))
    assert readout["x"] >= view["x"] and readout["x"] + readout["width"] <= view["x"] + view["width"]
    assert sight.page.inner_text("#readout").endswith("sure")
    assert sight.page.locator(".rows li").first.bounding_box()["height"] < 70
