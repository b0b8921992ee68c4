"""Segmenting with a service: the same masks as with its bundle, with several requests in flight."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote

import pytest

import maskserve.predict.backends
from benchmarks.processes import process_tree
from maskserve.client import AuthenticationError, Client, UnknownModelError, UnreachableError
from maskserve.predict.backends import EncodedPrediction, ServiceBackend
from maskserve.predict.config import KEY_VARIABLE, PredictConfig
from models.errors import ConfigError, RunError
from models.outputs.options import OutputOptions
from service.app import create_app
from service.auth import generate_api_key
from service.server_process import LOOPBACK, free_port, launch_server
from service.settings import Settings
from tests.maskserve.command_line import assert_fails, run_maskserve
from tests.maskserve.predict_helpers import read_masks, read_rows, run_predict, write_images
from tests.service.in_process import serve_in_thread
from tests.service.tiny_bundle import write_tiny_bundle

KEY, HASH = generate_api_key()


@contextmanager
def start_service(bundle: Path, **settings: Any) -> Iterator[str]:
    """The URL of a service in a thread of this process."""
    chosen = Settings(bundle=bundle, access_log=False, **settings)
    with serve_in_thread(create_app(chosen), chosen) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    with start_service(bundle, api_keys=(HASH,)) as url:
        yield url


def without_fields(row: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize("format", ["png", "overlay", "confidence", "npy", "json", "parquet"])
def test_a_service_gives_the_masks_of_its_bundle(format: str, url: str, bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    options = OutputOptions(classes=("class 1", "class 2"), min_area=4)
    assert run_predict(bundle, tmp_path / "in", out=tmp_path / "local", format=format, options=options)[0]
    complete, printed = run_predict(
        url, tmp_path / "in", out=tmp_path / "remote", format=format, options=options, api_key=KEY
    )
    assert complete and f"running on {url}: small@" in printed
    assert read_masks(tmp_path / "remote") == read_masks(tmp_path / "local")
    local, remote = ({row["path"]: row for row in read_rows(tmp_path / name)} for name in ("local", "remote"))
    for path, row in remote.items():
        if format in ("overlay", "confidence"):  # these do not contain the labels
            assert "classes" not in row
            assert without_fields(row, "milliseconds") == without_fields(local[path], "milliseconds", "classes")
            continue
        for expected, entry in zip(local[path]["classes"], row["classes"], strict=True):
            assert entry["fraction"] == pytest.approx(expected["fraction"], abs=1e-6)
            assert without_fields(entry, "fraction") == without_fields(expected, "fraction")
        assert without_fields(row, "milliseconds", "classes") == without_fields(local[path], "milliseconds", "classes")


def test_several_models_and_a_replaced_one(bundle: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 2)
    write_tiny_bundle(tmp_path / "bundles" / "other one", "other one")
    shutil.copytree(bundle, tmp_path / "bundles" / "small")
    with start_service(tmp_path / "bundles", reload_seconds=0.2) as url:
        with pytest.raises(RunError, match=f"serves other one, small; name one of them in MODEL: {url}/v1/models/NAME"):
            run_predict(url, tmp_path / "in", out=tmp_path / "out")
        with pytest.raises(UnknownModelError):
            run_predict(f"{url}/v1/models/none", tmp_path / "in", out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        for name in ("other one", "small"):
            assert run_predict(f"{url}/v1/models/{quote(name)}", tmp_path / "in", out=tmp_path / name)[0]
            assert {row["model"].partition("@")[0] for row in read_rows(tmp_path / name)} == {name}
        run_predict(bundle, tmp_path / "in", out=tmp_path / "local")
        assert read_masks(tmp_path / "small") == read_masks(tmp_path / "local")

        backend = ServiceBackend(PredictConfig(f"{url}/v1/models/small", str(tmp_path / "out")))
        with closing(backend):
            shutil.rmtree(tmp_path / "bundles" / "small")
            write_tiny_bundle(tmp_path / "bundles" / "small", classes=5)
            deadline = time.monotonic() + 60
            while backend.client.model("small")["hash"] == backend.model.partition("@")[2]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            with pytest.raises(RunError, match=r"'small' with hash .*the same command resumes"):
                backend(images[0].read_bytes())


def test_an_unknown_class_stops_before_the_first_image(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    with pytest.raises(ConfigError, match="'zebra'"):
        run_predict(url, tmp_path / "in", out=tmp_path / "out", api_key=KEY, options=OutputOptions(classes=("zebra",)))
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_response_affects_no_other(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", 3)
    lost = (tmp_path / "in" / "0001.png").read_bytes()
    original = Client.segment_bytes

    def lossy(client: Client, data: bytes, *arguments: Any, **options: Any) -> bytes:
        if data == lost:
            raise UnreachableError("No response in 60 s.")
        return original(client, data, *arguments, **options)

    monkeypatch.setattr(Client, "segment_bytes", lossy)
    complete, printed = run_predict(url, tmp_path / "in", out=tmp_path / "out", api_key=KEY)
    assert not complete and "0001.png: the service did not respond to this image (No response" in printed
    monkeypatch.setattr(Client, "segment_bytes", lambda *arguments, **options: b"<html>")
    for format in ("png", "parquet"):
        with pytest.raises(RunError, match=f"{url} returned a response that is not a mask"):
            run_predict(url, tmp_path / "in", out=tmp_path / format, api_key=KEY, format=format)


def test_a_bad_image_affects_no_other(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    (tmp_path / "in" / "0001.png").write_bytes(b"nothing")
    complete, printed = run_predict(url, tmp_path / "in", out=tmp_path / "out", api_key=KEY)
    assert not complete and "2 of 3 images segmented" in printed
    (failed,) = [row for row in read_rows(tmp_path / "out") if "error" in row]
    assert failed["path"].endswith("0001.png") and "415" in failed["error"]


def test_a_wrong_key_stops_before_the_first_image(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    for key in ("", "wrong"):
        with pytest.raises(AuthenticationError):
            run_predict(url, tmp_path / "in", out=tmp_path / "out", api_key=key)
    assert not (tmp_path / "out").exists()


def test_the_key_comes_from_a_file_or_the_environment(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskserve.predict.config import read_api_key

    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_api_key(tmp_path / "key") == KEY
    assert read_api_key(None) == ""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_api_key(None) == KEY


def test_errors_of_keys_and_engine_options(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    (tmp_path / "wrong").write_text("wrong")
    for arguments, code, message in (
        ([], 1, f"{url} requires an API key: pass --key-file FILE, or set the environment variable PREDICT_KEY."),
        (["--key-file", "wrong"], 1, f"{url} refused the API key"),
        (["--key-file", "none"], 2, "The --key-file none cannot be read (No such file or directory)."),
        (["--precision", "f32"], 2, "omit --engine, --precision and --device"),
    ):
        assert_fails(run_maskserve("predict", url, "in", "--out", "out", *arguments, cwd=tmp_path), code, message)
    assert not (tmp_path / "out").exists()


def test_an_address_without_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", 1)
    monkeypatch.setattr("maskserve.client.retries.FIRST_CONTACT_TIMEOUT", 0.2)
    with pytest.raises(UnreachableError):
        run_predict(f"http://127.0.0.1:{free_port()}", tmp_path / "in", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="The address is 'http:'"):
        run_predict("http://", tmp_path / "in", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_resumes_on_another_service_after_one_was_killed(
    bundle: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", 40)
    monkeypatch.setattr(maskserve.predict.backends, "RETRY_TIMEOUT", 0.5)
    out, errors = tmp_path / "out", []

    def run_until_error(killed_url: str) -> None:
        try:
            run_predict(killed_url, tmp_path / "in", out=out)
        except RunError as error:
            errors.append(str(error))

    original = ServiceBackend.__call__

    def slow(backend: ServiceBackend, data: bytes) -> EncodedPrediction:
        time.sleep(0.2)  # so that the service is killed before the last image
        return original(backend, data)

    with monkeypatch.context() as patch, TemporaryFile() as log:
        patch.setattr(ServiceBackend, "__call__", slow)
        with launch_server(bundle, LOOPBACK, free_port(), log) as server:
            with Client(server.url) as client:
                while not client.is_ready():
                    time.sleep(0.05)
            thread = threading.Thread(target=run_until_error, args=(server.url,))
            thread.start()
            while thread.is_alive() and (not (out / "manifest.jsonl").exists() or len(read_rows(out)) < 3):
                time.sleep(0.02)
            for pid in process_tree(server.process.pid):
                os.kill(pid, signal.SIGKILL)
            thread.join()
    assert len(errors) == 1 and "the same command resumes" in errors[0]
    before = read_rows(out)
    assert 3 <= len(before) < 40 and not [row for row in before if "error" in row]
    complete, printed = run_predict(url, tmp_path / "in", out=out, api_key=KEY)
    assert complete and f"40 of 40 images segmented, {len(before)} of them by earlier runs" in printed


def test_the_command_with_a_service(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    (tmp_path / "key").write_text(KEY)
    done = run_maskserve("predict", url, "in/*.png", "--out", "out", "--key-file", "key", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(read_masks(tmp_path / "out")) == ["0001.png"]
