"""Every metric of the operator, in one place. All series exist from the start, but for those of clusters, which come and go with these."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from tidelog.metrics import MetricDescription

Verb = Literal["get", "list", "watch", "create", "replace", "patch", "delete"]
RequestOutcome = Literal["done", "refused", "unreachable"]
Reconciled = Literal["cluster", "topic"]
Outcome = Literal["done", "conflict", "failed"]
"""`conflict`: something had changed since it was looked at; it is looked at again."""
ActionKind = Literal[
    "apply", "delete", "annotate", "deletion_cost", "drain", "undrain", "cluster_status",
    "create_topic", "create_partitions", "alter_topic", "delete_topic", "finalizer", "topic_status",
]  # fmt: skip
Watched = Literal["TidelogCluster", "TidelogTopic", "Deployment", "Service", "PodDisruptionBudget", "Pod"]
WatchEnd = Literal["over", "expired", "failed"]
"""`over`: after its time, as it should be; `expired`: what it was to begin with is not kept any more, so all is listed again."""
Question = Literal["metrics", "members"]
Answer = Literal["answered", "failed"]
BrokerState = Literal["wanted", "present", "ready", "updated", "draining"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PREFIX = "tidelog_operator_"
C = TypeVar("C", Counter, Gauge, Histogram)


class OperatorMetrics:
    """The metrics of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(namespace="tidelog_operator", registry=registry)
        self.described: list[MetricDescription] = []

        def made(kind: type[C], name: str, text: str, labels: Mapping[str, Any] | None = None, **more: Any) -> C:
            values = {label: get_args(each) for label, each in (labels or {}).items()}
            full = f"{_PREFIX}{name}" + ("_total" if kind.__name__ == "Counter" else "")
            self.described.append(MetricDescription(full, kind.__name__.lower(), text, values))
            return kind(_PREFIX + name, text, list(values), registry=registry, **more)

        self.leader = made(Gauge, "leader", "1 while this process leads.")
        self.queue_length = made(Gauge, "queue_length", "Clusters and topics that are to be looked at now.")
        reconciles = made(Counter, "reconciles", "Looks at a cluster or a topic.", {"kind": Reconciled, "outcome": Outcome})
        self.reconciles: Mapping[str, Mapping[str, Counter]] = _twice(reconciles, Reconciled, Outcome)
        seconds = made(
            Histogram, "reconcile_seconds", "How long looks took that came to their end.", {"kind": Reconciled}, buckets=_SECONDS
        )
        self.reconcile_seconds: Mapping[str, Histogram] = _once(seconds, Reconciled)
        self.actions: Mapping[str, Counter] = _once(made(Counter, "actions", "What was done, by kind.", {"action": ActionKind}), ActionKind)
        watches = made(Counter, "watches_ended", "Watches that ended, by why.", {"kind": Watched, "reason": WatchEnd})
        self.watches_ended: Mapping[str, Mapping[str, Counter]] = _twice(watches, Watched, WatchEnd)
        questions = made(Counter, "broker_questions", "Questions to brokers.", {"question": Question, "outcome": Answer})
        self.broker_questions: Mapping[str, Mapping[str, Counter]] = _twice(questions, Question, Answer)
        requests = made(Counter, "api_requests", "Requests to the API server.", {"verb": Verb, "outcome": RequestOutcome})
        self.api_requests: Mapping[str, Mapping[str, Counter]] = _twice(requests, Verb, RequestOutcome)
        cluster = {"namespace": None, "cluster": None}
        self._brokers = made(Gauge, "brokers", "Brokers of a cluster, by state.", {**cluster, "state": BrokerState})
        self._condition = made(Gauge, "condition", "1 while a condition of a cluster is True.", {**cluster, "type": None})
        build = made(Gauge, "build_info", "Always 1; the labels say what runs.", {"version": None, "python": None})
        build.labels(version("tidelog"), platform.python_version()).set(1)
        self._shown: dict[tuple[str, str], set[str]] = {}

    def show_cluster(self, namespace: str, name: str, brokers: Mapping[BrokerState, int], conditions: Mapping[str, bool]) -> None:
        """Set the gauges of a cluster."""
        for state in get_args(BrokerState):
            self._brokers.labels(namespace, name, state).set(brokers[state])
        for of, holds in conditions.items():
            self._condition.labels(namespace, name, of).set(holds)
        self._shown[namespace, name] = set(conditions)

    def forget_cluster(self, namespace: str, name: str) -> None:
        """Show no series any more of a cluster that is gone, or that another operator looks after."""
        if (conditions := self._shown.pop((namespace, name), None)) is None:
            return
        for state in get_args(BrokerState):
            self._brokers.remove(namespace, name, state)
        for of in conditions:
            self._condition.remove(namespace, name, of)

    def forget_clusters(self) -> None:
        """Show no cluster any more."""
        for namespace, name in list(self._shown):
            self.forget_cluster(namespace, name)


def _once(metric: C, values: Any) -> dict[str, C]:
    return {value: metric.labels(value) for value in get_args(values)}


def _twice(metric: C, first: Any, second: Any) -> dict[str, dict[str, C]]:
    return {value: {other: metric.labels(value, other) for other in get_args(second)} for value in get_args(first)}
