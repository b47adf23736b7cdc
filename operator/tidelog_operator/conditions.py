"""What holds of a cluster, as conditions: each with a sentence that says what to do."""

from collections.abc import Mapping
from dataclasses import dataclass

from tidelog_operator.observed import Children, Cluster, Load
from tidelog_operator.resource import Condition, ConditionStatus
from tidelog_operator.scaling import STALE_AFTER_S, Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A condition without its times."""

    status: ConditionStatus
    reason: str
    message: str


def findings(
    cluster: Cluster,
    children: Children,
    load: Load,
    *,
    missing_secrets: str,
    decision: Decision,
    drain_waits: str,
    now_s: float,
) -> dict[str, Finding]:
    """Return what holds, by the condition's type."""
    return {
        "Ready": _ready(children),
        "Progressing": _progressing(cluster, children, drain_waits),
        "StorageReachable": _reachable(load, "storage", now_s=now_s),
        "MetadataReachable": _reachable(load, "metadata", now_s=now_s),
        "ScalingActive": _scaling_active(cluster, decision),
        "ScalingLimited": _scaling_limited(cluster, decision),
        "DrainBlocked": _drain_blocked(children),
        "Degraded": _degraded(children, load, missing_secrets),
    }


def conditions(found: Mapping[str, Finding], before: tuple[Condition, ...], *, generation: int, now: str) -> tuple[Condition, ...]:
    """Return conditions, each with the time since which its status is this one."""
    earlier = {each.type: each for each in before}
    return tuple(
        Condition(
            type=of,
            status=each.status,
            reason=each.reason,
            message=each.message,
            last_transition_time=earlier[of].last_transition_time if of in earlier and earlier[of].status == each.status else now,
            observed_generation=generation,
        )
        for of, each in found.items()
    )


def _ready(children: Children) -> Finding:
    deployment, ready = children.deployment, sum(pod.ready for pod in children.pods.values())
    if deployment is None:
        return Finding(status="False", reason="NotCreated", message="There are no brokers yet")
    if ready == 0:
        return Finding(status="False", reason="NoBrokerReady", message="No broker takes appends; Degraded says why, where it is known")
    if ready < deployment.replicas:
        return Finding(status="True", reason="SomeBrokersReady", message=f"{ready} of {deployment.replicas} brokers take appends")
    return Finding(status="True", reason="AllBrokersReady", message=f"All {deployment.replicas} brokers take appends")


def _progressing(cluster: Cluster, children: Children, drain_waits: str) -> Finding:
    deployment, pods = children.deployment, children.pods
    if cluster.spec.paused:
        return Finding(status="False", reason="Paused", message="Nothing is changed while spec.paused is true; set it to false to go on")
    if deployment is None:
        return Finding(status="True", reason="Creating", message="The cluster's objects are made")
    if deployment.notes.drain is not None:
        drain = deployment.notes.drain
        return Finding(status="True", reason="Draining", message=f"Broker {drain.pod}: {drain.phase.value}. {drain_waits}".strip())
    old = sum(pod.checksum != deployment.checksum for pod in pods.values())
    if old and deployment.stuck:
        message = f"{old} brokers wait for a new one to be ready ({deployment.stuck}); mend what Degraded tells, or go back in the spec"
        return Finding(status="False", reason="RolloutStuck", message=message)
    if old:
        return Finding(status="True", reason="RollingUpdate", message=f"{old} brokers are still to be replaced, one at a time")
    if len(pods) != deployment.replicas or drain_waits:
        message = f"{len(pods)} pods of {deployment.replicas}"
        return Finding(status="True", reason="Scaling", message=f"{message}; {drain_waits}" if drain_waits else message)
    if unready := sum(not pod.ready for pod in pods.values()):
        return Finding(status="True", reason="Waiting", message=f"{unready} of {len(pods)} brokers are not ready yet")
    return Finding(status="False", reason="Complete", message="All is as the spec says")


def _reachable(load: Load, what: str, *, now_s: float) -> Finding:
    fresh = [report for report in load.reports.values() if now_s - report.at_s <= STALE_AFTER_S]
    failures = sum(report.store_failures if what == "storage" else report.metadata_failures for report in fresh)
    successes = sum(report.store_successes if what == "storage" else report.metadata_successes for report in fresh)
    named, looked = ("bucket", "spec.storage") if what == "storage" else ("database", "the Secret of spec.metadataStore.urlSecretRef")
    if successes:
        return Finding(status="True", reason="Answers", message=f"The {named} answers")
    if failures:
        message = f"No call of the {named} has succeeded lately, some failed; look at {looked}, the network, and brokers' logs"
        return Finding(status="False", reason="DoesNotAnswer", message=message)
    return Finding(status="Unknown", reason="NotAsked", message=f"No broker has told of a call of the {named} lately")


def _scaling_active(cluster: Cluster, decision: Decision) -> Finding:
    if not cluster.spec.autoscaling.enabled:
        return Finding(status="False", reason="Disabled", message="spec.replicas says how many brokers there are")
    if not decision.active:
        return Finding(status="False", reason="LoadUnknown", message=decision.why)
    return Finding(status="True", reason="LoadKnown", message="The brokers' load says how many there are")


def _scaling_limited(cluster: Cluster, decision: Decision) -> Finding:
    rules = cluster.spec.autoscaling
    if decision.limited:
        limits = f"{rules.min_replicas} to {rules.max_replicas}"
        message = f"The load asks for more or fewer brokers than {limits}; change these limits if it should have them"
        return Finding(status="True", reason="AtLimit", message=message)
    return Finding(status="False", reason="WithinLimits", message="The load asks for no more than the limits allow")


def _drain_blocked(children: Children) -> Finding:
    notes = children.deployment.notes if children.deployment else None
    blocked = (notes.blocked_why or (notes.drain.why if notes.drain and notes.drain.blocked else "")) if notes else ""
    if blocked:
        message = f"{blocked}; it serves again. Look at its log, or raise spec.drain.timeoutSeconds"
        return Finding(status="True", reason="DrainTimedOut", message=message)
    return Finding(status="False", reason="NotBlocked", message="No drain has failed to come to its end")


def _degraded(children: Children, load: Load, missing_secrets: str) -> Finding:
    if missing_secrets:
        return Finding(status="True", reason="SecretMissing", message=missing_secrets)
    deployment, pods = children.deployment, children.pods
    draining = deployment.notes.drain.pod if deployment and deployment.notes.drain else ""
    found = [(pod.name, "PodTrouble", f"Pod {pod.name}: {pod.problem}") for pod in pods.values() if pod.problem]
    found += [
        (name, "BrokerNotReady", f"Broker {name} says: {report.not_ready_why}")
        for name, report in load.reports.items()
        if report.not_ready_why and name != draining and name in pods and not pods[name].problem and not pods[name].terminating
    ]
    if not found:
        return Finding(status="False", reason="NothingWrong", message="No pod has trouble")
    # What came of the latest spec first: it is what somebody waits for, and an earlier one's pods stay until it is well.
    _, reason, message = min(found, key=lambda each: (deployment is not None and pods[each[0]].checksum != deployment.checksum, each))
    others = f" ({len(found) - 1} more pods have trouble)" if len(found) > 1 else ""
    return Finding(status="True", reason=reason, message=message + others)
