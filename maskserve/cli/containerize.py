"""The subcommand `containerize`: builds a container image of the service and a bundle, with BentoML.

`bentofile.yaml` lists the files of the image, and `deploy/image/Dockerfile.template` builds it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskserve.cli.options import BundleFolder

if TYPE_CHECKING:
    from models.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("models", "service", "deploy/image")
SOURCE_FILES = ("bentofile.yaml", "requirements-serve.lock")

CONTAINER_ENGINES = ("docker", "podman", "nerdctl")  # in the order of preference
# The version of onnxruntime in requirements.lock. CUDA and cuDNN come from PyPI as well: the base image needs none.
GPU_EXTRAS = "onnxruntime-gpu[cuda,cudnn]==1.31.1"
PROBE_SECONDS = 30  # timeout of `ENGINE info`

# The names that BentoML accepts: the same as the engines, except for tags that begin with an underscore.
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_NAME = rf"(?:[a-z0-9][a-z0-9.-]*(?::[0-9]+)?/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9][A-Za-z0-9_.-]{{0,127}})?"
TAG_PATTERN, BASE_IMAGE_PATTERN = re.compile(_NAME), re.compile(rf"{_NAME}(?:@sha256:[0-9a-f]{{64}})?")


def containerize(
    bundle: BundleFolder,
    gpu: Annotated[bool, typer.Option("--gpu", help="Add ONNX Runtime for CUDA (about 3 GB).")] = False,
    tag: Annotated[
        str | None,
        typer.Option(metavar="NAME:TAG", help="Name of the image (default: from the bundle's name and hash)."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help=f"{', '.join(CONTAINER_ENGINES)}, or auto: the first that works.")
    ] = "auto",
    base: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Base image, with Python (default: python:3.12-slim)."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the output of BentoML and the container engine.")
    ] = False,
) -> None:
    """Build a container image of the service and BUNDLE. Needs docker, podman or nerdctl; takes some minutes."""
    from models.bundle import open_bundle
    from models.console import Console
    from models.errors import ConfigError, escape_line, quoted

    for name, value, pattern in (("--tag", tag, TAG_PATTERN), ("--base", base, BASE_IMAGE_PATTERN)):
        if value is not None and not pattern.fullmatch(value):
            raise ConfigError(
                f"{name} is {quoted(value)}; expected an image name such as registry.example.org/team/maskserve:1.0."
            )
    opened = open_bundle(bundle)
    opened.verify()
    chosen = _choose_engine(engine)
    image = tag or f"maskserve-{_slug(opened.spec.name)}:{opened.hash[:12]}{'-gpu' if gpu else ''}"
    with Console(stderr=True).status(f"building {image} with {chosen}; this takes some minutes"):
        _build_image(opened, image, chosen, _build_options(opened, chosen, gpu, base), verbose)
    console = Console(highlight=False, soft_wrap=True)
    bundle_id = f"{escape_line(opened.spec.name)}@{opened.hash[:12]}"
    console.print(f"{image} contains the bundle {bundle_id}; {_image_size(chosen, image)}. Run it:", markup=False)
    console.print(f"  {_run_command(chosen, image, gpu)}", markup=False)
    if "/" in image:
        console.print(f"It is only on this machine. Upload it: {chosen} push {image}", markup=False)


def _choose_engine(requested: str) -> str:
    """The first requested engine that works. Raises: ConfigError for an unknown one; EngineError with the reason of each."""
    from models.errors import ConfigError, EngineError, quoted

    if requested not in ("auto", *CONTAINER_ENGINES):
        raise ConfigError(f"Unknown engine {quoted(requested)}; choose one of auto, {', '.join(CONTAINER_ENGINES)}.")
    problems = []
    for name in CONTAINER_ENGINES if requested == "auto" else [requested]:
        problem = _engine_problem(name)
        if problem is None:
            return name
        problems.append(f"{name} {problem}")
    raise EngineError(f"No container engine works on this machine: {'; '.join(problems)}.")


def _engine_problem(engine: str) -> str | None:
    """Why an engine does not work, or None if it works. An installed command is not enough: it may need a daemon."""
    if shutil.which(engine) is None:
        return "is not installed"
    try:
        done = subprocess.run([engine, "info"], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not respond ({type(error).__name__})"
    if (
        done.returncode == 0 and "cannot connect" not in done.stdout.lower()
    ):  # without its daemon, docker may exit with 0
        return None
    lines = [line.strip().rstrip(".?") for line in (done.stderr + done.stdout).strip().splitlines()]
    errors = [line for line in lines if re.search("cannot connect|denied|error", line, re.IGNORECASE)]
    return f"info failed: {(errors or lines or ['it printed nothing'])[-1]}"


def _slug(name: str) -> str:
    """A bundle's name as a part of an image name."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "bundle"


def _build_options(bundle: "Bundle", engine: str, gpu: bool, base: str | None) -> list[str]:
    """The options that BentoML passes to the engine."""
    options = [f"label={key}={value}" for key, value in _image_labels(bundle).items()]
    options += [f"build-arg=BASE={base}"] if base else []
    options += [f"build-arg=EXTRAS={GPU_EXTRAS}"] if gpu else []
    options += ["format=docker"] if engine == "podman" else []  # its own format has no HEALTHCHECK
    return [argument for option in options for argument in ("--opt", option)]


