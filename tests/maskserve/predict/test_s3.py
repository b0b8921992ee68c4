"""A real object store: moto's S3 server on this machine, reached through s3fs."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pyarrow.parquet as pq
import pytest
import s3fs
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer
from s3fs.errors import translate_boto_error

import maskserve.predict.manifest
from maskserve.predict.manifest import ParquetManifest
from maskserve.predict.outputs import ObjectStore
from models.errors import RunError
from service.server_process import free_port
from tests.maskserve.predict_helpers import read_masks, run_predict, write_images

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by moto and botocore
BUCKET = "s3://bucket"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    moto.start()
    yield f"http://127.0.0.1:{moto._port}"
    moto.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A new bucket for each test, configured by AWS's environment variables."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": server,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = fsspec.filesystem("s3")
    system.mkdir("bucket")
    yield system
    system.invalidate_cache()
    system.rm("bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def stored_masks(store: s3fs.S3FileSystem) -> dict[str, bytes]:
    """The masks in the output, by name."""
    store.invalidate_cache()
    names = store.find("bucket/out")
    return {name.removeprefix("bucket/out/"): store.cat_file(name) for name in names if "/manifest/" not in name}


def read_manifest(store: s3fs.S3FileSystem) -> list[dict[str, Any]]:
    """The manifest as a Parquet data set: all parts as one table."""
    return pq.read_table("bucket/out/manifest", filesystem=store).to_pylist()


def upload_images(store: s3fs.S3FileSystem, folder: Path, count: int) -> None:
    for file in write_images(folder, count):
        store.pipe_file(f"bucket/in/{file.relative_to(folder)}", file.read_bytes())


def test_from_a_bucket_to_a_bucket(store: s3fs.S3FileSystem, bundle: Path, tmp_path: Path) -> None:
    upload_images(store, tmp_path / "in", 5)
    run_predict(bundle, tmp_path / "in", out=tmp_path / "local")
    complete, printed = run_predict(bundle, f"{BUCKET}/in", out=f"{BUCKET}/out")
    assert complete and "5 of 5 images segmented" in printed
    assert stored_masks(store) == read_masks(tmp_path / "local")
    rows = read_manifest(store)
    assert sorted(row["path"] for row in rows) == sorted(f"s3://{name}" for name in store.find("bucket/in"))
    complete, printed = run_predict(bundle, f"{BUCKET}/in", out=f"{BUCKET}/out")
    assert complete and "5 of 5 images segmented, 5 of them by earlier runs" in printed


def test_globs_files_and_archives_in_a_bucket(store: s3fs.S3FileSystem, bundle: Path, tmp_path: Path) -> None:
    upload_images(store, tmp_path / "in", 4)
    shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path / "in")
    store.put_file(str(tmp_path / "in.zip"), "bucket/some.zip")
    sources = (f"{BUCKET}/in/deep/*2.png", f"{BUCKET}/in/0001.png", f"{BUCKET}/some.zip")
    complete, _ = run_predict(bundle, sources[0], sources[1], out=tmp_path / "two")
    assert complete and sorted(read_masks(tmp_path / "two")) == ["0001.png", "0002.png"]
    complete, _ = run_predict(bundle, sources[2], out=tmp_path / "all")
    assert complete and sorted(read_masks(tmp_path / "all")) == [
        "0001.png",
        "0003.png",
        "deep/0000.png",
        "deep/0002.png",
    ]


def test_a_run_on_a_bucket_resumes(
    store: s3fs.S3FileSystem, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is killed after some parts: images that they do not list are segmented again, and each has one row in the end."""
    upload_images(store, tmp_path / "in", 9)
    monkeypatch.setattr(maskserve.predict.manifest, "PART_ROWS", 2)
    put, count = ObjectStore.put, itertools.count()

    def limited_put(output: ObjectStore, name: str, data: bytes) -> None:
        if not name.startswith("manifest/") and next(count) >= 5:
            raise RunError("killed")
        put(output, name, data)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="killed"):
        patch.setattr(ObjectStore, "put", limited_put)
        patch.setattr(ParquetManifest, "close", lambda manifest, complete: None)  # a kill -9 skips it
        run_predict(bundle, f"{BUCKET}/in", out=f"{BUCKET}/out")
    store.invalidate_cache()
    before = read_manifest(store)
    assert 0 < len(before) < 9 and len(before) <= len(stored_masks(store)) <= 9
    complete, printed = run_predict(bundle, f"{BUCKET}/in", out=f"{BUCKET}/out")
    assert complete and f"9 of 9 images segmented, {len(before)} of them by earlier runs" in printed
    run_predict(bundle, tmp_path / "in", out=tmp_path / "local")
    assert stored_masks(store) == read_masks(tmp_path / "local")
    assert sorted(row["path"] for row in read_manifest(store)) == sorted(
        f"s3://{name}" for name in store.find("bucket/in")
    )


