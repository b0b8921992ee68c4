"""The files in deploy/, checked against the schemas of Kubernetes and Compose and against the service's settings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from models.outputs.runs import MAX_RUNS
from service.app import PROBE_PATHS
from service.segmentation import STARTUP_WAIT_SECONDS
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSIONS = ("1.29.1", "1.33.0", "1.37.0")
TEMPLATE = (DEPLOY / "image" / "Dockerfile.template").read_text()


def load_kustomization(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((KUBERNETES / name / "kustomization.yaml").read_text()))


def render_overlay(name: str, *components: str) -> dict[str, Any]:
    """The manifests of an overlay by kind, with its patches. Does not use kustomize, which CI does not have."""
    kustomization, manifests = load_kustomization(name), {}
    for entry in kustomization["resources"]:
        path = KUBERNETES / name / entry
        if path.is_dir():
            manifests |= render_overlay(str(path.resolve().relative_to(KUBERNETES)))
        else:
            manifest = yaml.safe_load(path.read_text())
            manifests[manifest["kind"]] = manifest
    for secret in kustomization.get("secretGenerator", []):
        manifests["Secret"] = render_secret(KUBERNETES / name, **secret)
    for component in components:
        manifests |= render_overlay(component) if "resources" in load_kustomization(component) else {}
    patches = [(name, patch) for name in (name, *components) for patch in load_kustomization(name).get("patches", [])]
    for folder, patch in patches:
        target = manifests.get(patch["target"]["kind"])
        if target is None:  # it is in the base, which the overlay adds later
            continue
        assert target["metadata"]["name"] == patch["target"]["name"]
        for step in yaml.safe_load((KUBERNETES / folder / patch["path"]).read_text()):
            apply_patch(target, **step)
    return manifests


def render_secret(folder: Path, name: str, namespace: str, envs: list[str]) -> dict[str, Any]:
    """The Secret. kustomize would append a hash to its name, here and in references to it."""
    lines = [line for env in envs for line in (folder / env).read_text().splitlines() if line and line[0] != "#"]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": dict(line.split("=", 1) for line in lines),
    }


def apply_patch(manifest: Any, op: str, path: str, value: Any) -> None:
    """Apply one operation, `add` or `replace`, of a JSON patch (RFC 6902)."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    for part in parents:
        manifest = manifest[int(part)] if isinstance(manifest, list) else manifest[part]
    if last == "-":
        assert op == "add"
        manifest.append(value)
    else:
        assert (last in manifest) == (op == "replace"), path
        manifest[last] = value


OVERLAYS = {
    "cpu": ("overlays/cpu",),
    "gpu": ("overlays/gpu",),
    "cpu, bundle on a volume": ("overlays/cpu", "components/volume"),
}


def find_container(manifests: dict[str, Any]) -> dict[str, Any]:
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def container_environment(manifests: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in find_container(manifests)["env"]}


@pytest.mark.parametrize("release", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_matches_the_schema(overlay: str, release: str) -> None:
    manifests = render_overlay(*OVERLAYS[overlay])
    assert len(manifests) >= 7
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, release, strict=True)


def test_a_typing_error_does_not_match_the_schema() -> None:
    manifests = render_overlay("overlays/cpu")
    find_container(manifests)["readinessProbe"]["httpGet"]["pfad"] = "/readyz"
    with pytest.raises(kubernetes_validate.ValidationError, match="pfad"):
        kubernetes_validate.validate(manifests["Deployment"], KUBERNETES_VERSIONS[-1], strict=True)
    with pytest.raises(BaseException, match="read_onyl"):
        PyCompose.from_yaml(load_compose("compose.yaml").replace("read_only", "read_onyl"))


def test_every_file_belongs_to_a_kustomization() -> None:
    referenced = set()
    for file in KUBERNETES.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(file.read_text())
        paths = [*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))]
        assert all((file.parent / path).exists() for path in paths), file
        paths += [env for secret in kustomization.get("secretGenerator", []) for env in secret["envs"]]
        referenced |= {(file.parent / path).resolve() for path in paths} | {file}
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} <= referenced


def manifest_texts() -> Iterator[tuple[Path, str]]:
    for file in sorted(DEPLOY.rglob("*")):
        if file.is_file():
            yield file, file.read_text()
    yield ROOT / "docs" / "deploy.md", (ROOT / "docs" / "deploy.md").read_text()