def _image_labels(bundle: "Bundle") -> dict[str, str]:
    """The labels that depend on clone and bundle; the Dockerfile has the others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = {
        "org.opencontainers.image.version": project["version"],
        "org.opencontainers.image.revision": _git_revision(),
        "org.opencontainers.image.source": _public_url(_run_git("remote", "get-url", "origin")),
        "maskserve.bundle.name": bundle.spec.name,
        "maskserve.bundle.hash": bundle.hash,
    }
    return {key: value for key, value in labels.items() if value}


def _git_revision() -> str:
    """The commit of the sources, with `-dirty` if they differ from it; empty outside a clone of maskserve."""
    if _run_git("rev-parse", "--show-toplevel") != str(ROOT):  # the folder may be inside another repository
        return ""
    changed = _run_git("status", "--porcelain", "--", *SOURCE_FOLDERS, *SOURCE_FILES)
    return _run_git("rev-parse", "HEAD") + ("-dirty" if changed else "")


def _run_git(*arguments: str) -> str:
    """The output of git in the clone; empty if git or the clone is missing."""
    try:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _public_url(url: str) -> str:
    """The URL if it may be published: empty for a path of this machine or a URL with a password."""
    return url if re.fullmatch(r"https://[^@\s]+", url) else ""


def _build_image(bundle: "Bundle", image: str, engine: str, options: list[str], verbose: bool) -> None:
    """Copy the sources to a temporary folder and call BentoML twice. Leaves only the image. Raises: EngineError."""
    from models import TELEMETRY_OPT_OUT
    from models.errors import EngineError

    # BentoML keeps every Bento in its home; this one is deleted. It also requires (its issue 5566) that its temporary
    # folder is in the current one.
    with tempfile.TemporaryDirectory(prefix="maskserve-") as folder:
        scratch = Path(folder)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MASKSERVE_")}
        environment = {**inherited, **TELEMETRY_OPT_OUT, "BENTOML_HOME": str(scratch / "home"), "TMPDIR": str(scratch)}
        environment.pop("PYTHONSAFEPATH", None)  # BentoML imports `service` from the working directory
        bento = f"maskserve:{bundle.hash[:12]}"
        try:
            clone = scratch / "clone"
            _copy_sources(bundle, clone)
            (scratch / "home").mkdir()
        except OSError as error:
            raise EngineError(
                f"The image was not built: {error.strerror} in {tempfile.gettempdir()}. Set TMPDIR to a larger disk."
            ) from error
        _run_bentoml(["build", "--version", bundle.hash[:12]], clone, environment, verbose)
        _run_bentoml(["containerize", bento, "--backend", engine, "-t", image, *options], scratch, environment, verbose)


def _copy_sources(bundle: "Bundle", clone: Path) -> None:
    """Copy the files of the clone that bentofile.yaml lists, and the files of the bundle."""
    from models.bundle import CHECKSUM_FILE

    files = [
        (path, path.relative_to(ROOT)) for name in SOURCE_FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()
    ]
    files = [(path, target) for path, target in files if not {"__pycache__", "architectures"} & set(target.parts)]
    files += [(ROOT / name, Path(name)) for name in SOURCE_FILES]
    files += [(bundle.folder / name, Path("bundle", name)) for name in (*bundle.checksums, CHECKSUM_FILE)]
    for path, target in files:
        (clone / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, clone / target)


def _run_bentoml(arguments: list[str], folder: Path, environment: dict[str, str], verbose: bool) -> None:
    """Run BentoML; on an interrupt, end all processes that it started. Raises: EngineError with the reason of a failure."""
    from models.errors import EngineError

    with tempfile.TemporaryFile("w+", dir=folder) as log:
        out = None if verbose else log
        child = subprocess.Popen(
            [sys.executable, "-m", "bentoml", *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait()
        except BaseException:  # the engine, a grandchild, would continue to build
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
            raise
        if code:
            log.seek(0)
            raise EngineError(
                f"The image was not built: {_failure_reason(log.read())} (--verbose shows the whole output.)"
            )


def _failure_reason(log: str) -> str:
    """The line of BentoML's output that states the error."""
    output = [line.strip() for line in log.splitlines() if line.strip()]
    lines = [re.sub(r"^(INFO|bentoml\.exceptions\.\w+): ", "", line) for line in output]
    disk_full = [line for line in lines if "no space left" in line.lower()]
    errors = [line for line in lines if re.match(r"(\w+: )*(error|fatal)\b", line, re.IGNORECASE)]
    reason = (disk_full or errors or lines or ["BentoML printed nothing."])[-1]
    if code := re.search(r"exit (status|code):? \d+$", reason):  # of a build step, whose own output precedes it
        # BuildKit repeats that output between two lines of dashes, and then prints the Dockerfile.
        dashes = [index for index, line in enumerate(lines) if line == "------"]
        end = dashes[-1] if dashes else lines.index(reason)
        reason = f"{lines[end - 1]} ({code[0]})" if end else reason
    return reason[:500]


def _image_size(engine: str, image: str) -> str:
    done = subprocess.run([engine, "image", "inspect", image, "--format", "{{.Size}}"], capture_output=True, text=True)
    return f"{int(done.stdout) / 1e6:.0f} MB" if done.stdout.strip().isdigit() else "unknown size"


def _run_command(engine: str, image: str, gpu: bool) -> str:
    """The command that runs the image with the fewest privileges."""
    devices = {"docker": "--gpus all ", "podman": "--device nvidia.com/gpu=all ", "nerdctl": "--gpus all "}[engine]
    safe = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
    hosts = "-e MASKSERVE_ALLOWED_HOSTS=localhost"  # in the container it listens on every interface
    return f"{engine} run --rm {devices if gpu else ''}{safe} {hosts} -p 127.0.0.1:3000:3000 {image}"
