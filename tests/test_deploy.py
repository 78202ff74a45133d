"""The image, the compose file and the Helm chart, as far as they can be checked without building or starting them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from rayapp import __version__
from rayapp.commands import server
from rayapp.config import Settings
from rayapp.protocol import Route

DEPLOY = Path(__file__).parents[1] / "deploy"
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()
CHART = DEPLOY / "helm" / "rayapp"
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
HELM = shutil.which("helm")
USER = 10001
SWITCHES = {
    "archive": {"archive": {"url": "https://pacs.example/dicom-web", "existingSecret": "pacs"}},
    "oidc": {
        "auth": {
            "firstAdmin": False,
            "oidc": {"issuer": "https://login.example", "roles": {"rayapp-admin": "admin"}, "existingSecret": "client"},
        }
    },
    "claims": {"studies": {"existingClaim": "mine"}, "workspace": {"existingClaim": "work", "storageClass": "fast"}},
    "gpu": {"gpu": {"count": 2}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    "ingress": {"ingress": {"enabled": True, "className": "nginx", "host": "labels.example", "tlsSecret": "tls"}},
    "monitoring": {"serviceMonitor": {"enabled": True, "tokenSecret": "key", "labels": {"release": "prometheus"}}},
    "budget": {"podDisruptionBudget": {"enabled": True}, "networkPolicy": {"from": [{"podSelector": {}}]}},
    "image": {"image": {"digest": "sha256:" + "0" * 64}, "imagePullSecrets": [{"name": "registry"}]},
    "flags": {"args": ["--replicas", "1:2"], "env": [{"name": "RAYAPP_LOG_FORMAT", "value": "json"}]},
}


def known(name: str) -> bool:
    """True for the environment variable of a setting."""
    fields: Any = Settings.model_fields
    for part in name.removeprefix("RAYAPP_").lower().split("__"):
        if part not in fields:
            return False
        kind = fields[part].annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    return name.startswith("RAYAPP_")


def test_only_settings_have_variables():
    assert known("RAYAPP_OIDC__ISSUER")
    assert not known("RAYAPP_OIDC__NOTHING")
    assert not known("RAYAPP_NOTHING")


def test_the_images_bases_are_pinned_and_it_runs_as_no_root():
    (pinned,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"3\.1[1-9]\.\d+-slim-\w+", pinned)
    bases = [words.split()[0] for words in re.findall(r"^FROM (.+)$", DOCKERFILE, re.MULTILINE)]
    assert set(bases) == {"python:${PYTHON}", "build"}
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == [f"{USER}:{USER}"]


def test_the_image_is_built_from_files_that_exist_and_that_the_build_is_sent():
    root = DEPLOY.parent
    sent = {line[1:] for line in (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == sent
    assert [name for name in copied if not (root / name).exists()] == []
    assert {"rayapp", "actors", "deployments", "constraints.txt"} <= copied


def test_the_images_variables_are_settings_and_its_health_check_a_route():
    names = re.findall(r"^(?:ENV| {3}) (RAYAPP_\w+)=", DOCKERFILE, re.MULTILINE)
    assert len(names) == 7
    assert [name for name in names if not known(name)] == []
    assert f"127.0.0.1:8000{Route.HEALTH}" in DOCKERFILE


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", DEPLOY / "docker" / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_pins_its_images_keeps_secrets_out_and_publishes_to_this_machine_only():
    services = COMPOSE["services"]
    assert re.search(r":-[\w./-]+:\d[\w.]*}$", services["orthanc"]["image"])
    rayapp = services["rayapp"]
    assert [name for name in rayapp["environment"] if not known(name)] == []
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    assert text.count("${ORTHANC_PASSWORD:?") == 2
    build = (DEPLOY / "compose" / rayapp["build"]["context"]).resolve()
    assert (build / rayapp["build"]["dockerfile"]).is_file()
    args = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(rayapp["build"]["args"]) <= args
    mounted = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert mounted == set(COMPOSE["volumes"])


def test_the_chart_is_of_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def test_every_value_of_the_chart_is_used_and_every_one_used_exists():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    for name in values:
        assert re.search(rf"\.Values\.{name}\b", text) or f'"{name}"' in text, name
    for path in set(re.findall(r"\.Values\.([\w.]+)", text)):
        found: Any = values
        for part in path.split("."):
            assert part in found, path
            found = found[part]


def rendered(folder: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    if HELM is None:
        pytest.skip("needs helm")
    (folder / "values.yaml").write_text(json.dumps(values))
    command = [HELM, "template", "test", CHART, "--values", folder / "values.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def pod_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("values", [{}, *SWITCHES.values()], ids=["default", *SWITCHES])
def test_the_chart_makes_one_closed_pod_of_one_server(tmp_path: Path, values: dict[str, Any]):
    objects = rendered(tmp_path, values)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)
    pod = pod_of(objects)
    assert pod["securityContext"]["runAsUser"] == USER
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted <= {each["name"] for each in pod["volumes"]}
        assert [each["name"] for each in container.get("env", []) if not known(each["name"])] == []
    (container,) = pod["containers"]
    probed = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probed == {Route.HEALTH, Route.READY}
    assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["max_answer"].default
    assert container["args"][0] == "start"
    assert hasattr(server, container["args"][0])
    claims = {each["metadata"]["name"] for each in objects if each["kind"] == "PersistentVolumeClaim"}
    used = {each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each}
    assert used - claims <= {"mine", "work"}
    assert claims <= used


def test_each_switch_does_what_it_says(tmp_path: Path):
    def kinds(name: str) -> set[str]:
        return {each["kind"] for each in rendered(tmp_path, SWITCHES[name])}

    usual = {each["kind"] for each in rendered(tmp_path, {})}
    assert usual == {"Deployment", "Service", "NetworkPolicy", "PersistentVolumeClaim"}
    assert kinds("ingress") - usual == {"Ingress"}
    assert kinds("monitoring") - usual == {"ServiceMonitor"}
    assert kinds("budget") - usual == {"PodDisruptionBudget"}
    assert usual - kinds("claims") == {"PersistentVolumeClaim"}
    pod = pod_of(rendered(tmp_path, SWITCHES["gpu"]))
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pod["tolerations"] == SWITCHES["gpu"]["tolerations"]
    pod = pod_of(rendered(tmp_path, SWITCHES["archive"]))
    assert {"name": "RAYAPP_STUDIES", "value": "https://pacs.example/dicom-web"} in pod["containers"][0]["env"]
    assert "studies" not in {each["name"] for each in pod["volumes"]}
    pod = pod_of(rendered(tmp_path, SWITCHES["oidc"]))
    env = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    assert (env["RAYAPP_AUTH"], json.loads(env["RAYAPP_OIDC__ROLES"])) == ("oidc", {"rayapp-admin": "admin"})
    assert "initContainers" not in pod
    pod = pod_of(rendered(tmp_path, SWITCHES["flags"]))
    assert pod["containers"][0]["args"] == ["start", "--replicas", "1:2"]
    pod = pod_of(rendered(tmp_path, SWITCHES["image"]))
    assert pod["containers"][0]["image"] == "rayapp@sha256:" + "0" * 64


def test_the_settings_of_the_chart_are_read_as_they_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for each in pod_of(rendered(tmp_path, SWITCHES["oidc"]))["containers"][0]["env"]:
        monkeypatch.setenv(each["name"], each.get("value", "secret"))
    settings = Settings(studies=tmp_path, workspace=tmp_path)
    assert (settings.auth, settings.oidc.issuer, settings.max_connections) == ("oidc", "https://login.example", 4000)
    assert settings.oidc.roles == {"rayapp-admin": "admin"}
    assert settings.oidc.client_secret.get_secret_value() == "secret"


@pytest.mark.skipif(HELM is None, reason="needs helm")
def test_helm_finds_nothing():
    done = subprocess.run([str(HELM), "lint", "--strict", CHART], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
