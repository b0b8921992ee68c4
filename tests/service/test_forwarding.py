"""Allowed hosts, the path prefix of a proxy, trusted proxies."""

import json
from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from models.errors import ConfigError
from service.errors import ForbiddenHostError
from service.forwarding import check_host, host_name, is_trusted_proxy
from service.settings import read_settings
from tests.service.in_process import start_app
from tests.service.test_app import check_problem


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Example.org:3000", "example.org"),
        ("example.org.", "example.org"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]:3000", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("a:", "a"),
    ],
)
def test_name_in_a_host_header(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "example.org", "127.0.0.1.evil.example", "", "a@localhost"]
)
def test_other_hosts_are_rejected(host: str) -> None:
    with pytest.raises(ForbiddenHostError, match="MASKSERVE_ALLOWED_HOSTS"):
        check_host(Headers({"host": host}), ("localhost", "127.0.0.1", "::1", "*.example.org"))


@pytest.mark.parametrize("host", ["LOCALHOST:3000", "a.example.org", "a.b.example.org:1", "[::1]:3000"])
def test_allowed_hosts(host: str) -> None:
    check_host(Headers({"host": host}), ("*.example.org",))  # the loopback's own names need no setting
    check_host(Headers({"host": host}), ("*",))
    check_host(Headers({}), ("localhost",))  # HTTP/1.0


def test_trusted_proxies() -> None:
    assert is_trusted_proxy("10.1.2.3", ("127.0.0.1", "10.0.0.0/8")) and is_trusted_proxy(
        "::ffff:10.1.2.3", ("10.0.0.0/8",)
    )
    assert is_trusted_proxy("anything", ("*",))
    assert not is_trusted_proxy("11.1.2.3", ("10.0.0.0/8", "::1")) and not is_trusted_proxy("", ("127.0.0.1",))


def test_page_of_another_name_reads_nothing(small_bundle: Path) -> None:
    with start_app(small_bundle, allowed_hosts=("service",)) as http:
        assert http.get("/v1/models").status_code == 200
        for path in ("/", "/v1/models", "/v1/docs", "/v1/openapi.json", "/metrics"):
            response = http.get(path, headers={"Host": "evil.example:80"})
            check_problem(response, 403, "'evil.example:80'", "MASKSERVE_ALLOWED_HOSTS", "service")
        check_problem(http.post("/v1/segment", content=b"x", headers={"Host": "evil.example"}), 403)
        assert http.get("/readyz", headers={"Host": "10.0.0.7:3000"}).status_code == 200  # a probe asks by address


@pytest.fixture(scope="module")
def below_a_path(small_bundle: Path) -> TestClient:
    with start_app(small_bundle, root_path="/tools/x", trusted_proxies=("*",)) as http:
        yield http


def test_service_below_the_root_path(below_a_path: TestClient) -> None:
    for prefix in ("/tools/x", ""):
        for path in (
            "/",
            "/v1/models",
            "/v1/docs",
            "/v1/openapi.json",
            "/readyz",
            "/static/main.js",
            "/v1/models/small",
        ):
            assert below_a_path.get(prefix + path).status_code == 200, prefix + path
        check_problem(below_a_path.get(f"{prefix}/nothing"), 404)
    check_problem(below_a_path.get("/tools/xy/v1/models"), 404)
    redirect = below_a_path.get("/tools/x", follow_redirects=False)
    assert (redirect.status_code, redirect.headers["location"]) == (308, "/tools/x/")


def test_servers_of_the_schema_are_below_the_prefix(below_a_path: TestClient, small_bundle: Path) -> None:
    def servers(http: TestClient, prefix: str) -> str:
        document = http.get("/v1/openapi.json", headers={"X-Forwarded-Prefix": prefix} if prefix else {})
        return json.loads(document.content)["servers"][0]["url"]

    assert servers(below_a_path, "") == "/tools/x/v1"
    assert servers(below_a_path, "/outer/") == "/outer/v1"
    for invalid in ("//evil.example", "https://evil.example", "/a/../\\b", "no-slash", '/"'):
        assert servers(below_a_path, invalid) == "/tools/x/v1"
    with start_app(small_bundle) as http:  # whose caller is not at an address of a trusted proxy
        assert servers(http, "") == servers(http, "/outer") == "../v1"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("root_path", "tools", "such as /tools/maskserve"),
        ("root_path", "//evil.example", "such as /tools/maskserve"),
        ("allowed_hosts", "https://a.org", "not a host"),
        ("allowed_hosts", "a.org:80", "without port"),
        ("trusted_proxies", "proxy", "10.0.0.0/8"),
    ],
)
def test_invalid_settings(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv("MASKSERVE_BUNDLE", ".")
    monkeypatch.setenv(f"MASKSERVE_{name.upper()}", value)
    with pytest.raises(ConfigError, match=words):
        read_settings()


def test_values_are_normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_BUNDLE", ".")
    monkeypatch.setenv("MASKSERVE_ALLOWED_HOSTS", "A.org, [::1], *.b.org")
    monkeypatch.setenv("MASKSERVE_ROOT_PATH", "/tools/x/")
    settings = read_settings()
    assert (settings.allowed_hosts, settings.root_path) == (("a.org", "::1", "*.b.org"), "/tools/x")
