"""What may be deleted (I7), decided here and nowhere else; and the count that tells a restored store (I11).

The order of the statements in `condemn` is the proof: first that nobody can commit the segment any more, then, in a
later statement that sees all that was committed until then, that no live extent refers to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidelog.errors import TimeTravel
from tidelog.metadata.marks import final_segments
from tidelog.metadata.store import Transaction


@dataclass(frozen=True, slots=True)
class ReleasedSegment:
    """A segment that lost an extent, and where its object is."""

    broker_epoch: int
    sequence: int
    key: str
    released_at_ms: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `condemn` found, as (broker epoch, sequence). Segments in neither set are to be looked at again later."""

    condemned: frozenset[tuple[int, int]]
    """Objects that may be deleted."""
    referenced: frozenset[tuple[int, int]]
    """Objects that live extents refer to."""


def acquire_cleaner(tx: Transaction, *, broker_epoch: int, ttl_ms: int) -> bool:
    """Take or renew the lease under which one broker cleans at a time. It saves work; safety rests on `condemn` alone."""
    now = tx.now_ms()
    rows = tx.rows(
        "UPDATE cleaner SET broker_epoch = :epoch, lease_expires_at_ms = :expires"
        " WHERE broker_epoch = :epoch OR broker_epoch IS NULL OR lease_expires_at_ms < :now"
        " OR NOT EXISTS (SELECT 1 FROM brokers b WHERE b.broker_epoch = cleaner.broker_epoch) RETURNING one",
        epoch=broker_epoch,
        expires=now + ttl_ms,
        now=now,
    )
    return bool(rows)


def released_segments(tx: Transaction, *, grace_ms: int, limit: int) -> tuple[ReleasedSegment, ...]:
    """Return segments whose last release lies at least `grace_ms` back, the oldest first: candidates, not verdicts."""
    rows = tx.rows(
        "SELECT broker_epoch, sequence, key, released_at_ms FROM released_segments WHERE released_at_ms <= :before"
        " ORDER BY released_at_ms, broker_epoch, sequence LIMIT :most",
        before=tx.now_ms() - grace_ms,
        most=limit,
    )
    return tuple(ReleasedSegment(*row) for row in rows)


def condemn(tx: Transaction, *, segments: Iterable[tuple[int, int]]) -> Verdict:
    """Say of segments, as (broker epoch, sequence), whether their objects may be deleted now and for ever (I7a, I7b).

    Removes the released extents of those that may, in this transaction: so before any DELETE is sent. The readers' grace
    (I7c) is the caller's to keep. Raises TimeTravel where a segment is of an epoch that this store never gave out (I11).
    """
    wanted = sorted(set(segments))
    if not wanted:
        return Verdict(frozenset(), frozenset())
    (cluster,) = tx.rows("SELECT next_broker_epoch FROM cluster")
    newest = wanted[-1][0]
    if newest >= cluster.next_broker_epoch:
        raise TimeTravel(
            f"the bucket holds a segment of broker epoch {newest}, but this metadata store has only given out epochs below"
            f" {cluster.next_broker_epoch}: it was restored from an older copy, or is another cluster's. Nothing was deleted; point the"
            " brokers at the right database, or rebuild it from the bucket"
        )
    final = final_segments(tx, segments=wanted)
    fragment = tx.recordset("segments", "r", broker_epoch="bigint", sequence="bigint")
    live = frozenset(
        (row.broker_epoch, row.sequence)
        for row in tx.rows(
            f"SELECT DISTINCT e.broker_epoch, e.sequence FROM {fragment} JOIN extents e"
            " ON e.broker_epoch = r.broker_epoch AND e.sequence = r.sequence",
            segments=wanted,
        )
    )
    condemned = final - live
    if condemned:
        tx.delete(
            "released_extents",
            f"(broker_epoch, sequence) IN (SELECT r.broker_epoch, r.sequence FROM {fragment})",
            key="broker_epoch, sequence, partition_id, position",
            segments=sorted(condemned),
        )
    return Verdict(condemned, live)


def forget_released(tx: Transaction, *, notes: Sequence[ReleasedSegment]) -> None:
    """Drop notes of segments whose objects are gone, or which are still referred to (their next release notes them again).

    A note that was renewed after it was read stays: the release that renewed it is yet to be looked at.
    """
    if notes:
        fragment = tx.recordset("notes", "r", broker_epoch="bigint", sequence="bigint", released_at_ms="bigint")
        tx.delete(
            "released_segments",
            f"(broker_epoch, sequence, released_at_ms) IN (SELECT r.broker_epoch, r.sequence, r.released_at_ms FROM {fragment})",
            key="broker_epoch, sequence",
            notes=sorted((note.broker_epoch, note.sequence, note.released_at_ms) for note in notes),
        )


def expire_producers(tx: Transaction, *, partition_ids: Sequence[int], unused_for_ms: int) -> tuple[tuple[int, int], ...]:
    """Forget producers of these partitions that have not appended for so long; return them as (partition id, producer id).

    Only the partitions' leader may ask, in its commit queue: what it remembers must not outlive what is stored.
    """
    expired = tx.delete(
        "producers",
        "appended_at_ms < :before AND partition_id IN (SELECT r.partition_id FROM "
        + tx.recordset("partitions", "r", partition_id="bigint")
        + ")",
        key="partition_id, producer_id",
        before=tx.now_ms() - unused_for_ms,
        partitions=[[partition_id] for partition_id in partition_ids],
    )
    return tuple(sorted((row.partition_id, row.producer_id) for row in expired))


def drop_deleted_topic(tx: Transaction, *, topic_id: str) -> bool:
    """Remove a deleted topic's rows once none of its extents is live; return whether they are gone."""
    deleted = tx.rows("SELECT changed_version FROM topics WHERE topic_id = :topic_id AND deleted" + tx.for_update(), topic_id=topic_id)
    if not deleted:
        return not tx.rows("SELECT topic_id FROM topics WHERE topic_id = :topic_id", topic_id=topic_id)
    own = tx.rows(
        "SELECT partition_id FROM partitions WHERE topic_id = :topic_id ORDER BY partition_id" + tx.for_update(), topic_id=topic_id
    )
    ids = [[row.partition_id] for row in own]
    among = "partition_id IN (SELECT r.partition_id FROM " + tx.recordset("ids", "r", partition_id="bigint") + ")"
    if tx.rows(f"SELECT partition_id FROM extents WHERE {among} LIMIT 1", ids=ids):
        return False
    keys = {"producers": "partition_id, producer_id", "group_offsets": "group_id, partition_id", "partitions": "partition_id"}
    for table, key in keys.items():
        tx.delete(table, among, key=key, ids=ids)
    tx.execute("DELETE FROM topics WHERE topic_id = :topic_id", topic_id=topic_id)
    # Nothing is left to tell of the deletion: those who have not heard of it yet have to read everything.
    tx.execute(
        "UPDATE changes SET forgotten_version = CASE WHEN forgotten_version < :version THEN :version ELSE forgotten_version END",
        version=deleted[0].changed_version,
    )
    return True