def test_errors_in_a_bucket_are_retried(store: s3fs.S3FileSystem, bundle: Path, tmp_path: Path) -> None:
    upload_images(store, tmp_path / "in", 3)
    store.pipe_file("bucket/in/0001.png", b"nothing")
    options: dict[str, Any] = {"out": f"{BUCKET}/out", "format": "parquet"}
    assert not run_predict(bundle, f"{BUCKET}/in", **options)[0]
    assert [row["path"] for row in read_manifest(store) if row["error"]] == [f"{BUCKET}/in/0001.png"]
    upload_images(store, tmp_path / "in", 3)
    assert run_predict(bundle, f"{BUCKET}/in", retry_errors=True, **options)[0]
    rows = read_manifest(store)
    assert len(rows) == 3 and all(row["classes"][0]["rle"] for row in rows) and stored_masks(store) == {}


def test_objects_of_others_are_not_overwritten(store: s3fs.S3FileSystem, bundle: Path, tmp_path: Path) -> None:
    upload_images(store, tmp_path / "in", 2)
    with pytest.raises(RunError, match="s3://bucket/in is not empty and has no manifest/_header"):
        run_predict(bundle, tmp_path / "in", out=f"{BUCKET}/in")
    run_predict(bundle, tmp_path / "in", out=f"{BUCKET}/out")
    with pytest.raises(RunError, match="s3://bucket/out contains masks with format 'png'; this run has 'npy'"):
        run_predict(bundle, tmp_path / "in", out=f"{BUCKET}/out", format="npy")


def test_wrong_credentials_are_one_message(
    store: s3fs.S3FileSystem, server: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto returns 403 from here on, as S3 does for unknown keys."""
    upload_images(store, tmp_path / "in", 2)
    httpx.post(f"{server}/moto-api/reset-auth", content=b"0").raise_for_status()
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        for sources, out in (([f"{BUCKET}/in"], tmp_path / "out"), ([tmp_path / "in"], f"{BUCKET}/out")):
            with pytest.raises(RunError, match=r"s3://bucket/.*credentials are missing or were refused") as caught:
                run_predict(bundle, *sources, out=out)
            assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "out").exists()
    finally:
        httpx.post(f"{server}/moto-api/reset-auth", content=b"inf")
        s3fs.S3FileSystem.clear_instance_cache()


def test_no_credentials_and_no_bucket(
    store: s3fs.S3FileSystem, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"s3://nowhere/in: "):
        run_predict(bundle, "s3://nowhere/in", out=tmp_path / "out")
    write_images(tmp_path / "in", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RunError, match="credentials are missing or were refused"):
        run_predict(bundle, tmp_path / "in", out=f"{BUCKET}/out")


def test_an_output_below_its_source_is_excluded(store: s3fs.S3FileSystem, bundle: Path, tmp_path: Path) -> None:
    upload_images(store, tmp_path / "in", 3)
    for _ in range(2):
        complete, printed = run_predict(bundle, f"{BUCKET}/in", out=f"{BUCKET}/in/masks")
        assert complete and "3 of 3 images segmented" in printed


def test_an_object_without_access_affects_no_other(
    store: s3fs.S3FileSystem, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_images(store, tmp_path / "in", 3)
    read = store.cat_file

    def deny_one(path: str) -> bytes:
        if path.endswith("0001.png"):
            raise translate_boto_error(ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetObject"))
        return bytes(read(path))

    monkeypatch.setattr(store, "cat_file", deny_one)
    complete, printed = run_predict(bundle, f"{BUCKET}/in", out=tmp_path / "out")
    assert not complete and "2 of 3 images" in printed
    assert "0001.png: the store denied access (AccessDenied)" in printed
