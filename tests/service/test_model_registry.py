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

from models.bundle import MODEL, SPEC, SUMS, Bundle, sha256, writing
from models.errors import MaskserveError
from models.inference.segmenter import Segmenter
from service.bundle_stat import signature
from service.errors import BadRequest, NotReady, UnknownModel
from service.model_registry import Shelf
from tests.fixtures_bundles import drawing
from tests.service.tiny_bundle import small_bundle

Alter = Callable[[Path], Any]


class Opened:
    """Opens bundles as the service does, and notes what was opened."""

    def __init__(self) -> None:
        self.bundles: list[Bundle] = []
        self.hashes: weakref.WeakKeyDictionary[Segmenter, str] = weakref.WeakKeyDictionary()
        self.threads: list[threading.Thread] = []
        self.warmed: list[int] = []
        self.trouble: Exception | None = None  # what the next opening meets

    def load(self, bundle: Bundle) -> Segmenter:
        self.bundles.append(bundle)
        self.threads.append(threading.current_thread())
        if self.trouble:
            raise self.trouble
        segmenter = Segmenter.load(bundle, "openvino", "f32", threads=1, probed=True)
        self.hashes[segmenter] = bundle.hash
        return segmenter

    def warm(self, segmenter: Segmenter) -> None:
        self.warmed.append(segmenter.segment(drawing(64, 64)).labels.size)

    def shelf(self, folder: Path, every: float = 0.0, default: str | None = None) -> Shelf:
        return Shelf(folder, self.load, self.warm, every, default)

    @property
    def names(self) -> list[str]:
        return [bundle.spec.name for bundle in self.bundles]


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The log's lines that refuse a bundle."""
    caplog.set_level(logging.INFO, "maskserve")
    return lambda: [record.message for record in caplog.records if "cannot be served" in record.message]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture
def make(small: Path) -> Callable[..., Path]:
    """Writes a copy of the small bundle under another name, altered before it is summed."""

    def make(folder: Path, name: str = "small", *alterations: Alter) -> Path:
        with writing(folder) as new:
            shutil.copytree(small, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SUMS))
            edit_spec(new, name=name)
            for alter in alterations:
                alter(new)
        return folder

    return make


def edit_spec(folder: Path, **changes: Any) -> None:
    spec = json.loads((folder / SPEC).read_text()) | changes
    (folder / SPEC).write_text(json.dumps(spec))


def note(text: str) -> Alter:
    """Makes a bundle another one, with the same name and answers."""
    return lambda folder: (folder / "note.txt").write_text(text)


def other_probe(folder: Path) -> None:
    Image.fromarray(drawing(120, 160)[:, :, 0]).save(folder / "probes" / "0.labels.png")


def names(shelf: Shelf) -> list[str]:
    return [served.bundle.spec.name for served in shelf.all()]


def looks(shelf: Shelf, count: int = 2) -> None:
    """What is new is opened at the second look at which it is the same."""
    for _ in range(count):
        shelf.look()


def test_one_bundle_needs_no_name(small: Path, opened: Opened) -> None:
    shelf = opened.shelf(small)
    with pytest.raises(NotReady, match="being opened") as before:
        shelf.get()
    assert before.value.retry_after == 1 and shelf.all() == []
    shelf.look()
    served = shelf.get()
    shelf.check()
    assert shelf.get("small") is served and shelf.all() == [served]
    assert served.bundle.folder == small and served.choice == served.segmenter.choice
    assert served.segmenter.segment(drawing(50, 70)).labels.shape == (50, 70)
    assert opened.warmed == [64 * 64]
    with pytest.raises(UnknownModel, match="no model 'other'; served: small"):
        shelf.get("other")


def test_several_bundles_are_served_by_name(make: Callable[..., Path], tmp_path: Path, opened: Opened) -> None:
    for folder, name in (("b", "streets"), ("a", "trees"), (".hidden", "secret"), ("c", "cells")):
        make(tmp_path / folder, name)
    (tmp_path / "README").write_text("Models of the house.")
    shelf = opened.shelf(tmp_path)
    shelf.look()
    assert opened.names == ["trees", "streets", "cells"]
    assert names(shelf) == ["cells", "streets", "trees"]
    assert shelf.get("trees").bundle.folder == tmp_path / "a"
    with pytest.raises(BadRequest, match="`model`: cells, streets, trees"):
        shelf.get()
    with pytest.raises(UnknownModel, match="no model 'secret'"):
        shelf.get("secret")
    chosen = opened.shelf(tmp_path, default="streets")
    chosen.look()
    assert chosen.get().bundle.spec.name == "streets" and chosen.get("cells").bundle.spec.name == "cells"
    lost = opened.shelf(tmp_path, default="road")
    lost.look()
    with pytest.raises(NotReady, match="default model 'road' is not served, but cells"):
        lost.get()


