"""What may be deleted (I7), decided here and nowhere else; and the count that tells a restored store (I11).

The order of the statements in `condemn` is the proof: first that nobody can commit the segment any more, then, in a
later statement that sees all that was committed until then, that no live extent refers to it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
    bytes: Mapping[tuple[int, int], int] = field(default_factory=dict, compare=False)
    """Of the condemned: the bytes of their released extents."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Segments that wait for the cleaner."""

    segments: int
    oldest_ms: int
    """Since when the one that waits longest does; 0 where none does."""


ReviewState = Literal["deletable", "grace", "checkpoint", "unresolved", "referenced"]
"""May go; waits for the readers' grace; for a checkpoint that does not name it any more; its writer may still have it committed; other
extents refer to it."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What a cleaner would do with a released segment, and why."""

    key: str
    state: ReviewState
    bytes: int
    """Of its released extents, where it may go."""
    age_ms: int
    """Since its last release."""


@dataclass(frozen=True, slots=True)
class WriterState:
    """A writer whose segments may lie in the bucket."""

    broker_epoch: int
    broker_id: str
    incarnation: str
    ended: bool
    resolved_sequence: int


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


def note_checkpoint(tx: Transaction, *, begun_at_ms: int) -> None:
    """Note that the bucket holds a whole copy of this store that was begun then; an older one changes nothing."""
    tx.execute("UPDATE cleaner SET checkpoint_at_ms = :at WHERE checkpoint_at_ms < :at", at=begun_at_ms)


def released_segments(
    tx: Transaction, *, grace_ms: int, limit: int, after: tuple[int, int, int] = (-1, -1, -1), copied: bool = False
) -> tuple[ReleasedSegment, ...]:
    """Return segments whose last release lies at least `grace_ms` back, the oldest first: candidates, not verdicts.

    `copied`: only those that were released before the newest checkpoint was begun. What a rebuild looks for is then there.

    `after` is where an earlier call has come, as (released at, broker epoch, sequence): what cannot be condemned yet must not
    be in the way of what comes after it.
    """
    rows = tx.rows(
        "SELECT broker_epoch, sequence, key, released_at_ms FROM released_segments WHERE released_at_ms <= :before"
        + (" AND released_at_ms < (SELECT checkpoint_at_ms FROM cleaner)" if copied else "")
        + " AND released_at_ms >= :at AND (released_at_ms, broker_epoch, sequence) > (:at, :epoch, :sequence)"
        " ORDER BY released_at_ms, broker_epoch, sequence LIMIT :most",
        before=tx.now_ms() - grace_ms,
        at=after[0],
        epoch=after[1],
        sequence=after[2],
        most=limit,
    )
    return tuple(ReleasedSegment(*row) for row in rows)


def backlog(tx: Transaction) -> Backlog:
    """Return how many segments wait for the cleaner, and for how long."""
    (row,) = tx.rows("SELECT count(*) AS segments, coalesce(min(released_at_ms), 0) AS oldest FROM released_segments")
    return Backlog(row.segments, max(0, tx.now_ms() - row.oldest) if row.segments else 0)


def review(tx: Transaction, *, grace_ms: int, limit: int, copied: bool = False) -> tuple[Reviewed, ...]:
    """Say of up to `limit` released segments, the oldest first, what a cleaner would do with them now. Changes nothing."""
    now = tx.now_ms()
    (row,) = tx.rows("SELECT coalesce(max(checkpoint_at_ms), 0) AS at_ms FROM cleaner")
    copied_to_ms = row.at_ms
    notes = released_segments(tx, grace_ms=0, limit=limit)
    verdict = judge(tx, segments=[(note.broker_epoch, note.sequence) for note in notes])
    found = []
    for note in notes:
        segment = (note.broker_epoch, note.sequence)
        age_ms = now - note.released_at_ms
        state: ReviewState = "deletable"
        if segment in verdict.referenced:
            state = "referenced"
        elif segment not in verdict.condemned:
            state = "unresolved"
        elif age_ms < grace_ms:
            state = "grace"
        elif copied and note.released_at_ms >= copied_to_ms:
            state = "checkpoint"
        found.append(Reviewed(note.key, state, verdict.bytes.get(segment, 0), age_ms))
    return tuple(found)


def judge(tx: Transaction, *, segments: Iterable[tuple[int, int]]) -> Verdict:
    """Say of segments, as (broker epoch, sequence), whether their objects may be deleted now and for ever (I7a, I7b).

    Changes nothing. Raises TimeTravel where a segment is of an epoch that this store never gave out (I11).
    """
    wanted = sorted(set(segments))
    if not wanted:
        return Verdict(frozenset(), frozenset())
    _check_given_out(tx, wanted)
    final = final_segments(tx, segments=wanted)
    live = _with_rows(tx, ("extents",), wanted)
    return Verdict(final - live, live, _released_bytes(tx, final - live))


