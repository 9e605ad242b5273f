"""What the manifests name exists: settings, ports, probe paths, modules, files, secrets."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from libs.common.config import AccountingConfig, AdminConfig, GatewayConfig

DEPLOY: Final = Path(__file__).parent.parent.parent / "deploy"
MANIFESTS: Final = sorted((DEPLOY / "k8s").rglob("*.yaml"))
CONFIGS: Final[dict[str, Any]] = {
    "services.gateway": GatewayConfig,
    "services.accounting": AccountingConfig,
    "services.admin": AdminConfig,
}
DEFAULTS: Final = {
    "services.gateway": GatewayConfig().gateway_port,
    "services.accounting": AccountingConfig().accounting_port,
    "services.admin": AdminConfig(admin_token="test-admin-token").admin_port,
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def containers() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in MANIFESTS:
        for document in documents(path):
            pod = (
                document.get("spec", {}).get("template", {}).get("spec", {})
                if document["kind"] != "Kustomization"
                else {}
            )
            found += [(document["kind"], container) for container in pod.get("containers", [])]
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kustomizations_name_what_is_there(path: Path) -> None:
    for document in documents(path):
        if document["kind"] == "Kustomization":
            for resource in document["resources"]:
                assert (path.parent / resource).exists(), resource


def test_every_file_of_the_base_is_named() -> None:
    (base,) = documents(DEPLOY / "k8s" / "base" / "kustomization.yaml")
    there = {path.name for path in (DEPLOY / "k8s" / "base").iterdir()} - {"kustomization.yaml"}
    assert set(base["resources"]) == there


def test_containers_start_a_service_with_its_own_settings() -> None:
    (settings,) = documents(DEPLOY / "k8s" / "base" / "settings.yaml")
    started = set()
    for kind, container in containers():
        module = container["args"][0]
        started.add(module)
        assert find_spec(f"{module}.__main__") is not None
        config = CONFIGS[module]
        for variable in container.get("env", []):
            assert variable["name"].removeprefix("RELAY_").lower() in config.__struct_fields__, variable["name"]
        if kind == "Deployment":
            (port,) = container["ports"]
            assert port["containerPort"] == DEFAULTS[module]
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert started == set(CONFIGS)
    known = {name for config in CONFIGS.values() for name in config.__struct_fields__}
    assert {name.removeprefix("RELAY_").lower() for name in settings["data"]} <= known


def test_secrets_are_the_ones_that_are_documented() -> None:
    header = (DEPLOY / "k8s" / "base" / "settings.yaml").read_text()
    for _, container in containers():
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                assert reference["name"] == "relay-secrets"
                assert f"#   {reference['key']} " in header


def test_containers_may_do_nothing_more_than_they_need() -> None:
    for _, container in containers():
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"]
        assert not rights["allowPrivilegeEscalation"]
        assert rights["capabilities"] == {"drop": ["ALL"]}


def test_streams_may_run_to_their_end_before_the_pod_is_killed() -> None:
    deployment = documents(DEPLOY / "k8s" / "base" / "gateway.yaml")[0]
    pod = deployment["spec"]["template"]["spec"]
    (seconds,) = [int(one["value"]) for one in pod["containers"][0]["env"] if one["name"] == "RELAY_SHUTDOWN_SECONDS"]
    assert pod["terminationGracePeriodSeconds"] > 2 * seconds


def test_the_image_installs_what_is_locked() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert "--require-hashes" in text
    for name in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        for source in name.split():
            assert (DEPLOY.parent / source).exists(), source


def test_no_service_of_the_cluster_sets_our_settings() -> None:
    """A Service named relay-gateway would put RELAY_GATEWAY_PORT=tcp://… into every pod."""
    for path in MANIFESTS:
        for document in documents(path):
            pod = document.get("spec", {}).get("template", {}).get("spec")
            assert pod is None or pod["enableServiceLinks"] is False
