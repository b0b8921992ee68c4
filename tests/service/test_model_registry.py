"""The model registry: which bundles are served, which are rejected, and that requests see a consistent state."""

import gc
import json
import logging
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.bundle import CHECKSUM_FILE, MODEL_FILE, SPEC_FILE, Bundle, bundle_writer, file_sha256
from models.errors import MaskserveError
from models.inference.segmenter import Segmenter
from service.bundle_stat import stat_bundle
from service.errors import MalformedRequestError, ModelNotServedError, NotReadyError
from service.model_registry import ModelRegistry
from tests.fixtures_bundles import synthetic_image
from tests.service.tiny_bundle import write_tiny_bundle

Alteration = Callable[[Path], Any]


class RecordingLoader:
    """Loads bundles as the service does, and records which."""

    def __init__(self) -> None:
        self.bundles: list[Bundle] = []
        self.hashes: weakref.WeakKeyDictionary[Segmenter, str] = weakref.WeakKeyDictionary()
        self.threads: list[threading.Thread] = []
        self.warmup_pixels: list[int] = []
        self.error: Exception | None = None  # raised by `load`

    def load(self, bundle: Bundle) -> Segmenter:
        self.bundles.append(bundle)
        self.threads.append(threading.current_thread())
        if self.error:
            raise self.error
        segmenter = Segmenter.load(bundle, "openvino", "f32", threads=1, verify_probes=True)
        self.hashes[segmenter] = bundle.hash
        return segmenter

    def warm_up(self, segmenter: Segmenter) -> None:
        self.warmup_pixels.append(segmenter.segment(synthetic_image(64, 64)).labels.size)

    def make_registry(
        self, folder: Path, interval_seconds: float = 0.0, default_model: str | None = None
    ) -> ModelRegistry:
        return ModelRegistry(folder, self.load, self.warm_up, interval_seconds, default_model)

    @property
    def bundle_names(self) -> list[str]:
        return [bundle.spec.name for bundle in self.bundles]


@pytest.fixture
def loader() -> RecordingLoader:
    return RecordingLoader()


