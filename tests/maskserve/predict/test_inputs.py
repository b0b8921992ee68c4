"""Finding the images of a source, and reading them."""

import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskserve.predict.inputs import find_images
from models.errors import ConfigError, DataError, RunError
from tests.maskserve.predict_helpers import write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "in", 4)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    return tmp_path / "in"


def find_names(*sources: Path | str, exclude: Path | None = None) -> list[str]:
    return [image.name for image in find_images(map(str, sources), str(exclude or ""))]


def test_folders_are_sorted_and_names_are_relative(folder: Path) -> None:
    assert find_names(folder) == ["0001.png", "0003.png", "deep/0000.png", "deep/0002.png"]
    assert find_names(folder / "0001.png", folder / "deep") == ["0001.png", "0000.png", "0002.png"]


def test_the_output_folder_is_excluded(folder: Path) -> None:
    assert find_names(folder, exclude=folder / "deep") == ["0001.png", "0003.png"]
    assert find_names(folder / "*" / "*.png", folder, exclude=folder / "deep" / "x")[:2] == [
        "deep/0000.png",
        "deep/0002.png",
    ]


def test_names_are_relative_to_the_fixed_part_of_a_glob(folder: Path) -> None:
    assert find_names(folder / "**" / "*0[02].png") == ["deep/0000.png", "deep/0002.png"]
    assert find_names(folder / "*.*") == ["0001.png", "0003.png"]
    with pytest.raises(DataError, match=r"\*\.bmp contains no image"):
        find_names(folder / "*.bmp")


def test_an_existing_file_is_not_a_glob(tmp_path: Path) -> None:
    (file,) = write_images(tmp_path / "a[1]", 1)
    assert find_names(file, tmp_path / "a[1]") == ["0000.png", "deep/0000.png"]


def test_archives_are_read_like_folders(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path))
    found = list(find_images([str(tmp_path / "in.zip")]))
    assert [image.name for image in found] == [f"in/{name}" for name in find_names(folder)]
    assert found[0].path == f"zip://in/0001.png::{tmp_path}/in.zip"
    assert found[0].root.read(found[0].name) == (folder / "0001.png").read_bytes()
    assert find_names(f"zip://in/deep/*.png::{tmp_path}/in.zip") == ["0000.png", "0002.png"]


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png"])
def test_an_archive_cannot_write_outside_the_output(name: str, folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, (folder / "0001.png").read_bytes())
    with pytest.raises(DataError, match="whose mask would be written outside the output"):
        find_names(tmp_path / "evil.zip")


def test_images_are_read_through_fsspec(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in folder.rglob("*.*"):
        memory.pipe_file(f"/sources/{file.relative_to(folder)}", file.read_bytes())
    try:
        assert find_names("memory://sources") == find_names(folder)
        assert find_names("memory://sources/deep/0000.png", "memory://sources/*1.png") == ["0000.png", "0001.png"]
        (image,) = find_images(["memory://sources/0003.png"])
        assert image.path == "memory://sources/0003.png"
        assert image.root.read(image.name) == (folder / "0003.png").read_bytes()
        with image.root.local_copy(image.name) as copy:
            assert copy.read_bytes() == (folder / "0003.png").read_bytes()
        memory.rm("/sources/0003.png")
        with pytest.raises(DataError, match="no longer exists"):
            image.root.read(image.name)
    finally:
        memory.rm("/sources", recursive=True)


def test_a_file_url_is_read_as_a_path(folder: Path) -> None:
    (image,) = find_images([f"file://{folder}/0001.png"])
    assert image.path == f"{folder}/0001.png"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "none.png",
            DataError,
            "none.png does not exist; expected an image, a folder, a glob, a zip file or a URL of these.",
        ),
        (".", DataError, r"\. contains no image; expected files ending in \.avif"),
        ("abacus://a/b.png", RunError, "abacus://a/b.png: .*Protocol not known: abacus"),
        ("gs://bucket/a", ConfigError, "gs://bucket/a needs a package that is not installed .*gcsfs.* extra .batch."),
    ],
)
def test_a_missing_source_is_refused(
    source: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        find_names(source)


def test_an_image_that_disappears_is_named(folder: Path) -> None:
    (image,) = find_images([str(folder / "0001.png")])
    (folder / "0001.png").unlink()
    with pytest.raises(DataError, match=r"0001.png: cannot be opened \(No such file or directory\)"):
        image.root.read(image.name)


def test_an_archive_is_opened_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it reads the table of all members: 0.4 s for each image of 50,000."""
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.name)
    read, tables = zipfile.ZipFile._RealGetContents, []
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", lambda archive: (tables.append(1), read(archive)))
    found = list(find_images([str(tmp_path / "in.zip")]))
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(lambda image: image.root.read(image.name), found * 5))
    assert contents == [next(folder.rglob(image.name)).read_bytes() for image in found] * 5
    assert 1 <= len(tables) <= 3  # one for the listing, and one for the cached archive


def test_a_damaged_member_affects_no_other(folder: Path, tmp_path: Path) -> None:
    good = (folder / "0001.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in ("good.png", "invalid.png", "__MACOSX/._good.png"):
            archive.writestr(name, good)
        offset = archive.getinfo("invalid.png").header_offset + 200
    damaged = bytearray((tmp_path / "in.zip").read_bytes())
    damaged[offset] ^= 255
    (tmp_path / "in.zip").write_bytes(damaged)
    first, second = find_images([str(tmp_path / "in.zip")])
    assert first.root.read(first.name) == good
    with pytest.raises(DataError, match=r"invalid.png::.*: cannot be unpacked \(Bad CRC-32"):
        second.root.read(second.name)
    with pytest.raises(DataError, match=r"gone.png::.*: no longer exists"), second.root.local_copy("gone.png"):
        pass


def test_companion_files_of_macos_are_skipped(folder: Path) -> None:
    (folder / "._0001.png").write_bytes(b"\x00\x05\x16\x07")
    assert "._0001.png" not in find_names(folder)


def test_a_folder_that_disappears_stops_the_run(folder: Path) -> None:
    (image,) = find_images([str(folder / "0001.png")])
    shutil.rmtree(folder)
    with pytest.raises(RunError, match=r"in has disappeared. Once it is back, the same command resumes"):
        image.root.read(image.name)
