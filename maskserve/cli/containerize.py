"""`maskserve containerize`: the service and a bundle as one image. A thin front to `bentoml build` and `bentoml containerize`.

What goes in is said by `bentofile.yaml`, and how the image is made by `deploy/image/Dockerfile.template`.
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
from rich.console import Console

if TYPE_CHECKING:
    from models.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("models", "service", "deploy/image")
SOURCE_FILES = ("bentofile.yaml", "requirements-serve.lock")

CONTAINER_ENGINES = ("docker", "podman", "nerdctl")  # each builds an image and runs it
# CUDA and cuDNN come from PyPI as well, so that the base image needs none. Of the version that requirements.lock has of
# the CPU's package.
GPU_EXTRAS = "onnxruntime-gpu[cuda,cudnn]==1.31.1"
PROBE_SECONDS = 30

# As BentoML wants them: of what the engines take, it refuses a tag that begins with an underscore.
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_NAME = rf"(?:[a-z0-9][a-z0-9.-]*(?::[0-9]+)?/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9][A-Za-z0-9_.-]{{0,127}})?"
TAG_PATTERN, BASE_IMAGE_PATTERN = re.compile(_NAME), re.compile(rf"{_NAME}(?:@sha256:[0-9a-f]{{64}})?")


def containerize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `maskserve export` wrote.")],
    gpu: Annotated[bool, typer.Option("--gpu", help="Add ONNX Runtime for CUDA: some 3 GB more.")] = False,
    tag: Annotated[
        str | None, typer.Option(metavar="NAME:TAG", help="The image's name (default: by the bundle's name and hash).")
    ] = None,
    engine: Annotated[
        str, typer.Option(help=f"{', '.join(CONTAINER_ENGINES)}, or auto: the first of them that works.")
    ] = "auto",
    base: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Image with a Python to build on (default: python:3.12-slim)."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what BentoML and the engine say meanwhile.")] = False,
) -> None:
    """Make a container image of the service with BUNDLE inside. Needs docker, podman or nerdctl; takes some minutes."""
    from models.errors import ConfigError

    for name, value, pattern in (("--tag", tag, TAG_PATTERN), ("--base", base, BASE_IMAGE_PATTERN)):
        if value is not None and not pattern.fullmatch(value):
            raise ConfigError(f"{name} {value!r} is no image name, such as registry.example.org/team/maskserve:1.0.")
    opened = _verify_bundle(bundle)
    chosen = _choose_engine(engine)
    image = tag or f"maskserve-{_slug(opened.spec.name)}:{opened.hash[:12]}{'-gpu' if gpu else ''}"
    with Console(stderr=True).status(f"building {image} with {chosen}; this takes some minutes"):
        _build_image(opened, image, chosen, _build_options(opened, chosen, gpu, base), verbose)
    console = Console(highlight=False, soft_wrap=True)
    held = f"{opened.spec.name}@{opened.hash[:12]}"
    console.print(f"{image} holds the bundle {held}; {_image_size(chosen, image)}. Run it:", markup=False)
    console.print(f"  {_run_command(chosen, image, gpu)}", markup=False)
    if "/" in image:
        console.print(f"It is on this machine alone: `{chosen} push {image}` hands it to others.", markup=False)


def _verify_bundle(folder: Path) -> "Bundle":
    """The bundle, every file of it looked at. Raises: BundleError."""
    from models.bundle import open_bundle

    opened = open_bundle(folder)
    for name in opened.checksums:
        opened.verify_file(name)
    return opened


def _choose_engine(wanted: str) -> str:
    """The engine to build with: one that answers. Raises: ConfigError, EngineError with what each one said."""
    from models.errors import ConfigError, EngineError

    if wanted not in ("auto", *CONTAINER_ENGINES):
        raise ConfigError(f"The engine {wanted!r} is not known; choose auto, {', '.join(CONTAINER_ENGINES)}.")
    lacking = []
    for name in CONTAINER_ENGINES if wanted == "auto" else [wanted]:
        reason = _engine_problem(name)
        if reason is None:
            return name
        lacking.append(f"{name} {reason}")
    raise EngineError(f"No container engine works here: {'; '.join(lacking)}.")


def _engine_problem(engine: str) -> str | None:
    """Why an engine does not work here; None where it does. That its command is there says little: a daemon may be wanted."""
    if shutil.which(engine) is None:
        return "is not installed"
    try:
        asked = subprocess.run([engine, "info"], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not answer ({type(error).__name__})"
    said = (asked.stderr + asked.stdout).strip().splitlines()
    lost = [line.strip().rstrip(".?") for line in said if re.search("cannot connect|denied|error", line, re.IGNORECASE)]
    if asked.returncode == 0 and "cannot connect" not in asked.stdout.lower():  # docker was seen to exit with 0 then
        return None
    return f"says: {(lost or said or ['nothing'])[-1]}"


def _slug(name: str) -> str:
    """A bundle's name as a part of an image's."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "bundle"


