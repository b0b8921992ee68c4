"""Finding the images of a source, and reading them."""

import copy
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from maskserve.predict.inputs import find_images
from maskserve.predict.ray_runner import image_to_item, images_of_block
from maskserve.predict.unread import UnreadFiles
from models import archive_limits
from models.errors import ConfigError, DataError, RunError
from models.imaging.files import MAX_FILE_BYTES
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
        (
            "list.txt",
            DataError,
            r"list\.txt is no image. To segment the images that it lists, name them: .*\$\(cat list\.txt\)",
        ),
        ("in.tar.gz", DataError, r"in\.tar\.gz is an archive; only zip files are read"),
        ("in.zip", RunError, r"in\.zip is not a zip file, or is incomplete"),
        ("empty", DataError, r"empty contains no image; expected files ending in \.avif"),
        ("abacus://a/b.png", RunError, "abacus://a/b.png: .*Protocol not known: abacus"),
        ("gs://bucket/a", ConfigError, "gs://bucket/a needs a package that is not installed .*gcsfs.* extra .batch."),
    ],
)
def test_a_missing_source_is_refused(
    source: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("list.txt", "in.tar.gz", "in.zip"):
        (tmp_path / name).write_bytes(b"content")
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


def test_what_is_not_read_is_counted(folder: Path, tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "deep/c.gif", "notes.md", ".DS_Store", "._x.heic", "in.zip", "README"):
        (folder / name).write_bytes(b"")
    (tmp_path / "other").mkdir()
    (folder / "link").symlink_to(tmp_path / "other")
    for source in (folder, folder / "**" / "*"):
        unread = UnreadFiles()
        assert len(list(find_images([str(source)], "", unread))) == 4
        lines = unread.messages()
        assert lines[0].startswith("not read: 2 .heic, 1 ") and "1 .gif" in lines[0] and "1 without suffix" in lines[0]
        assert "(save images as JPEG, PNG" in lines[0] and "name a zip file as a SOURCE" in lines[0]
        assert lines[1:] == (
            [f"not read: {folder}/link (a link to a folder; name it as a SOURCE)"] if source == folder else []
        )
    with pytest.raises(DataError, match=r"contains no image \(not read: 1 \.gif .*expected files ending in"):
        find_names(folder / "deep" / "*.gif")


def test_a_folder_that_cannot_be_listed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    unread = UnreadFiles()
    assert [image.name for image in find_images([str(folder)], "", unread)] == ["0001.png", "0003.png"]
    assert unread.messages() == [f"not read: {folder}/deep (Permission denied)"]


@pytest.mark.parametrize("source", ["", "*.png", "pipe.png"])
def test_a_pipe_or_a_device_is_an_error_of_its_own(source: str, folder: Path) -> None:
    """Opening a pipe would wait for ever, and reading a device fill the memory."""
    os.mkfifo(folder / "pipe.png")
    (folder / "zeros.png").symlink_to("/dev/zero")
    (folder / "lost.png").symlink_to("nowhere")
    found = {image.name: image for image in find_images([str(folder / source)])}
    odd = "is not a file but a pipe or a device"
    reasons = {"pipe.png": odd, "zeros.png": odd, "lost.png": "No such file"}
    for name, reason in reasons.items() if source != "pipe.png" else [("pipe.png", odd)]:
        with pytest.raises(DataError, match=rf"{name}.*{reason}"):
            found[name].root.read(name)
        if name != "lost.png":
            with pytest.raises(DataError, match=rf"{name}.*{reason}"), found[name].root.local_copy(name):
                pass


def test_a_large_file_is_not_read(folder: Path) -> None:
    with (folder / "0001.png").open("wb") as file:
        os.truncate(file.fileno(), MAX_FILE_BYTES + 1)  # a sparse file
    (image,) = find_images([str(folder / "0001.png")])
    with pytest.raises(DataError, match=r"0001\.png has 1,073,741,825 bytes; the limit"):
        image.root.read(image.name)


def write_zip(file: Path, *members: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, content in enumerate(members):
            archive.writestr(f"{index}.png", content)
    return file


def test_a_member_that_is_nearly_all_zeros_is_not_unpacked(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = np.random.default_rng(0).bytes(50_000)
    archive = write_zip(tmp_path / "in.zip", good, bytes(2_000_000))
    monkeypatch.setattr(archive_limits, "MIN_BOMB_BYTES", 1_000_000)
    images = list(find_images([str(archive)]))
    assert images[0].root.read("0.png") == good
    for read in (images[1].root.read, lambda name: images[1].root.local_copy(name).__enter__()):
        with pytest.raises(DataError, match=r"1\.png::.*in\.zip would unpack to 2 MB from 2 kB"):
            read("1.png")
    with pytest.raises(DataError, match=r"bomb\.zip would unpack to 3 MB from"):
        find_names(write_zip(tmp_path / "bomb.zip", *[bytes(900_000)] * 3))


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """Such a file unpacks to as many bytes as it has names for the same ones."""
    file = write_zip(tmp_path / "in.zip", np.random.default_rng(0).bytes(2_000))
    with zipfile.ZipFile(file, "a") as archive:
        for index in range(3):
            copied = copy.copy(archive.infolist()[0])
            copied.filename = f"copy{index}.png"
            archive.filelist.append(copied)
            archive.NameToInfo[copied.filename] = copied
        archive._didModify = True
    with pytest.raises(DataError, match=r"in\.zip has members that share their bytes"):
        find_names(file)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"b\xfcro.png")
    file.write_bytes(b"content")
    (image,) = find_images([str(tmp_path)])
    (copied,) = images_of_block(pa.Table.from_pylist([image_to_item(image)]).to_pydict())
    assert copied == image
    assert image.path == rf"{tmp_path}/b\udcfcro.png" and image.root.read(image.name) == b"content"


def test_a_zipped_volume_is_no_archive(tmp_path: Path) -> None:
    """Decoding names it as NIfTI; what is unpacked from it would be refused too."""
    (tmp_path / "v.nii.gz").touch()
    assert [Path(name).name for name in find_names(str(tmp_path / "v.nii.gz"))] == ["v.nii.gz"]
