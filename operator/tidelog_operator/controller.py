"""The controller: it gathers what there is, has it planned, and does what the plan says, as long as it leads.

Nothing is decided here. Whatever fails or is refused ends the pass; the next one looks at everything anew.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidelog.client.connection import Credentials
from tidelog.clock import Clock
from tidelog.errors import TidelogError
from tidelog.randomness import Random, new_uuid
from tidelog.telemetry import get_logger

from tidelog_operator.actions import Action, Annotate, Apply, Delete, DrainBroker, Event, SetDeletionCost, WriteStatus
from tidelog_operator.brokers import BrokerQuestions
from tidelog_operator.conditions import Finding, conditions
from tidelog_operator.kubernetes_api import KINDS, MANAGER, Conflict, KubernetesApi, Missing, Refused, Unreachable
from tidelog_operator.metrics import OperatorMetrics
from tidelog_operator.mirror import Mirror
from tidelog_operator.observed import DELETION_COST, STATE, Children, Cluster, Load, Manifest, Recommendation, timestamp
from tidelog_operator.plan import plan
from tidelog_operator.reading import Unreadable, written
from tidelog_operator.resource import GROUP, VERSION, ClusterStatus
from tidelog_operator.resources import may_exist, needed_secrets
from tidelog_operator.seeing import (
    FINALIZER,
    cluster_of,
    cluster_status_of,
    deployment_of,
    finished,
    pod_of,
    reached_at,
    secret_of,
    secret_values,
    topic_of,
)
from tidelog_operator.topics import Seen, SetFinalizer, Topic, TopicAction, WriteTopicStatus, plan_topic
from tidelog_operator.work import Failed, Key, Work

NOTES_MANAGER = "tidelog-operator-notes"
"""Owns the notes and the number of replicas, which applying the rest never touches."""
_WORKERS = 4
_PASS_WITHIN_S = 60.0
_DRAIN_LOOKS_EVERY_S = 0.5
_LOAD_LOOKS_EVERY_S = 10.0
_SECRETS_KEPT_S = 10.0
_BROKERS_LABEL = "app.kubernetes.io/name=tidelog-broker"
_OWN_LABEL = "app.kubernetes.io/managed-by=tidelog-operator"
_INSTANCE = "app.kubernetes.io/instance"
_log = get_logger(__name__)


class NotLeading(Exception):
    """Something was to be written, but this operator may not act any more."""


@dataclass(frozen=True, slots=True)
class _Secrets:
    """What the Secrets were that a cluster names."""

    read_at: float
    manifests: Mapping[str, Manifest]


class Controller:
    """Looks after the clusters and topics of some namespaces. `run` is one term as leader."""

    def __init__(
        self,
        api: KubernetesApi,
        *,
        namespaces: tuple[str, ...],
        resync_s: float,
        leads: Any,
        clock: Clock,
        chance: Random,
        metrics: OperatorMetrics,
    ) -> None:
        self._api = api
        self._resync_s = resync_s
        self._leads = leads
        self._clock = clock
        self._chance = chance
        self._metrics = metrics
        self._questions = BrokerQuestions(clock=clock, chance=chance, metrics=metrics)
        self._work = Work(clock=clock, chance=chance)
        self._history: dict[Key, tuple[Recommendation, ...]] = {}
        self._secrets: dict[Key, _Secrets] = {}
        of = {"namespaces": namespaces or ("",)}
        self._clusters = self._mirrors("TidelogCluster", "", self._cluster_changed, **of)
        self._topics = self._mirrors("TidelogTopic", "", self._topic_changed, **of)
        self._children = [
            mirror
            for kind in ("Deployment", "Service", "PodDisruptionBudget")
            for mirror in self._mirrors(kind, _OWN_LABEL, self._child_changed, **of)
        ]
        self._pods = self._mirrors("Pod", _BROKERS_LABEL, self._child_changed, **of)
        metrics.queue_length.set_function(lambda: self._work.length)

    def _mirrors(self, kind: Any, labels: str, changed: Any, *, namespaces: tuple[str, ...]) -> list[Mirror]:
        return [
            Mirror(self._api, kind, namespace, labels=labels, changed=changed, metrics=self._metrics, chance=self._chance)
            for namespace in namespaces
        ]

    async def run(self) -> None:
        """Look after everything until cancelled."""
        self._metrics.leader.set(1)
        try:
            async with self._questions, asyncio.TaskGroup() as group:
                mirrors = [*self._clusters, *self._topics, *self._children, *self._pods]
                for mirror in mirrors:
                    group.create_task(mirror.run())
                for mirror in mirrors:
                    await mirror.listed.wait()  # a plan made of half of what there is would make the other half anew
                group.create_task(self._work.run(_WORKERS, self._look))
        finally:
            self._metrics.leader.set(0)
            self._metrics.forget_clusters()

    # ---- who is to be looked at

    def _cluster_changed(self, manifest: Manifest) -> None:
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        self._work.add(Key("cluster", namespace, name))
        for topic in self._found(self._topics):
            if topic["metadata"]["namespace"] == namespace and (topic.get("spec") or {}).get("clusterRef") == name:
                self._topic_changed(topic)

    def _topic_changed(self, manifest: Manifest) -> None:
        self._work.add(Key("topic", manifest["metadata"]["namespace"], manifest["metadata"]["name"]))

    def _child_changed(self, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        if name := (metadata.get("labels") or {}).get(_INSTANCE):
            self._work.add(Key("cluster", metadata["namespace"], name))

    @staticmethod
    def _found(mirrors: list[Mirror]) -> list[Manifest]:
        return [each for mirror in mirrors for each in mirror.objects.values()]

    @staticmethod
    def _one(mirrors: list[Mirror], namespace: str, name: str) -> Manifest | None:
        return next((mirror.objects[namespace, name] for mirror in mirrors if (namespace, name) in mirror.objects), None)

    async def _look(self, key: Key) -> float | None:
        """Look at one object; return when to look again."""
        began = self._clock.monotonic()
        kind = "cluster" if key.kind == "cluster" else "topic"
        outcomes = self._metrics.reconciles[kind]
        try:
            async with asyncio.timeout(_PASS_WITHIN_S):
                again_s = await (self._look_at_cluster(key) if kind == "cluster" else self._look_at_topic(key))
        except (Conflict, Missing):  # what was looked at is not so any more
            outcomes["conflict"].inc()
            return _DRAIN_LOOKS_EVERY_S * self._chance.uniform(0.5, 1.0)
        except NotLeading:
            await asyncio.Event().wait()  # until this term is ended, which is now
            return None
        except Exception as error:
            outcomes["failed"].inc()
            expected = isinstance(error, Refused | Unreachable | TidelogError | TimeoutError)
            _log.warning("pass_failed", kind=kind, namespace=key.namespace, name=key.name, problem=repr(error), exc_info=not expected)
            raise Failed from error
        outcomes["done"].inc()
        self._metrics.reconcile_seconds[kind].observe(self._clock.monotonic() - began)
        return again_s

    # ---- clusters

    async def _look_at_cluster(self, key: Key) -> float | None:
        manifest = self._one(self._clusters, key.namespace, key.name)
        if manifest is None:
            self._history.pop(key, None)
            self._secrets.pop(key, None)
            await self._questions.forget((key.namespace, key.name))
            self._metrics.forget_cluster(key.namespace, key.name)
            return None
        try:
            cluster = cluster_of(manifest)
        except Unreadable as unreadable:
            await self._tell_unreadable(manifest, str(unreadable))
            return self._resync_s
        children, load = await self._seen(key, cluster)
        made = plan(cluster, children, load, self._clock.wall_ms() / 1000)
        self._history[key] = made.history
        for action in made.actions:
            await self._do(cluster, action)
        for event in made.events:
            _log.info("told", namespace=key.namespace, cluster=key.name, reason=event.reason, message=event.message)
            await self._tell(manifest, event)
        self._show(cluster, children, made.actions)
        drains = children.deployment is not None and children.deployment.notes.drain is not None
        if drains or any(isinstance(each, Annotate | DrainBroker) for each in made.actions):
            return _DRAIN_LOOKS_EVERY_S
        return min(_LOAD_LOOKS_EVERY_S, self._resync_s) if cluster.spec.autoscaling.enabled else self._resync_s

    async def _seen(self, key: Key, cluster: Cluster) -> tuple[Children, Load]:
        namespace, name = key.namespace, key.name
        owned: dict[tuple[str, str], Manifest] = {
            (str(kind), child): found
            for kind, child in may_exist(cluster)
            for mirror in self._children
            if mirror.kind == kind and (found := mirror.objects.get((namespace, child))) is not None
        }
        pods = [each for each in self._found(self._pods) if self._is_of(each, cluster) and not finished(each)]
        deployment = owned.get(("Deployment", name))
        secrets = await self._secrets_of(key, cluster)
        children = Children(
            deployment=deployment_of(deployment) if deployment is not None else None,
            pods={each["metadata"]["name"]: pod_of(each) for each in pods},
            objects=owned,
            secrets={secret: secret_of(each) for secret, each in secrets.items()},
        )
        addresses = {each["metadata"]["name"]: address for each in pods if (address := reached_at(each))}
        which = namespace, name
        reports, members = await asyncio.gather(
            self._questions.reports(which, addresses),
            self._questions.members(which, list(addresses.values()), self._credentials(cluster, secrets)),
        )
        return children, Load(brokers=members, reports=reports, history=self._history.get(key, ()))

    @staticmethod
    def _is_of(pod: Manifest, cluster: Cluster) -> bool:
        metadata = pod["metadata"]
        return metadata["namespace"] == cluster.namespace and (metadata.get("labels") or {}).get(_INSTANCE) == cluster.name

    async def _secrets_of(self, key: Key, cluster: Cluster) -> Mapping[str, Manifest]:
        """Return the Secrets that the spec names. They are read one by one, so that the operator need not be allowed to list any."""
        wanted = needed_secrets(cluster.spec)
        known, now = self._secrets.get(key), self._clock.monotonic()
        if known is not None and now - known.read_at < _SECRETS_KEPT_S and known.manifests.keys() == wanted.keys():
            return known.manifests
        found: dict[str, Manifest] = {}
        for name in wanted:
            try:
                found[name] = await self._api.get("Secret", cluster.namespace, name)
            except Missing:
                continue
        if found.keys() == wanted.keys():  # what is missing is looked for each time: somebody may be about to make it
            self._secrets[key] = _Secrets(now, found)
        return found

    @staticmethod
    def _credentials(cluster: Cluster, secrets: Mapping[str, Manifest]) -> Credentials:
        spec = cluster.spec
        token, tls = None, {}
        if spec.tokens and spec.tokens.secret_ref.name in secrets:
            token = secret_values(secrets[spec.tokens.secret_ref.name]).get("operator-token", b"").decode().strip() or None
        if spec.tls and spec.tls.secret_ref.name in secrets:
            tls = secret_values(secrets[spec.tls.secret_ref.name])
        own = spec.tls is not None and spec.tls.client_certificates
        return Credentials(
            tls=spec.tls is not None,
            ca=tls.get("ca.crt"),
            cert=tls.get("tls.crt") if own else None,
            key=tls.get("tls.key") if own else None,
            token=token,
            server_name=f"{cluster.name}.{cluster.namespace}.svc",
        )

    async def _do(self, cluster: Cluster, action: Action) -> None:
        """Do one thing. Raises Conflict where something has changed since it was looked at."""
        self._check_leading()
        namespace, name = cluster.namespace, cluster.name
        count = self._metrics.actions
        match action:
            case Apply(manifest=manifest, resource_version=version):
                await self._api.apply(manifest, resource_version=version)
                count["apply"].inc()
                _log.info("applied", namespace=namespace, kind=manifest["kind"], name=manifest["metadata"]["name"])
            case Delete(kind=kind, name=child):
                await self._api.delete(kind, namespace, child)
                count["delete"].inc()
                _log.info("deleted", namespace=namespace, kind=kind, name=child)
            case Annotate(replicas=replicas, notes=notes, resource_version=version):
                metadata = {"resourceVersion": version, "annotations": {STATE: notes.as_text()}}
                change = {"metadata": metadata, "spec": {"replicas": replicas}}
                await self._api.merge("Deployment", namespace, name, change, by=NOTES_MANAGER)
                count["annotate"].inc()
                _log.info("noted", namespace=namespace, cluster=name, replicas=replicas, notes=notes.as_text())
            case SetDeletionCost(pod=pod, cost=cost, resource_version=version):
                await self._unchanged(namespace, name, version)
                cost_text = str(cost) if cost else None
                await self._api.merge("Pod", namespace, pod, {"metadata": {"annotations": {DELETION_COST: cost_text}}})
                count["deletion_cost"].inc()
            case DrainBroker(broker_id=broker, resource_version=version, undo=undo):
                await self._unchanged(namespace, name, version)
                await self._drain(cluster, broker, undo=undo)
                count["undrain" if undo else "drain"].inc()
                _log.info("asked_to_drain", namespace=namespace, cluster=name, broker_id=broker, undo=undo)
            case WriteStatus(status=status):
                await self._api.apply(_status(cluster, status), status=True)
                count["cluster_status"].inc()

    def _check_leading(self) -> None:
        if not self._leads():
            raise NotLeading

    async def _unchanged(self, namespace: str, name: str, version: str) -> None:
        """Raises Conflict where the Deployment has changed, so that what it notes may be over."""
        now = await self._api.get("Deployment", namespace, name)
        if now["metadata"]["resourceVersion"] != version:
            raise Conflict(409, "Conflict", f"Deployment {name} has changed since it was looked at")
        self._check_leading()

    async def _drain(self, cluster: Cluster, broker_id: str, *, undo: bool) -> None:
        key = Key("cluster", cluster.namespace, cluster.name)
        addresses = self._addresses(cluster)
        credentials = self._credentials(cluster, await self._secrets_of(key, cluster))
        await self._questions.drain((cluster.namespace, cluster.name), addresses, credentials, broker_id, undo=undo)

    def _addresses(self, cluster: Cluster) -> list[str]:
        pods = [each for each in self._found(self._pods) if self._is_of(each, cluster) and not finished(each)]
        return [address for each in pods if (address := reached_at(each))]

    async def _tell(self, about: Manifest, event: Event) -> None:
        """Tell something as a Kubernetes event; that it cannot be told is no reason to stop."""
        metadata, now = about["metadata"], timestamp(self._clock.wall_ms() / 1000)
        told = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{new_uuid(self._chance)[:16]}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": about.get("kind", "TidelogCluster"),
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "reason": event.reason,
            "message": event.message[:1000],
            "type": "Warning" if event.warning else "Normal",
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.create(told)
        except (Refused, Unreachable) as error:
            _log.warning("event_not_told", reason=event.reason, problem=str(error))

    async def _tell_unreadable(self, manifest: Manifest, why: str) -> None:
        """Say in a condition what the definitions that are installed let through, and this operator cannot read."""
        metadata, before = manifest["metadata"], cluster_status_of(manifest)
        found = {"Degraded": Finding(status="True", reason="SpecNotReadable", message=why)}
        generation = metadata.get("generation", 0)
        now = timestamp(self._clock.wall_ms() / 1000)
        new = conditions(found, before.conditions, generation=generation, now=now)
        others = tuple(each for each in before.conditions if each.type != "Degraded")
        if new != tuple(each for each in before.conditions if each.type == "Degraded"):
            self._check_leading()
            whole = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TidelogCluster"}
            named = {"name": metadata["name"], "namespace": metadata["namespace"]}
            status = {"conditions": [written(each) for each in (*others, *new)], "observedGeneration": generation}
            await self._api.apply({**whole, "metadata": named, "status": status}, status=True)
            _log.warning("spec_not_readable", namespace=metadata["namespace"], cluster=metadata["name"], problem=why)

    def _show(self, cluster: Cluster, children: Children, actions: tuple[Action, ...]) -> None:
        status = next((each.status for each in actions if isinstance(each, WriteStatus)), cluster.status)
        self._metrics.show_cluster(
            cluster.namespace,
            cluster.name,
            {
                "wanted": children.deployment.replicas if children.deployment else 0,
                "present": status.replicas,
                "ready": status.ready_replicas,
                "updated": status.updated_replicas,
                "draining": len(status.draining_brokers),
            },
            {each.type: each.status == "True" for each in status.conditions},
        )

    # ---- topics

    async def _look_at_topic(self, key: Key) -> float | None:
        manifest = self._one(self._topics, key.namespace, key.name)
        if manifest is None:
            return None
        try:
            topic = topic_of(manifest)
        except Unreadable as unreadable:
            _log.warning("spec_not_readable", namespace=key.namespace, topic=key.name, problem=str(unreadable))
            return self._resync_s
        cluster = self._one(self._clusters, key.namespace, topic.spec.cluster_ref)
        actions = plan_topic(topic, await self._topic_seen(cluster, topic), self._clock.wall_ms() / 1000)
        for action in actions:
            await self._do_topic(manifest, cluster, action)
        changed = any(not isinstance(each, WriteTopicStatus) for each in actions)
        return _DRAIN_LOOKS_EVERY_S if changed else self._resync_s

    async def _topic_seen(self, manifest: Manifest | None, topic: Topic) -> Seen:
        if manifest is None:
            return Seen(cluster_exists=False)
        try:
            cluster = cluster_of(manifest)
        except Unreadable:
            return Seen(answered=False)
        which, addresses, credentials = await self._reached(cluster)
        return await self._questions.topic(which, addresses, credentials, topic.topic)

    async def _reached(self, cluster: Cluster) -> tuple[tuple[str, str], list[str], Credentials]:
        secrets = await self._secrets_of(Key("cluster", cluster.namespace, cluster.name), cluster)
        return (cluster.namespace, cluster.name), self._addresses(cluster), self._credentials(cluster, secrets)

    async def _do_topic(self, manifest: Manifest, cluster: Manifest | None, action: TopicAction) -> None:
        self._check_leading()
        metadata, count = manifest["metadata"], self._metrics.actions
        namespace, name = metadata["namespace"], metadata["name"]
        if isinstance(action, SetFinalizer):
            others = [each for each in metadata.get("finalizers") or () if each != FINALIZER]
            finalizers = [*others, FINALIZER] if action.present else others
            change = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
            await self._api.merge("TidelogTopic", namespace, name, change)
            count["finalizer"].inc()
        elif isinstance(action, WriteTopicStatus):
            where = {"name": name, "namespace": namespace}
            told = {"apiVersion": KINDS["TidelogTopic"].api_version, "kind": "TidelogTopic", "metadata": where}
            await self._api.apply({**told, "status": written(action.status)}, status=True)
            count["topic_status"].inc()
        else:
            assert cluster is not None, "a topic of a cluster that is not there is not planned"
            which, addresses, credentials = await self._reached(cluster_of(cluster))
            await self._questions.change_topic(which, addresses, credentials, action)
            done = {"CreateTopic": "create_topic", "CreatePartitions": "create_partitions", "AlterTopic": "alter_topic"}
            count[done.get(type(action).__name__, "delete_topic")].inc()
            _log.info("topic_changed", namespace=namespace, object=name, change=type(action).__name__, topic=action.name)


def _status(cluster: Cluster, status: ClusterStatus) -> dict[str, Any]:
    metadata = {"name": cluster.name, "namespace": cluster.namespace}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TidelogCluster", "metadata": metadata, "status": written(status)}