def _build_options(bundle: "Bundle", engine: str, gpu: bool, base: str | None) -> list[str]:
    """What BentoML passes on to the engine."""
    options = [f"label={key}={value}" for key, value in _image_labels(bundle).items()]
    options += [f"build-arg=BASE={base}"] if base else []
    options += [f"build-arg=EXTRAS={GPU_EXTRAS}"] if gpu else []
    options += ["format=docker"] if engine == "podman" else []  # its own format holds no HEALTHCHECK
    return [word for option in options for word in ("--opt", option)]


def _image_labels(bundle: "Bundle") -> dict[str, str]:
    """What the Dockerfile cannot know; title and licences stand there."""
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
    """The commit that goes in, with `-dirty` where what goes in differs; nothing outside a clone of ours."""
    if _run_git("rev-parse", "--show-toplevel") != str(ROOT):  # it may lie in a repository of something else
        return ""
    return _run_git("rev-parse", "HEAD") + (
        "-dirty" if _run_git("status", "--porcelain", "--", *SOURCE_FOLDERS, *SOURCE_FILES) else ""
    )


def _run_git(*words: str) -> str:
    """What git says of the clone; nothing where there is none."""
    try:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _public_url(url: str) -> str:
    """An address that anybody may read: no path of this machine, and no password."""
    return url if re.fullmatch(r"https://[^@\s]+", url) else ""


def _build_image(bundle: "Bundle", image: str, engine: str, options: list[str], verbose: bool) -> None:
    """Lay out what goes in, and call BentoML twice. Of all that nothing is left but the image. Raises: EngineError."""
    from models import TELEMETRY_OPT_OUT
    from models.errors import EngineError

    # BentoML keeps every Bento in its home; this one is thrown away. It also insists (its issue 5566) that its temporary
    # folder lies in the current one.
    with tempfile.TemporaryDirectory(prefix="maskserve-") as folder:
        scratch = Path(folder)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MASKSERVE_")}
        environment = {**kept, **TELEMETRY_OPT_OUT, "BENTOML_HOME": str(scratch / "home"), "TMPDIR": str(scratch)}
        environment.pop("PYTHONSAFEPATH", None)  # our rooms are found because Python puts the working directory first
        bento = f"maskserve:{bundle.hash[:12]}"
        try:
            clone = scratch / "clone"
            _copy_sources(bundle, clone)
            (scratch / "home").mkdir()
        except OSError as error:
            where = f"{error.strerror} in {tempfile.gettempdir()}"
            raise EngineError(f"The image was not built: {where}; TMPDIR may name a larger disk.") from error
        _run_bentoml(["build", "--version", bundle.hash[:12]], clone, environment, verbose)
        _run_bentoml(["containerize", bento, "--backend", engine, "-t", image, *options], scratch, environment, verbose)


def _copy_sources(bundle: "Bundle", clone: Path) -> None:
    """The part of the clone that bentofile.yaml speaks of, and of the bundle what it lists."""
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


def _run_bentoml(words: list[str], folder: Path, environment: dict[str, str], verbose: bool) -> None:
    """Run a verb of BentoML, and end all that it started if it is cut short. Raises: EngineError with the reason."""
    from models.errors import EngineError

    with tempfile.TemporaryFile("w+", dir=folder) as log:
        out = None if verbose else log
        child = subprocess.Popen(
            [sys.executable, "-m", "bentoml", *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait()
        except BaseException:  # the engine is a grandchild, which goes on building
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
            raise
        if code:
            log.seek(0)
            raise EngineError(
                f"The image was not built: {_failure_reason(log.read())} (--verbose shows all that was said.)"
            )


def _failure_reason(log: str) -> str:
    """Of all that was said, the line that says what went wrong."""
    said = [line.strip() for line in log.splitlines() if line.strip()]
    lines = [re.sub(r"^(INFO|bentoml\.exceptions\.\w+): ", "", line) for line in said]
    full = [line for line in lines if "no space left" in line.lower()]
    errors = [line for line in lines if re.match(r"(\w+: )*(error|fatal)\b", line, re.IGNORECASE)]
    why = (full or errors or lines or ["nothing was said."])[-1]
    if code := re.search(r"exit (status|code):? \d+$", why):  # of a step of the build: what the step said stands before
        # BuildKit says it again, between two lines of dashes, and then shows the Dockerfile.
        end = max((place for place, line in enumerate(lines) if line == "------"), default=lines.index(why))
        why = f"{lines[end - 1]} ({code[0]})" if end else why
    return why[:500]


def _image_size(engine: str, image: str) -> str:
    done = subprocess.run([engine, "image", "inspect", image, "--format", "{{.Size}}"], capture_output=True, text=True)
    return f"{int(done.stdout) / 1e6:.0f} MB" if done.stdout.strip().isdigit() else "its size is not known"


def _run_command(engine: str, image: str, gpu: bool) -> str:
    """The command that runs it with no more rights than it needs."""
    devices = {"docker": "--gpus all ", "podman": "--device nvidia.com/gpu=all ", "nerdctl": "--gpus all "}[engine]
    safe = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
    return f"{engine} run --rm {devices if gpu else ''}{safe} -p 127.0.0.1:3000:3000 {image}"
