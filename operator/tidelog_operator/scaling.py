"""How many brokers a cluster needs, by its load.

As many as the busiest of three signals asks for: CPU, bytes appended, appends held. Never by lag: more brokers do not make a slow
consumer faster. Load that is not known for every broker holds everything. Brokers are added when more were needed for a
short while, and taken away, one by one, when fewer were enough for a long one; a share around the target changes nothing. The
numbers that are remembered live in memory: a new leader of the operator must see the whole long while itself.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tidelog_operator.observed import Recommendation, Report
from tidelog_operator.reading import amount
from tidelog_operator.resource import ClusterSpec

STALE_AFTER_S = 60.0
"""A broker's report that is older says nothing of its load."""
GAP_S = 150.0
"""If nothing was known for longer, what came before does not count."""
TOLERANCE = 0.1
"""Shares of the target within which a cluster is as large as it should be."""
_EVERY_S = 5.0
"""Recommendations of the same number need not be closer to each other."""
_MIB = 1024 * 1024
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """How many brokers the load asks for, before any limit."""

    brokers: float
    signal: str
    """What asks for that many, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many brokers there should be, and why."""

    replicas: int
    why: str
    history: tuple[Recommendation, ...]
    active: bool = True
    """False while load is not known."""
    limited: bool = False
    """Whether the load asks for more or fewer than the spec allows."""


def demand(spec: ClusterSpec, reports: Collection[Report]) -> Demand:
    """Return what all brokers' load together asks for."""
    targets = spec.autoscaling.targets
    cores = amount(spec.resources.requests.cpu) if spec.resources.requests.cpu else 1.0
    per_broker_cores = cores * targets.cpu
    cpu = sum(report.cpu_cores for report in reports)
    bytes_per_second = sum(report.produce_bytes_per_second for report in reports)
    in_flight = sum(report.in_flight_share for report in reports)
    return max(
        Demand(
            brokers=cpu / max(per_broker_cores, _EPSILON), signal=f"{cpu:.2f} cores are used, {per_broker_cores:.2f} are for each broker"
        ),
        Demand(
            brokers=bytes_per_second / targets.produce_bytes_per_broker,
            signal=f"{bytes_per_second / _MIB:.1f} MiB/s are appended, {targets.produce_bytes_per_broker / _MIB:.1f} are for each broker",
        ),
        Demand(
            brokers=in_flight / targets.in_flight_utilization,
            signal=f"{in_flight:.2f} budgets of appends are held, {targets.in_flight_utilization:.2f} are for each broker",
        ),
        key=lambda each: each.brokers,
    )


def decide(
    spec: ClusterSpec,
    *,
    current: int,
    pods: Collection[str],
    reports: Mapping[str, Report],
    history: tuple[Recommendation, ...],
    scaled_s: float | None,
    now_s: float,
) -> Decision:
    """Return how many brokers there should be. `pods` are all that should report; `scaled_s` is when the number changed last."""
    rules = spec.autoscaling
    least, most = rules.min_replicas, max(rules.min_replicas, rules.max_replicas)
    history = _kept(history, now_s=now_s, window_s=max(rules.scale_down.stabilization_seconds, rules.scale_up.stabilization_seconds))
    if not least <= current <= most:  # someone else's number, or other limits than before: what is allowed goes before what is measured
        bound = least if current < least else current - 1
        return Decision(replicas=bound, why=f"{current} brokers are not between {least} and {most}", history=history)

    unknown = sorted(name for name in pods if name not in reports or not 0 <= now_s - reports[name].at_s <= STALE_AFTER_S)
    if unknown or not pods:
        missing = f"the load of {', '.join(unknown)} is not known" if unknown else "there is no broker"
        return Decision(replicas=current, why=f"{missing}: nothing is scaled", history=history, active=False)

    wants = demand(spec, [reports[name] for name in pods])
    within = abs(wants.brokers / current - 1) <= TOLERANCE
    asked = current if within else max(1, math.ceil(wants.brokers - _EPSILON))
    if len(history) > 1 and history[-1].replicas == asked and now_s - history[-2].at_s < _EVERY_S:
        history = history[:-1]  # else events, of which there may be many, would fill the memory
    history = (*history, Recommendation(at_s=now_s, replicas=asked))
    limited = not least <= asked <= most
    up = min(_of_the_last(history, rules.scale_up.stabilization_seconds, now_s=now_s), most)
    down = max(_of_the_last(history, rules.scale_down.stabilization_seconds, now_s=now_s, most=True), least)
    since_s = math.inf if scaled_s is None else now_s - scaled_s

    if up > current and _covered(history, rules.scale_up.stabilization_seconds, now_s=now_s):
        if since_s >= rules.scale_up.period_seconds:
            return Decision(replicas=min(up, current + rules.scale_up.pods), why=wants.signal, history=history, limited=limited)
        return Decision(replicas=current, why=f"more are needed; the last change was {since_s:.0f} s ago", history=history, limited=limited)
    if down < current and _covered(history, rules.scale_down.stabilization_seconds, now_s=now_s):
        if since_s >= rules.scale_down.period_seconds:
            return Decision(replicas=current - 1, why=wants.signal, history=history, limited=limited)
        return Decision(
            replicas=current, why=f"fewer are enough; the last change was {since_s:.0f} s ago", history=history, limited=limited
        )
    return Decision(replicas=current, why=wants.signal, history=history, limited=limited)


def _kept(history: tuple[Recommendation, ...], *, now_s: float, window_s: float) -> tuple[Recommendation, ...]:
    """Return what still counts: nothing from before a gap, and one that is older than the window, as its beginning."""
    kept: list[Recommendation] = []
    later_s = now_s
    for each in reversed(history):
        if not 0 <= later_s - each.at_s <= GAP_S:
            break
        kept.append(each)
        later_s = each.at_s
        if now_s - each.at_s > window_s:
            break
    return tuple(reversed(kept))


def _of_the_last(history: tuple[Recommendation, ...], window_s: float, *, now_s: float, most: bool = False) -> int:
    within = [each.replicas for each in history if now_s - each.at_s <= window_s]
    return max(within) if most else min(within)


def _covered(history: tuple[Recommendation, ...], window_s: float, *, now_s: float) -> bool:
    return now_s - history[0].at_s >= window_s
