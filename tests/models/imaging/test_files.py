"""What has an image's name and is no image file: it must neither block nor fill the memory."""

import os
import zipfile
from pathlib import Path

import pytest

from maskserve.predict.inputs import find_images
from models.errors import DataError
from models.imaging import files
from models.imaging.decode import read_image, read_mask


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe, device, sparse = tmp_path / "pipe.png", tmp_path / "zeros.png", tmp_path / "sparse.png"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    with sparse.open("wb") as file:
        file.truncate(files.MAX_FILE_BYTES + 1)
    for path, words in ((pipe, "a pipe"), (device, "a device"), (sparse, "1,073,741,825 bytes")):
        for read in (read_image, read_mask):
            with pytest.raises(DataError, match=f"{path}.*{words}"):
                read(path)
    with pytest.raises(DataError, match="cannot open"):
        read_image(tmp_path / "missing.png")


def test_members_of_an_archive_are_limited_by_their_unpacked_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 5000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.png", bytes(5001))
        archive.writestr("small.png", bytes(5000))
    large, small = find_images([str(tmp_path / "a.zip")])
    assert len(small.root.read(small.name)) == 5000
    with pytest.raises(DataError, match=r"large\.png.* has 5,001 bytes"):
        large.root.read(large.name)