def test_not_ready_until_all_have_been_tried(make: Callable[..., Path], tmp_path: Path, opened: Opened) -> None:
    make(tmp_path / "a", "first")
    make(tmp_path / "b", "second")
    at_second, go_on = threading.Event(), threading.Event()

    def load(bundle: Bundle) -> Segmenter:
        if bundle.spec.name == "second":
            at_second.set()
            assert go_on.wait(60)
        return opened.load(bundle)

    shelf = Shelf(tmp_path, load, opened.warm, every=0.01)
    shelf.start()
    try:
        assert at_second.wait(60)
        for ask in (shelf.get, shelf.check, lambda: shelf.get("first"), lambda: shelf.get("third")):
            with pytest.raises(NotReady, match="being opened"):
                ask()
        go_on.set()
        eventually(lambda: names(shelf) == ["first", "second"])
    finally:
        go_on.set()
        shelf.stop()


def test_the_thread_follows_the_folder_and_ends(make: Callable[..., Path], tmp_path: Path, opened: Opened) -> None:
    shelf = opened.shelf(tmp_path / "models", every=0.01)
    shelf.start()
    make(tmp_path / "models" / "a", "first")
    eventually(lambda: names(shelf) == ["first"])
    make(tmp_path / "models" / "a", "second")
    eventually(lambda: names(shelf) == ["second"])
    shelf.stop()
    make(tmp_path / "models" / "a", "third")
    assert not any(thread.name in ("shelf", "open_0") for thread in threading.enumerate())
    assert names(shelf) == ["second"]


