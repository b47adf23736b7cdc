"""What a check of the whole store reads: by pages, each from as few statements as can be, so that it may run beside brokers.

Nothing here locks a row, but for the one repair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tidelog.metadata.extents import Extent, Writer, writers
from tidelog.metadata.marks import final_segments
from tidelog.metadata.membership import ClusterState, cluster_state
from tidelog.metadata.store import Transaction


@dataclass(frozen=True, slots=True)
class Place:
    """A partition, as people and object keys name it."""

    partition_id: int
    topic_id: str
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment that live extents refer to."""

    broker_epoch: int
    sequence: int
    writer: Writer | None
    """None where its row is missing."""
    extents: tuple[tuple[Extent, Place | None], ...]
    """By partition and position; without a place where the partition's row is missing."""


@dataclass(frozen=True, slots=True)
class SegmentState:
    """What rows say of an object, whether or not they refer to it."""

    live: bool
    released: bool
    """Its extents are not read any more, or its release is noted: it waits for the cleaner."""
    final: bool
    """Nobody can commit it any more (I7b)."""
    writer: Writer | None


@dataclass(frozen=True, slots=True)
class Unnoted:
    """A segment without live extents whose release nobody noted, so that no cleaner comes by it."""

    broker_epoch: int
    sequence: int
    writer: Writer | None
    extent: Extent
    """One of those released."""
    place: Place | None


@dataclass(frozen=True, slots=True)
class Oddity:
    """Rows that do not fit each other."""

    kind: str
    subject: str
    found: str


_MOST_ODDITIES = 20
"""Of one kind in one answer."""
_EXTENT = (
    "e.partition_id, e.base_offset, e.next_offset, e.broker_epoch, e.sequence, e.position, e.length, e.record_count, e.level,"
    " e.max_timestamp_ms, e.commit_time_ms, e.leader_epoch"
)
_EXTENT_COLUMNS = 12


def cluster_if_any(tx: Transaction) -> ClusterState | None:
    """Return the cluster's state; None in a store that no broker has used."""
    return cluster_state(tx) if tx.rows("SELECT one FROM cluster") else None


def extent_count(tx: Transaction) -> int:
    """Return how many live extents there are."""
    (row,) = tx.rows("SELECT count(*) AS extents FROM extents")
    count: int = row.extents
    return count


def places(tx: Transaction, *, after: int, limit: int, topics: Sequence[str] | None = None) -> tuple[tuple[Place, int], ...]:
    """Return partitions by their ids, those of deleted topics included, each with its leader epoch."""
    named = "" if topics is None else f" AND t.name IN (SELECT r.name FROM {tx.recordset('topics', 'r', name='text')}) AND NOT t.deleted"
    rows = tx.rows(
        "SELECT p.partition_id, p.topic_id, t.name, p.partition, p.leader_epoch FROM partitions p JOIN topics t ON t.topic_id = p.topic_id"
        f" WHERE p.partition_id > :after{named} ORDER BY p.partition_id LIMIT :most",
        after=after,
        most=limit,
        **({} if topics is None else {"topics": [[name] for name in topics]}),
    )
    return tuple((Place(*row[:4]), row.leader_epoch) for row in rows)


def leader_epoch(tx: Transaction, *, partition_id: int) -> int | None:
    """Return a partition's leader epoch; None where it is gone."""
    rows = tx.rows("SELECT leader_epoch FROM partitions WHERE partition_id = :partition_id", partition_id=partition_id)
    return rows[0].leader_epoch if rows else None


def live_segments(
    tx: Transaction, *, after: tuple[int, int], limit: int, partition_ids: Sequence[int] | None = None
) -> tuple[StoredSegment, ...]:
    """Return segments with live extents by (broker epoch, sequence); of given partitions only, with the extents of these."""
    among = "" if partition_ids is None else f" AND partition_id IN (SELECT r.id FROM {tx.recordset('ids', 'r', id='bigint')})"
    rows = tx.rows(
        "SELECT DISTINCT broker_epoch, sequence FROM extents WHERE broker_epoch >= :epoch"
        f" AND (broker_epoch, sequence) > (:epoch, :sequence){among} ORDER BY broker_epoch, sequence LIMIT :most",
        epoch=after[0],
        sequence=after[1],
        most=limit,
        **({} if partition_ids is None else {"ids": [[each] for each in partition_ids]}),
    )
    return segments(tx, wanted=[(row.broker_epoch, row.sequence) for row in rows], partition_ids=partition_ids)


