"""What topics keep, and the end of topics that are deleted.

The log start moves first, in the way of a leader; extents below it are released later, by anyone (`extents`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tidelog.metadata.extents import advance_log_starts, retention_points
from tidelog.metadata.store import Transaction


@dataclass(frozen=True, slots=True)
class Rule:
    """What a partition keeps, asked by its leader. -1 stands for no limit."""

    partition_id: int
    leader_epoch: int
    retention_ms: int
    """Counted from the commit, by the metadata store's clock."""
    retention_bytes: int


@dataclass(frozen=True, slots=True)
class DeletedTopic:
    """A deleted topic whose rows are still there."""

    topic_id: str
    partition_ids: tuple[int, ...]


def apply_retention(tx: Transaction, *, rules: Sequence[Rule]) -> dict[int, int]:
    """Move log starts forward as the rules ask, each for itself; return where they are now, by partition id.

    Partitions that are not led in the leader epoch of their rule are left alone, and out. Most partitions have nothing to
    give at any moment: one statement finds those that do, and few more are enough for all of them.
    """
    now = tx.now_ms()
    by_id = {rule.partition_id: rule for rule in rules}
    rows = tx.rows(
        "SELECT p.partition_id, p.log_start_offset,"
        # The oldest extent that is kept tells whether any is too old.
        " CASE WHEN r.before > 0 AND coalesce((SELECT e.commit_time_ms FROM extents e WHERE e.partition_id = p.partition_id"
        "  AND e.next_offset > p.log_start_offset ORDER BY e.base_offset LIMIT 1), r.before) < r.before THEN 1"
        "  WHEN r.bytes >= 0 AND coalesce((SELECT sum(e.length) FROM extents e WHERE e.partition_id = p.partition_id"
        "  AND e.next_offset > p.log_start_offset), 0) > r.bytes THEN 1 ELSE 0 END AS due FROM "
        + tx.recordset("rules", "r", partition_id="bigint", leader_epoch="bigint", before="bigint", bytes="bigint")
        + " JOIN partitions p ON p.partition_id = r.partition_id AND p.leader_epoch = r.leader_epoch ORDER BY p.partition_id",
        rules=[
            (rule.partition_id, rule.leader_epoch, now - rule.retention_ms if rule.retention_ms >= 0 else 0, rule.retention_bytes)
            for rule in rules
        ],
    )
    starts: dict[int, int] = {row.partition_id: row.log_start_offset for row in rows}
    due = [by_id[row.partition_id] for row in rows if row.due]
    if due:
        limits = [(rule.partition_id, now - rule.retention_ms if rule.retention_ms >= 0 else 0, rule.retention_bytes) for rule in due]
        points = retention_points(tx, limits=limits)
        moves = [
            (rule.partition_id, rule.leader_epoch, points[rule.partition_id])
            for rule in due
            if points.get(rule.partition_id, 0) > starts[rule.partition_id]
        ]
        moved = advance_log_starts(tx, moves=moves)
        for partition_id, _, _ in moves:  # where leadership has passed meanwhile, its new leader does it
            starts.pop(partition_id)
        starts |= moved
    return dict(sorted(starts.items()))


def deleted_topics(tx: Transaction, *, limit: int) -> tuple[DeletedTopic, ...]:
    """Return up to `limit` deleted topics whose rows are still there."""
    topics = tx.rows("SELECT topic_id FROM topics WHERE deleted ORDER BY changed_version LIMIT :most", most=limit)
    if not topics:
        return ()
    partitions: dict[str, list[int]] = {row.topic_id: [] for row in topics}
    for row in tx.rows(
        "SELECT topic_id, partition_id FROM partitions WHERE topic_id IN (SELECT r.topic_id FROM "
        + tx.recordset("topics", "r", topic_id="text")
        + ") ORDER BY partition_id",
        topics=[[row.topic_id] for row in topics],
    ):
        partitions[row.topic_id].append(row.partition_id)
    return tuple(DeletedTopic(topic_id, tuple(ids)) for topic_id, ids in partitions.items())


def strip_deleted_topic(tx: Transaction, *, topic_id: str, limit: int) -> int:
    """Remove up to `limit` rows of producers and of groups' offsets of a deleted topic; return how many there were.

    `drop_deleted_topic` takes all at once.
    """
    gone = 0
    for table, key in {"producers": "partition_id, producer_id", "group_offsets": "group_id, partition_id"}.items():
        if gone < limit:
            columns = ", ".join(f"s.{column}" for column in key.split(", "))
            rows = tx.delete(
                table,
                f"({key}) IN (SELECT {columns} FROM {table} s JOIN partitions p ON p.partition_id = s.partition_id"
                " JOIN topics t ON t.topic_id = p.topic_id WHERE p.topic_id = :topic_id AND t.deleted LIMIT :most)",
                key=key,
                topic_id=topic_id,
                most=limit - gone,
            )
            gone += len(rows)
    return gone
