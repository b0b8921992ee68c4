import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
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