def segments(
    tx: Transaction, *, wanted: Sequence[tuple[int, int]], partition_ids: Sequence[int] | None = None
) -> tuple[StoredSegment, ...]:
    """Return what live extents refer to of these (broker epoch, sequence); those without any are left out."""
    if not wanted:
        return ()
    rows = tx.rows(
        f"SELECT {_EXTENT}, p.topic_id, t.name, p.partition FROM "
        + tx.recordset("wanted", "w", broker_epoch="bigint", sequence="bigint")
        + " JOIN extents e ON e.broker_epoch = w.broker_epoch AND e.sequence = w.sequence"
        " LEFT JOIN partitions p ON p.partition_id = e.partition_id LEFT JOIN topics t ON t.topic_id = p.topic_id"
        " ORDER BY e.broker_epoch, e.sequence, e.partition_id, e.position",
        wanted=sorted(wanted),
    )
    asked = None if partition_ids is None else set(partition_ids)
    found: dict[tuple[int, int], list[tuple[Extent, Place | None]]] = {}
    for row in rows:
        if asked is None or row.partition_id in asked:
            found.setdefault((row.broker_epoch, row.sequence), []).append(_placed(row))
    wrote = _writers(tx, {epoch for epoch, _ in found})
    return tuple(StoredSegment(epoch, sequence, wrote.get(epoch), tuple(of)) for (epoch, sequence), of in sorted(found.items()))


def segment_states(tx: Transaction, *, wanted: Sequence[tuple[int, int]]) -> tuple[dict[tuple[int, int], SegmentState], int]:
    """Return what rows say of these (broker epoch, sequence), and the epoch that is given out next."""
    ordered = sorted(set(wanted))
    final = final_segments(tx, segments=ordered) if ordered else frozenset()
    fragment = tx.recordset("wanted", "w", broker_epoch="bigint", sequence="bigint")
    same = "e.broker_epoch = w.broker_epoch AND e.sequence = w.sequence"
    # In one statement, and later than whether they are final: rows move from table to table.
    rows = tx.rows(
        f"SELECT w.broker_epoch, w.sequence, 1 AS live FROM {fragment} WHERE EXISTS (SELECT 1 FROM extents e WHERE {same})"
        f" UNION ALL SELECT DISTINCT w.broker_epoch, w.sequence, 0 FROM {fragment} JOIN released_extents e ON {same}"
        f" UNION ALL SELECT w.broker_epoch, w.sequence, 0 FROM {fragment} JOIN released_segments e ON {same}",
        wanted=ordered,
    )
    live = {(row.broker_epoch, row.sequence) for row in rows if row.live}
    released = {(row.broker_epoch, row.sequence) for row in rows if not row.live}
    wrote = _writers(tx, {epoch for epoch, _ in ordered})
    (cluster,) = tx.rows("SELECT next_broker_epoch FROM cluster")
    return {key: SegmentState(key in live, key in released, key in final, wrote.get(key[0])) for key in ordered}, cluster.next_broker_epoch


def unnoted_segments(tx: Transaction, *, after: tuple[int, int], limit: int) -> tuple[Unnoted, ...]:
    """Return segments of which only released extents are left, and no note, by (broker epoch, sequence).

    One statement, for a cleaner removes the extents first and the note later.
    """
    rows = tx.rows(
        f"SELECT {_EXTENT}, p.topic_id, t.name, p.partition FROM (SELECT x.broker_epoch, x.sequence, min(x.partition_id) AS partition_id"
        " FROM released_extents x WHERE x.broker_epoch >= :epoch AND (x.broker_epoch, x.sequence) > (:epoch, :sequence)"
        " AND NOT EXISTS (SELECT 1 FROM released_segments s WHERE s.broker_epoch = x.broker_epoch AND s.sequence = x.sequence)"
        " AND NOT EXISTS (SELECT 1 FROM extents l WHERE l.broker_epoch = x.broker_epoch AND l.sequence = x.sequence)"
        " GROUP BY x.broker_epoch, x.sequence ORDER BY x.broker_epoch, x.sequence LIMIT :most) u"
        " JOIN released_extents e ON e.broker_epoch = u.broker_epoch AND e.sequence = u.sequence AND e.partition_id = u.partition_id"
        " LEFT JOIN partitions p ON p.partition_id = e.partition_id LEFT JOIN topics t ON t.topic_id = p.topic_id"
        " ORDER BY e.broker_epoch, e.sequence, e.position",
        epoch=after[0],
        sequence=after[1],
        most=limit,
    )
    first = {(row.broker_epoch, row.sequence): row for row in reversed(rows)}
    wrote = _writers(tx, {epoch for epoch, _ in first})
    return tuple(Unnoted(*key, wrote.get(key[0]), *_placed(row)) for key, row in sorted(first.items()))


def oldest_release(tx: Transaction) -> tuple[int, int]:
    """Return for how long the oldest note has waited, in milliseconds, and how many there are."""
    (row,) = tx.rows("SELECT min(released_at_ms) AS oldest, count(*) AS waiting FROM released_segments")
    return (0 if row.oldest is None else tx.now_ms() - row.oldest), row.waiting


