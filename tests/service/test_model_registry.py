"""The bundles of a worker: what is served, what is refused, and that neither is seen half done."""

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
    """Opens bundles as the service does, and notes what was opened."""

    def __init__(self) -> None:
        self.bundles: list[Bundle] = []
        self.hashes: weakref.WeakKeyDictionary[Segmenter, str] = weakref.WeakKeyDictionary()
        self.threads: list[threading.Thread] = []
        self.warmup_pixels: list[int] = []
        self.error: Exception | None = None  # what the next opening meets

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
def refusals(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The log's lines that refuse a bundle."""
    caplog.set_level(logging.INFO, "maskserve")
    return lambda: [record.message for record in caplog.records if "cannot be served" in record.message]


@pytest.fixture(scope="module")
def source_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture
def make_bundle(source_bundle: Path) -> Callable[..., Path]:
    """Writes a copy of the small bundle under another name, altered before it is summed."""

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
    """Makes a bundle another one, with the same name and answers."""
    return lambda folder: (folder / "note.txt").write_text(text)


def replace_probe(folder: Path) -> None:
    Image.fromarray(synthetic_image(120, 160)[:, :, 0]).save(folder / "probes" / "0.labels.png")


def served_names(shelf: ModelRegistry) -> list[str]:
    return [served.bundle.spec.name for served in shelf.loaded_models()]


def refresh_times(shelf: ModelRegistry, count: int = 2) -> None:
    """What is new is opened at the second look at which it is the same."""
    for _ in range(count):
        shelf.refresh()


def test_one_bundle_needs_no_name(source_bundle: Path, loader: RecordingLoader) -> None:
    shelf = loader.make_registry(source_bundle)
    with pytest.raises(NotReadyError, match="being opened") as before:
        shelf.get()
    assert before.value.retry_after == 1 and shelf.loaded_models() == []
    shelf.refresh()
    served = shelf.get()
    shelf.check_ready()
    assert shelf.get("small") is served and shelf.loaded_models() == [served]
    assert served.bundle.folder == source_bundle and served.choice == served.segmenter.choice
    assert served.segmenter.segment(synthetic_image(50, 70)).labels.shape == (50, 70)
    assert loader.warmup_pixels == [64 * 64]
    with pytest.raises(ModelNotServedError, match="no model 'other'; served: small"):
        shelf.get("other")


def test_several_bundles_are_served_by_name(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    for folder, name in (("b", "streets"), ("a", "trees"), (".hidden", "secret"), ("c", "cells")):
        make_bundle(tmp_path / folder, name)
    (tmp_path / "README").write_text("Models of the house.")
    shelf = loader.make_registry(tmp_path)
    shelf.refresh()
    assert loader.bundle_names == ["trees", "streets", "cells"]
    assert served_names(shelf) == ["cells", "streets", "trees"]
    assert shelf.get("trees").bundle.folder == tmp_path / "a"
    with pytest.raises(MalformedRequestError, match="`model`: cells, streets, trees"):
        shelf.get()
    with pytest.raises(ModelNotServedError, match="no model 'secret'"):
        shelf.get("secret")
    chosen = loader.make_registry(tmp_path, default_model="streets")
    chosen.refresh()
    assert chosen.get().bundle.spec.name == "streets" and chosen.get("cells").bundle.spec.name == "cells"
    lost = loader.make_registry(tmp_path, default_model="road")
    lost.refresh()
    with pytest.raises(NotReadyError, match="default model 'road' is not served, but cells"):
        lost.get()


def test_not_ready_until_all_have_been_tried(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    make_bundle(tmp_path / "a", "first")
    make_bundle(tmp_path / "b", "second")
    at_second, go_on = threading.Event(), threading.Event()

    def load(bundle: Bundle) -> Segmenter:
        if bundle.spec.name == "second":
            at_second.set()
            assert go_on.wait(60)
        return loader.load(bundle)

    shelf = ModelRegistry(tmp_path, load, loader.warm_up, interval_seconds=0.01)
    shelf.start()
    try:
        assert at_second.wait(60)
        for ask in (shelf.get, shelf.check_ready, lambda: shelf.get("first"), lambda: shelf.get("third")):
            with pytest.raises(NotReadyError, match="being opened"):
                ask()
        go_on.set()
        wait_until(lambda: served_names(shelf) == ["first", "second"])
    finally:
        go_on.set()
        shelf.stop()


def test_the_thread_follows_the_folder_and_ends(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    shelf = loader.make_registry(tmp_path / "models", interval_seconds=0.01)
    shelf.start()
    make_bundle(tmp_path / "models" / "a", "first")
    wait_until(lambda: served_names(shelf) == ["first"])
    make_bundle(tmp_path / "models" / "a", "second")
    wait_until(lambda: served_names(shelf) == ["second"])
    shelf.stop()
    make_bundle(tmp_path / "models" / "a", "third")
    assert not any(thread.name in ("shelf", "open_0") for thread in threading.enumerate())
    assert served_names(shelf) == ["second"]


@pytest.mark.parametrize("every", [0.0, 3600.0])
def test_a_stop_does_not_wait_for_the_next_look(source_bundle: Path, loader: RecordingLoader, every: float) -> None:
    shelf = loader.make_registry(source_bundle, every)
    shelf.stop()  # before the start too
    shelf = loader.make_registry(source_bundle, every)
    shelf.start()
    wait_until(lambda: served_names(shelf) == ["small"])
    shelf.stop()
    assert not any(thread.name == "shelf" for thread in threading.enumerate())


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for another thread; a minute is for ever."""
    pause = threading.Event()
    assert any(holds() or pause.wait(0.02) for _ in range(3000)), "it never came"


@pytest.mark.parametrize(("every", "patience"), [(0.0, None), (0.2, 1), (10.0, 20)])
@pytest.mark.parametrize("there", [True, False])
def test_an_empty_folder_waits_for_a_bundle(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    loader: RecordingLoader,
    every: float,
    patience: int | None,
    there: bool,
) -> None:
    folder = tmp_path / "models"
    if there:
        folder.mkdir()
    shelf = loader.make_registry(folder, every)
    shelf.refresh()
    with pytest.raises(
        NotReadyError, match="no bundle in .*models" if there else "models cannot be looked into"
    ) as error:
        shelf.get("small")
    assert error.value.retry_after == patience
    make_bundle(folder / "small")
    refresh_times(shelf)
    assert served_names(shelf) == ["small"]


def test_a_changed_bundle_takes_over(make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader) -> None:
    folder = make_bundle(tmp_path / "small")
    shelf = loader.make_registry(folder)
    shelf.refresh()
    old = shelf.get()
    make_bundle(folder, "small", add_note("2"))
    shelf.refresh()
    assert shelf.get() is old  # it may still be being copied
    shelf.refresh()
    new = shelf.get()
    assert new.bundle.hash != old.bundle.hash and new.segmenter is not old.segmenter
    assert len(loader.warmup_pixels) == 2
    assert old.segmenter.segment(synthetic_image(50, 70)).labels.shape == (50, 70)  # a request in flight
    refresh_times(shelf, 3)
    assert len(loader.bundles) == 2
    make_bundle(folder, "renamed")
    refresh_times(shelf)
    assert served_names(shelf) == ["renamed"]


def test_the_old_engine_is_let_go(make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader) -> None:
    folder = make_bundle(tmp_path / "small")
    shelf = loader.make_registry(folder)
    shelf.refresh()
    old = weakref.ref(shelf.get().segmenter)
    run = weakref.ref(shelf.get().segmenter.run)
    gc.collect()
    gc.disable()  # nothing may wait for it
    try:
        make_bundle(folder, "small", add_note("2"))
        refresh_times(shelf)
        assert old() is None and run() is None
    finally:
        gc.enable()
    assert not any(thread.is_alive() for thread in loader.threads)  # with its buffers of the engine


def corrupt_file(name: str) -> Alteration:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"?")


def with_checksums(alter: Alteration) -> Alteration:
    """The alteration, and sums that match."""

    def both(folder: Path) -> None:
        alter(folder)
        listed = [line.partition("  ")[2] for line in (folder / CHECKSUM_FILE).read_text().splitlines()]
        (folder / CHECKSUM_FILE).write_text("".join(f"{file_sha256(folder / name)}  {name}\n" for name in listed))

    return both


BAD_BUNDLES: dict[str, tuple[Alteration, str]] = {
    "a file is missing": (lambda folder: (folder / "probes" / "0.png").unlink(), "0.png is missing"),
    "the graph is another": (corrupt_file(MODEL_FILE), "is not the file that was exported"),
    "the spec is another": (corrupt_file(SPEC_FILE), "is not the file that was exported"),
    "no sums": (lambda folder: (folder / CHECKSUM_FILE).unlink(), "it has no SHA256SUMS"),
    "a later format": (with_checksums(lambda folder: edit_spec(folder, format_version=99)), "Update maskserve"),
    "wrong answers": (with_checksums(replace_probe), "on this machine"),
    "no graph": (with_checksums(lambda folder: (folder / MODEL_FILE).write_bytes(b"no graph")), "cannot compile it"),
    "another graph": (
        with_checksums(
            lambda folder: edit_spec(folder, classes=[{"name": n, "rgb": [0, 0, i]} for i, n in enumerate("abc")])
        ),
        "its network disagree",
    ),
}


@pytest.mark.parametrize("kind", BAD_BUNDLES)
@pytest.mark.parametrize("alone", [True, False])
def test_a_bad_bundle_is_refused_once_and_the_old_one_stays(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    loader: RecordingLoader,
    refusals: Callable[[], list[str]],
    kind: str,
    alone: bool,
) -> None:
    alter, said = BAD_BUNDLES[kind]
    folder = make_bundle(tmp_path / "models" / "small")
    shelf = loader.make_registry(folder if alone else folder.parent)
    shelf.refresh()
    old = shelf.get()
    make_bundle(folder, "small", add_note("2"))
    alter(folder)
    refresh_times(shelf, 4)
    assert shelf.get() is old
    (line,) = refusals()
    assert f"the bundle in {folder} cannot be served; the old one stays: " in line and said in line
    tried = len(loader.bundles)
    shutil.rmtree(folder)
    make_bundle(folder, "small", add_note("3"))
    refresh_times(shelf)
    assert shelf.get() is not old and len(loader.bundles) == tried + 1 and len(refusals()) == 1
    (folder / "later").touch()
    refresh_times(shelf)
    assert len(loader.bundles) == tried + 1


@pytest.mark.parametrize("kind", BAD_BUNDLES)
def test_nothing_but_a_bad_bundle(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    loader: RecordingLoader,
    refusals: Callable[[], list[str]],
    kind: str,
) -> None:
    alter, said = BAD_BUNDLES[kind]
    folder = make_bundle(tmp_path / "small")
    alter(folder)
    shelf = loader.make_registry(folder, interval_seconds=5.0)
    refresh_times(shelf, 3)
    with pytest.raises(NotReadyError, match=said) as error:
        shelf.get("small")
    assert error.value.retry_after is None and len(refusals()) == 1
    shutil.rmtree(folder)
    make_bundle(folder)  # whole again
    refresh_times(shelf)
    assert served_names(shelf) == ["small"]


@pytest.mark.parametrize("trouble", [ValueError("a secret path"), MemoryError(), MaskserveError("no such engine")])
@pytest.mark.parametrize("where", ["load", "warm"])
def test_whatever_is_raised_refuses(
    source_bundle: Path, loader: RecordingLoader, refusals: Callable[[], list[str]], trouble: Exception, where: str
) -> None:
    def warm(segmenter: Segmenter) -> None:
        raise trouble

    loader.error = trouble if where == "load" else None
    shelf = ModelRegistry(source_bundle, loader.load, warm, 0)
    refresh_times(shelf, 3)
    expected = (
        "no such engine" if type(trouble) is MaskserveError else rf"could not be opened \({type(trouble).__name__}\)"
    )
    with pytest.raises(NotReadyError, match=expected) as error:
        shelf.get()
    assert "secret" not in str(error.value) and len(refusals()) == 1


def test_the_good_are_served_beside_the_bad(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, refusals: Callable[[], list[str]]
) -> None:
    make_bundle(tmp_path / "a", "first", replace_probe)
    make_bundle(tmp_path / "b", "second")
    (tmp_path / "c").mkdir()
    shelf = loader.make_registry(tmp_path)
    refresh_times(shelf, 3)
    assert served_names(shelf) == ["second"] and shelf.get().bundle.folder == tmp_path / "b"
    assert len(refusals()) == 2
    shutil.rmtree(tmp_path / "b")
    refresh_times(shelf, 2)
    with pytest.raises(NotReadyError, match=r"on this machine.*the first of 2 bundles"):
        shelf.get()


def test_a_touched_bundle_is_not_opened_again(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    folder = make_bundle(tmp_path / "small")
    shelf = loader.make_registry(folder)
    shelf.refresh()
    old = shelf.get()
    for path in folder.rglob("*"):
        os.utime(path, ns=(0, 0))
    refresh_times(shelf, 3)
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    refresh_times(shelf, 3)
    (tmp_path / "copy").rename(folder)
    refresh_times(shelf, 3)
    assert shelf.get() is old and len(loader.bundles) == 1


def test_a_file_that_is_altered_under_the_same_sums_is_told(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, refusals: Callable[[], list[str]]
) -> None:
    """The old network serves from memory, but a worker that started now would refuse the folder."""
    folder = make_bundle(tmp_path / "small")
    shelf = loader.make_registry(folder)
    shelf.refresh()
    old, probe = shelf.get(), next((folder / "probes").iterdir())
    probe.write_bytes(probe.read_bytes()[:-1] + b"?")
    refresh_times(shelf, 3)
    assert shelf.get() is old
    (told,) = refusals()
    assert probe.name in told and "sha256" in told and "the old one stays" in told


@pytest.mark.parametrize("last", [CHECKSUM_FILE, MODEL_FILE, SPEC_FILE])
def test_a_bundle_that_is_being_copied_in(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    loader: RecordingLoader,
    refusals: Callable[[], list[str]],
    last: str,
) -> None:
    source = make_bundle(tmp_path / "elsewhere" / "small", "copied")
    make_bundle(tmp_path / "models" / "a", "first")
    shelf = loader.make_registry(tmp_path / "models")
    shelf.refresh()
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == last)
    for path in files:
        target = tmp_path / "models" / "b" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        for half in (data[: len(data) // 2], data):
            target.write_bytes(half)
            shelf.refresh()
    assert served_names(shelf) == ["first"] and refusals() == []
    shelf.refresh()
    assert served_names(shelf) == ["copied", "first"] and refusals() == []


def test_a_copy_that_pauses_is_tried_again(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, refusals: Callable[[], list[str]]
) -> None:
    source = make_bundle(tmp_path / "elsewhere")
    folder = tmp_path / "models"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(MODEL_FILE))
    shelf = loader.make_registry(folder)
    refresh_times(shelf, 5)  # the very first look waits for nothing
    assert len(refusals()) == 1 and "model.onnx is missing" in refusals()[0]
    shutil.copy(source / MODEL_FILE, folder)
    refresh_times(shelf)
    assert served_names(shelf) == ["small"] and len(refusals()) == 1


def test_a_folder_that_is_gone_for_two_looks(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    make_bundle(tmp_path / "a", "first")
    make_bundle(tmp_path / "b", "second")
    shelf = loader.make_registry(tmp_path)
    shelf.refresh()
    first = weakref.ref(shelf.get("first").segmenter)
    (tmp_path / "a").rename(tmp_path / ".a")
    shelf.refresh()
    (tmp_path / ".a").rename(tmp_path / "a")  # as `writing` does, but for the content
    refresh_times(shelf)
    assert served_names(shelf) == ["first", "second"] and len(loader.bundles) == 2
    shutil.rmtree(tmp_path / "a")
    shelf.refresh()
    assert served_names(shelf) == ["first", "second"]
    shelf.refresh()
    assert served_names(shelf) == ["second"] and first() is None
    tmp_path.rename(tmp_path.with_name("away"))  # the volume itself
    refresh_times(shelf, 3)
    tmp_path.with_name("away").rename(tmp_path)
    assert served_names(shelf) == ["second"]
    shutil.rmtree(tmp_path / "b")
    refresh_times(shelf)
    with pytest.raises(NotReadyError, match="no bundle in"):
        shelf.get()


def test_a_bundle_that_is_alone_is_served_without_its_folder(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader
) -> None:
    folder = make_bundle(tmp_path / "small")
    shelf = loader.make_registry(folder)
    shelf.refresh()
    shutil.rmtree(folder)
    refresh_times(shelf, 3)
    (folder / "probes").mkdir(parents=True)  # what comes first of a copy
    refresh_times(shelf, 3)
    assert served_names(shelf) == ["small"]
    make_bundle(folder.with_name("new"), "new")
    shutil.rmtree(folder)
    folder.with_name("new").rename(folder)
    refresh_times(shelf)
    assert served_names(shelf) == ["new"]


@pytest.mark.parametrize("alone", [True, False])
def test_a_switched_link(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, alone: bool
) -> None:
    """As Kubernetes does: models/current -> ..data/current, ..data -> ..1; images may have all times and sizes alike."""
    models = tmp_path / "models"
    models.mkdir()
    for version in ("..1", "..2"):
        make_bundle(models / version / "current", "small", add_note(version))
        for path in (models / version).rglob("*"):
            os.utime(path, ns=(0, 0))
    (models / "..data").symlink_to("..1")
    (models / "current").symlink_to("..data/current")
    shelf = loader.make_registry(models / "current" if alone else models)
    shelf.refresh()
    old = shelf.get()
    before = stat_bundle(models / "current")
    (models / "..new").symlink_to("..2")
    (models / "..new").rename(models / "..data")
    after = stat_bundle(models / "current")
    assert before and after and before.files == after.files and before != after
    shutil.rmtree(models / "..1")
    refresh_times(shelf)
    assert shelf.get() is not old and shelf.get().bundle.folder == models / "..2" / "current"
    assert len(loader.bundles) == 2


def test_of_one_name_the_first_folder_serves(
    make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader, refusals: Callable[[], list[str]]
) -> None:
    make_bundle(tmp_path / "m", "small")
    make_bundle(tmp_path / "n", "small", add_note("other"))
    shelf = loader.make_registry(tmp_path)
    refresh_times(shelf, 3)
    assert shelf.get().bundle.folder == tmp_path / "m" and len(loader.bundles) == 1
    (line,) = refusals()
    assert f"{tmp_path / 'n'} holds a bundle of the name 'small', as does {tmp_path / 'm'}" in line
    old = weakref.ref(shelf.get().segmenter)
    make_bundle(tmp_path / "a", "small", add_note("third"))  # whoever starts anew would take this one
    refresh_times(shelf, 3)
    assert shelf.get().bundle.folder == tmp_path / "a" and old() is None
    assert len(refusals()) == 2 and str(tmp_path / "m") in refusals()[1]
    shutil.rmtree(tmp_path / "a")
    shelf.refresh()
    assert shelf.get().bundle.folder == tmp_path / "a"
    shelf.refresh()
    assert shelf.get().bundle.folder == tmp_path / "m"  # without a look at which nothing was served
    make_bundle(tmp_path / "m", "free")
    refresh_times(shelf, 3)
    assert served_names(shelf) == ["free", "small"] and shelf.get("small").bundle.folder == tmp_path / "n"


def test_no_caller_sees_a_half_state(make_bundle: Callable[..., Path], tmp_path: Path, loader: RecordingLoader) -> None:
    folder = make_bundle(tmp_path / "models" / "a")
    make_bundle(tmp_path / "models" / "b", "other")
    shelf = loader.make_registry(tmp_path / "models")
    shelf.refresh()
    done, wrong, asked = threading.Event(), list[str](), [0] * 4
    seen: set[str] = set()
    image = synthetic_image(64, 64)
    expected = shelf.get("small").segmenter.segment(image).labels

    def ask(caller: int) -> None:
        while not done.is_set():
            try:
                served, both = shelf.get("small"), served_names(shelf)
                if loader.hashes[served.segmenter] != served.bundle.hash or served.choice != served.segmenter.choice:
                    wrong.append("of two bundles")
                if both != ["other", "small"]:
                    wrong.append(f"only {both}")
                if not np.array_equal(served.segmenter.segment(image).labels, expected):
                    wrong.append("other labels")
                seen.add(served.bundle.hash)
                asked[caller] += 1
            except Exception as error:
                wrong.append(repr(error))

    callers = [threading.Thread(target=ask, args=(caller,)) for caller in range(4)]
    for caller in callers:
        caller.start()
    for version in "234":
        make_bundle(folder, "small", add_note(version))
        refresh_times(shelf, 3)
        count = sum(asked)
        wait_until(lambda count=count: sum(asked) > count + 4 or bool(wrong))  # type: ignore[misc]
    done.set()
    for caller in callers:
        caller.join()
    assert wrong == [] and len(seen) == 4
