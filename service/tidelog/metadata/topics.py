"""Topics and their partitions. Names are checked by the caller; a name is free again once its topic is deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tidelog.errors import InvalidRequest, TopicExists, UnknownTopic
from tidelog.metadata.leadership import Leadership, next_change
from tidelog.metadata.membership import Membership, membership
from tidelog.metadata.store import Transaction


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """What a topic keeps. -1 stands for no limit."""

    retention_ms: int = -1
    retention_bytes: int = -1
    """Per partition."""
    compact: bool = False


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now."""

    topic_id: str
    name: str
    partitions: int
    config: TopicConfig
    created_at_ms: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class PartitionState:
    """A partition as it is now."""

    partition_id: int
    partition: int
    leader_broker_epoch: int | None
    leader_epoch: int
    log_start_offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class CatalogChanges:
    """What has changed of topics, leaders and members since the versions asked about."""

    version: int
    topics: tuple[Topic, ...]
    """Those created, altered or deleted."""
    partitions: tuple[Leadership, ...]
    membership: Membership | None
    """None where it has not changed."""
    complete: bool
    """These topics and partitions are all there are: whatever else the caller knows of is gone."""


_TOPIC = "topic_id, name, partitions, retention_ms, retention_bytes, compact, created_at_ms, deleted"


def create_topic(tx: Transaction, *, topic_id: str, name: str, partitions: int, config: TopicConfig) -> Topic:
    """Create a topic under an id of the caller's. Asking again with the same id, name and partitions gives the same topic (I5).

    Raises TopicExists where the name belongs to another topic.
    """
    if partitions < 1:
        raise InvalidRequest(f"topic {name!r} was to get {partitions} partitions; it needs at least 1")
    if (known := _known(tx, topic_id=topic_id, name=name)) is not None:
        return known
    created = tx.now_ms()
    inserted = tx.rows(
        "INSERT INTO topics (topic_id, name, partitions, retention_ms, retention_bytes, compact, created_at_ms, changed_version)"
        " VALUES (:topic_id, :name, :partitions, :retention_ms, :retention_bytes, :compact, :created, 0)"
        " ON CONFLICT DO NOTHING RETURNING topic_id",
        topic_id=topic_id,
        name=name,
        partitions=partitions,
        retention_ms=config.retention_ms,
        retention_bytes=config.retention_bytes,
        compact=config.compact,
        created=created,
    )
    if not inserted:  # another transaction was first and has committed meanwhile: an earlier attempt of this one, or somebody else's (I5)
        if (known := _known(tx, topic_id=topic_id, name=name)) is None:
            raise _exists(name)
        return known
    _add_partitions(tx, topic_id=topic_id, first=0, total=partitions, version=_touch(tx, topic_id))
    return Topic(topic_id, name, partitions, config, created, deleted=False)


def create_partitions(tx: Transaction, *, topic_id: str, partitions: int) -> Topic:
    """Raise the number of partitions to `partitions`; never fewer. Raises UnknownTopic."""
    topic = _locked(tx, topic_id)
    if partitions < topic.partitions:
        raise InvalidRequest(
            f"topic {topic.name!r} was to get {partitions} partitions, but it has {topic.partitions}; partitions are never taken away"
        )
    if partitions > topic.partitions:
        version = _touch(tx, topic_id)
        tx.execute("UPDATE topics SET partitions = :partitions WHERE topic_id = :topic_id", partitions=partitions, topic_id=topic_id)
        _add_partitions(tx, topic_id=topic_id, first=topic.partitions, total=partitions, version=version)
    return Topic(topic_id, topic.name, partitions, topic.config, topic.created_at_ms, deleted=False)


def alter_topic(tx: Transaction, *, topic_id: str, config: TopicConfig) -> Topic:
    """Set what the topic keeps. Raises UnknownTopic."""
    topic = _locked(tx, topic_id)
    if config == topic.config:
        return topic
    tx.execute(
        "UPDATE topics SET retention_ms = :retention_ms, retention_bytes = :retention_bytes, compact = :compact WHERE topic_id = :topic_id",
        retention_ms=config.retention_ms,
        retention_bytes=config.retention_bytes,
        compact=config.compact,
        topic_id=topic_id,
    )
    _touch(tx, topic_id)
    return Topic(topic_id, topic.name, topic.partitions, config, topic.created_at_ms, deleted=False)


def delete_topic(tx: Transaction, *, topic_id: str) -> None:
    """Delete a topic: its leaders are fenced at once, its extents go in the background. Deleting again is right."""
    if not tx.rows("SELECT topic_id FROM topics WHERE topic_id = :topic_id AND NOT deleted" + tx.for_update(), topic_id=topic_id):
        return
    tx.rows("SELECT partition_id FROM partitions WHERE topic_id = :topic_id ORDER BY partition_id" + tx.for_update(), topic_id=topic_id)
    version = _touch(tx, topic_id)
    tx.execute("UPDATE topics SET deleted = TRUE WHERE topic_id = :topic_id", topic_id=topic_id)
    tx.execute(
        "UPDATE partitions SET leader_broker_epoch = NULL, leader_epoch = leader_epoch + 1, log_start_offset = next_offset,"
        " changed_version = :version WHERE topic_id = :topic_id",
        version=version,
        topic_id=topic_id,
    )


