"""The objects that make up a cluster, as pure functions of its spec."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tidelog_operator.observed import CHECKSUM, Cluster, Manifest, SecretSeen
from tidelog_operator.reading import written
from tidelog_operator.resource import GROUP, VERSION, ClusterSpec

LOG_PORT = 9595
HEALTH_PORT = 9596
PART_OF_GRACE_S = 30
"""What a pod has to end in, beyond the time that a drain may take."""
_USER = 10001
_ZONE = "topology.kubernetes.io/zone"
"""A label that Kubernetes copies from the node to its pods (since 1.35); where it does not, brokers know no zone."""


def selector(cluster: Cluster) -> dict[str, str]:
    """Return the labels by which a cluster's pods are found. They never change: a Deployment's selector cannot."""
    return {"app.kubernetes.io/name": "tidelog-broker", "app.kubernetes.io/instance": cluster.name}


def desired(cluster: Cluster, secrets: Mapping[str, SecretSeen], *, replicas: int) -> tuple[Manifest, ...]:
    """Return every object that a cluster should have, the Deployment last."""
    made = [_service(cluster), _headless(cluster)]
    if cluster.spec.pod_disruption_budget.enabled:
        made.append(_disruption_budget(cluster))
    return (*map(_signed, made), deployment(cluster, secrets, replicas=replicas))


def may_exist(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield kind and name of each object that this operator may have made of some spec of a cluster."""
    yield from (("Service", cluster.name), ("Service", f"{cluster.name}-brokers"), ("PodDisruptionBudget", cluster.name))
    yield "Deployment", cluster.name


