"""What to do next for a cluster: a pure function of its object, its children, its load and the time.

At most one change of the Deployment comes of each plan, bound to the version that was looked at. Whatever fails or is lost is
done by a later plan, for each looks at everything anew.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tidelog_operator import drains
from tidelog_operator.actions import Action, Annotate, Apply, Delete, Event, WriteStatus
from tidelog_operator.conditions import conditions, findings
from tidelog_operator.observed import CHECKSUM, Children, Cluster, Load, Manifest, Notes, Recommendation, timestamp
from tidelog_operator.resource import ClusterSpec, ClusterStatus
from tidelog_operator.resources import desired, may_exist, needed_secrets, selector
from tidelog_operator.scaling import Decision, decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do, in this order, what to tell, and what to hand in next time."""

    actions: tuple[Action, ...]
    events: tuple[Event, ...]
    history: tuple[Recommendation, ...]


def plan(cluster: Cluster, children: Children, load: Load, now_s: float) -> Plan:
    """Return what is to be done now. `now_s` is Unix time."""
    if cluster.deleted:
        return Plan(actions=(), events=(), history=load.history)
    missing = missing_secrets(cluster.spec, children)
    decision = _wanted(cluster.spec, children, load, now_s)
    actions: list[Action] = []
    step = drains.Step()
    if not cluster.spec.paused:
        actions += _objects(cluster, children, without_deployment=bool(missing), replicas=decision.replicas)
        if not any(isinstance(each, Apply) and each.manifest["kind"] == "Deployment" for each in actions):
            step = _scaled(cluster.spec, children, load, decision, now_s)
            if step.action is not None:
                actions.append(step.action)
    found = findings(cluster, children, load, missing_secrets=missing, decision=decision, drain_waits=step.waits, now_s=now_s)
    status = _status(cluster, children, load)
    status = replace(status, conditions=conditions(found, cluster.status.conditions, generation=cluster.generation, now=timestamp(now_s)))
    if status != cluster.status:
        actions.append(WriteStatus(status=status))
    return Plan(actions=tuple(actions), events=(step.event,) if step.event else (), history=decision.history)


def missing_secrets(spec: ClusterSpec, children: Children) -> str:
    """Say which Secrets or keys are not there, and what to do; empty: all are."""
    for name, keys in needed_secrets(spec).items():
        wanted = ", ".join(sorted(keys))
        if name not in children.secrets:
            return f"Secret {name} was looked for, but there is none in this namespace; create it with {wanted}"
        if lacking := sorted(keys - children.secrets[name].keys):
            return f"Secret {name} is there, but has no {', '.join(lacking)}; add what is missing ({wanted} are needed)"
    return ""


def _wanted(spec: ClusterSpec, children: Children, load: Load, now_s: float) -> Decision:
    deployment, rules = children.deployment, spec.autoscaling
    if not rules.enabled:
        return Decision(replicas=spec.replicas, why=f"spec.replicas is {spec.replicas}", history=())
    if deployment is None:
        most = max(rules.min_replicas, rules.max_replicas)
        replicas = min(max(spec.replicas, rules.min_replicas), most)
        return Decision(replicas=replicas, why="the cluster is new", history=(), active=False)
    return decide(
        spec,
        current=deployment.replicas,
        pods=[pod.name for pod in children.pods.values() if not pod.terminating],
        reports=load.reports,
        history=load.history,
        scaled_s=deployment.notes.scaled_s,
        now_s=now_s,
    )


# ---- objects


def _objects(cluster: Cluster, children: Children, *, without_deployment: bool, replicas: int) -> Iterator[Action]:
    """Yield what brings the cluster's objects to what the spec says, their number of brokers apart."""
    there, live = children.deployment, children.objects
    wanted = desired(cluster, children.secrets, replicas=there.replicas if there else replicas)
    names = {(each["kind"], each["metadata"]["name"]) for each in wanted}
    for kind, name in may_exist(cluster):
        if (kind, name) in live and (kind, name) not in names:
            yield Delete(kind=kind, name=name)
    for manifest in wanted:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind != "Deployment":
            if not _as_wanted(live.get((kind, name)), manifest):
                yield Apply(manifest=manifest)
        elif without_deployment:
            continue
        elif there is None:
            yield Apply(manifest=manifest)
        elif there.notes.drain is None and not _as_wanted(live.get((kind, name)), manifest):
            # Not while a broker drains: a rollout beside it would take a second one.
            yield Apply(manifest=manifest, resource_version=there.resource_version)


