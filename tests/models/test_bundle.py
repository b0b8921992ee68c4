"""The folder into which a network is frozen: written whole or not at all, and opened only unaltered."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from models.bundle import INT8, MODEL, SPEC, SUMS, WEIGHTS, Bundle, open_bundle, sha256, writing
from models.errors import BundleError
from models.spec import FORMAT_VERSION, Architecture, ClassInfo, InputRule, Spec

TINY = Spec(
    name="drawn",
    classes=[ClassInfo(name="ground", rgb=(0, 0, 0)), ClassInfo(name="disc", rgb=(255, 0, 0))],
    input=InputRule(rule="native"),
    architecture=Architecture(name="fcn"),
)


def fill(folder: Path, model: bytes = b"a graph") -> None:
    (folder / MODEL).write_bytes(model)
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / SPEC).write_text(TINY.model_dump_json())
    (folder / "probes").mkdir()
    for name in ("0.png", "0.labels.png", "1.png", "1.labels.png"):
        (folder / "probes" / name).write_bytes(name.encode())


def reseal(folder: Path) -> None:
    """Sum the files of a bundle again, as someone who alters it knowingly would."""
    with writing(folder.with_name("resealed")) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)
    shutil.rmtree(folder)
    folder.with_name("resealed").rename(folder)


def break_off(target: Path, error: type[BaseException]) -> None:
    """Fail when all but the rename is done."""
    with writing(target) as new:
        fill(new, b"another graph")
        raise error


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with writing(tmp_path / "bundle") as new:
        fill(new)
    return tmp_path / "bundle"


def test_round_trip(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.spec == TINY
    assert opened.model.read_bytes() == b"a graph"
    assert opened.weights.read_bytes() == b"weights"
    assert opened.hash == sha256(bundle / SUMS)
    names = [(picture.name, labels.name) for picture, labels in opened.probes()]
    assert names == [("0.png", "0.labels.png"), ("1.png", "1.labels.png")]
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_sha256sum_reads_the_sums(bundle: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7


def test_the_real_one_opens(tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert opened.spec.name == "tiny"
    assert len(opened.probes()) == 1


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, "probes/0.png"])
@pytest.mark.parametrize("harm", [b"another graph", b"", None], ids=["altered", "emptied", "longer"])
def test_an_altered_file_is_refused_by_whoever_opens_it(name: str, harm: bytes | None, bundle: Path) -> None:
    file = bundle / name
    file.write_bytes(file.read_bytes() + b" " if harm is None else harm)
    opened = open_bundle(bundle)  # the others can be used: an engine opens no more than it needs
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        opened.verified(name)
    for other in {MODEL, WEIGHTS, "probes/0.png"} - {name}:
        assert opened.verified(other) == bundle / other


def test_an_altered_spec(bundle: Path) -> None:
    with (bundle / SPEC).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=f"{SPEC} is not the file that was exported"):
        open_bundle(bundle)


def test_altered_probes(bundle: Path) -> None:
    (bundle / "probes" / "1.labels.png").write_bytes(b"other labels")
    with pytest.raises(BundleError, match=r"probes/1\.labels\.png is not the file that was exported"):
        open_bundle(bundle).probes()


def test_a_probe_that_nobody_summed(bundle: Path) -> None:
    for name in ("2.png", "2.labels.png"):
        (bundle / "probes" / name).write_bytes(b"added")
    with pytest.raises(BundleError, match=r"lists no probes/2\.png"):
        open_bundle(bundle).probes()


def test_what_belongs_to_a_bundle(bundle: Path) -> None:
    (bundle / INT8).write_text("put there by somebody")
    opened = open_bundle(bundle)
    assert opened.has(MODEL) and opened.has(WEIGHTS) and not opened.has(INT8)
    with pytest.raises(BundleError, match=f"lists no {INT8}"):
        opened.verified(INT8)
    draft = Bundle(bundle, TINY)
    assert draft.has(INT8) and draft.verified(INT8) == bundle / INT8


@pytest.mark.parametrize("name", [SPEC, MODEL, WEIGHTS, "probes/0.png"])
def test_a_missing_file(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [SPEC, MODEL])
def test_an_unlisted_file(name: str, bundle: Path) -> None:
    lines = (bundle / SUMS).read_text().splitlines(keepends=True)
    (bundle / SUMS).write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))
    with pytest.raises(BundleError, match=f"lists no {name}"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "line",
    [
        b"0" * 64 + b"  ../outside",
        b"0" * 64 + b"  probes/../../outside",
        b"0" * 64 + b"  /etc/hostname",
        b"0" * 64 + b" *model.onnx",
        b"0" * 63 + b"  model.onnx",
        b"model.onnx",
        b"",
        b"\xff\xfe\x00",
    ],
)
def test_a_line_that_is_no_sum(line: bytes, bundle: Path) -> None:
    (bundle.parent / "outside").write_text("secret")
    with (bundle / SUMS).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(BundleError, match=f"{SUMS}: the line .* is no sha256 and file name"):
        open_bundle(bundle)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None], ids=["empty", "a file", "nothing"])
def test_what_is_no_bundle(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(BundleError, match=r"x is no bundle.*maskserve export"):
        open_bundle(tmp_path / "x")


def test_a_run_is_told_from_its_bundle(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "run" / "bundle")
    with pytest.raises(BundleError, match=r"run is no bundle, but a run: its bundle is .*run/bundle\.$"):
        open_bundle(tmp_path / "run")


@pytest.mark.parametrize("version", [1, 0, -1, None])
def test_an_earlier_format(version: int | None, bundle: Path) -> None:
    content = TINY.model_dump() | {"format_version": version, "parity": {"f32": 1.0}}
    if version is None:
        del content["format_version"]
    (bundle / SPEC).write_text(json.dumps(content))
    reseal(bundle)
    with pytest.raises(BundleError, match=rf"{SPEC}: its format is {version or 0}, of an earlier maskserve\. Export"):
        open_bundle(bundle)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, FORMAT_VERSION + 0.5, float("inf")])
def test_a_later_format(version: float, bundle: Path) -> None:
    content = TINY.model_dump() | {"format_version": version, "added_later": True}
    (bundle / SPEC).write_text(json.dumps(content))
    reseal(bundle)
    with pytest.raises(BundleError, match=rf"{SPEC}: its format is {version}, .* up to {FORMAT_VERSION}"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"format_version": "2"}',
        b'{"format_version": null}',
        json.dumps(TINY.model_dump() | {"colour": 1}).encode(),
        json.dumps(TINY.model_dump() | {"classes": []}).encode(),
        json.dumps(TINY.model_dump() | {"input": {"rule": "fit"}}).encode(),
    ],
)
def test_a_broken_spec(content: bytes, bundle: Path) -> None:
    (bundle / SPEC).write_bytes(content)
    reseal(bundle)
    with pytest.raises(BundleError, match=rf"{SPEC}.*Export the bundle again") as raised:
        open_bundle(bundle)
    assert "\n" not in str(raised.value)


def test_an_error_leaves_the_old_bundle(bundle: Path) -> None:
    before = open_bundle(bundle).hash
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            break_off(bundle, error)
        assert open_bundle(bundle).hash == before
        assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        break_off(tmp_path / "new", RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_replaces_a_bundle_whole(bundle: Path) -> None:
    with writing(bundle) as new:
        assert list(new.iterdir()) == []
        fill(new, b"another graph")
    assert open_bundle(bundle).model.read_bytes() == b"another graph"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    for target in (tmp_path / "photos", tmp_path / "photos" / "cat.jpg"):
        with pytest.raises(BundleError, match=f"{target} exists and is no bundle"), writing(target):
            pytest.fail("it was opened")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "cat.jpg"]


@pytest.mark.parametrize("name", ["notes.txt", "report/notes.txt"])
def test_a_bundle_with_files_of_others_is_not_overwritten(name: str, bundle: Path) -> None:
    (bundle / "report").mkdir()
    (bundle / name).write_text("mine")
    with pytest.raises(BundleError, match="will not be overwritten"), writing(bundle):
        pytest.fail("it was opened")
    assert (bundle / name).read_text() == "mine"


def test_an_interrupt_between_the_renames_keeps_the_old_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = open_bundle(bundle).hash, Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), writing(bundle) as new:
        fill(new, b"another graph")
    assert open_bundle(bundle).hash == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_an_empty_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with writing(Path()) as new:
        fill(new)
    assert open_bundle(tmp_path / "empty").spec == TINY


def test_folders_above_are_made(tmp_path: Path) -> None:
    with writing(tmp_path / "a" / "b" / "bundle") as new:
        fill(new)
    assert open_bundle(tmp_path / "a" / "b" / "bundle").spec == TINY


def test_a_copied_bundle_is_summed_anew(bundle: Path) -> None:
    before = open_bundle(bundle).hash
    reseal(bundle)
    assert open_bundle(bundle).hash == before


@pytest.mark.parametrize("name", [SPEC, MODEL, WEIGHTS, "probes/0.png", "report/new.txt"])
def test_the_hash_changes_with_any_file(name: str, bundle: Path) -> None:
    before = open_bundle(bundle).hash
    (bundle / "report").mkdir()
    with (bundle / name).open("ab") as file:
        file.write(b" ")
    reseal(bundle)
    assert open_bundle(bundle).hash != before


def test_names_are_summed_too(bundle: Path) -> None:
    before = open_bundle(bundle).hash
    (bundle / "probes" / "0.png").rename(bundle / "probes" / "größe.png")
    reseal(bundle)
    assert open_bundle(bundle).hash != before
