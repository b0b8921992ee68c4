"""A service in place of a bundle: the same masks, by several requests in flight."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote

import pytest

import maskserve.predict.backends
from benchmarks.processes import process_tree
from maskserve.client import AuthenticationError, Client, UnknownModelError, UnreachableError
from maskserve.predict.backends import ServiceBackend
from maskserve.predict.config import KEY_VARIABLE, PredictConfig
from models.errors import ConfigError, RunError
from models.outputs.options import OutputOptions
from service.auth import generate_api_key
from service.server_process import LOOPBACK, background_server, free_port, launch_server
from tests.maskserve.predict_helpers import read_masks, read_rows, run_predict, write_images
from tests.maskserve.test_cli import assert_fails
from tests.maskserve.test_cli import run_maskserve as maskserve_command
from tests.service.tiny_bundle import write_tiny_bundle

KEY, HASHED = generate_api_key()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKSERVE_API_KEYS", HASHED)
        with background_server(bundle) as url:
            yield url


def without_fields(row: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize("format", ["png", "overlay", "confidence", "npy", "json", "parquet"])
def test_a_service_gives_what_its_bundle_gives(format: str, url: str, bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 4)
    options = OutputOptions(classes=("class 1", "class 2"), min_area=4)
    assert run_predict(bundle, tmp_path / "in", out=tmp_path / "here", format=format, options=options)[0]
    done, said = run_predict(url, tmp_path / "in", out=tmp_path / "there", format=format, options=options, key=KEY)
    assert done and f"running on {url}: small@" in said
    assert read_masks(tmp_path / "there") == read_masks(tmp_path / "here")
    here, there = ({row["path"]: row for row in read_rows(tmp_path / place)} for place in ("here", "there"))
    for path, row in there.items():
        if format in ("overlay", "confidence"):  # these do not tell
            assert "classes" not in row
            assert without_fields(row, "milliseconds") == without_fields(here[path], "milliseconds", "classes")
            continue
        for mine, theirs in zip(here[path]["classes"], row["classes"], strict=True):
            assert mine["fraction"] == pytest.approx(theirs["fraction"], abs=1e-6)
            assert without_fields(mine, "fraction") == without_fields(theirs, "fraction")
        assert without_fields(row, "milliseconds", "classes") == without_fields(here[path], "milliseconds", "classes")


def test_of_several_models_one_is_named(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    write_tiny_bundle(tmp_path / "shelf" / "other one", "other one")
    shutil.copytree(bundle, tmp_path / "shelf" / "small")
    with background_server(tmp_path / "shelf") as url:
        with pytest.raises(RunError, match=f"serves other one, small; name one as in {url}/v1/models/NAME"):
            run_predict(url, tmp_path / "in", out=tmp_path / "out", key=KEY)
        with pytest.raises(UnknownModelError):
            run_predict(f"{url}/v1/models/none", tmp_path / "in", out=tmp_path / "out", key=KEY)
        assert not (tmp_path / "out").exists()
        for name in ("other one", "small"):
            address = f"{url}/v1/models/{quote(name)}"
            assert run_predict(address, tmp_path / "in", out=tmp_path / name, key=KEY)[0]
            assert {row["model"].partition("@")[0] for row in read_rows(tmp_path / name)} == {name}
    run_predict(bundle, tmp_path / "in", out=tmp_path / "here")
    assert read_masks(tmp_path / "small") == read_masks(tmp_path / "here")


def test_a_model_that_is_exchanged_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_RELOAD_SECONDS", "0.2")
    image = write_images(tmp_path / "in", 1)[0].read_bytes()
    with background_server(write_tiny_bundle(tmp_path / "small")) as url:
        labeller = ServiceBackend(PredictConfig(url, str(tmp_path / "out"), api_key=KEY))
        try:
            assert labeller(image).encoded
            shutil.rmtree(tmp_path / "small")
            write_tiny_bundle(tmp_path / "small", classes=5)
            end = time.monotonic() + 60
            while labeller.client.models()[0]["hash"] == labeller.model.partition("@")[2]:
                assert time.monotonic() < end
                time.sleep(0.1)
            with pytest.raises(RunError, match="is not served any more: it was exchanged"):
                labeller(image)
        finally:
            labeller.close()


def test_a_class_that_is_not_known_stops_before_the_first_image(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    with pytest.raises(ConfigError, match="The class 'zebra' is not known"):
        run_predict(url, tmp_path / "in", out=tmp_path / "out", key=KEY, options=OutputOptions(classes=("zebra",)))
    assert not (tmp_path / "out").exists()


def test_an_image_that_gets_no_answer_is_its_own_trouble(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", 3)
    lost = (tmp_path / "in" / "0001.png").read_bytes()
    encoded = Client.segment_bytes

    def lossy(client: Client, data: bytes, *words: Any, **more: Any) -> bytes:
        if data == lost:
            raise UnreachableError("No answer came in 60 s.")
        return encoded(client, data, *words, **more)

    monkeypatch.setattr(Client, "segment_bytes", lossy)
    done, said = run_predict(url, tmp_path / "in", out=tmp_path / "out", key=KEY)
    assert not done and "0001.png: the service gives no answer to it (No answer came" in said
    monkeypatch.setattr(Client, "segment_bytes", lambda *words, **more: b"<html>")
    for format in ("png", "parquet"):
        with pytest.raises(RunError, match=f"{url} answered with what is no mask"):
            run_predict(url, tmp_path / "in", out=tmp_path / format, key=KEY, format=format)


def test_a_bad_image_is_its_own_trouble(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    (tmp_path / "in" / "0001.png").write_bytes(b"nothing")
    done, said = run_predict(url, tmp_path / "in", out=tmp_path / "out", key=KEY)
    assert not done and "2 of 3 images segmented" in said
    (failed,) = [row for row in read_rows(tmp_path / "out") if "error" in row]
    assert failed["path"].endswith("0001.png") and "415" in failed["error"]


def test_a_wrong_key_stops_before_the_first_image(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    for key in ("", "wrong"):
        with pytest.raises(AuthenticationError):
            run_predict(url, tmp_path / "in", out=tmp_path / "out", key=key)
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


def test_what_a_person_is_told_of_keys_and_of_what_the_service_decides(url: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    (tmp_path / "wrong").write_text("wrong")
    for words, code, sentence in (
        ([], 1, f"{url} asks for a key: give --key-file FILE, or PREDICT_KEY in the environment."),
        (["--key-file", "wrong"], 1, f"{url} does not take this key"),
        (["--key-file", "none"], 2, "The --key-file none cannot be read (No such file or directory)."),
        (["--precision", "f32"], 2, "leave --engine, --precision, --device out"),
    ):
        assert_fails(maskserve_command("predict", url, "in", "--out", "out", *words, cwd=tmp_path), code, sentence)
    assert not (tmp_path / "out").exists()


def test_what_is_no_service(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    with pytest.raises(UnreachableError):
        run_predict(f"http://127.0.0.1:{free_port()}", tmp_path / "in", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="The address is 'http:'"):
        run_predict("http://", tmp_path / "in", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_service_that_goes_away_stops_the_run_which_goes_on(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", 40)
    monkeypatch.setattr(maskserve.predict.backends, "RETRY_TIMEOUT", 0.5)
    out, failed = tmp_path / "out", []

    def asked(url: str) -> None:
        try:
            run_predict(url, tmp_path / "in", out=out, key=KEY)
        except RunError as error:
            failed.append(str(error))

    slow = maskserve.predict.backends.ServiceBackend.__call__

    def slower(
        labeller: maskserve.predict.backends.ServiceBackend, data: bytes
    ) -> maskserve.predict.backends.EncodedPrediction:
        time.sleep(0.2)  # so that the service is gone before the images are through
        return slow(labeller, data)

    with monkeypatch.context() as patch, TemporaryFile() as log:
        patch.setattr(maskserve.predict.backends.ServiceBackend, "__call__", slower)
        with launch_server(bundle, LOOPBACK, free_port(), log) as server:
            with Client(server.url, api_key=KEY) as client:
                while not client.is_ready():
                    time.sleep(0.05)
            thread = threading.Thread(target=asked, args=(server.url,))
            thread.start()
            while thread.is_alive() and (not (out / "manifest.jsonl").exists() or len(read_rows(out)) < 3):
                time.sleep(0.02)
            for pid in process_tree(server.process.pid):
                os.kill(pid, signal.SIGKILL)
            thread.join()
    assert len(failed) == 1 and "the same command goes on from here" in failed[0]
    before = read_rows(out)
    assert 3 <= len(before) < 40 and not [row for row in before if "error" in row]
    with background_server(bundle) as url:
        done, said = run_predict(url, tmp_path / "in", out=out, key=KEY)
    assert done and f"40 of 40 images segmented, {len(before)} of them before" in said


def test_a_service_as_a_person_types_it(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", 2)
    (tmp_path / "key").write_text(KEY)
    words = [sys.executable, "-m", "maskserve", "predict", url, "in/*.png", "--out", "out", "--key-file", "key"]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(read_masks(tmp_path / "out")) == ["0001.png"]
