"""`maskserve containerize` without a container engine, and a plain `bentoml build`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from maskserve.cli import containerize
from models.bundle import open_bundle
from models.errors import BundleError, ConfigError, EngineError
from tests.maskserve.command_line import assert_fails, run_maskserve
from tests.service.tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("small") / "bundle")


@pytest.fixture
def fake_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, and empty."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def write_script(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_bad_bundle_is_refused_before_an_engine_is_searched(bundle: Path, fake_path: Path, tmp_path: Path) -> None:
    assert_fails(run_maskserve("containerize", tmp_path, cwd=tmp_path), 1, "is not a bundle")
    altered = tmp_path / "altered"
    shutil.copytree(bundle, altered)
    (altered / "probes" / "0.png").write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"0\.png is not the file that was exported"):
        containerize.containerize(altered)


INVALID_TAGS = (
    "",
    "Upper",
    "a b",
    "-x",
    "x:",
    "x:-1",
    "https://a/b",
    "a//b",
    "x:" + "y" * 129,
    "x;rm",
    "x:_a",
    "-x/y",
    "../x",
)


@pytest.mark.parametrize("tag", INVALID_TAGS)
def test_an_invalid_tag_is_refused(bundle: Path, tag: str) -> None:
    for name in ("tag", "base"):
        with pytest.raises(ConfigError, match=f"--{name} is {re.escape(repr(tag))}; expected an image name"):
            containerize.containerize(bundle, **{name: tag})


@pytest.mark.parametrize("tag", ["x", "x:1", "a/b", "localhost:5000/a.b_c/d--e:V1.0-x_y", "registry.example.org/a/b"])
def test_valid_tags(tag: str) -> None:
    assert containerize.TAG_PATTERN.fullmatch(tag) and containerize.BASE_IMAGE_PATTERN.fullmatch(tag)
    assert containerize.BASE_IMAGE_PATTERN.fullmatch(f"{tag}@sha256:{'0f' * 32}")


@pytest.mark.parametrize("name", ["road signs v2", "Straße", "--", "日本", "a/b:c"])
def test_every_bundle_name_becomes_a_valid_tag(name: str) -> None:
    assert containerize.TAG_PATTERN.fullmatch(f"maskserve-{containerize._slug(name)}:0123456789ab")


def test_without_an_engine_each_one_is_named(bundle: Path, fake_path: Path, tmp_path: Path) -> None:
    done = run_maskserve("containerize", bundle, cwd=tmp_path)
    assert_fails(done, 1, "docker is not installed; podman is not installed; nerdctl is not installed")
    with pytest.raises(ConfigError, match="Unknown engine 'moby'; choose one of auto, docker, podman"):
        containerize._choose_engine("moby")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'permission denied while trying to connect to the daemon' >&2; exit 1", "permission denied"),
        ("echo Server:; echo 'Cannot connect to the Docker daemon at unix:///x. Is it running?'", "Cannot connect"),
        ("exit 1", "it printed nothing"),
    ],
    ids=["no permission", "no daemon, and yet exit code 0", "silence"],
)
def test_an_engine_that_does_not_work(fake_path: Path, script: str, message: str) -> None:
    """Outputs that docker was seen to print."""
    write_script(fake_path, "docker", script)
    with pytest.raises(EngineError, match=f"^No container engine works on this machine: docker info failed: {message}"):
        containerize._choose_engine("docker")


def test_the_first_engine_that_works_is_taken(fake_path: Path) -> None:
    write_script(fake_path, "docker", "exit 1")
    write_script(fake_path, "podman", "exit 0")
    assert containerize._choose_engine("auto") == "podman"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("INFO: STEP 1\nINFO: Error: build: no such image\nTraceback\nbentoml.exceptions.X: exit 125", "no such image"),
        ("INFO: write /app: No space left on device\nINFO: Error: exit status 1\nTraceback", "No space left"),
        ("Traceback:\n  File x\nModuleNotFoundError: No module named 'y'\n", "No module named 'y'"),
        (
            'STEP 1/9\nensurepip is missing\nError: building at STEP "RUN x": exit status 1\nTraceback\nX: exit 1',
            "ensurepip is missing (exit status 1)",
        ),
        (
            "#8 0.5 ensurepip\n------\n > [build 3/6] RUN x:\n0.5 ensurepip is missing\n------\nDockerfile:15\n"
            '  15 | >>> RUN x\nERROR: failed to solve: process "x" did not complete successfully: exit code: 1\n',
            "ensurepip is missing (exit code: 1)",
        ),
        ("", "printed nothing"),
    ],
)
def test_the_error_is_found_in_the_log(log: str, line: str) -> None:
    assert line in containerize._failure_reason(log)


def test_a_full_disk_is_one_message_and_leaves_no_files(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, tempfile; from pathlib import Path; from maskserve.cli import containerize as c\n"
        "from models.bundle import open_bundle; from models.errors import EngineError\n"
        "try: c._build_image(open_bundle(Path(sys.argv[1])), 'x', 'podman', [], False)\n"
        "except EngineError as error: print(error, list(Path(tempfile.gettempdir()).iterdir()))"
    )
    mounted = f'mount -t tmpfs -o size=64k none {tmp_path} && TMPDIR={tmp_path} exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted, sys.executable, code, bundle],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    assert f"No space left on device in {tmp_path}" in done.stdout, done.stderr
    assert done.stdout.strip().endswith("[]")


def test_the_labels_name_the_bundle_and_the_commit(bundle: Path) -> None:
    labels = containerize._image_labels(open_bundle(bundle))
    assert labels["maskserve.bundle.hash"] == open_bundle(bundle).hash
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert containerize._public_url("https://example.org/a/b.git") == "https://example.org/a/b.git"
    assert containerize._public_url("https://me:secret@example.org/a") == containerize._public_url("/home/me/a") == ""


def test_the_revision_is_that_of_the_sources(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containerize, "ROOT", tmp_path / "clone")
    (tmp_path / "clone" / "service").mkdir(parents=True)
    (tmp_path / "clone" / "service" / "app.py").write_text("")

    def git(*arguments: str) -> None:
        user = "-c", "user.name=a", "-c", "user.email=a@example.org"
        subprocess.run(["git", *user, *arguments], cwd=tmp_path / "clone", check=True, capture_output=True)

    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert containerize._git_revision() == ""  # an unpacked archive inside another repository
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--message", "all")
    assert re.fullmatch("[0-9a-f]{40}", containerize._git_revision())
    (tmp_path / "clone" / "notes").write_text("not a source file")
    assert not containerize._git_revision().endswith("-dirty")
    (tmp_path / "clone" / "service" / "more.py").write_text("")
    assert containerize._git_revision().endswith("-dirty")


def test_the_gpu_package_has_the_locked_version() -> None:
    locked = re.search(r"^onnxruntime==(\S+)$", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked and containerize.GPU_EXTRAS.endswith(f"=={locked[1]}")


def run_bentoml_build(clone: Path, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": ""}
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "bentoml", "build", "--version", "test"]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=120)


def test_a_plain_build_includes_the_bundle_folder(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    containerize._copy_sources(opened, tmp_path / "clone")
    for stray in ("training/x.py", "tests/x.py", "models/architectures/x.py", "bundle/.DS_Store", "runs/x"):
        (tmp_path / "clone" / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / stray).write_text("")
    built = run_bentoml_build(tmp_path / "clone", tmp_path / "home")
    assert f"maskserve: the bundle small@{opened.hash[:12]} is included." in built.stderr, built.stderr
    source = tmp_path / "home" / "bentos" / "maskserve" / "test" / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    sources = {name for name in files if name.startswith(("models/", "service/"))}
    bundle_files = {f"bundle/{name}" for name in (*opened.checksums, "SHA256SUMS")}
    assert files - sources == {*bundle_files, "bentofile.yaml", "deploy/image/slim.py"}
    assert {"models/inference/segmenter.py", "service/app.py", "service/static/index.html"} <= sources
    assert not [name for name in sources if "architectures" in name or name.endswith(".pyc")]
    assert yaml.safe_load((source.parent / "bento.yaml").read_text())["service"] == "service.bento_entry:Maskserve"
    requirements = (source.parent / "env" / "python" / "requirements.txt").read_text()
    assert "openvino==" in requirements and "torch==" not in requirements


def test_a_plain_build_without_a_bundle(bundle: Path, tmp_path: Path) -> None:
    """`bentoml build` imports the entry point in the clone, as here."""
    clone = tmp_path / "clone"
    containerize._copy_sources(open_bundle(bundle), clone)
    command = [sys.executable, "-W", "ignore", "-c", "import service.bento_entry"]
    (clone / "bundle" / "model.onnx").write_bytes(b"altered")
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode != 0 and "model.onnx" in done.stderr and "Traceback" not in done.stderr
    shutil.rmtree(clone / "bundle")
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0 and "maskserve: no bundle is included" in done.stderr


def test_a_failed_build_leaves_no_files(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine passes its check, and fails to build."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bin").mkdir()
    write_script(
        tmp_path / "bin", "podman", '[ "$1" = info ] && exit 0; echo "Error: no space left on device" >&2; exit 125'
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with pytest.raises(EngineError, match=r"not built: Error: no space left on device \(--verbose"):
        containerize._build_image(open_bundle(bundle), "x:1", "podman", [], verbose=False)
    assert not list((tmp_path / "scratch").iterdir())
