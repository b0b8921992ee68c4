"""The page /v1/docs, below the path of a proxy that keeps it."""

from urllib.parse import urlsplit

import pytest

from tests.page.conftest import OpenPage

pytestmark = pytest.mark.browser

PREFIX = "/tools/x"


def test_documentation_below_a_path(open_page: OpenPage, below_a_path: str) -> None:
    sight = open_page(f"{below_a_path}/v1/docs")
    paths: list[str] = []
    sight.page.on("request", lambda request: paths.append(urlsplit(request.url).path))
    sight.page.reload()
    sight.page.click(".opblock-get:has-text('List the served models') .opblock-summary")
    sight.page.click("text=Try it out")
    sight.page.click("button.execute")
    sight.page.wait_for_selector(".live-responses-table .response-col_status:has-text('200')")
    assert f"{PREFIX}/v1/models" in paths and all(path.startswith(f"{PREFIX}/v1/") for path in paths), paths
    assert sight.page.locator(".authorization__btn, .authorize").count() == 0  # no key is needed
    for theme in ("light", "dark"):
        sight.page.emulate_media(color_scheme=theme)
        color = sight.page.locator(".info .title").evaluate("(title) => getComputedStyle(title).color.match(/\\d+/g)")
        assert (int(color[0]) > 128) == (theme == "dark")


def test_page_below_a_path(open_page: OpenPage, below_a_path: str) -> None:
    sight = open_page(below_a_path)  # without the last slash
    sight.page.wait_for_selector("#only-model:has-text('small')")
    sight.page.click("#examples button >> nth=0")
    sight.wait_for_result()
    assert urlsplit(sight.page.url).path == f"{PREFIX}/"
