"""The subcommands `serve` and `key` without a running service; tests/service starts real ones."""

from pathlib import Path

from service.auth import hash_api_key
from service.settings import Settings
from tests.maskserve.command_line import run_maskserve


def test_settings_are_listed(tmp_path: Path) -> None:
    listed = run_maskserve("serve", "--settings", cwd=tmp_path)
    assert listed.returncode == 0
    for name in Settings.model_fields:
        assert f"MASKSERVE_{name.upper()}" in listed.stdout


def test_key_and_its_hash(tmp_path: Path) -> None:
    lines = run_maskserve("key", cwd=tmp_path).stdout.splitlines()
    key, key_hash = lines[0].split()[1], lines[1].split()[1]
    assert hash_api_key(key) == key_hash


def test_invalid_bundle_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["serve"], "No bundle given"),
        (["serve", str(tmp_path / "empty")], "is not a bundle"),
        (["serve", str(tmp_path / "nothing")], "is not a bundle"),
        (["serve", str(tmp_path / "\x1b[31mred")], r"\x1b[31mred"),  # a terminal would take the name for a command
    ):
        result = run_maskserve(*arguments, cwd=tmp_path)
        assert result.returncode in (1, 2)
        assert message in result.stderr and "Traceback" not in result.stderr and "\x1b" not in result.stderr