def needed_secrets(spec: ClusterSpec) -> dict[str, frozenset[str]]:
    """Return the Secrets without which no broker can start, each with the keys that it must have."""
    wanted: list[tuple[str, tuple[str, ...]]] = [(spec.metadata_store.url_secret_ref.name, (spec.metadata_store.url_secret_ref.key,))]
    if spec.storage.credentials_secret_ref:
        wanted.append((spec.storage.credentials_secret_ref.name, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")))
    if spec.tls:
        wanted.append((spec.tls.secret_ref.name, ("tls.crt", "tls.key", "ca.crt")))
    if spec.tokens:
        wanted.append((spec.tokens.secret_ref.name, ("tokens.yaml", "peer-token", "operator-token")))
    return {name: frozenset(key for other, keys in wanted if other == name for key in keys) for name, _ in wanted}


def checksum(value: object) -> str:
    """Return a short checksum of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def deployment(cluster: Cluster, secrets: Mapping[str, SecretSeen], *, replicas: int) -> Manifest:
    """Return the Deployment of the brokers.

    Its template bears a checksum of itself and of the secrets that brokers read at their start, so that a change of either
    replaces the brokers: one at a time, each next one only once the new one is ready.
    """
    template = _template(cluster)
    at_start = {name: secrets[name].checksum for name in sorted(_read_at_start(cluster.spec)) if name in secrets}
    template["metadata"]["annotations"] = {CHECKSUM: checksum([template, at_start])}
    body = _object(cluster, "apps/v1", "Deployment", cluster.name)
    body["metadata"]["annotations"] = {CHECKSUM: template["metadata"]["annotations"][CHECKSUM]}
    return body | {
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector(cluster)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "minReadySeconds": 5,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 3,
            "template": template,
        },
    }


def _read_at_start(spec: ClusterSpec) -> set[str]:
    """Return the Secrets that end up in variables; TLS and token files are read again when they change."""
    refs = (spec.metadata_store.url_secret_ref, spec.storage.credentials_secret_ref, spec.tokens.secret_ref if spec.tokens else None)
    return {ref.name for ref in refs if ref}


def _object(cluster: Cluster, api_version: str, kind: str, name: str) -> dict[str, Any]:
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TidelogCluster",
        "name": cluster.name,
        "uid": cluster.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    labels = selector(cluster) | {"app.kubernetes.io/part-of": "tidelog", "app.kubernetes.io/managed-by": "tidelog-operator"}
    metadata = {"name": name, "namespace": cluster.namespace, "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _signed(manifest: dict[str, Any]) -> Manifest:
    return manifest | {"metadata": manifest["metadata"] | {"annotations": {CHECKSUM: checksum(manifest)}}}


def _service(cluster: Cluster) -> dict[str, Any]:
    """One address that reaches any broker which takes appends."""
    ports = [{"name": "grpc", "port": LOG_PORT, "targetPort": "grpc", "appProtocol": "kubernetes.io/h2c"}]
    if cluster.spec.tls:
        ports[0]["appProtocol"] = "grpcs"
    spec = {"type": "ClusterIP", "selector": selector(cluster), "ports": ports}
    return _object(cluster, "v1", "Service", cluster.name) | {"spec": spec}


def _headless(cluster: Cluster) -> dict[str, Any]:
    """Every broker by itself, those that are not ready included: for scrapes, and for the operator."""
    ports = [
        {"name": "grpc", "port": LOG_PORT, "targetPort": "grpc"},
        {"name": "metrics", "port": HEALTH_PORT, "targetPort": "metrics"},
    ]
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(cluster), "ports": ports}
    body = _object(cluster, "v1", "Service", f"{cluster.name}-brokers") | {"spec": spec}
    body["metadata"]["labels"]["app.kubernetes.io/component"] = "brokers"
    return body


def _disruption_budget(cluster: Cluster) -> dict[str, Any]:
    """What empties nodes takes so many brokers at once and no more; one that is not ready anyway does not stand in its way."""
    spec = {
        "maxUnavailable": cluster.spec.pod_disruption_budget.max_unavailable,
        "selector": {"matchLabels": selector(cluster)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return _object(cluster, "policy/v1", "PodDisruptionBudget", cluster.name) | {"spec": spec}


def grace_s(spec: ClusterSpec) -> int:
    """Return how long a pod has to end: a drain, begun by SIGTERM, and something to spare."""
    return spec.drain.propagation_seconds + spec.drain.timeout_seconds + PART_OF_GRACE_S


def _template(cluster: Cluster) -> dict[str, Any]:
    spec = cluster.spec
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": grace_s(spec),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [_spread(cluster, key) for key in (_ZONE, "kubernetes.io/hostname")],
        "containers": [_container(cluster)],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *_volumes(spec)],
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [written(each) for each in spec.image_pull_secrets]
    if spec.service_account_name:
        pod["serviceAccountName"] = spec.service_account_name
    labels = selector(cluster) | {"app.kubernetes.io/part-of": "tidelog"}
    return {"metadata": {"labels": labels}, "spec": pod}


def _spread(cluster: Cluster, key: str) -> dict[str, Any]:
    return {
        "topologyKey": key,
        "maxSkew": cluster.spec.topology_spread.max_skew,
        "whenUnsatisfiable": cluster.spec.topology_spread.when_unsatisfiable,
        "labelSelector": {"matchLabels": selector(cluster)},
        "matchLabelKeys": ["pod-template-hash"],
    }


def _container(cluster: Cluster) -> dict[str, Any]:
    spec = cluster.spec

    def probe(path: str, *, every_s: int, failures: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": "metrics"}, "periodSeconds": every_s, "timeoutSeconds": 2, "failureThreshold": failures}

    mounts = [{"name": each["name"], "mountPath": f"/etc/tidelog/{each['name']}", "readOnly": True} for each in _volumes(spec)]
    return {
        "name": "broker",
        "image": spec.image,
        "args": ["broker"],
        "env": _variables(cluster),
        "ports": [{"name": "grpc", "containerPort": LOG_PORT}, {"name": "metrics", "containerPort": HEALTH_PORT}],
        "startupProbe": probe("/livez", every_s=2, failures=150),
        "livenessProbe": probe("/livez", every_s=10, failures=6),
        "readinessProbe": probe("/readyz", every_s=2, failures=2),
        "resources": {name: amounts for name, amounts in written(spec.resources).items() if amounts},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # What a broker says before it ends is what the operator shows in a condition.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts],  # noqa: S108  # the container's own
    }


def _variables(cluster: Cluster) -> list[dict[str, Any]]:
    spec = cluster.spec
    storage, tls = spec.storage, spec.tls
    settings: dict[str, Any] = {
        "listen": f"0.0.0.0:{LOG_PORT}",
        "metrics_listen": f"0.0.0.0:{HEALTH_PORT}",
        "advertise": f"$(POD_IP):{LOG_PORT}",
        "bucket": "s3://" + "/".join(part for part in (storage.bucket, storage.prefix) if part),
        "s3_region": storage.region,
        "s3_endpoint_url": storage.endpoint,
        "drain_propagation_ms": str(spec.drain.propagation_seconds * 1000),
        # What a broker calls its drain's time-out begins with the propagation.
        "drain_timeout_ms": str((spec.drain.propagation_seconds + spec.drain.timeout_seconds) * 1000),
        "insecure": "false" if tls and (spec.tokens or tls.client_certificates) else "true",
    }
    if tls:
        files = {"certificate": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
        settings |= {f"tls_{use}_file": f"/etc/tidelog/tls/{name}" for use, name in files.items()}
        # Brokers call each other by pods' addresses, which no certificate bears.
        settings["tls_peer_name"] = f"{cluster.name}.{cluster.namespace}.svc"
        if tls.client_certificates:
            settings["tls_client_ca_file"] = "/etc/tidelog/tls/ca.crt"
    if spec.tokens:
        settings["tokens_file"] = "/etc/tidelog/tokens/tokens.yaml"
    from_pod = {"POD_IP": "status.podIP", "TIDELOG_BROKER_ID": "metadata.name", "TIDELOG_ZONE": f"metadata.labels['{_ZONE}']"}
    from_secrets = {"TIDELOG_METADATA": (spec.metadata_store.url_secret_ref.name, spec.metadata_store.url_secret_ref.key)}
    if storage.credentials_secret_ref:
        from_secrets |= {name: (storage.credentials_secret_ref.name, name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    if spec.tokens:
        from_secrets["TIDELOG_PEER_TOKEN"] = (spec.tokens.secret_ref.name, "peer-token")
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in from_pod.items()),
        *({"name": name, "valueFrom": {"secretKeyRef": {"name": of, "key": key}}} for name, (of, key) in from_secrets.items()),
        *({"name": f"TIDELOG_{name.upper()}", "value": value} for name, value in sorted((spec.config | settings).items())),
    ]


def _volumes(spec: ClusterSpec) -> list[dict[str, Any]]:
    named = {"tls": spec.tls.secret_ref.name if spec.tls else None, "tokens": spec.tokens.secret_ref.name if spec.tokens else None}
    return [{"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}} for name, secret in named.items() if secret]
