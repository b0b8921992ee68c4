"""The settings: each is read from the environment; an unknown or invalid one prevents the start."""

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
    ("name", "value", "expected"),
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
def test_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: object) -> None:
    monkeypatch.setenv(f"MASKSERVE_{name.upper()}", value)
    assert getattr(read_settings(), name) == expected


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("queue", "-1", "Invalid value '-1' for MASKSERVE_QUEUE"),
        ("queue", "many", "Invalid value 'many' for MASKSERVE_QUEUE"),
        ("queue_seconds", "nan", "MASKSERVE_QUEUE_SECONDS"),
        ("timeout_seconds", "inf", "MASKSERVE_TIMEOUT_SECONDS"),
        ("workers", "0", "MASKSERVE_WORKERS"),
        ("engine", "tensorrt", "auto, openvino, onnxruntime or torch"),
        ("cors_origins", "example.org", "not an origin"),
        ("cors_origins", "https://a.org/page", "not an origin"),
        ("max_images", "5000", "1000"),
        ("qeue", "1", "MASKSERVE_QEUE. Did you mean MASKSERVE_QUEUE?"),
        ("max_pixel", "1", "Did you mean MASKSERVE_MAX_PIXELS?"),
        ("foo", "1", "Unknown environment variable MASKSERVE_FOO. Available: MASKSERVE_BUNDLE"),
        ("bundle", "", "MASKSERVE_BUNDLE is not set"),
    ],
)
def test_invalid_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(f"MASKSERVE_{name.upper()}", value)
    with pytest.raises(ConfigError) as caught:
        read_settings()
    assert words in str(caught.value)


def test_service_links_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKSERVE_PORT_3000_TCP", "tcp://10.0.0.1:3000")
    assert read_settings().bundle == tmp_path


def test_key_instead_of_its_hash_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_API_KEYS", "my-secret-key")
    with pytest.raises(ConfigError, match="64 hexadecimal digits") as caught:
        read_settings()
    assert "my-secret" not in str(caught.value)


def test_limits_that_workers_divide_are_rounded_up(tmp_path: Path) -> None:
    for workers, total, expected in ((1, 32, 32), (3, 32, 11), (64, 32, 1), (2, 0, 0)):
        assert Settings(bundle=tmp_path, workers=workers).per_worker(total) == expected


def test_each_setting_is_described_and_documented() -> None:
    page = (ROOT / "docs" / "service.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`MASKSERVE_{name.upper()}`" in page, name
