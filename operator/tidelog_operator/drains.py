"""The protocol by which one broker is taken away without a loss, one step at a time.

The broker is chosen and noted (ASKED); told; seen to drain (LEAVING); once balancers have noticed and it leads nothing, made the pod
that a ReplicaSet ends first, and then there is one replica less (REMOVING); once its pod is gone, nothing is noted any more. If it
does not come to that, it is told to serve again, and that is seen before the note goes (UNDOING). The note and the number of
replicas change in one write, so an operator may end between any two steps: the next one finds where it was. Whatever ends the
pod meanwhile (a node, an eviction) ends the drain, for SIGTERM drains too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tidelog_operator.actions import Action, Annotate, DrainBroker, Event, SetDeletionCost
from tidelog_operator.observed import Broker, Deployment, Drain, Load, Notes, Phase, Pod, timestamp
from tidelog_operator.resource import ClusterSpec

FIRST_TO_GO = -1000
"""The deletion cost of the pod that is to end."""
RETRY_AFTER_S = 600.0
"""After a drain that did not come to its end, the next one waits so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The next step of a drain."""

    action: Action | None = None
    event: Event | None = None
    waits: str = ""
    """What is waited for, where nothing is to be done now; without a countdown, for it ends up in the status."""


def victim(pods: Mapping[str, Pod], load: Load) -> str:
    """Return whose pod should go: of the zones with the most brokers the least loaded one, so that zones stay balanced."""
    brokers, zones = load.brokers or {}, [pod.zone for pod in pods.values()]
    fullest = max(zones.count(zone) for zone in zones)

    def rank(pod: Pod) -> tuple[float, int, str]:
        report, broker = load.reports.get(pod.name), brokers.get(pod.name)
        return report.produce_bytes_per_second if report else 0.0, broker.led_partitions if broker else 0, pod.name

    return min((pod for pod in pods.values() if zones.count(pod.zone) == fullest), key=rank).name


def begin(deployment: Deployment, pods: Mapping[str, Pod], load: Load, *, why: str, now_s: float) -> Step:
    """Choose a broker and note it, if all is well; else say what is waited for."""
    brokers = load.brokers
    notes = deployment.notes
    living = {name: pod for name, pod in pods.items() if not pod.terminating}
    if notes.no_drain_before_s is not None and now_s < notes.no_drain_before_s:
        return Step(waits=f"the next drain waits until {timestamp(notes.no_drain_before_s)}, because {notes.blocked_why}")
    if (stopped := _not_well(deployment, pods, brokers)) is not None:
        return Step(waits=stopped)
    chosen = victim(living, load)
    noted = replace(notes, drain=Drain(pod=chosen, phase=Phase.ASKED, since_s=now_s), no_drain_before_s=None, blocked_why="")
    told = Event(reason="DrainBegins", message=f"Broker {chosen} is drained, to have one broker less: {why}")
    return Step(action=Annotate(replicas=deployment.replicas, notes=noted, resource_version=deployment.resource_version), event=told)


def _not_well(deployment: Deployment, pods: Mapping[str, Pod], brokers: Mapping[str, Broker] | None) -> str | None:
    """Say why no broker may be taken now; None: one may."""
    if deployment.observed_generation < deployment.generation:
        return "the Deployment's last change has not been seen by Kubernetes yet"
    if leaving := sorted(pod.name for pod in pods.values() if pod.terminating):
        return f"pod {leaving[0]} is still ending"
    if len(pods) != deployment.replicas:
        return f"there are {len(pods)} pods of {deployment.replicas}"
    if other := sorted(pod.name for pod in pods.values() if pod.checksum != deployment.checksum):
        return f"pod {other[0]} still runs with an earlier configuration"
    if unready := sorted(pod.name for pod in pods.values() if not pod.ready):
        return f"broker {unready[0]} is not ready"
    if brokers is None:
        return "no broker tells who is in the cluster"
    if unknown := sorted(set(pods) - set(brokers)):
        return f"broker {unknown[0]} is not in the cluster's membership"
    if draining := sorted(name for name, broker in brokers.items() if broker.draining):
        return f"broker {draining[0]} drains already, by someone else's wish; `tidelog cluster drain {draining[0]} --undo` takes it back"
    return None


def go_on(spec: ClusterSpec, deployment: Deployment, pods: Mapping[str, Pod], load: Load, *, wanted: int, now_s: float) -> Step:
    """Return the next step of the drain that is noted. `wanted` is how many brokers there should be."""
    drain = deployment.notes.drain
    assert drain is not None
    pod = pods.get(drain.pod)
    if pod is None or (pod.terminating and drain.phase is not Phase.REMOVING):
        return _over(deployment, drain, now_s=now_s)
    if drain.phase is Phase.REMOVING:
        return _removing(deployment, drain, pods)
    if drain.phase is Phase.UNDOING:
        return _undoing(deployment, drain, pod, load.brokers, now_s=now_s)
    if (undone := _undone(spec, deployment, drain, pods, load.brokers, wanted=wanted, now_s=now_s)) is not None:
        return undone
    if load.brokers is None:
        return Step(waits="no broker tells how far the drain is")
    broker = load.brokers.get(drain.pod)
    if broker is None:
        return Step(waits=f"broker {drain.pod} is not in the cluster's membership")
    return _leaving(spec, deployment, drain, pod, broker, now_s=now_s)


def _noted(deployment: Deployment, drain: Drain | None) -> Annotate:
    return Annotate(replicas=deployment.replicas, notes=deployment.notes.with_drain(drain), resource_version=deployment.resource_version)


def _undone(
    spec: ClusterSpec,
    deployment: Deployment,
    drain: Drain,
    pods: Mapping[str, Pod],
    brokers: Mapping[str, Broker] | None,
    *,
    wanted: int,
    now_s: float,
) -> Step | None:
    """Note that the drain is undone, where it should be."""
    limit_s = spec.drain.propagation_seconds + spec.drain.timeout_seconds
    others = [pod for pod in pods.values() if pod.name != drain.pod]
    unready = sorted(pod.name for pod in others if not pod.ready or pod.terminating)
    why, blocked = "", False
    if wanted >= deployment.replicas:
        why = f"{wanted} brokers are wanted again"
    elif unready or len(others) < deployment.replicas - 1:
        why = f"broker {unready[0]} is not ready" if unready else "another broker's pod is gone"
    elif now_s - drain.since_s > limit_s:
        left = brokers.get(drain.pod) if brokers is not None else None
        found = f"it still led {left.led_partitions} partitions" if left is not None else "no broker could tell how far it was"
        why, blocked = f"{drain.pod} was not drained after {limit_s} s: {found}", True
    if not why:
        return None
    told = Event(reason="DrainUndone", message=f"The drain of broker {drain.pod} is undone: {why}", warning=blocked)
    return Step(action=_noted(deployment, replace(drain, phase=Phase.UNDOING, why=why, blocked=blocked)), event=told)


def _leaving(spec: ClusterSpec, deployment: Deployment, drain: Drain, pod: Pod, broker: Broker, *, now_s: float) -> Step:
    if not broker.draining:  # not told yet, or it came back under a new epoch and knows nothing of it
        return Step(action=DrainBroker(broker_id=drain.pod, resource_version=deployment.resource_version))
    if drain.phase is Phase.ASKED or drain.seen_s is None:
        return Step(action=_noted(deployment, replace(drain, phase=Phase.LEAVING, seen_s=now_s)))
    if now_s - drain.seen_s < spec.drain.propagation_seconds or pod.ready:
        return Step(waits=f"balancers are to notice that broker {drain.pod} drains")
    if broker.led_partitions:
        return Step(waits=f"broker {drain.pod} has {broker.led_partitions} partitions to hand over")
    if pod.deletion_cost != FIRST_TO_GO:
        return Step(action=SetDeletionCost(pod=drain.pod, cost=FIRST_TO_GO, resource_version=deployment.resource_version))
    notes = replace(
        deployment.notes,
        drain=replace(drain, phase=Phase.REMOVING),
        scaled_s=now_s,
        scaled_why=f"broker {drain.pod} was drained: fewer are enough",
    )
    fewer = Annotate(replicas=deployment.replicas - 1, notes=notes, resource_version=deployment.resource_version)
    return Step(action=fewer, event=Event(reason="ScaledDown", message=f"Broker {drain.pod} is drained; its pod is removed"))


def _removing(deployment: Deployment, drain: Drain, pods: Mapping[str, Pod]) -> Step:
    living = sum(not pod.terminating for pod in pods.values())
    if pods[drain.pod].terminating:
        return Step(waits=f"pod {drain.pod} is ending")
    if deployment.observed_generation < deployment.generation or living > deployment.replicas:
        return Step(waits=f"Kubernetes is to end pod {drain.pod}")
    # Another pod ended meanwhile and its successor, not started yet, was the one that the ReplicaSet removed.
    why = "another pod was removed in its place"
    told = Event(reason="DrainUndone", message=f"The drain of broker {drain.pod} is undone: {why}")
    return Step(action=_noted(deployment, replace(drain, phase=Phase.UNDOING, why=why)), event=told)


def _undoing(deployment: Deployment, drain: Drain, pod: Pod, brokers: Mapping[str, Broker] | None, *, now_s: float) -> Step:
    if pod.deletion_cost != 0:
        return Step(action=SetDeletionCost(pod=drain.pod, cost=0, resource_version=deployment.resource_version))
    if brokers is None:
        return Step(waits=f"no broker can be told that {drain.pod} serves again")
    broker = brokers.get(drain.pod)
    if broker is not None and broker.draining:
        return Step(action=DrainBroker(broker_id=drain.pod, resource_version=deployment.resource_version, undo=True))
    return _over(deployment, drain, now_s=now_s)


def _over(deployment: Deployment, drain: Drain, *, now_s: float) -> Step:
    """Note that there is no drain any more."""
    notes = replace(deployment.notes, drain=None)
    if drain.blocked:
        notes = Notes(scaled_s=notes.scaled_s, scaled_why=notes.scaled_why, no_drain_before_s=now_s + RETRY_AFTER_S, blocked_why=drain.why)
    return Step(action=Annotate(replicas=deployment.replicas, notes=notes, resource_version=deployment.resource_version))