def test_every_setting_exists() -> None:
    known = {f"MASKSERVE_{name.upper()}" for name in Settings.model_fields}
    named = {(file.name, name) for file, text in manifest_texts() for name in re.findall(r"MASKSERVE_[A-Z_]+", text)}
    assert len({name for _, name in named}) > 5
    service_links = {"MASKSERVE_PORT"}  # set by Kubernetes, in a comment
    assert not [(file, name) for file, name in named if name not in known | service_links]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_are_valid(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in container_environment(render_overlay(*OVERLAYS[overlay])).items():
        monkeypatch.setenv(name, value)
    settings = Settings.model_validate({"bundle": Path("/bundle")})
    assert settings.threads == 2 and settings.queue == 16


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_threads_equal_the_cores_of_the_container(overlay: str) -> None:
    manifests = render_overlay(*OVERLAYS[overlay])
    resources = find_container(manifests)["resources"]
    threads = container_environment(manifests)["MASKSERVE_THREADS"]
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"] == threads


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_use_paths_without_a_key(overlay: str) -> None:
    container = find_container(render_overlay(*OVERLAYS[overlay]))
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}
    assert set(paths.values()) <= set(PROBE_PATHS)
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > STARTUP_WAIT_SECONDS


DRAIN_SECONDS = int(re.search(r'"--timeout-graceful-shutdown", "(\d+)"', TEMPLATE)[1])  # type: ignore[index]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stop_waits_for_accepted_requests(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = render_overlay(*OVERLAYS[overlay])
    for name, value in container_environment(manifests).items():
        monkeypatch.setenv(name, value)
    assert Settings.model_validate({"bundle": Path("/bundle")}).stop_seconds <= DRAIN_SECONDS
    pre_stop = int(find_container(manifests)["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert (
        manifests["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > pre_stop + DRAIN_SECONDS
    )
    grace = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["maskserve"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > DRAIN_SECONDS


DECODE_BYTES_PER_PIXEL = 22  # at the peak; benchmarks/results/hostile.json
BYTES_PER_RUN = 150  # of the JSON that lists runs, measured once
UNITS_IN_GIB = {"Mi": 2**-10, "Gi": 1.0}


def parse_gib(text: str) -> float:
    return int(text[:-2]) * UNITS_IN_GIB[text[-2:]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_memory_and_disk_suffice_for_the_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = render_overlay(*OVERLAYS[overlay])
    for name, value in container_environment(manifests).items():
        monkeypatch.setenv(name, value)
    settings = Settings.model_validate({"bundle": Path("/bundle")})
    cores = settings.threads
    bodies = (settings.queue + settings.max_uploads + 1 + cores) * settings.max_body_bytes
    images = (1 + cores) * settings.max_pixels * 8  # RGB, a label, a float32 of confidence
    images += cores * (settings.max_pixels * DECODE_BYTES_PER_PIXEL + MAX_RUNS * BYTES_PER_RUN)
    resources = find_container(manifests)["resources"]
    assert (
        parse_gib(resources["limits"]["memory"]) * 2**30 > bodies + images + 300e6 + 600e6
    )  # Python, an FCN-ResNet-50
    (tmp,) = (v for v in manifests["Deployment"]["spec"]["template"]["spec"]["volumes"] if v["name"] == "tmp")
    assert parse_gib(tmp["emptyDir"]["sizeLimit"]) < parse_gib(
        resources["limits"]["ephemeral-storage"]
    )  # which includes the logs
    for kind, amount in resources["requests"].items():
        assert kind == "cpu" or parse_gib(amount) <= parse_gib(resources["limits"][kind])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_number_of_pods_has_limits(overlay: str) -> None:
    pods = render_overlay(*OVERLAYS[overlay])["HorizontalPodAutoscaler"]["spec"]
    assert 1 <= pods["minReplicas"] <= pods["maxReplicas"]


def test_user_and_port_equal_the_images() -> None:
    user, port = re.search(r"^USER (\d+):\1$", TEMPLATE, re.M), re.search(r"^EXPOSE (\d+)$", TEMPLATE, re.M)
    pod = render_overlay("overlays/cpu")["Deployment"]["spec"]["template"]["spec"]
    assert user and pod["securityContext"]["runAsUser"] == int(user[1])
    assert port and pod["containers"][0]["ports"] == [{"name": "http", "containerPort": int(port[1])}]


def test_outgoing_traffic_is_forbidden() -> None:
    policy = render_overlay("overlays/cpu")["NetworkPolicy"]["spec"]
    assert policy["egress"] == [] and set(policy["policyTypes"]) == {"Ingress", "Egress"}


def load_compose(name: str) -> str:
    """A compose file with its variables replaced, by their defaults if they have one."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / name).read_text())
    return re.sub(r"\$\{IMAGE:[^}]*\}", "maskserve:1", text)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_match_the_schema(name: str) -> None:
    assert PyCompose.from_yaml(load_compose(name)).service_names() == ["maskserve"]


def test_compose_has_as_many_cores_as_threads() -> None:
    service = yaml.safe_load(load_compose("compose.yaml"))["services"]["maskserve"]
    assert float(service["environment"]["MASKSERVE_THREADS"]) == service["cpus"]
