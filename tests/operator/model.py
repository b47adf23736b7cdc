"""A small model of Kubernetes and of Tidelog's membership, to try plans on: what each does by itself, one step at a time."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tidelog_operator.actions import Action, Annotate, Apply, Delete, DrainBroker, SetDeletionCost, WriteStatus
from tidelog_operator.observed import (
    CHECKSUM,
    STATE,
    Broker,
    Children,
    Cluster,
    Deployment,
    Load,
    Notes,
    Pod,
    Recommendation,
    Report,
    SecretSeen,
)
from tidelog_operator.plan import Plan, plan
from tidelog_operator.resource import Autoscaling, ClusterSpec, ClusterStatus, MetadataStore, ScaleDown, SecretKey, Storage

ZONES = ("a", "b", "c")
PARTITIONS = 12
SPEC = ClusterSpec(
    image="tidelog:1",
    storage=Storage(bucket="bucket"),
    metadata_store=MetadataStore(url_secret_ref=SecretKey(name="database")),
    autoscaling=Autoscaling(min_replicas=2, max_replicas=6, scale_down=ScaleDown(stabilization_seconds=60, period_seconds=30)),
)


class Conflict(Exception):
    """The object has changed since it was looked at."""


@dataclass
class ModelPod:
    name: str
    checksum: str
    zone: str
    age: int = 0
    """0: waits for a node; 1: its broker starts; 2: it runs."""
    healthy: bool = True
    terminating: bool = False
    cost: int = 0
    probed_ready: bool = False
    """What Kubernetes' last probe found, which balancers go by."""


@dataclass
class Member:
    draining: bool = False
    led: int = 0
    by_hand: bool = False
    """Whether a person drains it, not the operator."""


