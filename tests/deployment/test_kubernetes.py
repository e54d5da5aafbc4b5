"""The manifests against Kubernetes' published schemas, and against what the service needs of them. No cluster is asked."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.http.server import FLUSH_S
from service.settings import Settings

DIRECTORY = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.34", "1.37")
OWN_SCHEMA = ("Deployment", "NetworkPolicy", "Service", "Namespace")
"""Kustomization is a file of kubectl's, ScaledObject one of KEDA's: neither is in Kubernetes' schemas."""


def manifest(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("deployment")["spec"]["template"]["spec"]
    return spec


def test_every_manifest_is_applied() -> None:
    files = {path.name for path in DIRECTORY.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(manifest("kustomization")["resources"]) == files
    (image,) = manifest("kustomization")["images"]
    assert image["newTag"] == version("folio")


@pytest.mark.parametrize("name", ["deployment", "networkpolicy", "service", "namespace"])
@pytest.mark.parametrize("version", VERSIONS)
def test_published_schemas(name: str, version: str) -> None:
    """Strictly: a field that the schema does not know is an error."""
    assert manifest(name)["kind"] in OWN_SCHEMA
    kubernetes_validate.validate(manifest(name), version, strict=True)


def test_the_schemas_would_notice() -> None:
    broken = manifest("deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_the_scaled_object_is_what_keda_takes(pod: dict[str, Any]) -> None:
    """KEDA's schema is not on the package index: what its definition of a ScaledObject and its Prometheus scaler require, by hand."""
    scaled = manifest("scaledobject")
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = scaled["spec"]
    assert spec.keys() <= {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced", "triggers"}
    assert spec["scaleTargetRef"] == {"name": manifest("deployment")["metadata"]["name"]}
    assert 0 < spec["minReplicaCount"] <= spec["maxReplicaCount"]
    behaviour = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "folio"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "folio"}, "maxReplicas": 4, "behavior": behaviour},
    }
    kubernetes_validate.validate(autoscaler, VERSIONS[-1], strict=True)  # KEDA hands it on to one
    for trigger in spec["triggers"]:
        assert trigger["type"] == "prometheus"
        assert {"serverAddress", "query", "threshold"} == trigger["metadata"].keys()
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert float(trigger["metadata"]["threshold"]) > 0
    assert "folio_num_requests_waiting" in spec["triggers"][0]["metadata"]["query"]
    assert "replicas" not in manifest("deployment")["spec"], "each apply would undo what KEDA chose"


def test_ports_labels_and_probes_fit_together(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        manifest("deployment")["spec"]["selector"]["matchLabels"],
        manifest("service")["spec"]["selector"],
        manifest("networkpolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": Settings.model_fields["port"].default}
    assert manifest("service")["spec"]["ports"][0]["targetPort"] == "http"
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert [probe["path"] for probe in probes.values()] == ["/readyz", "/readyz", "/healthz"]


def test_there_is_time_to_drain(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > before + float(environment["FOLIO_GRACE_S"]) + FLUSH_S


def test_settings_exist_and_links_do_not_overwrite_them(pod: dict[str, Any]) -> None:
    """A Service named folio would set FOLIO_PORT=tcp://… in every pod of its namespace, and the server would not start."""
    (container,) = pod["containers"]
    names = {f"FOLIO_{name.upper()}" for name in Settings.model_fields}
    assert {variable["name"] for variable in container["env"]} <= names
    assert pod["enableServiceLinks"] is False


def test_a_pod_has_no_right_that_it_does_not_need(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert manifest("namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert manifest("networkpolicy")["spec"]["egress"] == []
