"""The settings: each can be read from the environment, and what is wrong stops the start with a sentence."""

from pathlib import Path

import pytest

from models.errors import ConfigError
from service.auth import hash_api_key
from service.server_process import ROOT
from service.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def bundle_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKSERVE_BUNDLE", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("queue", "7", 7),
        ("queue_seconds", "0.5", 0.5),
        ("access_log", "off", False),
        ("api_keys", f"{hash_api_key('a')}, {hash_api_key('b').upper()}", (hash_api_key("a"), hash_api_key("b"))),
        ("cors_origins", "https://a.org, http://localhost:8080", ("https://a.org", "http://localhost:8080")),
        ("cors_origins", "*", ("*",)),
        ("default_model", "", None),
    ],
)
def test_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: object) -> None:
    monkeypatch.setenv(f"MASKSERVE_{name.upper()}", value)
    assert getattr(read_settings(), name) == read


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("queue", "-1", "MASKSERVE_QUEUE is '-1'"),
        ("queue", "many", "MASKSERVE_QUEUE is 'many'"),
        ("queue_seconds", "nan", "MASKSERVE_QUEUE_SECONDS"),
        ("timeout_seconds", "inf", "MASKSERVE_TIMEOUT_SECONDS"),
        ("workers", "0", "MASKSERVE_WORKERS"),
        ("engine", "tensorrt", "openvino"),
        ("cors_origins", "example.org", "no origin"),
        ("cors_origins", "https://a.org/page", "no origin"),
        ("max_images", "5000", "1000"),
        ("qeue", "1", "did you mean MASKSERVE_QUEUE"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(f"MASKSERVE_{name.upper()}", value)
    with pytest.raises(ConfigError) as caught:
        read_settings()
    assert words in str(caught.value)


def test_a_key_in_place_of_its_hash_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_API_KEYS", "my-secret-key")
    with pytest.raises(ConfigError, match="64 hexadecimal digits") as caught:
        read_settings()
    assert "my-secret" not in str(caught.value)


@pytest.mark.parametrize(("workers", "total", "share"), [(1, 32, 32), (3, 32, 11), (64, 32, 1), (2, 0, 0)])
def test_what_is_divided_among_workers_is_rounded_up(tmp_path: Path, workers: int, total: int, share: int) -> None:
    assert Settings(bundle=tmp_path, workers=workers).share(total) == share


def test_each_setting_is_explained_and_in_the_documentation() -> None:
    page = (ROOT / "docs" / "service.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`MASKSERVE_{name.upper()}`" in page, name
