"""The verbs `serve` and `key`, as far as they go without a service; tests/service starts real ones."""

from pathlib import Path

from service.auth import hash_api_key
from service.settings import Settings
from tests.maskserve.command_line import run_maskserve


def test_every_setting_is_listed(tmp_path: Path) -> None:
    listed = run_maskserve("serve", "--settings", cwd=tmp_path)
    assert listed.returncode == 0
    for name in Settings.model_fields:
        assert f"MASKSERVE_{name.upper()}" in listed.stdout


def test_a_key_comes_with_its_hash(tmp_path: Path) -> None:
    lines = run_maskserve("key", cwd=tmp_path).stdout.splitlines()
    key, hashed = lines[0].split()[1], lines[1].split()[1]
    assert hash_api_key(key) == hashed


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, sentence in (
        (["serve"], "Name the folder of a bundle"),
        (["serve", str(tmp_path / "empty")], "is not a bundle"),
        (["serve", str(tmp_path / "nothing")], "is not a bundle"),
    ):
        refused = run_maskserve(*words, cwd=tmp_path)
        assert refused.returncode in (1, 2)
        assert sentence in refused.stderr and "Traceback" not in refused.stderr