def note_released(tx: Transaction, *, broker_epoch: int, sequence: int, key: str) -> bool:
    """Note the release of a segment that lacks its note; say whether it was noted.

    Loses nothing: a note only makes the cleaner look, after the readers' grace, and `condemn` decides (I7).
    """
    rows = tx.rows(
        "INSERT INTO released_segments (broker_epoch, sequence, key, released_at_ms)"
        " SELECT CAST(:epoch AS bigint), CAST(:sequence AS bigint), CAST(:key AS text), CAST(:now AS bigint) WHERE"
        " EXISTS (SELECT 1 FROM released_extents x WHERE x.broker_epoch = :epoch AND x.sequence = :sequence)"
        " AND NOT EXISTS (SELECT 1 FROM extents l WHERE l.broker_epoch = :epoch AND l.sequence = :sequence)"
        " ON CONFLICT (broker_epoch, sequence) DO NOTHING RETURNING sequence",
        epoch=broker_epoch,
        sequence=sequence,
        key=key,
        now=tx.now_ms(),
    )
    return bool(rows)


def oddities(tx: Transaction) -> tuple[Oddity, ...]:
    """Return rows that do not fit each other, some of each kind; each kind is found by one statement."""
    found = []
    for question in _QUESTIONS:
        for row in tx.rows(f"{question.sql} LIMIT {_MOST_ODDITIES}"):
            values = row._asdict()
            found.append(Oddity(question.kind, question.subject.format(**values), question.found.format(**values)))
    return tuple(found)


def producers_beyond(tx: Transaction, *, after: tuple[int, int], limit: int) -> tuple[tuple[int, int] | None, tuple[Oddity, ...]]:
    """Look at a page of producers; return where it ended (None after the last) and those who remember more than their partition holds."""
    rows = tx.rows(
        "SELECT r.partition_id, r.producer_id, r.batches, p.next_offset, p.partition, t.name FROM producers r"
        " JOIN partitions p ON p.partition_id = r.partition_id JOIN topics t ON t.topic_id = p.topic_id"
        " WHERE r.partition_id >= :partition AND (r.partition_id, r.producer_id) > (:partition, :producer)"
        " ORDER BY r.partition_id, r.producer_id LIMIT :most",
        partition=after[0],
        producer=after[1],
        most=limit,
    )
    found = [
        Oddity(
            "producer",
            f"producer {row.producer_id} in topic {row.name} partition {row.partition}",
            f"offset {base}, but the partition ends at {row.next_offset}",
        )
        for row in rows
        for _, _, base in orjson.loads(row.batches)
        if base >= row.next_offset
    ]
    return ((rows[-1].partition_id, rows[-1].producer_id) if len(rows) == limit else None), tuple(found)


@dataclass(frozen=True, slots=True)
class _Question:
    """A statement that finds rows which do not fit each other, and how they are told."""

    kind: str
    sql: str
    subject: str
    found: str


_QUESTIONS = (
    _Question(
        "bounds",
        "SELECT t.name, p.partition, p.log_start_offset, p.next_offset FROM partitions p JOIN topics t ON t.topic_id = p.topic_id"
        " WHERE p.log_start_offset > p.next_offset OR p.log_start_offset < 0",
        "topic {name} partition {partition}",
        "its log start is {log_start_offset}, but its high watermark {next_offset}",
    ),
    _Question(
        "partitions",
        "SELECT t.name, t.partitions, (SELECT count(*) FROM partitions p WHERE p.topic_id = t.topic_id) AS found FROM topics t"
        " WHERE NOT t.deleted AND"
        " t.partitions <> (SELECT count(*) FROM partitions p WHERE p.topic_id = t.topic_id AND p.partition < t.partitions)",
        "topic {name}",
        "it has {partitions} partitions, but {found} rows of partitions, or others than the first ones",
    ),
    _Question(
        "mark",
        "SELECT w.broker_epoch, w.broker_id FROM writers w WHERE NOT w.ended AND NOT EXISTS"
        " (SELECT 1 FROM resolved_marks m WHERE m.broker_epoch = w.broker_epoch)",
        "writer epoch {broker_epoch} of broker {broker_id}",
        "it has not ended, but has no resolved mark, so the cleaner takes its segments for final",
    ),
    _Question(
        "member",
        "SELECT b.broker_epoch, b.broker_id FROM brokers b WHERE NOT EXISTS"
        " (SELECT 1 FROM writers w WHERE w.broker_epoch = b.broker_epoch AND NOT w.ended)",
        "broker {broker_id} in epoch {broker_epoch}",
        "it is a member, but its epoch has ended or is not known",
    ),
    _Question(
        "group",
        "SELECT g.group_id, t.name, p.partition, g.next_offset, p.next_offset AS end_offset FROM group_offsets g"
        " JOIN partitions p ON p.partition_id = g.partition_id JOIN topics t ON t.topic_id = p.topic_id"
        " WHERE g.next_offset > p.next_offset",
        "group {group_id} in topic {name} partition {partition}",
        "it has committed offset {next_offset}, but the partition ends at {end_offset}",
    ),
)


def _writers(tx: Transaction, epochs: set[int]) -> dict[int, Writer]:
    return {writer.broker_epoch: writer for writer in writers(tx, broker_epochs=epochs)}


def _placed(row: Any) -> tuple[Extent, Place | None]:
    place = None if row.name is None else Place(row.partition_id, row.topic_id, row.name, row.partition)
    return Extent(*row[:_EXTENT_COLUMNS]), place
