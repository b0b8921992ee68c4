"""Which images the words name, and how they are read."""

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
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def find_names(*words: Path | str, leave: Path | None = None) -> list[str]:
    return [image.name for image in find_images(map(str, words), str(leave or ""))]


def test_folders_keep_their_order_and_places(folder: Path) -> None:
    assert find_names(folder) == ["0001.png", "0003.png", "deep/0000.png", "deep/0002.png"]
    assert find_names(folder / "0001.png", folder / "deep") == ["0001.png", "0000.png", "0002.png"]


def test_a_target_among_the_sources_is_none_of_them(folder: Path) -> None:
    assert find_names(folder, leave=folder / "deep") == ["0001.png", "0003.png"]
    assert find_names(folder / "*" / "*.png", folder, leave=folder / "deep" / "x")[:2] == [
        "deep/0000.png",
        "deep/0002.png",
    ]


def test_globs_keep_what_is_behind_their_fixed_part(folder: Path) -> None:
    assert find_names(folder / "**" / "*0[02].png") == ["deep/0000.png", "deep/0002.png"]
    assert find_names(folder / "*.*") == ["0001.png", "0003.png"]
    with pytest.raises(DataError, match=r"\*\.bmp holds no image"):
        find_names(folder / "*.bmp")


def test_a_name_that_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    (file,) = write_images(tmp_path / "a[1]", 1)
    assert find_names(file, tmp_path / "a[1]") == ["0000.png", "deep/0000.png"]


def test_archives_are_folders(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path))
    found = list(find_images([str(tmp_path / "in.zip")]))
    assert [image.name for image in found] == [f"in/{name}" for name in find_names(folder)]
    assert found[0].path == f"zip://in/0001.png::{tmp_path}/in.zip"
    assert found[0].root.read(found[0].name) == (folder / "0001.png").read_bytes()
    assert find_names(f"zip://in/deep/*.png::{tmp_path}/in.zip") == ["0000.png", "0002.png"]


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png"])
def test_an_archive_cannot_lead_a_mask_out_of_the_target(name: str, folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, (folder / "0001.png").read_bytes())
    with pytest.raises(DataError, match="whose mask would lie outside the target"):
        find_names(tmp_path / "evil.zip")


def test_what_fsspec_knows_is_read(folder: Path) -> None:
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
        with pytest.raises(DataError, match="is not there any more"):
            image.root.read(image.name)
    finally:
        memory.rm("/sources", recursive=True)


def test_a_file_url_is_a_path(folder: Path) -> None:
    (image,) = find_images([f"file://{folder}/0001.png"])
    assert image.path == f"{folder}/0001.png"


@pytest.mark.parametrize(
    ("word", "error", "sentence"),
    [
        ("none.png", DataError, "none.png is not there; name images, folders, globs, zip files or URLs of them."),
        (".", DataError, r"\. holds no image; wanted are files ending in \.avif"),
        ("abacus://a/b.png", RunError, "abacus://a/b.png: .*Protocol not known: abacus"),
        ("gs://bucket/a", ConfigError, "gs://bucket/a needs a package that is not here .*gcsfs.* extra .batch."),
    ],
)
def test_what_is_not_there_is_one_sentence(
    word: str, error: type[Exception], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=sentence):
        find_names(word)


def test_a_source_that_vanishes_is_named(folder: Path) -> None:
    (image,) = find_images([str(folder / "0001.png")])
    (folder / "0001.png").unlink()
    with pytest.raises(DataError, match=r"0001.png: cannot be opened \(No such file or directory\)"):
        image.root.read(image.name)


def test_an_archive_is_opened_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open it is to read the table of all its members: done for each image, that took 0.4 s of 50,000."""
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.name)
    read, tables = zipfile.ZipFile._RealGetContents, []
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", lambda archive: (tables.append(1), read(archive)))
    found = list(find_images([str(tmp_path / "in.zip")]))
    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(lambda image: image.root.read(image.name), found * 5))
    assert held == [next(folder.rglob(image.name)).read_bytes() for image in found] * 5
    assert 1 <= len(tables) <= 3  # of the listing, and of the archive that is kept


def test_what_is_wrong_with_one_member_is_its_own(folder: Path, tmp_path: Path) -> None:
    good = (folder / "0001.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in ("good.png", "torn.png", "__MACOSX/._good.png"):
            archive.writestr(name, good)
        place = archive.getinfo("torn.png").header_offset + 200
    damaged = bytearray((tmp_path / "in.zip").read_bytes())
    damaged[place] ^= 255
    (tmp_path / "in.zip").write_bytes(damaged)
    first, torn = find_images([str(tmp_path / "in.zip")])
    assert first.root.read(first.name) == good
    with pytest.raises(DataError, match=r"torn.png::.*: cannot be unpacked \(Bad CRC-32"):
        torn.root.read(torn.name)
    with pytest.raises(DataError, match=r"gone.png::.*: is not there any more"), torn.root.local_copy("gone.png"):
        pass


def test_what_a_mac_keeps_beside_images_is_none(folder: Path) -> None:
    (folder / "._0001.png").write_bytes(b"\x00\x05\x16\x07")
    assert "._0001.png" not in find_names(folder)


def test_a_folder_that_goes_away_stops_the_run(folder: Path) -> None:
    (image,) = find_images([str(folder / "0001.png")])
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="in is not there any more; the same command goes on once it is"):
        image.root.read(image.name)