@pytest.mark.parametrize("every", [0.0, 3600.0])
def test_a_stop_does_not_wait_for_the_next_look(small: Path, opened: Opened, every: float) -> None:
    shelf = opened.shelf(small, every)
    shelf.stop()  # before the start too
    shelf = opened.shelf(small, every)
    shelf.start()
    eventually(lambda: names(shelf) == ["small"])
    shelf.stop()
    assert not any(thread.name == "shelf" for thread in threading.enumerate())


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for another thread; a minute is for ever."""
    pause = threading.Event()
    assert any(holds() or pause.wait(0.02) for _ in range(3000)), "it never came"


@pytest.mark.parametrize(("every", "patience"), [(0.0, None), (0.2, 1), (10.0, 20)])
@pytest.mark.parametrize("there", [True, False])
def test_an_empty_folder_waits_for_a_bundle(
    make: Callable[..., Path], tmp_path: Path, opened: Opened, every: float, patience: int | None, there: bool
) -> None:
    folder = tmp_path / "models"
    if there:
        folder.mkdir()
    shelf = opened.shelf(folder, every)
    shelf.look()
    with pytest.raises(NotReady, match="no bundle in .*models" if there else "models cannot be looked into") as error:
        shelf.get("small")
    assert error.value.retry_after == patience
    make(folder / "small")
    looks(shelf)
    assert names(shelf) == ["small"]


def test_a_changed_bundle_takes_over(make: Callable[..., Path], tmp_path: Path, opened: Opened) -> None:
    folder = make(tmp_path / "small")
    shelf = opened.shelf(folder)
    shelf.look()
    old = shelf.get()
    make(folder, "small", note("2"))
    shelf.look()
    assert shelf.get() is old  # it may still be being copied
    shelf.look()
    new = shelf.get()
    assert new.bundle.hash != old.bundle.hash and new.segmenter is not old.segmenter
    assert len(opened.warmed) == 2
    assert old.segmenter.segment(drawing(50, 70)).labels.shape == (50, 70)  # a request in flight
    looks(shelf, 3)
    assert len(opened.bundles) == 2
    make(folder, "renamed")
    looks(shelf)
    assert names(shelf) == ["renamed"]


def test_the_old_engine_is_let_go(make: Callable[..., Path], tmp_path: Path, opened: Opened) -> None:
    folder = make(tmp_path / "small")
    shelf = opened.shelf(folder)
    shelf.look()
    old = weakref.ref(shelf.get().segmenter)
    run = weakref.ref(shelf.get().segmenter.run)
    gc.collect()
    gc.disable()  # nothing may wait for it
    try:
        make(folder, "small", note("2"))
        looks(shelf)
        assert old() is None and run() is None
    finally:
        gc.enable()
    assert not any(thread.is_alive() for thread in opened.threads)  # with its buffers of the engine


def spoil(name: str) -> Alter:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"?")


def summed(alter: Alter) -> Alter:
    """The alteration, and sums that match."""

    def both(folder: Path) -> None:
        alter(folder)
        listed = [line.partition("  ")[2] for line in (folder / SUMS).read_text().splitlines()]
        (folder / SUMS).write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in listed))

    return both


BAD: dict[str, tuple[Alter, str]] = {
    "a file is missing": (lambda folder: (folder / "probes" / "0.png").unlink(), "0.png is missing"),
    "the graph is another": (spoil(MODEL), "is not the file that was exported"),
    "the spec is another": (spoil(SPEC), "is not the file that was exported"),
    "no sums": (lambda folder: (folder / SUMS).unlink(), "it has no SHA256SUMS"),
    "a later format": (summed(lambda folder: edit_spec(folder, format_version=99)), "Update maskserve"),
    "wrong answers": (summed(other_probe), "on this machine"),
    "no graph": (summed(lambda folder: (folder / MODEL).write_bytes(b"no graph")), "cannot compile it"),
    "another graph": (
        summed(lambda folder: edit_spec(folder, classes=[{"name": n, "rgb": [0, 0, i]} for i, n in enumerate("abc")])),
        "its network disagree",
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("alone", [True, False])
def test_a_bad_bundle_is_refused_once_and_the_old_one_stays(
    make: Callable[..., Path],
    tmp_path: Path,
    opened: Opened,
    refusals: Callable[[], list[str]],
    kind: str,
    alone: bool,
) -> None:
    alter, said = BAD[kind]
    folder = make(tmp_path / "models" / "small")
    shelf = opened.shelf(folder if alone else folder.parent)
    shelf.look()
    old = shelf.get()
    make(folder, "small", note("2"))
    alter(folder)
    looks(shelf, 4)
    assert shelf.get() is old
    (line,) = refusals()
    assert f"the bundle in {folder} cannot be served; the old one stays: " in line and said in line
    tried = len(opened.bundles)
    shutil.rmtree(folder)
    make(folder, "small", note("3"))
    looks(shelf)
    assert shelf.get() is not old and len(opened.bundles) == tried + 1 and len(refusals()) == 1
    (folder / "later").touch()
    looks(shelf)
    assert len(opened.bundles) == tried + 1


@pytest.mark.parametrize("kind", BAD)
def test_nothing_but_a_bad_bundle(
    make: Callable[..., Path], tmp_path: Path, opened: Opened, refusals: Callable[[], list[str]], kind: str
) -> None:
    alter, said = BAD[kind]
    folder = make(tmp_path / "small")
    alter(folder)
    shelf = opened.shelf(folder, every=5.0)
    looks(shelf, 3)
    with pytest.raises(NotReady, match=said) as error:
        shelf.get("small")
    assert error.value.retry_after is None and len(refusals()) == 1
    shutil.rmtree(folder)
    make(folder)  # whole again
    looks(shelf)
    assert names(shelf) == ["small"]


@pytest.mark.parametrize("trouble", [ValueError("a secret path"), MemoryError(), MaskserveError("no such engine")])
@pytest.mark.parametrize("where", ["load", "warm"])
def test_whatever_is_raised_refuses(
    small: Path, opened: Opened, refusals: Callable[[], list[str]], trouble: Exception, where: str
) -> None:
    def warm(segmenter: Segmenter) -> None:
        raise trouble

    opened.trouble = trouble if where == "load" else None
    shelf = Shelf(small, opened.load, warm, 0)
    looks(shelf, 3)
    expected = (
        "no such engine" if type(trouble) is MaskserveError else rf"could not be opened \({type(trouble).__name__}\)"
    )
    with pytest.raises(NotReady, match=expected) as error:
        shelf.get()
    assert "secret" not in str(error.value) and len(refusals()) == 1


def test_the_good_are_served_beside_the_bad(
    make: Callable[..., Path], tmp_path: Path, opened: Opened, refusals: Callable[[], list[str]]
) -> None:
    make(tmp_path / "a", "first", other_probe)
    make(tmp_path / "b", "second")
    (tmp_path / "c").mkdir()
    shelf = opened.shelf(tmp_path)
    looks(shelf, 3)
    assert names(shelf) == ["second"] and shelf.get().bundle.folder == tmp_path / "b"
    assert len(refusals()) == 2
    shutil.rmtree(tmp_path / "b")
    looks(shelf, 2)
    with pytest.raises(NotReady, match=r"on this machine.*the first of 2 bundles"):
        shelf.get()


def test_a_touched_bundle_is_not_opened_again(make: Callable[..., Path], tmp_path: Path, opened: Opened) -> None:
    folder = make(tmp_path / "small")
    shelf = opened.shelf(folder)
    shelf.look()
    old = shelf.get()
    for path in folder.rglob("*"):
        os.utime(path, ns=(0, 0))
    looks(shelf, 3)
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    looks(shelf, 3)
    (tmp_path / "copy").rename(folder)
    looks(shelf, 3)
    assert shelf.get() is old and len(opened.bundles) == 1


def test_a_file_that_is_altered_under_the_same_sums_is_told(
    make: Callable[..., Path], tmp_path: Path, opened: Opened, refusals: Callable[[], list[str]]
) -> None:
    """The old network serves from memory, but a worker that started now would refuse the folder."""
    folder = make(tmp_path / "small")
    shelf = opened.shelf(folder)
    shelf.look()
    old, probe = shelf.get(), next((folder / "probes").iterdir())
    probe.write_bytes(probe.read_bytes()[:-1] + b"?")
    looks(shelf, 3)
    assert shelf.get() is old
    (told,) = refusals()
    assert probe.name in told and "sha256" in told and "the old one stays" in told


@pytest.mark.parametrize("last", [SUMS, MODEL, SPEC])
def test_a_bundle_that_is_being_copied_in(
    make: Callable[..., Path], tmp_path: Path, opened: Opened, refusals: Callable[[], list[str]], last: str
) -> None:
    source = make(tmp_path / "elsewhere" / "small", "copied")
    make(tmp_path / "models" / "a", "first")
    shelf = opened.shelf(tmp_path / "models")
    shelf.look()
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == last)
    for path in files:
        target = tmp_path / "models" / "b" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        for half in (data[: len(data) // 2], data):
            target.write_bytes(half)
            shelf.look()
    assert names(shelf) == ["first"] and refusals() == []
    shelf.look()
    assert names(shelf) == ["copied", "first"] and refusals() == []


def test_a_copy_that_pauses_is_tried_again(
    make: Callable[..., Path], tmp_path: Path, opened: Opened, refusals: Callable[[], list[str]]
) -> None:
    source = make(tmp_path / "elsewhere")
    folder = tmp_path / "models"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(MODEL))
    shelf = opened.shelf(folder)
    looks(shelf, 5)  # the very first look waits for nothing
    assert len(refusals()) == 1 and "model.onnx is missing" in refusals()[0]
    shutil.copy(source / MODEL, folder)
    looks(shelf)
    assert names(shelf) == ["small"] and len(refusals()) == 1


def test_a_folder_that_is_gone_for_two_looks(make: Callable[..., Path], tmp_path: Path, opened: Opened) -> None:
    make(tmp_path / "a", "first")
    make(tmp_path / "b", "second")
    shelf = opened.shelf(tmp_path)
    shelf.look()
    first = weakref.ref(shelf.get("first").segmenter)
    (tmp_path / "a").rename(tmp_path / ".a")
    shelf.look()
    (tmp_path / ".a").rename(tmp_path / "a")  # as `writing` does, but for the content
    looks(shelf)
    assert names(shelf) == ["first", "second"] and len(opened.bundles) == 2
    shutil.rmtree(tmp_path / "a")
    shelf.look()
    assert names(shelf) == ["first", "second"]
    shelf.look()
    assert names(shelf) == ["second"] and first() is None
    tmp_path.rename(tmp_path.with_name("away"))  # the volume itself
    looks(shelf, 3)
    tmp_path.with_name("away").rename(tmp_path)
    assert names(shelf) == ["second"]
    shutil.rmtree(tmp_path / "b")
    looks(shelf)
    with pytest.raises(NotReady, match="no bundle in"):
        shelf.get()


def test_a_bundle_that_is_alone_is_served_without_its_folder(
    make: Callable[..., Path], tmp_path: Path, opened: Opened
) -> None:
    folder = make(tmp_path / "small")
    shelf = opened.shelf(folder)
    shelf.look()
    shutil.rmtree(folder)
    looks(shelf, 3)
    (folder / "probes").mkdir(parents=True)  # what comes first of a copy
    looks(shelf, 3)
    assert names(shelf) == ["small"]
    make(folder.with_name("new"), "new")
    shutil.rmtree(folder)
    folder.with_name("new").rename(folder)
    looks(shelf)
    assert names(shelf) == ["new"]


@pytest.mark.parametrize("alone", [True, False])
def test_a_switched_link(make: Callable[..., Path], tmp_path: Path, opened: Opened, alone: bool) -> None:
    """As Kubernetes does: models/current -> ..data/current, ..data -> ..1; images may have all times and sizes alike."""
    models = tmp_path / "models"
    models.mkdir()
    for version in ("..1", "..2"):
        make(models / version / "current", "small", note(version))
        for path in (models / version).rglob("*"):
            os.utime(path, ns=(0, 0))
    (models / "..data").symlink_to("..1")
    (models / "current").symlink_to("..data/current")
    shelf = opened.shelf(models / "current" if alone else models)
    shelf.look()
    old = shelf.get()
    before = signature(models / "current")
    (models / "..new").symlink_to("..2")
    (models / "..new").rename(models / "..data")
    after = signature(models / "current")
    assert before and after and before.files == after.files and before != after
    shutil.rmtree(models / "..1")
    looks(shelf)
    assert shelf.get() is not old and shelf.get().bundle.folder == models / "..2" / "current"
    assert len(opened.bundles) == 2


def test_of_one_name_the_first_folder_serves(
    make: Callable[..., Path], tmp_path: Path, opened: Opened, refusals: Callable[[], list[str]]
) -> None:
    make(tmp_path / "m", "small")
    make(tmp_path / "n", "small", note("other"))
    shelf = opened.shelf(tmp_path)
    looks(shelf, 3)
    assert shelf.get().bundle.folder == tmp_path / "m" and len(opened.bundles) == 1
    (line,) = refusals()
    assert f"{tmp_path / 'n'} holds a bundle of the name 'small', as does {tmp_path / 'm'}" in line
    old = weakref.ref(shelf.get().segmenter)
    make(tmp_path / "a", "small", note("third"))  # whoever starts anew would take this one
    looks(shelf, 3)
    assert shelf.get().bundle.folder == tmp_path / "a" and old() is None
    assert len(refusals()) == 2 and str(tmp_path / "m") in refusals()[1]
    shutil.rmtree(tmp_path / "a")
    shelf.look()
    assert shelf.get().bundle.folder == tmp_path / "a"
    shelf.look()
    assert shelf.get().bundle.folder == tmp_path / "m"  # without a look at which nothing was served
    make(tmp_path / "m", "free")
    looks(shelf, 3)
    assert names(shelf) == ["free", "small"] and shelf.get("small").bundle.folder == tmp_path / "n"


def test_no_caller_sees_a_half_state(make: Callable[..., Path], tmp_path: Path, opened: Opened) -> None:
    folder = make(tmp_path / "models" / "a")
    make(tmp_path / "models" / "b", "other")
    shelf = opened.shelf(tmp_path / "models")
    shelf.look()
    done, wrong, asked = threading.Event(), list[str](), [0] * 4
    seen: set[str] = set()
    picture = drawing(64, 64)
    expected = shelf.get("small").segmenter.segment(picture).labels

    def ask(caller: int) -> None:
        while not done.is_set():
            try:
                served, both = shelf.get("small"), names(shelf)
                if opened.hashes[served.segmenter] != served.bundle.hash or served.choice != served.segmenter.choice:
                    wrong.append("of two bundles")
                if both != ["other", "small"]:
                    wrong.append(f"only {both}")
                if not np.array_equal(served.segmenter.segment(picture).labels, expected):
                    wrong.append("other labels")
                seen.add(served.bundle.hash)
                asked[caller] += 1
            except Exception as error:
                wrong.append(repr(error))

    callers = [threading.Thread(target=ask, args=(caller,)) for caller in range(4)]
    for caller in callers:
        caller.start()
    for version in "234":
        make(folder, "small", note(version))
        looks(shelf, 3)
        count = sum(asked)
        eventually(lambda count=count: sum(asked) > count + 4 or bool(wrong))  # type: ignore[misc]
    done.set()
    for caller in callers:
        caller.join()
    assert wrong == [] and len(seen) == 4
