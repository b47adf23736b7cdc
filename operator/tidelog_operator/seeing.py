"""What the API server has, as the plan looks at it: pure, and forgiving, for others write these objects, too."""

import hashlib
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from tidelog_operator.observed import CHECKSUM, DELETION_COST, STATE, Cluster, Deployment, Manifest, Notes, Pod, SecretSeen
from tidelog_operator.reading import Unreadable, read
from tidelog_operator.resource import ClusterSpec, ClusterStatus, TopicSpec, TopicStatus
from tidelog_operator.topics import Topic

FINALIZER = "tidelog.io/topic"
"""Keeps a TidelogTopic's object until its topic is deleted, where that is asked for."""
ZONE = "topology.kubernetes.io/zone"
_STARTS = ("ContainerCreating", "PodInitializing")
_MOST_WORDS = 300


def cluster_of(manifest: Manifest) -> Cluster:
    """Return a TidelogCluster. Raises Unreadable."""
    metadata = manifest["metadata"]
    return Cluster(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=read(ClusterSpec, manifest.get("spec")),
        status=cluster_status_of(manifest),
        deleted="deletionTimestamp" in metadata,
    )


def cluster_status_of(manifest: Manifest) -> ClusterStatus:
    """Return its status; what cannot be read is as if there were none."""
    try:
        return read(ClusterStatus, manifest.get("status") or {}, "status")
    except Unreadable:
        return ClusterStatus()


def topic_of(manifest: Manifest) -> Topic:
    """Return a TidelogTopic. Raises Unreadable."""
    metadata = manifest["metadata"]
    return Topic(
        name=metadata["name"],
        generation=metadata.get("generation", 0),
        spec=read(TopicSpec, manifest.get("spec")),
        status=topic_status_of(manifest),
        deleted="deletionTimestamp" in metadata,
        finalizer=FINALIZER in (metadata.get("finalizers") or ()),
    )


def topic_status_of(manifest: Manifest) -> TopicStatus:
    """Return its status. One that cannot be read is not as if there were none: the topic's id would be forgotten. Raises Unreadable."""
    return read(TopicStatus, manifest.get("status") or {}, "status")


def deployment_of(manifest: Manifest) -> Deployment:
    """Return the Deployment of a cluster."""
    metadata, spec, status = manifest["metadata"], manifest["spec"], manifest.get("status") or {}
    stuck = next(
        (
            str(each.get("message") or each.get("reason"))
            for each in status.get("conditions") or ()
            if each["type"] == "Progressing" and each["status"] == "False"
        ),
        "",
    )
    return Deployment(
        resource_version=metadata["resourceVersion"],
        generation=metadata.get("generation", 0),
        observed_generation=status.get("observedGeneration", 0),
        replicas=spec.get("replicas", 1),
        checksum=_annotations(spec["template"]["metadata"]).get(CHECKSUM, ""),
        notes=Notes.of_text(_annotations(metadata).get(STATE, "")),
        stuck=stuck,
    )


def pod_of(manifest: Manifest) -> Pod:
    """Return a pod of it."""
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    cost = _annotations(metadata).get(DELETION_COST, "0")
    return Pod(
        name=metadata["name"],
        ready=any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ()),
        checksum=_annotations(metadata).get(CHECKSUM, ""),
        phase=str(status.get("phase", "Pending")),
        terminating="deletionTimestamp" in metadata,
        zone=(metadata.get("labels") or {}).get(ZONE, ""),
        deletion_cost=int(cost) if cost.removeprefix("-").isdecimal() else 0,
        problem=_problem(status),
    )


def finished(manifest: Manifest) -> bool:
    """Say whether a pod has ended for good, as evicted ones do whose objects stay: it counts no more."""
    return (manifest.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def reached_at(manifest: Manifest) -> str:
    """Return the address of a pod in which something runs; empty: nothing does."""
    status = manifest.get("status") or {}
    return str(status.get("podIP") or "") if status.get("phase") == "Running" else ""


def _problem(status: Mapping[str, Any]) -> str:
    for each in status.get("conditions") or ():
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return f"it has no node: {each.get('message') or each.get('reason')}; add nodes, or lower spec.resources.requests"
    for container in status.get("containerStatuses") or ():
        waiting: Mapping[str, Any] = (container.get("state") or {}).get("waiting") or {}
        last = (container.get("lastState") or {}).get("terminated")
        ended: Mapping[str, Any] = (container.get("state") or {}).get("terminated") or last or {}
        reason = waiting.get("reason", "")
        if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
            said = f": {waiting['message']}" if waiting.get("message") else ""
            return f"its image {container.get('image')} cannot be had ({reason}{said}); mend spec.image, or spec.imagePullSecrets"
        if ended and ended.get("exitCode") != 0 and not container.get("ready"):
            how = f"{ended.get('exitCode')}" + (f" ({ended['reason']})" if ended.get("reason", "Error") != "Error" else "")
            return f"its broker ended with exit code {how}; its last words: {_last_words(ended.get('message') or '')}"
        if waiting and reason not in _STARTS:
            said = waiting.get("message") or "no more is said"
            return f"it waits: {reason}: {said}"
    return ""


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1][-_MOST_WORDS:] if lines else "none") or "none"


def secret_of(manifest: Manifest) -> SecretSeen:
    """Return what may be known of a Secret."""
    data = manifest.get("data") or {}
    text = "\n".join(f"{key}={value}" for key, value in sorted(data.items()))
    return SecretSeen(keys=frozenset(data), checksum=hashlib.sha256(text.encode()).hexdigest()[:16])


def secret_values(manifest: Manifest) -> dict[str, bytes]:
    """Return what is in a Secret."""
    return {key: b64decode(value) for key, value in (manifest.get("data") or {}).items()}


def _annotations(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    return metadata.get("annotations") or {}
