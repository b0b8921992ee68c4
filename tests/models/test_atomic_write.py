from pathlib import Path

import pytest

from models.atomic_write import check_writable, is_disk_full, name_disk_full, write_atomically

FULL_DISK = Path("/dev/full")  # every write fails with ENOSPC
pytestmark = pytest.mark.skipif(not FULL_DISK.exists(), reason="needs Linux")


def test_full_disk_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("old")
    (tmp_path / "x.json.part").symlink_to(FULL_DISK)
    with pytest.raises(OSError, match=r"No space left on device.*x.json'"):
        write_atomically(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert file.read_text() == "old"


def test_full_disk_is_recognized_behind_the_error_of_a_library() -> None:
    def fail_in_a_library() -> None:
        try:
            FULL_DISK.write_text("x")
        except OSError as error:
            raise RuntimeError("cannot serialize") from error

    with pytest.raises(OSError, match="bundle'"), name_disk_full(Path("bundle")):
        fail_in_a_library()
    with pytest.raises(OSError, match="bundle'"), name_disk_full(Path("bundle")):
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # safetensors' own
    with pytest.raises(RuntimeError, match="another"), name_disk_full(Path("bundle")):
        raise RuntimeError("another")
    assert not is_disk_full(PermissionError(13, "Permission denied"))


def test_folder_is_checked_before_it_exists(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_writable(tmp_path / "file" / "new")
