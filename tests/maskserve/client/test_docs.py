"""Runs the Python examples of the documentation against a real service, with its address and class names."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fixtures_bundles import synthetic_image

ROOT = Path(__file__).parents[3]
CODE_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    (page, code) for page in ("README.md", "docs/client.md") for code in CODE_BLOCK.findall((ROOT / page).read_text())
]


def test_all_examples_are_found() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize(
    ("page", "code"), EXAMPLES, ids=[f"{page} {index}" for index, (page, _) in enumerate(EXAMPLES)]
)
def test_an_example_runs(
    page: str,
    code: str,
    service_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        Image.fromarray(synthetic_image(60, 80)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert "http://127.0.0.1:3000" in code
    code = code.replace("http://127.0.0.1:3000", service_url).replace('"star", "ring"', '"class 1", "class 2"')
    names: dict[str, Any] = {}
    exec(compile(code, page, "exec"), names)
    assert "print(" not in code or capsys.readouterr().out
    for file in re.findall(r'save\("(.*?)"\)', code):
        with Image.open(file) as image:
            assert image.size == (80, 60)
    if "client" in names:
        names["client"].close()
