"""Builds the image and runs containers of it: `make container`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from maskserve.cli.containerize import _git_revision
from models.bundle import open_bundle
from models.imaging.decode import decode_image
from models.inference.segmenter import Segmenter
from service import responses
from service.auth import generate_api_key
from service.server_process import free_port
from tests.deploy.engine import (
    BASE_IMAGE,
    CONTAINER_REQUIRED,
    BuiltImage,
    Container,
    find_engine,
    run_container,
    run_engine,
)
from tests.deploy.hostile_load import GOOD, record, send_hostile_load, unexpected
from tests.deploy.test_manifests import container_environment, find_container, parse_gib, render_overlay
from tests.models.imaging.test_hostile import EXPECTED_OUTCOMES, HOSTILE_FOLDER
from tests.service.test_app import JPEG, PNG, check_problem, decode_mask, decompression_bomb, exif_rotated_jpeg
from tests.service.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.container

ROOT = Path(__file__).parents[2]
MAX_IMAGE_BYTES = 750e6  # of the image without its bundle
TAG = "maskserve-test:1"


def run_containerize(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maskserve", "containerize", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)


@pytest.fixture(scope="module")
def engine() -> str:
    return find_engine()


@pytest.fixture(scope="module")
def image(engine: str, tiny_bundle: Path) -> Iterator[BuiltImage]:
    start = time.monotonic()
    built = run_containerize(tiny_bundle, "--engine", engine, "--base", BASE_IMAGE, "--tag", TAG)
    assert built.returncode == 0, built.stderr
    print(f"\n{built.stdout}built in {time.monotonic() - start:.0f} s")
    yield BuiltImage(engine, TAG, built.stdout)
    run_engine(engine, "rmi", "--force", TAG, check=False)


@pytest.fixture(scope="module")
def running_container(image: BuiltImage) -> Iterator[Container]:
    with run_container(image) as container:
        print(f"\nready {container.wait_until_ready():.1f} s after `{image.engine} run` returned")
        yield container


@pytest.fixture(scope="module")
def http_client(running_container: Container) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running_container.url, timeout=60.0) as client:
        yield client


def test_the_masks_equal_the_segmenters(http_client: httpx.Client, tiny_bundle: Path) -> None:
    segmenter = Segmenter.load(open_bundle(tiny_bundle))
    for data in (JPEG, PNG, exif_rotated_jpeg()):
        expected = segmenter.segment(decode_image(data)).labels
        np.testing.assert_array_equal(decode_mask(http_client.post("/v1/segment", content=data)), expected)


def test_every_format_is_supported(http_client: httpx.Client) -> None:
    for query in ("overlay", "confidence", "npy", "json", "json&masks=polygons&simplify=2", "json&masks=png"):
        response = http_client.post(f"/v1/segment?format={query}", content=JPEG)
        assert response.status_code == 200, response.text
    assert http_client.post("/v1/segment/batch", files=[("images", JPEG), ("images", PNG)]).status_code == 200
    assert http_client.get("/v1/docs").status_code == http_client.get("/").status_code == 200  # these are data files


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"not an image", 415),
        (os.urandom(5000), 415),
        (JPEG[: len(JPEG) // 2], 422),
        (decompression_bomb(), 413),
    ],
    ids=["empty", "text", "noise", "half a jpeg", "bomb"],
)
def test_bad_images(http_client: httpx.Client, data: bytes, status: int) -> None:
    check_problem(http_client.post("/v1/segment", content=data), status)


@pytest.mark.skipif(not HOSTILE_FOLDER.is_dir(), reason=f"{HOSTILE_FOLDER} does not exist")
def test_hostile_images(http_client: httpx.Client, running_container: Container) -> None:
    for name, outcome in EXPECTED_OUTCOMES.items():
        response = http_client.post("/v1/segment", content=(HOSTILE_FOLDER / "files" / name).read_bytes())
        if isinstance(outcome, tuple):
            assert decode_mask(response).shape == outcome, name
        else:
            check_problem(response, responses.ERRORS[outcome][0])
    assert http_client.get("/readyz").status_code == 200
    assert "Traceback" not in running_container.logs()


def test_hostile_load_neither_restarts_nor_blocks_the_service(image: BuiltImage) -> None:
    """Eight clients at once, with the settings and the memory of the Deployment. HOSTILE_LOAD_SECONDS=300 is the whole load."""
    manifests = render_overlay("overlays/cpu")
    options = [part for pair in container_environment(manifests).items() for part in ("-e", "=".join(pair))]
    with run_container(image, *options) as container:
        container.wait_until_ready()
        workers = worker_pids(container)
        outcomes = send_hostile_load(container.url)
        assert not unexpected(outcomes), outcomes
        assert outcomes[GOOD, 200] > 0, outcomes
        assert worker_pids(container) == workers  # none was killed and replaced
        assert httpx.get(f"{container.url}/readyz").status_code == 200
        assert "Traceback" not in container.logs()
        # Not --memory, because cgroups are not available everywhere: the sum of the processes' peaks is an upper bound.
        status = container.run("sh", "-c", "cat /proc/[0-9]*/status").stdout
        peak_kib = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        record(outcomes, peak_kib)
        assert peak_kib / 2**20 < parse_gib(find_container(manifests)["resources"]["limits"]["memory"])


def test_the_model_has_the_hash_of_the_bundle(http_client: httpx.Client, tiny_bundle: Path) -> None:
    (model,) = http_client.get("/v1/models").json()
    assert (model["name"], model["hash"]) == ("tiny", open_bundle(tiny_bundle).hash)
    assert (model["engine"], model["device"]) == ("openvino", "cpu")


def test_the_container_has_no_privileges(running_container: Container) -> None:
    lines = running_container.run("cat", "/proc/1/status").stdout.splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == status["Gid"].split() == ["1034"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for folder in ("/", "/app", "/app/bento/src", "/bundle", "/usr/bin"):
        assert running_container.run("touch", f"{folder}/here").returncode != 0, folder
    assert running_container.run("touch", "/tmp/here").returncode == 0
    assert running_container.run("find", "/tmp/cache", "-name", "*.blob").stdout.strip(), (
        "the compiled network is not cached"
    )


def test_no_file_of_the_image_is_writable_by_its_user(running_container: Container) -> None:
    """For containers without --read-only."""
    owned = ["(", "-user", "1034", "-o", "-group", "1034", "-o", "-perm", "-o+w", "!", "-type", "l", ")"]
    assert running_container.run("find", "/app", "/bundle", *owned).stdout == ""


def test_the_image_contains_only_what_serving_needs(running_container: Container) -> None:
    files = running_container.run("find", "/app/bento", "/bundle", "-type", "f").stdout.split()
    sources = {path.split("/")[4] for path in files if path.startswith("/app/bento/src/")}
    assert sources == {"models", "service", "bentofile.yaml"}
    assert "/bundle/model.onnx" in files
    assert not [path for path in files if "architectures" in path or "test" in path]
    for name in ("uv", "gcc", "cc", "make", "git", "curl"):  # the first folder of PATH is the virtual environment
        assert running_container.run("sh", "-c", f"command -v {name}").stdout == "", name
    absent = "torch", "training", "albumentations", "onnxruntime", "pytest"
    code = f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    assert running_container.run("/app/venv/bin/python", "-c", code).stdout.strip() == "[]"


def test_size_by_layer_and_package(image: BuiltImage, running_container: Container, tiny_bundle: Path) -> None:
    size = image.inspect()["Size"] - sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    history = run_engine(
        image.engine, "history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", image.tag
    ).stdout
    layers = [line for line in history.splitlines() if not line.startswith(("0 B", "0B"))]
    packages = running_container.run(
        "sh", "-c", "du -sm /app/venv/lib/python3*/site-packages/* | sort -rn | head -12"
    ).stdout
    print(f"\n{size / 1e6:.0f} MB without the bundle", *(line[:90] for line in layers), packages, sep="\n")
    assert size <= MAX_IMAGE_BYTES


def test_labels(image: BuiltImage, tiny_bundle: Path) -> None:
    labels = image.inspect()["Config"]["Labels"]
    revision = _git_revision()
    expected = {
        "title": "maskserve",
        "licenses": "Apache-2.0",
        "version": "0.1.0",
        **({"revision": revision} if revision else {}),
    }
    for key, value in expected.items():
        assert labels[f"org.opencontainers.image.{key}"] == value
    assert labels["maskserve.bundle.name"] == "tiny"
    assert labels["maskserve.bundle.hash"] == open_bundle(tiny_bundle).hash


def test_the_health_check_fails_without_a_service(image: BuiltImage, running_container: Container) -> None:
    details = image.inspect()
    kind, *command = (details.get("HealthCheck") or details.get("Healthcheck") or details["Config"]["Healthcheck"])[
        "Test"
    ]
    assert kind == "CMD"
    assert running_container.run(*command).returncode == 0
    other = [part.replace(":3000", ":3001") for part in command]  # nothing listens there
    assert running_container.run(*other).returncode != 0


def test_the_printed_command_runs_the_image(image: BuiltImage) -> None:
    (line,) = (line.strip() for line in image.output.splitlines() if line.startswith("  "))
    assert "--read-only" in line and "--cap-drop ALL" in line
    port = free_port()
    name = f"maskserve-test-{port}"
    line = line.replace("127.0.0.1:3000:", f"127.0.0.1:{port}:").replace(" run ", f" run --detach --name {name} ")
    run_engine(*line.split())
    try:
        container = Container(image.engine, name, f"http://127.0.0.1:{port}")
        container.wait_until_ready()
        decode_mask(httpx.post(f"{container.url}/v1/segment", content=JPEG, timeout=60))
    finally:
        run_engine(image.engine, "stop", name, check=False)


def test_a_worker_that_dies_is_restarted(image: BuiltImage) -> None:
    with run_container(image, "-e", "MASKSERVE_WORKERS=2") as container:
        container.wait_until_ready()
        before = worker_pids(container)
        assert len(before) == 2
        container.run("sh", "-c", f"kill -9 {before[0]}")
        deadline = time.monotonic() + 60
        while len(worker_pids(container)) < 2 or before[0] in worker_pids(container):
            assert time.monotonic() < deadline, container.logs()
            time.sleep(0.2)
        decode_mask(httpx.post(f"{container.url}/v1/segment", content=JPEG, timeout=60))


def worker_pids(container: Container) -> list[str]:
    """The workers' process ids inside. The brackets in the pattern keep the search from matching itself."""
    paths = container.run("sh", "-c", "grep -la 'worker-i[d]' /proc/[0-9]*/cmdline").stdout
    return sorted(path.split("/")[2] for path in paths.split())