@dataclass
class World:
    """Everything that there is."""

    spec: ClusterSpec = SPEC
    status: ClusterStatus = field(default_factory=ClusterStatus)
    generation: int = 1
    now_s: float = 1_000_000.0
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    version: int = 1
    deployment_version: int = 0
    deployment_generation: int = 0
    observed_generation: int = 0
    pods: dict[str, ModelPod] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    secrets: dict[str, SecretSeen] = field(default_factory=lambda: {"database": SecretSeen(keys=frozenset({"url"}), checksum="1")})
    born: int = 0
    mib_per_second: float = 100.0
    silent: set[str] = field(default_factory=set)
    """Brokers that tell nothing of their load."""
    unreachable: bool = False
    """Whether nobody tells who is in the cluster."""
    stubborn: bool = False
    """Whether brokers hand nothing over."""
    history: tuple[Recommendation, ...] = ()

    # ---- what the operator sees

    @property
    def manifest(self) -> dict[str, Any] | None:
        return self.objects.get(("Deployment", "logs"))

    @property
    def replicas(self) -> int:
        return int(self.manifest["spec"]["replicas"]) if self.manifest else 0

    @property
    def notes(self) -> Notes:
        return Notes.of_text(self.manifest["metadata"]["annotations"].get(STATE, "")) if self.manifest else Notes()

    @property
    def checksum(self) -> str:
        assert self.manifest
        return str(self.manifest["spec"]["template"]["metadata"]["annotations"][CHECKSUM])

    @property
    def cluster(self) -> Cluster:
        return Cluster(name="logs", namespace="n", uid="u", generation=self.generation, spec=self.spec, status=self.status)

    def ready(self, pod: ModelPod) -> bool:
        member = self.members.get(pod.name)
        return pod.age >= 2 and pod.healthy and not pod.terminating and member is not None and not member.draining

    def children(self) -> Children:
        pods = {
            pod.name: Pod(
                name=pod.name,
                ready=pod.probed_ready,
                checksum=pod.checksum,
                phase="Running" if pod.age else "Pending",
                terminating=pod.terminating,
                zone=pod.zone,
                deletion_cost=pod.cost,
            )
            for pod in self.pods.values()
        }
        deployment = None
        if self.manifest:
            deployment = Deployment(
                resource_version=str(self.deployment_version),
                generation=self.deployment_generation,
                observed_generation=self.observed_generation,
                replicas=self.replicas,
                checksum=self.checksum,
                notes=self.notes,
            )
        return Children(deployment=deployment, pods=pods, objects=self.objects, secrets=self.secrets)

    def load(self) -> Load:
        serving = [pod for pod in self.pods.values() if self.ready(pod)]
        rate = self.mib_per_second * 2**20 / max(len(serving), 1)
        reports = {
            pod.name: Report(
                at_s=self.now_s,
                cpu_cores=0.0,
                produce_bytes_per_second=rate if pod in serving else 0.0,
                in_flight_share=0.0,
                store_successes=1,
                metadata_successes=1,
            )
            for pod in self.pods.values()
            if pod.age >= 2 and pod.name not in self.silent
        }
        members = {name: Broker(draining=each.draining, led_partitions=each.led) for name, each in self.members.items()}
        return Load(brokers=None if self.unreachable else members, reports=reports, history=self.history)

    # ---- the operator

    def plan(self) -> Plan:
        return plan(self.cluster, self.children(), self.load(), self.now_s)

    def operate(self, *, dies_after: int | None = None) -> list[Action]:
        """One pass of the operator; return what it did. One that dies after so many actions is followed by one that knows nothing."""
        made = self.plan()
        self.history = made.history
        done: list[Action] = []
        for action in made.actions[:dies_after]:
            try:
                self.do(action)
            except Conflict:
                break
            done.append(action)
        if dies_after is not None:
            self.history = ()
        return done

    def do(self, action: Action) -> None:
        match action:
            case Apply(manifest=manifest, resource_version=version):
                self._apply(manifest, version)
            case Delete(kind=kind, name=name):
                del self.objects[kind, name]
            case Annotate(replicas=replicas, notes=notes, resource_version=version):
                self._unchanged_since(version)
                assert self.manifest
                self.deployment_generation += replicas != self.replicas
                self.manifest["spec"]["replicas"] = replicas
                self.manifest["metadata"]["annotations"][STATE] = notes.as_text()
                self.deployment_version = self._next_version()
            case SetDeletionCost(pod=pod, cost=cost, resource_version=version):
                self._unchanged_since(version)
                if pod in self.pods:
                    self.pods[pod].cost = cost
            case DrainBroker(broker_id=broker, undo=undo, resource_version=version):
                self._unchanged_since(version)
                if broker in self.members:
                    self.members[broker] = replace(self.members[broker], draining=not undo, by_hand=False)
            case WriteStatus(status=status):
                self.status = status

    def _next_version(self) -> int:
        self.version += 1
        return self.version

    def _unchanged_since(self, version: str | None) -> None:
        if version is not None and version != str(self.deployment_version):
            raise Conflict

    def _apply(self, manifest: Mapping[str, Any], version: str | None) -> None:
        key = (manifest["kind"], manifest["metadata"]["name"])
        new = copy.deepcopy(dict(manifest))
        if key[0] == "Deployment":
            self._unchanged_since(version)
            if self.manifest is not None:
                assert new["spec"]["replicas"] == self.replicas, "applying a template never changes the number of brokers"
                kept = self.manifest["metadata"]["annotations"].get(STATE)  # another field manager's
                new["metadata"]["annotations"] |= {STATE: kept} if kept else {}
            self.deployment_generation += 1
            self.deployment_version = self._next_version()
        self.objects[key] = new

    # ---- Kubernetes

    def kubernetes(self) -> None:
        """One step of the Deployment's and the ReplicaSet's controllers: maxSurge 1, maxUnavailable 0."""
        if self.manifest is None:
            return
        self.observed_generation = self.deployment_generation
        for pod in self.pods.values():
            pod.probed_ready = self.ready(pod)
        living = [pod for pod in self.pods.values() if not pod.terminating]
        old = [pod for pod in living if pod.checksum != self.checksum]
        new = [pod for pod in living if pod.checksum == self.checksum]
        if len(living) < self.replicas or (old and len(living) < self.replicas + 1 and len(new) < self.replicas):
            self._create()
        elif len(living) > self.replicas:
            ready = sum(pod.probed_ready for pod in living)
            candidates = sorted(old or living, key=self._goes_first)
            chosen = candidates[0]
            if not old or ready - chosen.probed_ready >= self.replicas:
                chosen.terminating = True

    def _goes_first(self, pod: ModelPod) -> tuple[bool, bool, int, str]:
        return pod.age > 0, pod.probed_ready, pod.cost, pod.name

    def _create(self) -> None:
        self.born += 1
        counts = {zone: sum(pod.zone == zone for pod in self.pods.values()) for zone in ZONES}
        zone = min(ZONES, key=lambda each: counts[each])
        name = f"logs-{self.born}"
        self.pods[name] = ModelPod(name=name, checksum=self.checksum, zone=zone)

    def tidelog(self) -> None:
        """One step of pods and brokers: they start, join, hand over, leave; what nobody leads is taken over."""
        for pod in list(self.pods.values()):
            if pod.terminating:
                del self.pods[pod.name]  # after its own drain
                self.members.pop(pod.name, None)
            elif pod.age < 2:
                pod.age += 1
            elif pod.name not in self.members:
                self.members[pod.name] = Member()
        for name in [name for name in self.members if name not in self.pods]:
            del self.members[name]  # its lease has run out
        takers = [each for each in self.members.values() if not each.draining]
        if not takers:
            return
        for member in self.members.values():
            if member.draining and not self.stubborn:
                member.led = max(0, member.led - 5)
        while sum(each.led for each in self.members.values()) < PARTITIONS:
            min(takers, key=lambda each: each.led).led += 1
        most, least = max(takers, key=lambda each: each.led), min(takers, key=lambda each: each.led)
        while most.led - least.led > 1:
            most.led -= 1
            least.led += 1
            most, least = max(takers, key=lambda each: each.led), min(takers, key=lambda each: each.led)

    def work(self, *, tick_s: float = 5.0) -> list[Action]:
        """One step of everyone; return what the operator did."""
        done = self.operate()
        self.kubernetes()
        self.tidelog()
        self.now_s += tick_s
        return done

    def settle(self, *, passes: int = 400, tick_s: float = 30.0) -> int:
        """Let everyone work until nothing is left to do; return how many passes it took."""
        quiet = 0
        for each in range(passes):
            before = (self.version, repr(self.pods), repr(self.members))
            self.work(tick_s=tick_s)
            quiet = quiet + 1 if before == (self.version, repr(self.pods), repr(self.members)) else 0
            if quiet == 30:
                return each
        raise AssertionError(f"it does not come to rest: {self.notes}, {self.pods}, {self.members}")