def condemn(tx: Transaction, *, notes: Sequence[ReleasedSegment]) -> Verdict:
    """Judge released segments, and remove the released extents of those that may be deleted: so before any DELETE is sent.

    Only a note that is as it was read is condemned: a release that renewed it is younger than the readers' grace (I7c) that the
    caller has seen pass, and than the marker that it has put down (I11). Raises TimeTravel as `judge` does.
    """
    wanted = sorted({(note.broker_epoch, note.sequence) for note in notes})
    if not wanted:
        return Verdict(frozenset(), frozenset())
    _check_given_out(tx, wanted)
    final = final_segments(tx, segments=wanted)
    # In a later statement than that (I7); and in one: a release takes away the extent and renews the note.
    live: set[tuple[int, int]] = set()
    as_read: set[tuple[int, int]] = set()
    for row in tx.rows(
        "SELECT DISTINCT e.broker_epoch, e.sequence, 0 AS as_read FROM "
        + tx.recordset("segments", "r", broker_epoch="bigint", sequence="bigint")
        + " JOIN extents e ON e.broker_epoch = r.broker_epoch AND e.sequence = r.sequence"
        " UNION ALL SELECT s.broker_epoch, s.sequence, 1 FROM "
        + tx.recordset("notes", "n", broker_epoch="bigint", sequence="bigint", released_at_ms="bigint")
        + " JOIN released_segments s ON s.broker_epoch = n.broker_epoch AND s.sequence = n.sequence"
        " AND s.released_at_ms = n.released_at_ms",
        segments=wanted,
        notes=sorted((note.broker_epoch, note.sequence, note.released_at_ms) for note in notes),
    ):
        (as_read if row.as_read else live).add((row.broker_epoch, row.sequence))
    condemned = (final & as_read) - live
    verdict = Verdict(condemned, frozenset(live), _released_bytes(tx, condemned))
    if condemned:
        tx.delete(
            "released_extents",
            "(broker_epoch, sequence) IN (SELECT r.broker_epoch, r.sequence FROM "
            + tx.recordset("segments", "r", broker_epoch="bigint", sequence="bigint")
            + ")",
            key="broker_epoch, sequence, partition_id, position",
            segments=sorted(condemned),
        )
    return verdict


def orphans(tx: Transaction, *, segments: Iterable[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    """Return those of the segments, as (broker epoch, sequence), that no row knows, and that nobody can commit any more (I7).

    What is noted as released is none: it waits for the readers' grace. Where nobody can commit and no row is left, none ever
    comes. Raises TimeTravel where a segment is of an epoch that this store never gave out (I11).
    """
    wanted = sorted(set(segments))
    if not wanted:
        return frozenset()
    _check_given_out(tx, wanted)
    final = final_segments(tx, segments=wanted)
    # In a later statement, and in one: a release moves rows from table to table.
    return final - _with_rows(tx, ("extents", "released_extents", "released_segments"), wanted)


def _check_given_out(tx: Transaction, segments: Sequence[tuple[int, int]]) -> None:
    (cluster,) = tx.rows("SELECT next_broker_epoch FROM cluster")
    newest = segments[-1][0]
    if newest >= cluster.next_broker_epoch:
        raise TimeTravel(
            f"the bucket holds a segment of broker epoch {newest}, but this metadata store has only given out epochs below"
            f" {cluster.next_broker_epoch}: it was restored from an older copy, or is another cluster's. Nothing was deleted; point the"
            " brokers at the right database, or rebuild it from the bucket"
        )


def _released_bytes(tx: Transaction, segments: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    wanted = sorted(segments)
    if not wanted:
        return {}
    rows = tx.rows(
        "SELECT e.broker_epoch, e.sequence, CAST(sum(e.length) AS bigint) AS bytes FROM "
        + tx.recordset("segments", "r", broker_epoch="bigint", sequence="bigint")
        + " JOIN released_extents e ON e.broker_epoch = r.broker_epoch AND e.sequence = r.sequence GROUP BY e.broker_epoch, e.sequence",
        segments=wanted,
    )
    return {(row.broker_epoch, row.sequence): row.bytes for row in rows}


def _with_rows(tx: Transaction, tables: Iterable[str], segments: Sequence[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    """Return those of the segments that one of the tables has rows of; all are read in one statement."""
    fragment = tx.recordset("segments", "r", broker_epoch="bigint", sequence="bigint")
    found = " UNION ".join(
        f"SELECT e.broker_epoch, e.sequence FROM {fragment} JOIN {table} e ON e.broker_epoch = r.broker_epoch AND e.sequence = r.sequence"
        for table in tables
    )
    rows = tx.rows(f"SELECT DISTINCT f.broker_epoch, f.sequence FROM ({found}) AS f", segments=segments)
    return frozenset((row.broker_epoch, row.sequence) for row in rows)


def writer_states(tx: Transaction) -> tuple[WriterState, ...]:
    """Return all writers of whom something may be left."""
    rows = tx.rows(
        "SELECT w.broker_epoch, w.broker_id, w.incarnation, w.ended, coalesce(m.sequence, 0) AS mark FROM writers w"
        " LEFT JOIN resolved_marks m ON m.broker_epoch = w.broker_epoch ORDER BY w.broker_epoch"
    )
    return tuple(WriterState(row.broker_epoch, row.broker_id, row.incarnation, bool(row.ended), row.mark) for row in rows)


def forget_writers(tx: Transaction, *, broker_epochs: Iterable[int]) -> tuple[int, ...]:
    """Remove those of the writers whose epochs have ended and whose segments no row knows; return which.

    A writer without a row counts as ended everywhere, and that it has no segments left never changes. Its count of commits
    stays: what it counted must go on counting, and what it did last may still be counted late (I11).
    """
    known = " AND ".join(
        f"NOT EXISTS (SELECT 1 FROM {table} e WHERE e.broker_epoch = writers.broker_epoch)"
        for table in ("extents", "released_extents", "released_segments", "brokers")
    )
    gone = tx.delete(
        "writers",
        "broker_epoch IN (SELECT r.broker_epoch FROM " + tx.recordset("epochs", "r", broker_epoch="bigint") + f") AND ended AND {known}",
        key="broker_epoch",
        epochs=[[epoch] for epoch in sorted(set(broker_epochs))],
    )
    forgotten = sorted(row.broker_epoch for row in gone)
    tx.delete(
        "resolved_marks",
        "broker_epoch IN (SELECT r.broker_epoch FROM " + tx.recordset("epochs", "r", broker_epoch="bigint") + ")",
        key="broker_epoch",
        epochs=[[epoch] for epoch in forgotten],
    )
    return tuple(forgotten)


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
