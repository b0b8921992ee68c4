"""The selection of test files for `make test-changed`, on a small tree of files."""

from pathlib import Path

import pytest

from tests.import_graph import ROOT, changed_files, select_tests

TREE = {
    "models/spec.py": "",
    "models/bundle.py": "from models.spec import Spec",
    "models/outputs/png.py": "def later():\n    import models.bundle",
    "service/app.py": "from models.outputs import png",
    "service/static/main.js": "",
    "training/lonely.py": "",
    "tests/conftest.py": "import models.outputs.png",
    "tests/models/test_spec.py": "",
    "tests/models/outputs/test_png.py": "from models.outputs import png",
    "tests/service/conftest.py": "",
    "tests/service/test_app.py": 'APP = "service.app:Maskserve"',
    "docs/index.md": "",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("changed", "selected"),
    [
        pytest.param("tests/models/test_spec.py", ["models/test_spec.py"], id="a test"),
        pytest.param("models/bundle.py", ["models/outputs/test_png.py"], id="over two imports, one of them lazy"),
        pytest.param("models/spec.py", ["models/test_spec.py"], id="mirrors the file"),
        pytest.param("service/static/main.js", ["service/test_app.py"], id="not Python, module named in a string"),
        pytest.param("tests/service/conftest.py", ["service/test_app.py"], id="conftest of a folder"),
        pytest.param("training/lonely.py", [], id="no test"),
        pytest.param("docs/index.md", [], id="documentation"),
        pytest.param("models/deleted.py", [], id="deleted"),
    ],
)
def test_tests_of_a_changed_file(tree: Path, changed: str, selected: list[str]) -> None:
    found = [file.relative_to(tree / "tests").as_posix() for file in select_tests([tree / changed], tree)]
    assert found == selected


def test_unknown_base_fails() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    with pytest.raises(SystemExit, match="no-such-commit"):
        changed_files("no-such-commit")
