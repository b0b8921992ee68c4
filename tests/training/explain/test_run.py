"""`maskserve explain`: its files, one page that opens offline, and one sentence for bad input."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from models.errors import ConfigError, RunError
from tests.fixtures_bundles import QUIET_CONSOLE, synthetic_image
from tests.service.tiny_bundle import write_tiny_bundle
from training.explain import IMAGE_VIEWS
from training.explain.page import script_json
from training.explain.run import explain

pytestmark = pytest.mark.usefixtures("one_thread")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without torch weights."""
    return write_tiny_bundle(tmp_path_factory.mktemp("imported") / "imported")


@pytest.fixture(scope="module")
def explained(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explained")
    image = folder / f"{HOSTILE}.png"
    Image.fromarray(synthetic_image(64, 96)).save(image)
    views = ["certainty", "journey", "fields", "kernels", "maps", "sharing"]
    explain(tiny_bundle, [image], folder / "out", views=views, console=QUIET_CONSOLE)
    return folder / "out"


def test_the_page_opens_offline_and_names_are_text(explained: Path) -> None:
    page = (explained / "index.html").read_text()
    assert "default-src 'none'" in page and len(page) < 10e6
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert page.index('id="findings"') < page.index('id="certainty"') < page.index('id="kernels"')
    assert "</script>" not in script_json({"name": "</script>"})


def test_every_number_and_image_is_written(explained: Path) -> None:
    content = json.loads((explained / "explain.json").read_text())
    numbers = content["views"]["fields"][HOSTILE]
    assert numbers["effective"] <= numbers["theoretical"] and numbers["point"] == [96, 64]  # the rule enlarges to 192
    assert {finding["kind"] for finding in content["findings"]} >= {"uncertain"}  # random weights
    for finding in content["findings"]:
        assert finding["limit"] == content["thresholds"][finding["kind"]]["limit"]
    with Image.open(explained / "images" / f"{HOSTILE}-fields-field.png") as image:
        assert image.size == (192, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ["certanty"]}, "did you mean certainty?"),
        ({"layer": "encoder.model.layer9"}, "did you mean encoder.model.layer"),
        ({"target": "clas 2"}, "did you mean class 2?"),
        ({"at": (999, 0)}, "which has 160 x 120 pixels"),
        ({"evolution": True}, "Name a run"),
        ({"out": "index.html"}, "is a file"),
    ],
    ids=["view", "layer", "class", "pixel", "evolution", "out"],
)  # fmt: skip
def test_bad_input(options: dict[str, object], message: str, tiny_bundle: Path, imported: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle if "layer" in options else imported  # the imported one opens in milliseconds
    (tmp_path / "index.html").touch()
    arguments = {"out": tmp_path / "out"} | options
    arguments["out"] = tmp_path / str(arguments["out"])
    with pytest.raises(ConfigError, match=re.escape(message)):
        explain(bundle, [], console=QUIET_CONSOLE, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="neither a bundle nor a run folder"):
        explain(tmp_path, [], tmp_path / "out", console=QUIET_CONSOLE)


def test_a_bundle_without_weights_shows_what_it_can(imported: Path, tmp_path: Path) -> None:
    result = explain(imported, [], tmp_path / "out", console=QUIET_CONSOLE)
    assert {"certainty", "occlusion", "shifts"} <= set(result.facts)
    assert set(result.skipped) >= set(IMAGE_VIEWS) - {"certainty", "occlusion", "shifts"}
    assert "weights.safetensors" in result.skipped["kernels"]
    assert "weights.safetensors" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(ConfigError, match=r"kernels cannot be shown: it needs weights\.safetensors"):
        explain(imported, [], tmp_path / "out2", views=["kernels"], console=QUIET_CONSOLE)
