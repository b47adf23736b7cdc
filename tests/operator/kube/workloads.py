"""The controllers of Deployments and ReplicaSets, and a scheduler, as far as rolling updates and the choice of whom to end go.

Written after the documentation of Kubernetes: RollingUpdate with whole numbers; a ReplicaSet ends first pods without a node, then
those that are not ready, then the lowest deletion cost, then the younger.
"""

import asyncio
import hashlib
import json
import time
from typing import Any

from tests.operator.kube.http import is_ready
from tests.operator.kube.store import BY_KIND, Failure, Object, Store, labelled, owned_by

COST = "controller.kubernetes.io/pod-deletion-cost"
ZONE = "topology.kubernetes.io/zone"
_HASH = "pod-template-hash"
_BY = "kube-controller-manager"
_REST_S = 0.02


class Workloads:
    """Runs the controllers over a store, whenever something has changed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.nodes: dict[str, str] = {"node-a": "zone-a", "node-b": "zone-b", "node-c": "zone-c"}
        """Nodes that take pods, with their zones."""
        self._ready_since: dict[str, float] = {}
        self._progressed: dict[str, tuple[object, float]] = {}

    async def run(self) -> None:
        while True:
            changed = self.store.changed
            for deployment in self.store.all("Deployment"):
                self._deployment(deployment)
            for replica_set in self.store.all("ReplicaSet"):
                self._replica_set(replica_set)
            for pod in self.store.all("Pod", where=lambda each: not each["spec"].get("nodeName")):
                self._schedule(pod)
            try:
                async with asyncio.timeout(0.1):  # pods become available by the mere passing of time
                    await changed.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(_REST_S)

    # ---- Deployments

    def _deployment(self, deployment: Object) -> None:
        if "deletionTimestamp" in deployment["metadata"]:
            return
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = spec["template"]
        number = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        sets = owned_by(metadata["uid"], self.store.all("ReplicaSet", metadata["namespace"]))
        new = next((each for each in sets if each["metadata"]["labels"][_HASH] == number), None)
        if new is None:
            new = self._new_set(deployment, number)
            sets.append(new)
        old = [each for each in sets if each["metadata"]["uid"] != new["metadata"]["uid"]]
        self._roll(deployment, new, old)
        self._deployment_status(deployment, new["metadata"]["uid"])

    def _new_set(self, deployment: Object, number: str) -> Object:
        metadata, spec = deployment["metadata"], deployment["spec"]
        owner = {
            "apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"], "controller": True,
        }  # fmt: skip
        labels = {**spec["template"]["metadata"]["labels"], _HASH: number}
        template = {**spec["template"], "metadata": {**spec["template"]["metadata"], "labels": labels}}
        body: Object = {
            "metadata": {"name": f"{metadata['name']}-{number}", "labels": labels, "ownerReferences": [owner]},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template, "minReadySeconds": spec["minReadySeconds"]},
        }
        return self.store.create(BY_KIND["ReplicaSet"], metadata["namespace"], body, manager=_BY)

    def _roll(self, deployment: Object, new: Object, old: list[Object]) -> None:
        wanted = deployment["spec"]["replicas"]
        rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate", {})
        surge, unavailable = rolling.get("maxSurge", 1), rolling.get("maxUnavailable", 0)
        of_old = sum(each["spec"]["replicas"] for each in old)
        of_new = new["spec"]["replicas"]
        if of_new > wanted:
            self._set_replicas(new, wanted)
            return
        total = of_old + of_new
        if of_new < wanted and (add := min(wanted - of_new, wanted + surge - total)) > 0:
            self._set_replicas(new, of_new + add)
            return
        available = sum(self._available(pod, deployment) for each in [new, *old] for pod in self._living(each))
        unavailable_new = of_new - sum(self._available(pod, deployment) for pod in self._living(new))
        spare = total - (wanted - unavailable) - unavailable_new
        for each in old:
            replicas = each["spec"]["replicas"]
            broken = sum(not self._available(pod, deployment) for pod in self._living(each))
            spare_ready = available - (wanted - unavailable)
            fewer = min(replicas, spare, broken + max(0, spare_ready))
            if fewer > 0:
                self._set_replicas(each, replicas - fewer)
                return

    def _set_replicas(self, replica_set: Object, replicas: int) -> None:
        metadata = replica_set["metadata"]
        self.store.merge(BY_KIND["ReplicaSet"], metadata["namespace"], metadata["name"], {"spec": {"replicas": replicas}}, manager=_BY)

    def _available(self, pod: Object, deployment: Object) -> bool:
        uid = pod["metadata"]["uid"]
        if not is_ready(pod):
            self._ready_since.pop(uid, None)
            return False
        return time.monotonic() - self._ready_since.setdefault(uid, time.monotonic()) >= float(deployment["spec"]["minReadySeconds"])

    def _living(self, replica_set: Object) -> list[Object]:
        pods = self.store.all("Pod", replica_set["metadata"]["namespace"], labelled(replica_set["spec"]["selector"]["matchLabels"]))
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and _phase(pod) not in ("Failed", "Succeeded")]

    def _deployment_status(self, deployment: Object, new_uid: str) -> None:
        metadata = deployment["metadata"]
        sets = owned_by(metadata["uid"], self.store.all("ReplicaSet", metadata["namespace"]))
        pods = {each["metadata"]["uid"]: self._living(each) for each in sets}
        everything = [pod for living in pods.values() for pod in living]
        updated = pods.get(new_uid, [])
        counts = {
            "replicas": len(everything),
            "updatedReplicas": len(updated),
            "readyReplicas": sum(map(is_ready, everything)),
            "availableReplicas": sum(self._available(pod, deployment) for pod in everything),
        }
        done = counts["updatedReplicas"] == counts["replicas"] == counts["availableReplicas"] == deployment["spec"]["replicas"]
        known = self._progressed.get(metadata["uid"])
        progress = (metadata["generation"], *counts.values())
        if known is None or known[0] != progress:
            known = self._progressed[metadata["uid"]] = progress, time.monotonic()
        late = not done and time.monotonic() - known[1] > deployment["spec"]["progressDeadlineSeconds"]
        condition = {
            "type": "Progressing", "status": "False" if late else "True",
            "reason": "ProgressDeadlineExceeded" if late else "NewReplicaSetAvailable" if done else "ReplicaSetUpdated",
            "message": f'ReplicaSet of "{metadata["name"]}" has timed out progressing.' if late else "",
        }  # fmt: skip
        status = {**counts, "observedGeneration": metadata["generation"], "conditions": [condition]}
        if deployment.get("status") != status:
            current = self.store.find("Deployment", metadata["namespace"], metadata["name"])
            if current is not None:
                self.store.merge(
                    BY_KIND["Deployment"], metadata["namespace"], metadata["name"], {"status": status}, manager=_BY, subresource="status"
                )

    # ---- ReplicaSets

    def _replica_set(self, replica_set: Object) -> None:
        metadata, spec = replica_set["metadata"], replica_set["spec"]
        living = self._living(replica_set)
        for _ in range(spec["replicas"] - len(living)):
            owner = {
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": metadata["name"], "uid": metadata["uid"], "controller": True,
            }  # fmt: skip
            of_template = spec["template"]["metadata"]
            pod_metadata = {**of_template, "generateName": f"{metadata['name']}-", "ownerReferences": [owner]}
            body = {"metadata": pod_metadata, "spec": spec["template"]["spec"]}
            self.store.create(BY_KIND["Pod"], metadata["namespace"], body, manager=_BY)
        for pod in sorted(living, key=self._goes_first)[: max(0, len(living) - spec["replicas"])]:
            self.store.delete(BY_KIND["Pod"], metadata["namespace"], pod["metadata"]["name"])

    def _goes_first(self, pod: Object) -> tuple[Any, ...]:
        metadata = pod["metadata"]
        cost = int((metadata.get("annotations") or {}).get(COST, "0"))
        since = self._ready_since.get(metadata["uid"], time.monotonic())
        return bool(pod["spec"].get("nodeName")), _phase(pod) == "Running", is_ready(pod), cost, -since

    # ---- nodes

    def _schedule(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if not self.nodes:
            return
        busy = [each["spec"].get("nodeName") for each in self.store.all("Pod") if "deletionTimestamp" not in each["metadata"]]
        node = min(self.nodes, key=lambda each: (busy.count(each), each))
        try:
            # Since 1.35 the node's topology labels come with it.
            change = {"spec": {"nodeName": node}, "metadata": {"labels": {ZONE: self.nodes[node]}}}
            self.store.merge(BY_KIND["Pod"], metadata["namespace"], metadata["name"], change, manager="kube-scheduler")
        except Failure:
            return  # it is gone already


def _phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))
