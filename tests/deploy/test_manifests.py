"""What deploy/ promises a cluster, against Kubernetes' and Compose's schemas and against the service's own settings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSIONS = ("1.29.1", "1.33.0", "1.37.0")
TEMPLATE = (DEPLOY / "image" / "Dockerfile.template").read_text()


def load_kustomization(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((KUBERNETES / name / "kustomization.yaml").read_text()))


def render_overlay(name: str, *components: str) -> dict[str, Any]:
    """The manifests of an overlay by kind, its patches applied. kustomize itself is not asked: CI has none."""
    told, found = load_kustomization(name), {}
    for entry in told["resources"]:
        path = KUBERNETES / name / entry
        if path.is_dir():
            found |= render_overlay(str(path.resolve().relative_to(KUBERNETES)))
        else:
            manifest = yaml.safe_load(path.read_text())
            found[manifest["kind"]] = manifest
    for secret in told.get("secretGenerator", []):
        found["Secret"] = render_secret(KUBERNETES / name, **secret)
    for component in components:
        found |= render_overlay(component) if "resources" in load_kustomization(component) else {}
    patches = [(name, patch) for name in (name, *components) for patch in load_kustomization(name).get("patches", [])]
    for where, patch in patches:
        target = found.get(patch["target"]["kind"])
        if target is None:  # a component's own resources are read before what it patches
            continue
        assert target["metadata"]["name"] == patch["target"]["name"]
        for step in yaml.safe_load((KUBERNETES / where / patch["path"]).read_text()):
            apply_patch(target, **step)
    return found


def render_secret(folder: Path, name: str, namespace: str, envs: list[str]) -> dict[str, Any]:
    """The Secret, under the name that it has before kustomize adds a hash to it, there and where it is referred to."""
    lines = [line for env in envs for line in (folder / env).read_text().splitlines() if line and line[0] != "#"]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": dict(line.split("=", 1) for line in lines),
    }


def apply_patch(manifest: Any, op: str, path: str, value: Any) -> None:
    """One step of a JSON patch (RFC 6902): `add` to what is there, or `replace` what is there."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    for part in parents:
        manifest = manifest[int(part)] if isinstance(manifest, list) else manifest[part]
    if last == "-":
        assert op == "add"
        manifest.append(value)
    else:
        assert (last in manifest) == (op == "replace"), path
        manifest[last] = value


def app_constant(name: str) -> Any:
    """Of service/app.py, which is not imported: BentoML warns when it is."""
    (found,) = re.findall(rf"^{name} = (.+)$", (ROOT / "service" / "app.py").read_text(), re.M)
    return ast.literal_eval(found)


OVERLAYS = {
    "cpu": ("overlays/cpu",),
    "gpu": ("overlays/gpu",),
    "cpu, bundle on a volume": ("overlays/cpu", "components/volume"),
}


