"""A Tidelog cluster as a person has one: objects in a Kubernetes for tests, operators and brokers as processes, and real stores."""

import asyncio
import json
import os
import signal
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.cluster import Spawner, spawner
from tests.helm import rendering
from tests.operator.kube.cluster import Kubernetes, kubernetes
from tests.operator.kube.http import Right, is_ready
from tests.operator.kube.store import BY_KIND, Object

NAMESPACE = "default"
NAME = "logs"
IMAGE = "tidelog:1"


@cache
def rights() -> tuple[Right, ...]:
    """What the operator may do: what the chart's Roles say."""
    rules = [rule for each in rendering.objects() if each["kind"] == "Role" for rule in each["rules"]]
    assert rules
    return tuple(Right(group, tuple(rule["resources"]), tuple(rule["verbs"])) for rule in rules for group in rule["apiGroups"])


@dataclass
class OperatorProcess:
    """One operator."""

    identity: str
    log: Path
    pid: int = 0
    ended: "asyncio.Future[int]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def kill(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)


class Rig:
    """One Kubernetes, one namespace, one TidelogCluster."""

    def __init__(self, kube: Kubernetes, spawns: Spawner, folder: Path, spec: Object) -> None:
        self.kube = kube
        self.store = kube.store
        self.spec = spec
        self.operators: list[OperatorProcess] = []
        self._spawns = spawns
        self._folder = folder
        kube.api.rights["operator"] = rights()

    async def operator(self, **settings: Any) -> OperatorProcess:
        """Start an operator."""
        identity = f"operator-{len(self.operators)}"
        process = OperatorProcess(identity, self._folder / f"{identity}.log")
        self.operators.append(process)
        flags = {
            "namespaces": [NAMESPACE], "kubeconfig": str(self.kube.kubeconfig("operator")), "lease_namespace": NAMESPACE,
            "lease_name": "tidelog-operator", "identity": identity, "lease_s": 5.0, "resync_s": 5.0, "listen": "127.0.0.1:0",
            "log_format": "json", "log_level": "info",
        }  # fmt: skip
        process.pid, process.ended = await self._spawns.spawn(flags | settings, process.log)
        return process

    async def stop(self) -> None:
        """End all operators at once."""
        for each in self.operators:
            each.kill()
        await asyncio.gather(*(each.ended for each in self.operators))

    # ---- objects

    def create_cluster(self, **spec: Any) -> Object:
        body = {"metadata": {"name": NAME}, "spec": self.spec | spec}
        return self.store.create(BY_KIND["TidelogCluster"], NAMESPACE, body, manager="kubectl", strict=True)

    def change_cluster(self, **spec: Any) -> Object:
        return self.store.merge(BY_KIND["TidelogCluster"], NAMESPACE, NAME, {"spec": spec}, manager="kubectl", strict=True)

    def create_topic(self, name: str, **spec: Any) -> Object:
        body = {"metadata": {"name": name}, "spec": {"clusterRef": NAME} | spec}
        return self.store.create(BY_KIND["TidelogTopic"], NAMESPACE, body, manager="kubectl", strict=True)

    def topic_ready(self, name: str) -> bool:
        found = self.store.find("TidelogTopic", NAMESPACE, name) or {}
        return any(each["type"] == "Ready" and each["status"] == "True" for each in found.get("status", {}).get("conditions", ()))

    async def evict(self, pod: str) -> bool:
        """Ask for a pod's eviction, as `kubectl drain` does; say whether the disruption budget allowed it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
        async with aiohttp.ClientSession(self.kube.url) as session, session.post(path, json=body) as answer:
            assert answer.status in (201, 429), await answer.text()
            return answer.status == 201

    def create_secret(self, name: str, values: Mapping[str, str]) -> Object:
        data = {key: b64encode(value.encode()).decode() for key, value in values.items()}
        return self.store.create(BY_KIND["Secret"], NAMESPACE, {"metadata": {"name": name}, "data": data}, manager="kubectl")

    def cluster(self) -> Object:
        found = self.store.find("TidelogCluster", NAMESPACE, NAME)
        assert found is not None
        return found

    def condition(self, of: str) -> dict[str, str]:
        conditions = self.cluster().get("status", {}).get("conditions", ())
        return next((each for each in conditions if each["type"] == of), {"status": "", "reason": "", "message": ""})

    def pods(self) -> list[Object]:
        return self.store.all("Pod", NAMESPACE)

    def ready(self) -> list[Object]:
        return [pod for pod in self.pods() if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]

    def settled(self, replicas: int) -> bool:
        """Say whether there are just so many brokers, all ready, and nothing is going on."""
        status = self.cluster().get("status", {})
        done = self.condition("Progressing")["reason"] == "Complete" and self.condition("Ready")["reason"] == "AllBrokersReady"
        observed = status.get("observedGeneration") == self.cluster()["metadata"]["generation"]
        counts = (len(self.pods()), len(self.ready()), status.get("readyReplicas"), status.get("updatedReplicas"))
        return done and observed and set(counts) == {replicas}

    async def until(self, holds: Callable[[], Any], *, within_s: float, what: str = "") -> None:
        """Wait until something holds of the objects."""
        try:
            async with asyncio.timeout(within_s):
                while not holds():
                    changed = self.store.changed
                    await changed.wait()
        except TimeoutError:
            raise AssertionError(f"{what or 'what was waited for'} did not come about in {within_s} s\n{self.told()}") from None

    def events(self) -> list[tuple[str, str]]:
        return [(each["reason"], each["message"]) for each in self.store.all("Event", NAMESPACE)]

    def told(self) -> str:
        """Return what there is to be known when something went wrong."""
        status = self.cluster().get("status", {}) if self.store.find("TidelogCluster", NAMESPACE, NAME) else {}
        conditions = [f"{each['type']} {each['status']} {each['reason']}: {each['message']}" for each in status.get("conditions", ())]
        pods = [f"{pod['metadata']['name']} {json.dumps(pod.get('status', {}))[:300]}" for pod in self.pods()]
        deployment = self.store.find("Deployment", NAMESPACE, NAME) or {"metadata": {}}
        notes = str(deployment["metadata"].get("annotations"))
        words = [tail(each.log) for each in self.operators[-2:]] + [tail(each) for each in self.kube.kubelet.logs[-4:]]
        return "\n".join([*conditions, *pods, notes, *(f"refused: {each}" for each in self.kube.api.refused), *words])


def tail(log: Path, lines: int = 12) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([f"--- {log.name}", *(line[:400] for line in text.splitlines()[-lines:])])


@asynccontextmanager
async def rig(folder: Path, *, metadata: str, bucket: str, endpoint: str, **spec: Any) -> AsyncIterator[Rig]:
    """Run a Kubernetes in which a TidelogCluster may be made; its two Secrets are there."""
    async with spawner("tests.operator.spawner") as spawns:

        async def broker(variables: Mapping[str, str], log: Path) -> tuple[int, "asyncio.Future[int]"]:
            flags = {name.removeprefix("TIDELOG_").lower(): value for name, value in variables.items() if name.startswith("TIDELOG_")}
            return await spawns.spawn(flags, log)

        # Segments of a tenth of a second: fewer objects, which the S3 server for tests lists slowly, and answers nobody else meanwhile.
        usual = {
            "image": IMAGE,
            "replicas": 3,
            "storage": {"bucket": bucket, "endpoint": endpoint, "credentialsSecretRef": {"name": "bucket"}},
            "metadataStore": {"urlSecretRef": {"name": "database"}},
            "drain": {"propagationSeconds": 1, "timeoutSeconds": 60},
            "config": {"lease_ms": "3000", "catalog_poll_ms": "100", "max_latency_ms": "100", "log_format": "json"},
        }
        async with kubernetes(folder, {IMAGE: broker}) as kube:
            made = Rig(kube, spawns, folder, usual | spec)
            made.create_secret("database", {"url": metadata})
            made.create_secret("bucket", {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"})
            try:
                yield made
            finally:
                await made.stop()
