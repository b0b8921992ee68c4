import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from models import archive_limits
from models.errors import DataError
from tests.training.make_layouts import write_pair
from training.data import load_available_splits, load_split


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set to pack; archives are unpacked below `cache`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for index in range(4):
        write_pair(tmp_path / "packed/mydata", f"a{index}")
    return tmp_path / "packed"


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "xztar"])
def test_an_archive_is_a_data_set(kind: str, folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.make_archive(str(tmp_path / "data"), kind, folder))
    shutil.rmtree(folder)
    for _ in range(2):
        assert sum(map(len, load_available_splits(file).values())) == 4
    assert len(list((tmp_path / "cache/maskserve/archives").iterdir())) == 1


def test_a_changed_archive_is_unpacked_again(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.make_archive(str(tmp_path / "data"), "zip", folder))
    load_split(file, "train")
    write_pair(folder / "mydata", "another")
    shutil.make_archive(str(tmp_path / "data"), "zip", folder)
    assert sum(map(len, load_available_splits(file).values())) == 5


def test_entries_outside_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        archive.writestr("../evil.png", b"")
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("images")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("images/passwd"), io.BytesIO())
    for name in ("up.zip", "link.tar"):
        with pytest.raises(DataError, match=rf"{name}: .*must not be unpacked"):
            load_split(tmp_path / name, "train")
    assert not (tmp_path / "cache/maskserve/evil.png").exists()
    assert list((tmp_path / "cache/maskserve/archives").iterdir()) == []


def test_a_broken_archive_is_an_error(folder: Path, tmp_path: Path) -> None:
    for name in ("broken.zip", "broken.tar.gz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(DataError, match=rf"{name}: the archive is broken|cannot be unpacked"):
            load_split(tmp_path / name, "train")


def write_tar(file: Path, *members: tuple[str, int]) -> None:
    """A tar file, gzipped, of members of zeros, by name and size."""
    with tarfile.open(file, "w:gz", compresslevel=9) as tar:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))


def write_zip(file: Path, *members: tuple[str, int]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, size in members:
            archive.writestr(name, bytes(size))


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize("sizes", [[1_200_000], [600_000, 600_000]], ids=["one", "all"])
def test_archives_that_unpack_to_hundreds_of_times_their_size_are_refused(
    suffix: str, sizes: list[int], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_limits, "MIN_BOMB_BYTES", 1_000_000)
    file = tmp_path / f"bomb.{suffix}"
    write = write_zip if suffix == "zip" else write_tar
    write(file, *[(f"images/{index}.bmp", size) for index, size in enumerate(sizes)])
    with pytest.raises(DataError, match=rf"bomb\.{suffix}.* would unpack to 1 MB from \d kB"):
        load_split(file, "train")
    assert list((tmp_path / "cache/maskserve/archives").iterdir()) == []


def test_a_tar_header_of_gigabytes_is_not_read(folder: Path, tmp_path: Path) -> None:
    """tarfile reads attributes (pax) whole."""
    info = tarfile.TarInfo("attributes")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    file = tmp_path / "header.tar"
    file.write_bytes(info.tobuf())
    with pytest.raises(DataError, match=r"header\.tar: .*header of 4,294,967,296 bytes"):
        load_split(file, "train")