def test_a_stop_completes_accepted_requests(image: BuiltImage) -> None:
    with run_container(image) as container:
        container.wait_until_ready()
        host, port = container.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            head = f"POST /v1/segment HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(JPEG)}\r\n\r\n"
            client.sendall(head.encode() + JPEG[:1000])
            time.sleep(0.5)  # long enough to be accepted
            run_engine(image.engine, "kill", "--signal", "TERM", container.name)
            time.sleep(1.0)
            assert container.state()["Status"] == "running"
            client.sendall(JPEG[1000:])
            assert client.recv(2**16).startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        code = run_engine(image.engine, "wait", container.name).stdout.strip()
        print(f"\nended {time.monotonic() - start:.1f} s after its last response")
        assert code == "0", container.logs()
        assert "Traceback" not in container.logs()


def test_other_settings_and_a_bundle_on_a_volume(image: BuiltImage, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundles" / "one", "one")
    write_tiny_bundle(tmp_path / "bundles" / "two", "two")
    tmp_path.chmod(0o755)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    key, key_hash = generate_api_key()
    settings = {"API_KEYS": key_hash, "DEFAULT_MODEL": "two", "WORKERS": "2"}
    options = [part for name, value in settings.items() for part in ("-e", f"MASKSERVE_{name}={value}")]
    with run_container(image, "-v", f"{tmp_path / 'bundles'}:/bundle:ro", *options) as container:
        container.wait_until_ready()
        check_problem(httpx.post(f"{container.url}/v1/segment", content=JPEG), 401)
        response = httpx.post(f"{container.url}/v1/segment", content=JPEG, headers={"X-API-Key": key}, timeout=60)
        assert response.status_code == 200 and response.headers["x-model"].startswith("two@")
        commands = container.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
        assert "--worker-id 1" in commands and "--worker-id 2" in commands


def test_serving_continues_on_a_full_disk(image: BuiltImage) -> None:
    with run_container(image, "--tmpfs", "/tmp/cache:size=4k") as container:
        container.wait_until_ready()
        decode_mask(httpx.post(f"{container.url}/v1/segment", content=JPEG, timeout=60))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-e", "MASKSERVE_THREDS=2"], "Did you mean MASKSERVE_THREADS?"),
        (["-e", "MASKSERVE_API_KEYS=put-the-hash-here"], "Invalid value for MASKSERVE_API_KEYS"),
    ],
)
def test_invalid_settings_end_the_container(image: BuiltImage, options: list[str], message: str) -> None:
    with run_container(image, *options) as container:
        assert run_engine(image.engine, "wait", container.name).stdout.strip() == "1"
        assert message in container.logs() and "Traceback" not in container.logs()


