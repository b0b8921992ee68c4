"""Every curl recipe of the documentation, run against a real service; only address, key and class names are replaced."""

import io
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures_bundles import synthetic_image

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/service.md", "docs/client.md")
ADDRESS = "http://127.0.0.1:3000"
RECIPE = re.compile(r"^    ((?:cat \S+ \| )?curl (?:.*\\\n)*.*)$", re.MULTILINE)
ALL_RECIPES = sorted({recipe for page in PAGES for recipe in RECIPE.findall((ROOT / page).read_text())})
JOB_RECIPES = [recipe for recipe in ALL_RECIPES if "respond-async" in recipe or "/v1/jobs/" in recipe]
RECIPES = [recipe for recipe in ALL_RECIPES if recipe not in JOB_RECIPES]
SIZES = {"photo.jpg": (80, 60), "a.jpg": (70, 50), "b.jpg": (40, 90)}  # width, height

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the recipes."""
    for name, (width, height) in SIZES.items():
        Image.fromarray(synthetic_image(height, width)).save(tmp_path / name)
    test = tmp_path / "mydata" / "images" / "test"
    test.mkdir(parents=True)
    for index, name in enumerate(("a.jpg", "b.jpg")):
        shutil.copy(tmp_path / name, test / f"test_{index:04}.jpg")
    return tmp_path


def run_recipe(recipe: str, url: str, key: str, folder: Path) -> str:
    """Run a recipe in a folder with its files. Returns: its output."""
    assert ADDRESS in recipe
    command = recipe.replace(ADDRESS, url).replace("classes=star,ring", "classes=class%201,class%202")
    command = command.replace("examples/mydata/", "examples/tiny/")
    environment = {**os.environ, "KEY": key, "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_mask(content: bytes, size: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode, image.size) == ("PNG", "P", size)


def check_jpeg(content: bytes, size: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)


def check_npy(content: bytes, size: tuple[int, int]) -> None:
    labels = np.load(io.BytesIO(content))
    assert (labels.dtype, labels.shape) == (np.uint8, size[::-1])


def check_zip(content: bytes, size: tuple[int, int]) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        *masks, manifest = archive.namelist()  # the masks are named as the images
        assert manifest == "manifest.json" and masks in (["a.png", "b.png"], ["test_0000.png", "test_0001.png"])
        for name, image in zip(masks, ("a.jpg", "b.jpg"), strict=True):
            check_mask(archive.read(name), SIZES[image])


def check_json(content: bytes, size: tuple[int, int]) -> None:
    result = json.loads(content)
    assert (result["width"], result["height"]) == size and result["classes"]


CHECKS: dict[str, Callable[[bytes, tuple[int, int]], None]] = {
    ".png": check_mask, ".jpg": check_jpeg, ".npy": check_npy, ".zip": check_zip, ".json": check_json,
}  # fmt: skip


def test_recipes_cover_all_formats_and_routes() -> None:
    text = "\n".join(RECIPES)
    formats = ("-o mask.png", "format=overlay", "format=json", "format=npy", "/v1/segment/batch", "/v1/models", "$KEY")
    assert all(word in text for word in formats) and len(RECIPES) >= 10


def test_a_recipe_that_writes_a_file_fails_on_an_error() -> None:
    """Otherwise the error's JSON is in a file named mask.png, and curl's exit code is 0."""
    for recipe in RECIPES:
        assert "--fail-with-body" in recipe or not re.search(r" -o (?!/dev/null)", recipe), recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, service_url: str, strict_url: str, api_key: str, folder: Path) -> None:
    printed = run_recipe(recipe, strict_url if "$KEY" in recipe else service_url, api_key, folder)
    files = re.findall(r" -o ([\w.]+)", recipe)
    if "/v1/examples/" in recipe:
        with Image.open(folder / files[0]) as example:
            assert example.format == "PNG"
        return
    for name in files:
        CHECKS[Path(name).suffix]((folder / name).read_bytes(), SIZES["photo.jpg"])
    if "/v1/models" in recipe:
        assert json.loads(printed)[0]["name"] in ("tiny", "small")
    elif "/readyz" in recipe:
        assert printed == "200\n"
    elif "-D -" in recipe:
        assert re.search(r"^server-timing: read;dur=", printed, re.MULTILINE | re.IGNORECASE)
    elif not files:
        check_json(printed.encode(), SIZES["photo.jpg"])


def test_recipes_of_a_job(service_url: str, api_key: str, folder: Path) -> None:
    """The volume of the page is a photograph here, because the service has a model of images."""
    shutil.copy(folder / "photo.jpg", folder / "ct.nii.gz")
    (start,) = (recipe for recipe in JOB_RECIPES if "respond-async" in recipe)
    job = run_recipe(start, service_url, api_key, folder).strip().rpartition("/")[2]
    fetch, delete = sorted((recipe for recipe in JOB_RECIPES if recipe != start), key=lambda recipe: "DELETE" in recipe)
    for _ in range(600):
        run_recipe(fetch.replace("ID", job), service_url, api_key, folder)
        if (content := (folder / "labels.nii.gz").read_bytes()).startswith(b"\x89PNG"):
            break
        time.sleep(0.1)
    check_mask(content, SIZES["photo.jpg"])
    run_recipe(delete.replace("ID", job), service_url, api_key, folder)
    with pytest.raises(AssertionError, match="404"):
        run_recipe(fetch.replace("ID", job), service_url, api_key, folder)


def test_recipe_keeps_the_error_body(service_url: str, api_key: str, folder: Path) -> None:
    (folder / "photo.jpg").write_bytes(b"not an image")
    recipe = next(recipe for recipe in RECIPES if "--fail-with-body" in recipe and "-o mask.png" in recipe)
    with pytest.raises(AssertionError):
        run_recipe(recipe, service_url, api_key, folder)
    assert json.loads((folder / "mask.png").read_bytes())["status"] == 415
