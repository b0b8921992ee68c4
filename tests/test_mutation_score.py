"""The bugs of tests/mutation_score.py can be put into the code as it is, and the score counts right."""

from pathlib import Path

import pytest

from tests.mutation_score import MUTATIONS, ROOT, Mutation, measure_score

CAUGHT = Mutation("wrong sum", "add.py", "a + b", "a - b", ["tests/test_add.py"])
SURVIVING = Mutation("wrong comment", "add.py", "adds", "subtracts", ["tests/test_add.py"])


def write_tree(root: Path, total: int = 3) -> Path:
    (root / "tests").mkdir()
    (root / "add.py").write_text("def add(a, b):  # adds\n    return a + b\n")
    (root / "tests" / "test_add.py").write_text(
        f"from add import add\n\ndef test_add():\n    assert add(1, 2) == {total}\n"
    )
    return root


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.bug)
def test_bug_can_be_put_into_the_code(mutation: Mutation) -> None:
    assert mutation.problem(ROOT) is None
    assert mutation.old != mutation.new


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old": "a * b"}, "holds 'a * b' 0 times, expected once"),
        ({"old": "add"}, "holds 'add' 2 times, expected once"),
        ({"tests": ["tests/test_gone.py"]}, "tests/test_gone.py does not exist"),
    ],
)
def test_bug_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        measure_score(write_tree(tmp_path), [CAUGHT._replace(**change)])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path)
    assert measure_score(root, [CAUGHT, SURVIVING]) == 0.5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("caught")
    assert lines[0].endswith("wrong sum, by tests/test_add.py::test_add")
    assert lines[1].startswith("SURVIVED")
    assert lines[2] == "1 of 2 bugs caught: 50%"
    assert "a + b" in (root / "add.py").read_text()


@pytest.mark.slow
def test_tests_that_fail_without_any_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        measure_score(write_tree(tmp_path, total=4), [CAUGHT])
    assert "fail without any bug" in capsys.readouterr().err