def test_a_missing_base_image_is_named(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    bundle = write_tiny_bundle(tmp_path / "bundle")
    absent = ("--base", "localhost/missing-image:1")
    failed = run_containerize(bundle, "--engine", engine, "--tag", "maskserve-none:1", *absent)
    assert failed.returncode == 1
    assert "The image was not built" in failed.stderr and "missing-image" in failed.stderr
    assert "Traceback" not in failed.stderr and len(failed.stderr.splitlines()) < 4
    assert not list((tmp_path / "scratch").iterdir())
    assert run_engine(engine, "image", "inspect", "maskserve-none:1", check=False).returncode != 0


def test_the_manifests_run_as_a_pod(image: BuiltImage, tmp_path: Path) -> None:
    if image.engine != "podman":
        pytest.skip("only podman has `podman play kube`")
    key, key_hash = generate_api_key()
    manifests = render_overlay("overlays/cpu")
    secret, deployment = manifests["Secret"], manifests["Deployment"]
    secret["stringData"] = {"MASKSERVE_API_KEYS": key_hash}
    (spec,) = deployment["spec"]["template"]["spec"]["containers"]
    spec["image"] = f"localhost/{TAG}"
    spec["ports"][0]["hostPort"] = port = free_port()
    # Other names than the manifests', which may be in use on this machine.
    secret["metadata"]["name"] = spec["envFrom"][0]["secretRef"]["name"] = "maskserve-test-keys"
    deployment["metadata"]["name"] = "maskserve-test"
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(yaml.safe_dump_all([secret, deployment]))
    played = run_engine("podman", "play", "kube", manifest, check=False)
    if "is not valid JSON" in played.stderr:  # podman 4.3 cannot read the Secrets that it has stored
        run_engine("podman", "play", "kube", "--down", manifest, check=False)
        run_engine("podman", "secret", "rm", "maskserve-test-keys", check=False)
        as_json = {name: b64encode(value.encode()).decode() for name, value in secret["stringData"].items()}
        (tmp_path / "secret.json").write_text(json.dumps(as_json))
        run_engine("podman", "secret", "create", "maskserve-test-keys", tmp_path / "secret.json")
        manifest.write_text(yaml.safe_dump(deployment))
        played = run_engine("podman", "play", "kube", manifest, check=False)
    try:
        assert played.returncode == 0, played.stderr
        pod = Container("podman", "maskserve-test-pod-0-maskserve", f"http://127.0.0.1:{port}")
        pod.wait_until_ready()
        check_problem(httpx.post(f"{pod.url}/v1/segment", content=JPEG), 401)
        decode_mask(httpx.post(f"{pod.url}/v1/segment", content=JPEG, headers={"X-API-Key": key}, timeout=60))
        assert pod.run("id", "-u").stdout.strip() == "1034"
        assert pod.run("touch", "/app/here").returncode != 0
    finally:
        run_engine("podman", "play", "kube", "--down", manifest, check=False)
        run_engine("podman", "secret", "rm", "maskserve-test-keys", check=False)


def test_compose_runs_the_image(image: BuiltImage) -> None:
    if image.engine != "podman" or shutil.which("podman-compose") is None:
        (pytest.fail if image.engine == "podman" and CONTAINER_REQUIRED else pytest.skip)(
            "podman-compose is not installed"
        )
    port = free_port()
    key, key_hash = generate_api_key()
    environment = {**os.environ, "IMAGE": f"localhost/{TAG}", "PORT": str(port), "MASKSERVE_API_KEYS": key_hash}
    command = ["podman-compose", "-p", "maskserve-test", "-f", str(ROOT / "deploy" / "compose.yaml")]
    up = subprocess.run([*command, "up", "--detach"], env=environment, capture_output=True, text=True, timeout=300)
    try:
        container = Container("podman", "maskserve-test_maskserve_1", f"http://127.0.0.1:{port}")
        assert up.returncode == 0, up.stderr
        container.wait_until_ready()
        check_problem(httpx.post(f"{container.url}/v1/segment", content=JPEG), 401)
        decode_mask(httpx.post(f"{container.url}/v1/segment", content=JPEG, headers={"X-API-Key": key}, timeout=60))
        assert container.run("touch", "/app/here").returncode != 0
        assert container.run("id", "-u").stdout.strip() == "1034"
    finally:
        subprocess.run([*command, "down"], env=environment, capture_output=True, timeout=300)
