"""The view of a volume: every voxel, its label and its place, compared with the phantom that was sent."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.server_process import background_server
from tests.models.readers.make_volumes import dicom_bytes, zip_bytes
from tests.page.conftest import OpenPage
from tests.page.page_driver import PageDriver
from tests.service.tiny_bundle import write_tiny_bundle
from tests.service.volume_bundle import AFFINE, COLORS, SPACING, phantom, phantom_labels, write_volume_bundle

pytestmark = pytest.mark.browser

# Arrays of a slice as it is on the screen: the patient's right on the left, the front or the head up. The phantom is RAS.
SLICES = {
    "Axial": lambda volume, step: volume[::-1, ::-1, step].T,
    "Coronal": lambda volume, step: volume[::-1, volume.shape[1] - 1 - step, ::-1].T,
    "Sagittal": lambda volume, step: volume[volume.shape[0] - 1 - step, ::-1, ::-1].T,
}
MM = {"Axial": SPACING[[1, 0]], "Coronal": SPACING[[2, 0]], "Sagittal": SPACING[[2, 1]]}  # of a voxel, down and across


@pytest.fixture(scope="module")
def volume_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service of a model of volumes, its default, and one of images."""
    folder = tmp_path_factory.mktemp("volumes")
    write_volume_bundle(folder / "a-volumes", "a-volumes")
    write_tiny_bundle(folder / "images", "images")
    with background_server(folder) as url:
        yield url


def file_of(code: str, kind: type = nibabel.Nifti1Image) -> bytes:
    """The phantom with its axes in the order and direction of a code such as RAS, as NIfTI."""
    image = nibabel.Nifti1Image(phantom(), AFFINE)
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
    )
    turned = image.as_reoriented(change)
    new = kind(np.asarray(turned.dataobj, ">i2" if code == "PIR" else "<i2"), turned.affine)
    if code == "PIR":
        new.header.set_data_dtype(">i2")
        new.header.set_slope_inter(1, 0)
        new.set_sform(None, 0)
        new.set_qform(turned.affine, 1)
    return bytes(new.to_bytes())


def show_slice(driver: PageDriver, plane: str, step: int) -> None:
    driver.page.evaluate(
        "([label, value]) => { const it = document.querySelector(`[aria-label='${label} slice']`); it.value = value; "
        "it.dispatchEvent(new Event('input')) }",
        [plane, step],
    )


