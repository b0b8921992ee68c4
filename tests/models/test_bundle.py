"""Bundles are written completely or not at all, and altered files are refused."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from models.bundle import (
    CHECKSUM_FILE,
    INT8_MODEL_FILE,
    MODEL_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    Bundle,
    bundle_writer,
    file_sha256,
    open_bundle,
)
from models.errors import BundleError
from models.spec import FORMAT_VERSION, OLDEST_FORMAT_VERSION, Architecture, BundleSpec, ClassInfo, InputRule

TINY_SPEC = BundleSpec(
    name="drawn",
    classes=[ClassInfo(name="ground", rgb=(0, 0, 0)), ClassInfo(name="disc", rgb=(255, 0, 0))],
    input=InputRule(rule="native"),
    architecture=Architecture(name="fcn"),
)


def write_bundle_files(folder: Path, model: bytes = b"a graph") -> None:
    (folder / MODEL_FILE).write_bytes(model)
    (folder / WEIGHTS_FILE).write_bytes(b"weights")
    (folder / SPEC_FILE).write_text(TINY_SPEC.model_dump_json())
    (folder / "probes").mkdir()
    for name in ("0.png", "0.labels.png", "1.png", "1.labels.png"):
        (folder / "probes" / name).write_bytes(name.encode())


def rewrite_checksums(folder: Path) -> None:
    """Write the checksums of a changed bundle again."""
    with bundle_writer(folder.with_name("resealed")) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)
    shutil.rmtree(folder)
    folder.with_name("resealed").rename(folder)


def interrupt_writing(target: Path, error: type[BaseException]) -> None:
    """Fail when everything but the rename is done."""
    with bundle_writer(target) as new:
        write_bundle_files(new, b"another graph")
        raise error


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with bundle_writer(tmp_path / "bundle") as new:
        write_bundle_files(new)
    return tmp_path / "bundle"


def test_round_trip(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.spec == TINY_SPEC
    assert opened.model_path.read_bytes() == b"a graph"
    assert opened.weights_path.read_bytes() == b"weights"
    assert opened.hash == file_sha256(bundle / CHECKSUM_FILE)
    names = [(image.name, labels.name) for image, labels in opened.probes()]
    assert names == [("0.png", "0.labels.png"), ("1.png", "1.labels.png")]
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_sha256sum_reads_the_checksums(bundle: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", CHECKSUM_FILE], cwd=bundle, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7


def test_an_exported_bundle_opens(tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert opened.spec.name == "tiny"
    assert len(opened.probes()) == 1


@pytest.mark.parametrize("name", [MODEL_FILE, WEIGHTS_FILE, "probes/0.png"])
@pytest.mark.parametrize("content", [b"another graph", b"", None], ids=["altered", "emptied", "longer"])
def test_an_altered_file_is_refused_when_it_is_opened(name: str, content: bytes | None, bundle: Path) -> None:
    file = bundle / name
    file.write_bytes(file.read_bytes() + b" " if content is None else content)
    opened = open_bundle(bundle)  # the other files can be used: an engine opens no more than it needs
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        opened.verify_file(name)
    for other in {MODEL_FILE, WEIGHTS_FILE, "probes/0.png"} - {name}:
        assert opened.verify_file(other) == bundle / other


def test_an_altered_spec(bundle: Path) -> None:
    with (bundle / SPEC_FILE).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=f"{SPEC_FILE} is not the file that was exported"):
        open_bundle(bundle)


def test_altered_probes(bundle: Path) -> None:
    (bundle / "probes" / "1.labels.png").write_bytes(b"other labels")
    with pytest.raises(BundleError, match=r"probes/1\.labels\.png is not the file that was exported"):
        open_bundle(bundle).probes()


def test_a_probe_without_checksum(bundle: Path) -> None:
    for name in ("2.png", "2.labels.png"):
        (bundle / "probes" / name).write_bytes(b"added")
    with pytest.raises(BundleError, match=r"does not list probes/2\.png"):
        open_bundle(bundle).probes()


def test_a_bundle_contains_the_files_that_it_lists(bundle: Path) -> None:
    (bundle / INT8_MODEL_FILE).write_text("added by a user")
    opened = open_bundle(bundle)
    assert opened.has_file(MODEL_FILE) and opened.has_file(WEIGHTS_FILE) and not opened.has_file(INT8_MODEL_FILE)
    with pytest.raises(BundleError, match=f"does not list {INT8_MODEL_FILE}"):
        opened.verify_file(INT8_MODEL_FILE)
    draft = Bundle(bundle, TINY_SPEC)
    assert draft.has_file(INT8_MODEL_FILE) and draft.verify_file(INT8_MODEL_FILE) == bundle / INT8_MODEL_FILE


@pytest.mark.parametrize("name", [SPEC_FILE, MODEL_FILE, WEIGHTS_FILE, "probes/0.png"])
def test_a_missing_file(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [SPEC_FILE, MODEL_FILE])
def test_an_unlisted_file(name: str, bundle: Path) -> None:
    lines = (bundle / CHECKSUM_FILE).read_text().splitlines(keepends=True)
    (bundle / CHECKSUM_FILE).write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))
    with pytest.raises(BundleError, match=f"does not list {name}"):
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
def test_an_invalid_line_of_checksums(line: bytes, bundle: Path) -> None:
    (bundle.parent / "outside").write_text("secret")
    with (bundle / CHECKSUM_FILE).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(BundleError, match=f"{CHECKSUM_FILE}: the line .* is not a sha256 and a file name"):
        open_bundle(bundle)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None], ids=["empty", "a file", "nothing"])
def test_other_paths_are_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(BundleError, match=r"x is not a bundle.*maskserve export"):
        open_bundle(tmp_path / "x")


def test_the_error_for_a_run_folder_names_its_bundle(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "run" / "bundle")
    with pytest.raises(BundleError, match=r"run is a run folder, not a bundle\. Use its bundle: .*run/bundle\.$"):
        open_bundle(tmp_path / "run")


@pytest.mark.parametrize("version", [OLDEST_FORMAT_VERSION - 1, 1, 0, -1, None])
def test_an_earlier_format_must_be_exported_again(version: int | None, bundle: Path) -> None:
    content = TINY_SPEC.model_dump() | {"format_version": version, "parity": {"f32": 1.0}}
    if version is None:
        del content["format_version"]
    (bundle / SPEC_FILE).write_text(json.dumps(content))
    rewrite_checksums(bundle)
    expected = rf"{SPEC_FILE}: the bundle has format {version or 0} of an earlier maskserve; .*: export again\.$"
    with pytest.raises(BundleError, match=expected):
        open_bundle(bundle)


def test_a_bundle_of_photographs_of_format_4_opens_as_before(bundle: Path) -> None:
    content = TINY_SPEC.model_dump(mode="json") | {"format_version": 4}
    content["input"] = {name: content["input"][name] for name in ("rule", "side", "size", "divisor")}
    (bundle / SPEC_FILE).write_text(json.dumps(content))
    rewrite_checksums(bundle)
    spec = open_bundle(bundle).spec
    assert spec.input == TINY_SPEC.input and spec.input.is_photograph


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, FORMAT_VERSION + 0.5, float("inf")])
def test_a_later_format(version: float, bundle: Path) -> None:
    content = TINY_SPEC.model_dump() | {"format_version": version, "added_later": True}
    (bundle / SPEC_FILE).write_text(json.dumps(content))
    rewrite_checksums(bundle)
    with pytest.raises(
        BundleError, match=rf"{SPEC_FILE}: the bundle has format {version}; .* format {FORMAT_VERSION}\. Update"
    ):
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
        b'{"format_version": "3"}',
        b'{"format_version": null}',
        json.dumps(TINY_SPEC.model_dump() | {"colour": 1}).encode(),
        json.dumps(TINY_SPEC.model_dump() | {"classes": []}).encode(),
        json.dumps(TINY_SPEC.model_dump() | {"input": {"rule": "fit"}}).encode(),
    ],
)
def test_an_invalid_spec(content: bytes, bundle: Path) -> None:
    (bundle / SPEC_FILE).write_bytes(content)
    rewrite_checksums(bundle)
    with pytest.raises(BundleError, match=rf"{SPEC_FILE}.*[Ee]xport (the bundle )?again") as raised:
        open_bundle(bundle)
    assert "\n" not in str(raised.value)


def test_an_error_keeps_the_old_bundle(bundle: Path) -> None:
    before = open_bundle(bundle).hash
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            interrupt_writing(bundle, error)
        assert open_bundle(bundle).hash == before
        assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        interrupt_writing(tmp_path / "new", RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_a_new_bundle_replaces_the_old_one_completely(bundle: Path) -> None:
    with bundle_writer(bundle) as new:
        assert list(new.iterdir()) == []
        write_bundle_files(new, b"another graph")
    assert open_bundle(bundle).model_path.read_bytes() == b"another graph"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    for target in (tmp_path / "photos", tmp_path / "photos" / "cat.jpg"):
        with pytest.raises(BundleError, match=f"{target} exists and is not a bundle"), bundle_writer(target):
            pytest.fail("the folder was opened")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "cat.jpg"]


@pytest.mark.parametrize("name", ["notes.txt", "report/notes.txt"])
def test_a_bundle_with_other_files_is_not_overwritten(name: str, bundle: Path) -> None:
    (bundle / "report").mkdir()
    (bundle / name).write_text("mine")
    with pytest.raises(BundleError, match="is not overwritten"), bundle_writer(bundle):
        pytest.fail("the folder was opened")
    assert (bundle / name).read_text() == "mine"


def test_an_interrupt_between_the_renames_keeps_the_old_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = open_bundle(bundle).hash, Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), bundle_writer(bundle) as new:
        write_bundle_files(new, b"another graph")
    assert open_bundle(bundle).hash == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_can_be_written_into_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with bundle_writer(Path()) as new:
        write_bundle_files(new)
    assert open_bundle(tmp_path / "empty").spec == TINY_SPEC


def test_parent_folders_are_created(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "a" / "b" / "bundle") as new:
        write_bundle_files(new)
    assert open_bundle(tmp_path / "a" / "b" / "bundle").spec == TINY_SPEC


def test_the_hash_depends_on_the_content_only(bundle: Path) -> None:
    before = open_bundle(bundle).hash
    rewrite_checksums(bundle)
    assert open_bundle(bundle).hash == before


@pytest.mark.parametrize("name", [SPEC_FILE, MODEL_FILE, WEIGHTS_FILE, "probes/0.png", "report/new.txt"])
def test_the_hash_changes_with_any_file(name: str, bundle: Path) -> None:
    before = open_bundle(bundle).hash
    (bundle / "report").mkdir()
    with (bundle / name).open("ab") as file:
        file.write(b" ")
    rewrite_checksums(bundle)
    assert open_bundle(bundle).hash != before


def test_the_hash_changes_with_file_names(bundle: Path) -> None:
    before = open_bundle(bundle).hash
    (bundle / "probes" / "0.png").rename(bundle / "probes" / "größe.png")
    rewrite_checksums(bundle)
    assert open_bundle(bundle).hash != before


def test_verify_reads_every_file(bundle: Path) -> None:
    open_bundle(bundle).verify()
    (bundle / WEIGHTS_FILE).write_bytes(b"other")
    with pytest.raises(BundleError, match=f"{WEIGHTS_FILE} is not the file that was exported"):
        open_bundle(bundle).verify()