def topics(tx: Transaction, *, names: Sequence[str] | None = None) -> tuple[Topic, ...]:
    """Return the topics of these names that exist, or all, by name."""
    if names is None:
        rows = tx.rows(f"SELECT {_TOPIC} FROM topics WHERE NOT deleted ORDER BY name")
    else:
        rows = tx.rows(
            f"SELECT {_TOPIC} FROM topics WHERE NOT deleted AND name IN (SELECT r.name FROM "
            + tx.recordset("names", "r", name="text")
            + ") ORDER BY name",
            names=[[name] for name in names],
        )
    return tuple(_topic(row) for row in rows)


def catalog_changes(tx: Transaction, *, since: int, membership_since: int) -> CatalogChanges:
    """Return what has changed after version `since` of topics and leaders, and `membership_since` of members (0: all there is).

    Who knows of a topic that is gone without a trace by now gets all topics and partitions.
    """
    (cluster,) = tx.rows("SELECT membership_version FROM cluster")
    members = membership(tx) if cluster.membership_version > membership_since else None
    (change,) = tx.rows("SELECT version FROM changes")
    if change.version <= since:
        return CatalogChanges(change.version, (), (), members, complete=False)
    # Versions are given while the `changes` row is locked, so all up to this one are visible to these later statements.
    changes = _changes(tx, since)
    if since > 0:
        # Asked last: a topic whose rows are gone by now, but were not when they were read, was told as deleted.
        (change_now,) = tx.rows("SELECT forgotten_version FROM changes")
        if change_now.forgotten_version > since:
            since = 0
            changes = _changes(tx, since)
    return CatalogChanges(change.version, *changes, members, complete=since == 0)


def _changes(tx: Transaction, since: int) -> tuple[tuple[Topic, ...], tuple[Leadership, ...]]:
    # Topics first: a partition of a topic that came between is told again with it, but a topic without its partitions would be believed.
    topics = tx.rows(f"SELECT {_TOPIC} FROM topics WHERE changed_version > :since ORDER BY deleted DESC, topic_id", since=since)
    leaderships = tx.rows(
        "SELECT partition_id, topic_id, partition, leader_broker_epoch, leader_epoch FROM partitions"
        " WHERE changed_version > :since ORDER BY partition_id",
        since=since,
    )
    return tuple(_topic(row) for row in topics), tuple(Leadership(*row) for row in leaderships)


def partitions(tx: Transaction, *, topic_id: str) -> tuple[PartitionState, ...]:
    """Return the topic's partitions in order; none where there is no such topic."""
    rows = tx.rows(
        "SELECT partition_id, partition, leader_broker_epoch, leader_epoch, log_start_offset, next_offset FROM partitions"
        " WHERE topic_id = :topic_id ORDER BY partition",
        topic_id=topic_id,
    )
    return tuple(PartitionState(*row) for row in rows)


def _known(tx: Transaction, *, topic_id: str, name: str) -> Topic | None:
    """Return the topic where it is there already under this id and name. Raises TopicExists where either is another's."""
    for row in tx.rows(
        f"SELECT {_TOPIC} FROM topics WHERE topic_id = :topic_id OR (name = :name AND NOT deleted)", topic_id=topic_id, name=name
    ):
        if row.topic_id == topic_id and row.name == name and not row.deleted:
            return _topic(row)
        raise _exists(name)
    return None


def _add_partitions(tx: Transaction, *, topic_id: str, first: int, total: int, version: int) -> None:
    tx.execute(
        "INSERT INTO partitions (topic_id, partition, changed_version) SELECT :topic_id, r.partition, :version FROM "
        + tx.recordset("new", "r", partition="bigint"),
        topic_id=topic_id,
        version=version,
        new=[[partition] for partition in range(first, total)],
    )


def _locked(tx: Transaction, topic_id: str) -> Topic:
    rows = tx.rows(f"SELECT {_TOPIC} FROM topics WHERE topic_id = :topic_id AND NOT deleted" + tx.for_update(), topic_id=topic_id)
    if not rows:
        raise UnknownTopic(f"topic id {topic_id} was asked for, but there is no such topic; list topics to see what there is")
    return _topic(rows[0])


def _touch(tx: Transaction, topic_id: str) -> int:
    version = next_change(tx)
    tx.execute("UPDATE topics SET changed_version = :version WHERE topic_id = :topic_id", version=version, topic_id=topic_id)
    return version


def _topic(row: Any) -> Topic:
    config = TopicConfig(row.retention_ms, row.retention_bytes, bool(row.compact))
    return Topic(row.topic_id, row.name, row.partitions, config, row.created_at_ms, bool(row.deleted))


def _exists(name: str) -> TopicExists:
    return TopicExists(f"topic {name!r} was to be created, but there is one of that name; choose another, or delete it first")