def shown_slice(driver: PageDriver, plane: str, rows: int, columns: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The color near the center of each voxel of a plane, RGB rows x columns x 3; and which ones the letters do not cover."""
    driver.page.wait_for_timeout(250)
    box = driver.page.locator(f"[aria-label='{plane} plane']").bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(driver.page.screenshot(clip=box))).convert("RGB")).astype(np.int64)
    down, across = MM[plane]
    scale = min(shot.shape[0] / (rows * down), shot.shape[1] / (columns * across))
    top, left = (shot.shape[0] - rows * down * scale) / 2, (shot.shape[1] - columns * across * scale) / 2
    # Beside the center, where the lines of the crosshair are.
    y = (top + (np.arange(rows) + 0.3) * down * scale).astype(int)
    x = (left + (np.arange(columns) + 0.3) * across * scale).astype(int)
    places = [(shot.shape[0] / 2, 9), (shot.shape[0] / 2, shot.shape[1] - 9)]
    places += [(10, shot.shape[1] / 2), (shot.shape[0] - 10, shot.shape[1] / 2)]
    covered = [(np.abs(y - top) < 10)[:, None] & (np.abs(x - left) < 10) for top, left in places]
    return shot[y][:, x], ~np.any(covered, axis=0)


@pytest.mark.parametrize("code", ["RAS", "LPI", "PIR"])
def test_every_voxel_is_shown_at_its_place(open_page: OpenPage, volume_url: str, code: str) -> None:
    driver = open_page(volume_url)
    driver.page.wait_for_selector("text=Segment a volume")
    driver.upload(f"{code}.nii", file_of(code, nibabel.Nifti2Image if code == "LPI" else nibabel.Nifti1Image))
    driver.wait_for_result()
    colors = np.array(list(COLORS.values()))
    driver.page.check(".rows li:has-text('none') input")
    for opacity in (100, 0):
        driver.set_slider("opacity", opacity)
        for plane, step in (("Axial", 2), ("Coronal", 1), ("Sagittal", 3), ("Axial", 7), ("Sagittal", 1)):
            show_slice(driver, plane, step)
            labels = SLICES[plane](phantom_labels(), step)
            gray = np.rint(SLICES[plane](phantom(), step) / 200 * 255)[..., None].repeat(3, axis=2)
            found, free = shown_slice(driver, plane, *labels.shape)
            assert len(np.unique(labels[free])) > 1 and free.sum() >= free.size - 4
            assert np.abs(found - (colors[labels] if opacity else gray))[free].max() <= 2, (plane, step)


def test_crosshair_keys_wheel_and_readout(open_page: OpenPage, volume_url: str) -> None:
    driver = open_page(volume_url)
    driver.page.wait_for_selector("text=Segment a volume")
    driver.upload("case.nii", file_of("PIR"))
    driver.wait_for_result()
    readout = driver.page.locator("#volume-view > output")
    # From the middle, in RAS 3, 4, 5: three to the patient's left, two to the front, and two slices to the feet.
    driver.page.focus("[aria-label='Axial plane']")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp", "PageDown", "PageDown"):
        driver.page.keyboard.press(key)
    driver.page.wait_for_timeout(250)
    i, j, k = 0, 6, 3
    label = list(COLORS)[phantom_labels()[i, j, k]]
    x, y, z = AFFINE[:3, :3] @ (i, j, k) + AFFINE[:3, 3]
    expected = f"{label} · value {phantom()[i, j, k]} · voxel {8 - j}, {9 - k}, {i} · {x:.1f}, {y:.1f}, {z:.1f} mm"
    assert readout.inner_text() == expected
    # A press at the voxel in RAS 5, 2 of the axial plane, and the wheel to the head: from slice 3 to 1.
    box = driver.page.locator("[aria-label='Axial plane']").bounding_box()
    scale = min(box["width"] / 8, box["height"] / 18)
    driver.page.mouse.move(
        box["x"] + box["width"] / 2 + (8 / 2 - 5.5) * scale, box["y"] + box["height"] / 2 + (9 - 2 * 2.5) * scale
    )
    driver.page.mouse.down()
    driver.page.mouse.up()
    driver.page.mouse.wheel(0, 120)
    driver.page.wait_for_timeout(250)
    assert f"value {phantom()[5, 2, 1]} · voxel 6, 8, 5 ·" in readout.inner_text() and phantom()[5, 2, 1] == 200


def test_legend_has_ml_and_saved_files_are_those_of_the_service(
    open_page: OpenPage, volume_url: str, tmp_path: Path
) -> None:
    driver = open_page(volume_url, color_scheme="dark", viewport={"width": 390, "height": 800})
    driver.page.wait_for_selector("text=Segment a volume")
    driver.upload("case.nii", file_of("RAS"))
    driver.wait_for_result()
    counts = np.bincount(phantom_labels().ravel())
    legend = dict(
        zip(*(driver.page.locator(f".rows .{each}").all_inner_texts() for each in ("name", "fraction")), strict=True)
    )
    assert {name: float(amount.removesuffix(" ml")) for name, amount in legend.items()} == {
        name: float(f"{count * 0.006:.3g}") for name, count in zip(COLORS, counts, strict=True)
    }
    for text in ("Labels", "JSON"):
        with driver.page.expect_download() as coming:
            driver.page.click(f".volume .save:text-is('{text}')")
        coming.value.save_as(tmp_path / coming.value.suggested_filename)
    labels = np.asarray(nibabel.load(tmp_path / "case.labels.nii.gz").dataobj)
    np.testing.assert_array_equal(labels, phantom_labels())
    entries = json.loads((tmp_path / "case.json").read_text())["classes"]
    assert [entry["voxels"] for entry in entries] == counts.tolist()


def test_a_series_of_slices_and_then_an_image(open_page: OpenPage, volume_url: str) -> None:
    driver = open_page(volume_url)
    driver.page.wait_for_selector("text=Segment a volume")
    slices = {f"{k}.dcm": dicom_bytes(phantom()[:, :, k].T, (0, 0, k)) for k in range(10)}
    driver.page.set_input_files(
        "#file", [{"name": name, "mimeType": "", "buffer": content} for name, content in slices.items()]
    )
    driver.wait_for_result()
    assert "these are its labels alone" in driver.page.inner_text("#volume-view > output")
    assert "series.zip" in driver.page.inner_text("#result-source")
    driver.expected_statuses = (415,)
    driver.upload("a.zip", zip_bytes({"a.txt": b"no slice"}))
    driver.page.wait_for_selector("#status .problem")
    driver.page.select_option("#model", "images")
    driver.page.wait_for_selector("#empty .large:text-is('Segment an image')", state="attached")
    assert not driver.page.is_visible("#volume-view")