def find_container(found: dict[str, Any]) -> dict[str, Any]:
    (only,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(only)


def container_environment(found: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in find_container(found)["env"]}


@pytest.mark.parametrize("release", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_fits_the_schema(overlay: str, release: str) -> None:
    found = render_overlay(*OVERLAYS[overlay])
    assert len(found) >= 7
    for manifest in found.values():
        kubernetes_validate.validate(manifest, release, strict=True)


def test_a_typing_mistake_would_be_seen() -> None:
    found = render_overlay("overlays/cpu")
    find_container(found)["readinessProbe"]["httpGet"]["pfad"] = "/readyz"
    with pytest.raises(kubernetes_validate.ValidationError, match="pfad"):
        kubernetes_validate.validate(found["Deployment"], KUBERNETES_VERSIONS[-1], strict=True)
    with pytest.raises(BaseException, match="read_onyl"):
        PyCompose.from_yaml(load_compose("compose.yaml").replace("read_only", "read_onyl"))


def test_every_file_belongs_to_a_kustomization() -> None:
    named = set()
    for file in KUBERNETES.rglob("kustomization.yaml"):
        told = yaml.safe_load(file.read_text())
        paths = [*told["resources"], *(patch["path"] for patch in told.get("patches", []))]
        assert all((file.parent / path).exists() for path in paths), file
        paths += [env for secret in told.get("secretGenerator", []) for env in secret["envs"]]
        named |= {(file.parent / path).resolve() for path in paths} | {file}
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} <= named


def manifest_texts() -> Iterator[tuple[Path, str]]:
    for file in sorted(DEPLOY.rglob("*")):
        if file.is_file():
            yield file, file.read_text()
    yield ROOT / "docs" / "deploy.md", (ROOT / "docs" / "deploy.md").read_text()


def test_every_setting_that_is_named_exists() -> None:
    known = {f"MASKSERVE_{name.upper()}" for name in Settings.model_fields}
    named = {(file.name, name) for file, text in manifest_texts() for name in re.findall(r"MASKSERVE_[A-Z_]+", text)}
    assert len({name for _, name in named}) > 5
    service_links = {"MASKSERVE_PORT"}  # Kubernetes' own, in the comment that explains why they are off
    assert not [(file, name) for file, name in named if name not in known | service_links]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_can_be_read(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in container_environment(render_overlay(*OVERLAYS[overlay])).items():
        monkeypatch.setenv(name, value)
    settings = Settings.model_validate({"bundle": Path("/bundle")})
    assert settings.threads == 2 and settings.queue == 16


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_threads_are_the_cores_that_are_granted(overlay: str) -> None:
    found = render_overlay(*OVERLAYS[overlay])
    granted = find_container(found)["resources"]
    assert granted["limits"]["cpu"] == granted["requests"]["cpu"] == container_environment(found)["MASKSERVE_THREADS"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_paths_that_need_no_key(overlay: str) -> None:
    probed = find_container(render_overlay(*OVERLAYS[overlay]))
    paths = {kind: probed[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}
    assert set(paths.values()) <= set(app_constant("PROBES"))
    startup = probed["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > app_constant("PATIENCE_SECONDS")


DRAIN_SECONDS = int(re.search(r'"--timeout-graceful-shutdown", "(\d+)"', TEMPLATE)[1])  # type: ignore[index]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stop_waits_for_all_that_was_accepted(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = render_overlay(*OVERLAYS[overlay])
    for name, value in container_environment(found).items():
        monkeypatch.setenv(name, value)
    assert Settings.model_validate({"bundle": Path("/bundle")}).stop_seconds <= DRAIN_SECONDS
    wait = int(find_container(found)["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert found["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > wait + DRAIN_SECONDS
    grace = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["maskserve"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > DRAIN_SECONDS


UNITS_IN_GIB = {"Mi": 2**-10, "Gi": 1.0}


def parse_gib(text: str) -> float:
    return int(text[:-2]) * UNITS_IN_GIB[text[-2:]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_memory_and_disk_hold_what_the_settings_let_in(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = render_overlay(*OVERLAYS[overlay])
    for name, value in container_environment(found).items():
        monkeypatch.setenv(name, value)
    settings = Settings.model_validate({"bundle": Path("/bundle")})
    cores = settings.threads
    bodies = (settings.queue + settings.max_uploads + 1 + cores) * settings.max_body_bytes
    images = (1 + cores) * settings.max_pixels * 8  # RGB, a label, a float32 of confidence
    granted = find_container(found)["resources"]
    assert parse_gib(granted["limits"]["memory"]) * 2**30 > bodies + images + 200e6 + 600e6  # Python, an FCN-ResNet-50
    (tmp,) = (v for v in found["Deployment"]["spec"]["template"]["spec"]["volumes"] if v["name"] == "tmp")
    assert parse_gib(tmp["emptyDir"]["sizeLimit"]) < parse_gib(
        granted["limits"]["ephemeral-storage"]
    )  # logs count there as well
    for kind, amount in granted["requests"].items():
        assert kind == "cpu" or parse_gib(amount) <= parse_gib(granted["limits"][kind])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_few_enough(overlay: str) -> None:
    pods = render_overlay(*OVERLAYS[overlay])["HorizontalPodAutoscaler"]["spec"]
    assert 1 <= pods["minReplicas"] <= pods["maxReplicas"]


def test_user_and_port_are_the_images() -> None:
    user, port = re.search(r"^USER (\d+):\1$", TEMPLATE, re.M), re.search(r"^EXPOSE (\d+)$", TEMPLATE, re.M)
    pod = render_overlay("overlays/cpu")["Deployment"]["spec"]["template"]["spec"]
    assert user and pod["securityContext"]["runAsUser"] == int(user[1])
    assert port and pod["containers"][0]["ports"] == [{"name": "http", "containerPort": int(port[1])}]


def test_nothing_goes_out() -> None:
    policy = render_overlay("overlays/cpu")["NetworkPolicy"]["spec"]
    assert policy["egress"] == [] and set(policy["policyTypes"]) == {"Ingress", "Egress"}


def load_compose(name: str) -> str:
    """A compose file as it is once the variables are filled in: the ones with a default by that."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / name).read_text())
    return re.sub(r"\$\{IMAGE:[^}]*\}", "maskserve:1", text)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_fit_the_schema(name: str) -> None:
    assert PyCompose.from_yaml(load_compose(name)).service_names() == ["maskserve"]


def test_compose_grants_the_threads_it_names() -> None:
    service = yaml.safe_load(load_compose("compose.yaml"))["services"]["maskserve"]
    assert float(service["environment"]["MASKSERVE_THREADS"]) == service["cpus"]