def _as_wanted(live: Manifest | None, wanted: Manifest) -> bool:
    return live is not None and _checksum(live) == _checksum(wanted) and _holds(live, wanted)


def _checksum(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("annotations") or {}).get(CHECKSUM, ""))


def _holds(live: Any, wanted: Any) -> bool:
    """Say whether all that is wanted is there; what others added, or Kubernetes by default, may be there, too."""
    if isinstance(wanted, Mapping):
        # Kubernetes writes quantities in its own way; a change of them shows in the checksum.
        return isinstance(live, Mapping) and all(
            name == "resources" or (name in live and _holds(live[name], value)) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(_holds, live, wanted))
    return bool(live == wanted)


# ---- the number of brokers


def _scaled(spec: ClusterSpec, children: Children, load: Load, decision: Decision, now_s: float) -> drains.Step:
    deployment, pods, wanted = children.deployment, children.pods, decision.replicas
    if deployment is None:
        return drains.Step()
    if deployment.notes.drain is not None:
        return drains.go_on(spec, deployment, pods, load, wanted=wanted, now_s=now_s)
    notes = replace(deployment.notes, scaled_s=now_s, scaled_why=decision.why)
    if wanted > deployment.replicas:
        told = Event(reason="ScaledUp", message=f"From {deployment.replicas} brokers to {wanted}: {decision.why}")
        return drains.Step(action=Annotate(replicas=wanted, notes=notes, resource_version=deployment.resource_version), event=told)
    if wanted == deployment.replicas:
        return _forgotten(deployment.replicas, deployment.resource_version, deployment.notes, now_s)
    if (idle := _never_started(children, load)) and deployment.observed_generation >= deployment.generation:
        # A ReplicaSet ends pods that wait for a node or an image before all others, and nothing is in them.
        replicas = max(wanted, deployment.replicas - idle)
        told = Event(
            reason="ScaledDown", message=f"From {deployment.replicas} brokers to {replicas}: {idle} had not started. {decision.why}"
        )
        return drains.Step(action=Annotate(replicas=replicas, notes=notes, resource_version=deployment.resource_version), event=told)
    return drains.begin(deployment, pods, load, why=decision.why, now_s=now_s)


def _forgotten(replicas: int, resource_version: str, notes: Notes, now_s: float) -> drains.Step:
    """Forget a drain that did not come to its end once its time is over and none is wanted any more."""
    if notes.no_drain_before_s is None or now_s < notes.no_drain_before_s:
        return drains.Step()
    cleared = replace(notes, no_drain_before_s=None, blocked_why="")
    return drains.Step(action=Annotate(replicas=replicas, notes=cleared, resource_version=resource_version))


def _never_started(children: Children, load: Load) -> int:
    """Return how many pods may go without a drain, because no broker ever ran in them; 0 while any other is not well."""
    deployment, living = children.deployment, [pod for pod in children.pods.values() if not pod.terminating]
    assert deployment is not None
    if load.brokers is None or len(living) != deployment.replicas or len(living) != len(children.pods):
        return 0
    idle = [pod for pod in living if pod.phase == "Pending" and pod.name not in load.brokers]
    return len(idle) if all(pod.ready or pod in idle for pod in living) else 0


# ---- status


def _status(cluster: Cluster, children: Children, load: Load) -> ClusterStatus:
    deployment, pods = children.deployment, list(children.pods.values())
    notes = deployment.notes if deployment else Notes()
    return ClusterStatus(
        observed_generation=cluster.generation,
        replicas=len([pod for pod in pods if not pod.terminating]),
        ready_replicas=sum(pod.ready for pod in pods),
        updated_replicas=sum(deployment is not None and pod.checksum == deployment.checksum for pod in pods),
        selector=",".join(f"{name}={value}" for name, value in selector(cluster).items()),
        draining_brokers=tuple(sorted(name for name, broker in (load.brokers or {}).items() if broker.draining)),
        last_scale_time=timestamp(notes.scaled_s) if notes.scaled_s is not None else "",
        last_scale_reason=notes.scaled_why,
    )
