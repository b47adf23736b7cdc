"""What to do next for a TidelogTopic: a pure function of its object, of the topic that there is, and of the time.

A topic and its object are bound by the topic's id. One that was there before is adopted only if it is as the object says; one
that is gone is not made anew, for an empty log in the place of a lost one would hide the loss.
"""

import re
from dataclasses import dataclass, replace

from tidelog_operator.conditions import Finding, conditions
from tidelog_operator.observed import timestamp
from tidelog_operator.resource import TopicSpec, TopicStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A TidelogTopic."""

    name: str
    generation: int
    spec: TopicSpec
    status: TopicStatus
    deleted: bool = False
    finalizer: bool = False
    """Whether the object stays until the topic is deleted."""

    @property
    def topic(self) -> str:
        """The name of the topic itself."""
        return self.spec.topic_name or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a topic keeps; None: the cluster's default at its creation, later what is set."""

    retention_ms: int | None
    retention_bytes: int | None
    compact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSeen:
    """A topic, as brokers tell."""

    topic_id: str
    partitions: int
    kept: Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of the cluster and the topic."""

    cluster_exists: bool = True
    """Whether there is such a TidelogCluster."""
    answered: bool = True
    """Whether a broker could be asked."""
    topic: TopicSeen | None = None
    """None: it answered that there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTopic:
    """Make a topic."""

    name: str
    partitions: int
    kept: Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePartitions:
    """Raise a topic's number of partitions to this."""

    name: str
    partitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterTopic:
    """Set what a topic keeps."""

    name: str
    kept: Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTopic:
    """Delete a topic and its records."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFinalizer:
    """Have the object stay until the topic is deleted, or let it go."""

    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTopicStatus:
    """Write the status subresource."""

    status: TopicStatus


TopicAction = CreateTopic | CreatePartitions | AlterTopic | DeleteTopic | SetFinalizer | WriteTopicStatus

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def retention_ms(text: str) -> int | None:
    """Return 1h30m as milliseconds, forever as -1, nothing as None. The API server has refused all else."""
    if text in ("", "forever"):
        return -1 if text else None
    return sum(int(count) * _UNITS_MS[unit] for count, unit in re.findall(r"([0-9]+)(ms|[smhdw])", text))


def kept(spec: TopicSpec) -> Kept:
    """Return what a topic is to keep."""
    return Kept(retention_ms=retention_ms(spec.retention), retention_bytes=spec.retention_bytes, compact=spec.compaction)


def plan_topic(topic: Topic, seen: Seen, now_s: float) -> tuple[TopicAction, ...]:
    """Return what is to be done now, in this order. `now_s` is Unix time."""
    if topic.deleted:
        return _let_go(topic, seen)
    to_delete = topic.spec.deletion_policy == "Delete"
    if topic.finalizer != to_delete:
        return (SetFinalizer(present=to_delete),)  # before anything is made that it should take with it
    action, found, topic_id = _next(topic, seen)
    status = replace(
        topic.status,
        observed_generation=topic.generation,
        topic_id=topic_id,
        partitions=seen.topic.partitions if seen.topic is not None else topic.status.partitions if not seen.answered else 0,
        conditions=conditions({"Ready": found}, topic.status.conditions, generation=topic.generation, now=timestamp(now_s)),
    )
    written = (WriteTopicStatus(status=status),) if status != topic.status else ()
    return (*([action] if action else []), *written)


def _let_go(topic: Topic, seen: Seen) -> tuple[TopicAction, ...]:
    """Delete the topic that belongs to the object, and no other; then let the object go."""
    if not topic.finalizer:
        return ()
    if topic.spec.deletion_policy == "Retain" or not topic.status.topic_id or not seen.cluster_exists:
        return (SetFinalizer(present=False),)
    if not seen.answered:
        return ()
    if seen.topic is not None and seen.topic.topic_id == topic.status.topic_id:
        return (DeleteTopic(name=topic.topic),)
    return (SetFinalizer(present=False),)


def _next(topic: Topic, seen: Seen) -> tuple[TopicAction | None, Finding, str]:
    """Return what is to be done, what holds, and the id of the topic that belongs to the object."""
    name, spec, topic_id = topic.topic, topic.spec, topic.status.topic_id
    if not seen.cluster_exists:
        return None, _not("ClusterMissing", f"There is no TidelogCluster {spec.cluster_ref} in this namespace; create it"), topic_id
    if not seen.answered:
        message = f"No broker of {spec.cluster_ref} answers; look at the conditions of that TidelogCluster"
        return None, Finding(status="Unknown", reason="ClusterDoesNotAnswer", message=message), topic_id
    if seen.topic is None and topic_id:
        message = f"Topic {name} (id {topic_id}) was deleted by someone else; delete this object, and create it anew for an empty topic"
        return None, _not("TopicGone", message), topic_id
    if seen.topic is None:
        made = CreateTopic(name=name, partitions=spec.partitions, kept=kept(spec))
        return made, _not("Creating", f"Topic {name} is made"), topic_id
    if topic_id and seen.topic.topic_id != topic_id:
        message = f"Topic {name} has id {seen.topic.topic_id} and had {topic_id}: someone made it anew; delete this object, or that topic"
        return None, _not("TopicReplaced", message), topic_id
    return _compared(topic, seen.topic)


def _compared(topic: Topic, there: TopicSeen) -> tuple[TopicAction | None, Finding, str]:
    name, spec, wanted = topic.topic, topic.spec, kept(topic.spec)
    drifted = (
        (wanted.retention_ms is not None and wanted.retention_ms != there.kept.retention_ms)
        or (wanted.retention_bytes is not None and wanted.retention_bytes != there.kept.retention_bytes)
        or wanted.compact != there.kept.compact
    )
    if not topic.status.topic_id:
        if drifted or there.partitions != spec.partitions:
            message = f"Topic {name} was there before and is not as this object says ({_shown(there)}); make them equal, or rename"
            return None, _not("ExistsOtherwise", message), ""
        return None, Finding(status="True", reason="AsWanted", message=f"Topic {name} is as this object says"), there.topic_id
    if there.partitions < spec.partitions:
        more = CreatePartitions(name=name, partitions=spec.partitions)
        return more, _not("AddingPartitions", f"Topic {name} gets {spec.partitions} partitions"), there.topic_id
    if drifted:
        return AlterTopic(name=name, kept=wanted), _not("Altering", f"Topic {name} is set as this object says"), there.topic_id
    if there.partitions > spec.partitions:
        message = f"Topic {name} has {there.partitions} partitions and cannot have fewer; set spec.partitions to {there.partitions}"
        return None, _not("MorePartitions", message), there.topic_id
    return None, Finding(status="True", reason="AsWanted", message=f"Topic {name} is as this object says"), there.topic_id


def _shown(there: TopicSeen) -> str:
    what = there.kept
    return f"partitions {there.partitions}, retention {what.retention_ms} ms, {what.retention_bytes} bytes, compaction {what.compact}"


def _not(reason: str, message: str) -> Finding:
    return Finding(status="False", reason=reason, message=message)