@pytest.fixture
def rejections(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines of the log that reject a bundle."""
    caplog.set_level(logging.INFO, "maskserve")
    return lambda: [record.message for record in caplog.records if "cannot be served" in record.message]


@pytest.fixture(scope="module")
def source_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture
def make_bundle(source_bundle: Path) -> Callable[..., Path]:
    """Writes a copy of the small bundle with another name, altered before its checksums are computed."""

    def make(folder: Path, name: str = "small", *alterations: Alteration) -> Path:
        with bundle_writer(folder) as new:
            shutil.copytree(source_bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE))
            edit_spec(new, name=name)
            for alter in alterations:
                alter(new)
        return folder

    return make


def edit_spec(folder: Path, **changes: Any) -> None:
    spec = json.loads((folder / SPEC_FILE).read_text()) | changes
    (folder / SPEC_FILE).write_text(json.dumps(spec))


def add_note(text: str) -> Alteration:
    """Changes the hash of a bundle, but not its name and network."""
    return lambda folder: (folder / "note.txt").write_text(text)


def replace_probe(folder: Path) -> None:
    Image.fromarray(synthetic_image(120, 160)[:, :, 0]).save(folder / "probes" / "0.labels.png")


def served_names(registry: ModelRegistry) -> list[str]:
    return [served.bundle.spec.name for served in registry.loaded_models()]


def refresh_times(registry: ModelRegistry, count: int = 2) -> None:
    """A new bundle is loaded at the second scan in which it has not changed."""
    for _ in range(count):
        registry.refresh()


def test_single_bundle_needs_no_name(source_bundle: Path, loader: RecordingLoader) -> None:
    registry = loader.make_registry(source_bundle)
    with pytest.raises(NotReadyError, match="being loaded") as before:
        registry.get()
    assert before.value.retry_after == 1 and registry.loaded_models() == []
    registry.refresh()
    served = registry.get()
    registry.check_ready()
    assert registry.get("small") is served and registry.loaded_models() == [served]
    assert served.bundle.folder == source_bundle and served.choice == served.segmenter.choice
    assert served.segmenter.segment(synthetic_image(50, 70)).labels.shape == (50, 70)
    assert loader.warmup_pixels == [64 * 64]
    with pytest.raises(ModelNotServedError, match=r"no model 'other'\. Served models: small"):
        registry.get("other")


def test_several_bundles_are_served_by_name(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    for folder, name in (("b", "streets"), ("a", "trees"), (".hidden", "secret"), ("c", "cells")):
        make_bundle(tmp_path / folder, name)
    (tmp_path / "README").write_text("Our models.")
    registry = loader.make_registry(tmp_path)
    registry.refresh()
    assert loader.bundle_names == ["trees", "streets", "cells"]
    assert served_names(registry) == ["cells", "streets", "trees"]
    assert registry.get("trees").bundle.folder == tmp_path / "a"
    with pytest.raises(MalformedRequestError, match="`model`: cells, streets, trees"):
        registry.get()
    with pytest.raises(ModelNotServedError, match="no model 'secret'"):
        registry.get("secret")
    chosen = loader.make_registry(tmp_path, default_model="streets")
    chosen.refresh()
    assert chosen.get().bundle.spec.name == "streets" and chosen.get("cells").bundle.spec.name == "cells"
    without = loader.make_registry(tmp_path, default_model="missing")
    without.refresh()
    with pytest.raises(NotReadyError, match=r"default model 'missing' is not served\. Served models: cells"):
        without.get()


def test_not_ready_until_all_bundles_have_been_tried(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    make_bundle(tmp_path / "a", "first")
    make_bundle(tmp_path / "b", "second")
    at_second, resume = threading.Event(), threading.Event()

    def load(bundle: Bundle) -> Segmenter:
        if bundle.spec.name == "second":
            at_second.set()
            assert resume.wait(60)
        return loader.load(bundle)

    registry = ModelRegistry(tmp_path, load, loader.warm_up, interval_seconds=0.01)
    registry.start()
    try:
        assert at_second.wait(60)
        for call in (registry.get, registry.check_ready, lambda: registry.get("first"), lambda: registry.get("third")):
            with pytest.raises(NotReadyError, match="being loaded"):
                call()
        resume.set()
        wait_until(lambda: served_names(registry) == ["first", "second"])
    finally:
        resume.set()
        registry.stop()


def test_thread_follows_the_folder_and_ends(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    registry = loader.make_registry(tmp_path / "models", interval_seconds=0.01)
    registry.start()
    make_bundle(tmp_path / "models" / "a", "first")
    wait_until(lambda: served_names(registry) == ["first"])
    make_bundle(tmp_path / "models" / "a", "second")
    wait_until(lambda: served_names(registry) == ["second"])
    registry.stop()
    make_bundle(tmp_path / "models" / "a", "third")
    assert not any(thread.name in ("model-registry", "load_0") for thread in threading.enumerate())
    assert served_names(registry) == ["second"]


@pytest.mark.parametrize("interval_seconds", [0.0, 3600.0])
def test_stop_does_not_wait_for_the_next_scan(
    source_bundle: Path, loader: RecordingLoader, interval_seconds: float
) -> None:
    registry = loader.make_registry(source_bundle, interval_seconds)
    registry.stop()  # also before the start
    registry = loader.make_registry(source_bundle, interval_seconds)
    registry.start()
    wait_until(lambda: served_names(registry) == ["small"])
    registry.stop()
    assert not any(thread.name == "model-registry" for thread in threading.enumerate())


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for another thread, at most a minute."""
    pause = threading.Event()
    assert any(holds() or pause.wait(0.02) for _ in range(3000)), "timed out"


@pytest.mark.parametrize(
    ("interval_seconds", "retry_after", "exists"), [(0.0, None, True), (0.2, 1, False), (10.0, 20, True)]
)
def test_empty_or_missing_folder_waits_for_a_bundle(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    loader: RecordingLoader,
    interval_seconds: float,
    retry_after: int | None,
    exists: bool,
) -> None:
    folder = tmp_path / "models"
    if exists:
        folder.mkdir()
    registry = loader.make_registry(folder, interval_seconds)
    registry.refresh()
    with pytest.raises(NotReadyError, match="no bundle in .*models" if exists else "models cannot be read") as error:
        registry.get("small")
    assert error.value.retry_after == retry_after
    make_bundle(folder / "small")
    refresh_times(registry)
    assert served_names(registry) == ["small"]


def test_changed_bundle_replaces_the_old_one(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    folder = make_bundle(tmp_path / "small")
    registry = loader.make_registry(folder)
    registry.refresh()
    old = registry.get()
    make_bundle(folder, "small", add_note("2"))
    registry.refresh()
    assert registry.get() is old  # it may still be incomplete
    registry.refresh()
    new = registry.get()
    assert new.bundle.hash != old.bundle.hash and new.segmenter is not old.segmenter
    assert len(loader.warmup_pixels) == 2
    assert old.segmenter.segment(synthetic_image(50, 70)).labels.shape == (50, 70)  # a running request
    refresh_times(registry, 3)
    assert len(loader.bundles) == 2
    make_bundle(folder, "renamed")
    refresh_times(registry)
    assert served_names(registry) == ["renamed"]


def test_old_engine_is_freed(make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader) -> None:
    folder = make_bundle(tmp_path / "small")
    registry = loader.make_registry(folder)
    registry.refresh()
    old = weakref.ref(registry.get().segmenter)
    run = weakref.ref(registry.get().segmenter.run)
    gc.collect()
    gc.disable()  # it must be freed without it
    try:
        make_bundle(folder, "small", add_note("2"))
        refresh_times(registry)
        assert old() is None and run() is None
    finally:
        gc.enable()
    assert not any(thread.is_alive() for thread in loader.threads)  # the buffers of the engine end with it


def corrupt_file(name: str) -> Alteration:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"?")


def with_checksums(alter: Alteration) -> Alteration:
    """The alteration, with matching checksums."""

    def both(folder: Path) -> None:
        alter(folder)
        listed = [line.partition("  ")[2] for line in (folder / CHECKSUM_FILE).read_text().splitlines()]
        (folder / CHECKSUM_FILE).write_text("".join(f"{file_sha256(folder / name)}  {name}\n" for name in listed))

    return both


BAD_BUNDLES: dict[str, tuple[Alteration, str]] = {
    "missing file": (lambda folder: (folder / "probes" / "0.png").unlink(), "0.png is missing"),
    "altered graph": (corrupt_file(MODEL_FILE), "is not the file that was exported"),
    "altered spec": (corrupt_file(SPEC_FILE), "is not the file that was exported"),
    "no checksums": (lambda folder: (folder / CHECKSUM_FILE).unlink(), "it has no SHA256SUMS"),
    "newer format": (with_checksums(lambda folder: edit_spec(folder, format_version=99)), "Update maskserve"),
    "wrong probe": (with_checksums(replace_probe), "on this machine"),
    "no graph": (with_checksums(lambda folder: (folder / MODEL_FILE).write_bytes(b"no graph")), "cannot compile it"),
    "other classes": (
        with_checksums(
            lambda folder: edit_spec(folder, classes=[{"name": n, "rgb": [0, 0, i]} for i, n in enumerate("abc")])
        ),
        "the network does not match",
    ),
}


@pytest.mark.parametrize(("kind", "single"), [(kind, index % 2 == 0) for index, kind in enumerate(BAD_BUNDLES)])
def test_bad_bundle_is_rejected_once_and_the_old_one_is_kept(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    loader: RecordingLoader,
    rejections: Callable[[], list[str]],
    kind: str,
    single: bool,
) -> None:
    alter, message = BAD_BUNDLES[kind]
    folder = make_bundle(tmp_path / "models" / "small")
    registry = loader.make_registry(folder if single else folder.parent)
    registry.refresh()
    old = registry.get()
    make_bundle(folder, "small", add_note("2"))
    alter(folder)
    refresh_times(registry, 4)
    assert registry.get() is old
    (line,) = rejections()
    assert f"the bundle in {folder} cannot be served; the old one is kept: " in line and message in line
    tried = len(loader.bundles)
    shutil.rmtree(folder)
    make_bundle(folder, "small", add_note("3"))
    refresh_times(registry)
    assert registry.get() is not old and len(loader.bundles) == tried + 1 and len(rejections()) == 1
    (folder / "later").touch()
    refresh_times(registry)
    assert len(loader.bundles) == tried + 1


@pytest.mark.parametrize("kind", BAD_BUNDLES)
def test_bad_bundle_at_the_start(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    loader: RecordingLoader,
    rejections: Callable[[], list[str]],
    kind: str,
) -> None:
    alter, message = BAD_BUNDLES[kind]
    folder = make_bundle(tmp_path / "small")
    alter(folder)
    registry = loader.make_registry(folder, interval_seconds=5.0)
    refresh_times(registry, 3)
    with pytest.raises(NotReadyError, match=message) as error:
        registry.get("small")
    assert error.value.retry_after is None and len(rejections()) == 1
    shutil.rmtree(folder)
    make_bundle(folder)  # valid again
    refresh_times(registry)
    assert served_names(registry) == ["small"]


@pytest.mark.parametrize(
    ("exception", "where"),
    [(ValueError("a secret path"), "load"), (MemoryError(), "warm_up"), (MaskserveError("no such engine"), "load")],
)
def test_any_exception_rejects_the_bundle(
    source_bundle: Path, loader: RecordingLoader, rejections: Callable[[], list[str]], exception: Exception, where: str
) -> None:
    def warm_up(segmenter: Segmenter) -> None:
        raise exception

    loader.error = exception if where == "load" else None
    registry = ModelRegistry(source_bundle, loader.load, warm_up, 0)
    refresh_times(registry, 3)
    expected = (
        "no such engine"
        if type(exception) is MaskserveError
        else rf"could not be loaded \({type(exception).__name__}\)"
    )
    with pytest.raises(NotReadyError, match=expected) as error:
        registry.get()
    assert "secret" not in str(error.value) and len(rejections()) == 1


def test_good_bundles_are_served_beside_bad_ones(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, rejections: Callable[[], list[str]]
) -> None:
    make_bundle(tmp_path / "a", "first", replace_probe)
    make_bundle(tmp_path / "b", "second")
    (tmp_path / "c").mkdir()
    registry = loader.make_registry(tmp_path)
    refresh_times(registry, 3)
    assert served_names(registry) == ["second"] and registry.get().bundle.folder == tmp_path / "b"
    assert len(rejections()) == 2
    shutil.rmtree(tmp_path / "b")
    refresh_times(registry, 2)
    with pytest.raises(NotReadyError, match=r"on this machine.*The first of 2 rejected bundles"):
        registry.get()


def test_touched_bundle_is_not_loaded_again(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    folder = make_bundle(tmp_path / "small")
    registry = loader.make_registry(folder)
    registry.refresh()
    old = registry.get()
    for path in folder.rglob("*"):
        os.utime(path, ns=(0, 0))
    refresh_times(registry, 3)
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    refresh_times(registry, 3)
    (tmp_path / "copy").rename(folder)
    refresh_times(registry, 3)
    assert registry.get() is old and len(loader.bundles) == 1


def test_altered_file_with_the_old_checksums_is_reported(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, rejections: Callable[[], list[str]]
) -> None:
    """The old network is served from memory, but a worker that starts now would reject the folder."""
    folder = make_bundle(tmp_path / "small")
    registry = loader.make_registry(folder)
    registry.refresh()
    old, probe = registry.get(), next((folder / "probes").iterdir())
    probe.write_bytes(probe.read_bytes()[:-1] + b"?")
    refresh_times(registry, 3)
    assert registry.get() is old
    (line,) = rejections()
    assert probe.name in line and "sha256" in line and "the old one is kept" in line


@pytest.mark.parametrize("last", [CHECKSUM_FILE, MODEL_FILE, SPEC_FILE])
def test_bundle_is_not_loaded_while_it_is_copied(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    loader: RecordingLoader,
    rejections: Callable[[], list[str]],
    last: str,
) -> None:
    source = make_bundle(tmp_path / "elsewhere" / "small", "copied")
    make_bundle(tmp_path / "models" / "a", "first")
    registry = loader.make_registry(tmp_path / "models")
    registry.refresh()
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == last)
    for path in files:
        target = tmp_path / "models" / "b" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        for half in (data[: len(data) // 2], data):
            target.write_bytes(half)
            registry.refresh()
    assert served_names(registry) == ["first"] and rejections() == []
    registry.refresh()
    assert served_names(registry) == ["copied", "first"] and rejections() == []


def test_incomplete_copy_is_tried_again(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, rejections: Callable[[], list[str]]
) -> None:
    source = make_bundle(tmp_path / "elsewhere")
    folder = tmp_path / "models"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(MODEL_FILE))
    registry = loader.make_registry(folder)
    refresh_times(registry, 5)  # the first scan does not wait for copies
    assert len(rejections()) == 1 and "model.onnx is missing" in rejections()[0]
    shutil.copy(source / MODEL_FILE, folder)
    refresh_times(registry)
    assert served_names(registry) == ["small"] and len(rejections()) == 1


def test_removed_bundle_is_unloaded_after_two_scans(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    make_bundle(tmp_path / "a", "first")
    make_bundle(tmp_path / "b", "second")
    registry = loader.make_registry(tmp_path)
    registry.refresh()
    first = weakref.ref(registry.get("first").segmenter)
    (tmp_path / "a").rename(tmp_path / ".a")
    registry.refresh()
    (tmp_path / ".a").rename(tmp_path / "a")  # as `bundle_writer` does
    refresh_times(registry)
    assert served_names(registry) == ["first", "second"] and len(loader.bundles) == 2
    shutil.rmtree(tmp_path / "a")
    registry.refresh()
    assert served_names(registry) == ["first", "second"]
    registry.refresh()
    assert served_names(registry) == ["second"] and first() is None
    tmp_path.rename(tmp_path.with_name("away"))  # the volume itself
    refresh_times(registry, 3)
    tmp_path.with_name("away").rename(tmp_path)
    assert served_names(registry) == ["second"]
    shutil.rmtree(tmp_path / "b")
    refresh_times(registry)
    with pytest.raises(NotReadyError, match="no bundle in"):
        registry.get()


def test_single_bundle_is_kept_without_its_folder(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    folder = make_bundle(tmp_path / "small")
    registry = loader.make_registry(folder)
    registry.refresh()
    shutil.rmtree(folder)
    refresh_times(registry, 3)
    (folder / "probes").mkdir(parents=True)  # the beginning of a copy
    refresh_times(registry, 3)
    assert served_names(registry) == ["small"]
    make_bundle(folder.with_name("new"), "new")
    shutil.rmtree(folder)
    folder.with_name("new").rename(folder)
    refresh_times(registry)
    assert served_names(registry) == ["new"]


@pytest.mark.parametrize("single", [True, False])
def test_switched_link(make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, single: bool) -> None:
    """As Kubernetes does: models/current -> ..data/current, ..data -> ..1; the times and sizes of both versions may be equal."""
    models = tmp_path / "models"
    models.mkdir()
    for version in ("..1", "..2"):
        make_bundle(models / version / "current", "small", add_note(version))
        for path in (models / version).rglob("*"):
            os.utime(path, ns=(0, 0))
    (models / "..data").symlink_to("..1")
    (models / "current").symlink_to("..data/current")
    registry = loader.make_registry(models / "current" if single else models)
    registry.refresh()
    old = registry.get()
    before = stat_bundle(models / "current")
    (models / "..new").symlink_to("..2")
    (models / "..new").rename(models / "..data")
    after = stat_bundle(models / "current")
    assert before and after and before.files == after.files and before != after
    shutil.rmtree(models / "..1")
    refresh_times(registry)
    assert registry.get() is not old and registry.get().bundle.folder == models / "..2" / "current"
    assert len(loader.bundles) == 2


def test_first_folder_of_a_name_is_served(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, rejections: Callable[[], list[str]]
) -> None:
    make_bundle(tmp_path / "m", "small")
    make_bundle(tmp_path / "n", "small", add_note("other"))
    registry = loader.make_registry(tmp_path)
    refresh_times(registry, 3)
    assert registry.get().bundle.folder == tmp_path / "m" and len(loader.bundles) == 1
    (line,) = rejections()
    assert f"{tmp_path / 'n'} holds a bundle named 'small', as does {tmp_path / 'm'}" in line
    assert "`maskserve export --name NAME`" in line
    old = weakref.ref(registry.get().segmenter)
    make_bundle(tmp_path / "a", "small", add_note("third"))  # a restart would serve this one
    refresh_times(registry, 3)
    assert registry.get().bundle.folder == tmp_path / "a" and old() is None
    assert len(rejections()) == 2 and str(tmp_path / "m") in rejections()[1]
    shutil.rmtree(tmp_path / "a")
    registry.refresh()
    assert registry.get().bundle.folder == tmp_path / "a"
    registry.refresh()
    assert registry.get().bundle.folder == tmp_path / "m"  # without a scan in which nothing was served
    make_bundle(tmp_path / "m", "free")
    refresh_times(registry, 3)
    assert served_names(registry) == ["free", "small"] and registry.get("small").bundle.folder == tmp_path / "n"


def test_requests_see_a_consistent_state(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    folder = make_bundle(tmp_path / "models" / "a")
    make_bundle(tmp_path / "models" / "b", "other")
    registry = loader.make_registry(tmp_path / "models")
    registry.refresh()
    done, errors, counts = threading.Event(), list[str](), [0] * 4
    seen: set[str] = set()
    image = synthetic_image(64, 64)
    expected = registry.get("small").segmenter.segment(image).labels

    def request(caller: int) -> None:
        while not done.is_set():
            try:
                served, both = registry.get("small"), served_names(registry)
                if loader.hashes[served.segmenter] != served.bundle.hash or served.choice != served.segmenter.choice:
                    errors.append("parts of two bundles")
                if both != ["other", "small"]:
                    errors.append(f"only {both}")
                if not np.array_equal(served.segmenter.segment(image).labels, expected):
                    errors.append("other labels")
                seen.add(served.bundle.hash)
                counts[caller] += 1
            except Exception as error:
                errors.append(repr(error))

    callers = [threading.Thread(target=request, args=(caller,)) for caller in range(4)]
    for caller in callers:
        caller.start()
    for version in "234":
        make_bundle(folder, "small", add_note(version))
        refresh_times(registry, 3)
        count = sum(counts)
        wait_until(lambda count=count: sum(counts) > count + 4 or bool(errors))  # type: ignore[misc]
    done.set()
    for caller in callers:
        caller.join()
    assert errors == [] and len(seen) == 4
