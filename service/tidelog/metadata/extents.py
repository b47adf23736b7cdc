"""Extents: which bytes are which offsets; and how extents give way to merged ones, or to retention.

An extent that is no longer read moves to `released_extents` and its segment is noted in `released_segments`: the
answer to a late retry stays until the object goes (I5), and the cleaner learns where to look (I7).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tidelog.errors import Fenced
from tidelog.metadata.leadership import lock_led, not_leader
from tidelog.metadata.marks import blocks, final_segments
from tidelog.metadata.store import ColumnType, Transaction


@dataclass(frozen=True, slots=True)
class Extent:
    """A committed piece of a chunk, and where its object is."""

    partition_id: int
    base_offset: int
    next_offset: int
    broker_epoch: int
    sequence: int
    position: int
    length: int
    record_count: int
    level: int
    """0: in an intake segment; n: in a segment merged n times."""
    max_timestamp_ms: int
    commit_time_ms: int
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class Writer:
    """Who wrote a segment: what its key is made of."""

    broker_epoch: int
    broker_id: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class PartitionExtents:
    """One partition's bounds and the extents that follow an offset, from one snapshot."""

    partition_id: int
    log_start_offset: int
    high_watermark: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class ExtentsRead:
    """The answer to a look-up: partitions in the order asked (unknown ones left out), and the writers of their extents."""

    partitions: tuple[PartitionExtents, ...]
    writers: tuple[Writer, ...]


@dataclass(frozen=True, slots=True)
class ExpiredExtents:
    """Extents below the log start, and all that the names of their objects are made of."""

    extents: tuple[Extent, ...]
    places: Mapping[int, tuple[str, int]]
    """Of each partition id its topic's id, and its number there."""
    writers: tuple[Writer, ...]


@dataclass(frozen=True, slots=True)
class ReleasedSource:
    """An extent that is to give way, and its segment's key."""

    extent: Extent
    key: str


COUNT_COMMIT = "UPDATE commit_counts SET commits = commits + 1 WHERE broker_epoch = :broker_epoch"
"""Said in every transaction after which a store without it would not fit the bucket any more (I11)."""
_COLUMNS = (
    "partition_id, base_offset, next_offset, broker_epoch, sequence, position, length, record_count, level, max_timestamp_ms,"
    " commit_time_ms, leader_epoch"
)
_WHICH: dict[str, ColumnType] = dict.fromkeys(
    ("partition_id", "base_offset", "next_offset", "broker_epoch", "sequence", "position"), "bigint"
)
"""What makes an extent the very one that was read."""
_OF_E = ", ".join(f"e.{column.strip()}" for column in _COLUMNS.split(","))


def read_extents(
    tx: Transaction, *, positions: Sequence[tuple[int, int]], max_extents: int, max_extents_each: int | None = None
) -> ExtentsRead:
    """Look up (partition id, offset) pairs: the extent that holds the offset and those after it, up to `max_extents` in all.

    Each partition may be asked for once. `max_extents_each` limits what follows the first extent of each, so that one that
    is far behind leaves room for the others.

    Bounds and extents of a partition come from one statement, so that no extent between them is ever missing (a reader
    that sees a gap below the high watermark has found a defect).
    """
    rows = tx.rows(
        "SELECT p.partition_id AS id, p.log_start_offset, p.next_offset AS high_watermark, " + _OF_E + " FROM "
        + tx.recordset("positions", "r", partition_id="bigint", at="bigint")
        + " JOIN partitions p ON p.partition_id = r.partition_id"
        " LEFT JOIN extents e ON e.partition_id = r.partition_id AND e.next_offset > r.at AND e.base_offset >= coalesce("
        "(SELECT max(f.base_offset) FROM extents f WHERE f.partition_id = r.partition_id AND f.base_offset <= r.at), r.at)"
        + ("" if max_extents_each is None else " AND e.base_offset < coalesce((SELECT g.base_offset FROM extents g WHERE"
           " g.partition_id = r.partition_id AND g.base_offset > r.at ORDER BY g.base_offset LIMIT 1 OFFSET :each), 9223372036854775807)")
        + " ORDER BY p.partition_id, e.base_offset LIMIT :most",
        positions=list(positions),
        most=max_extents + len(positions),
        **({} if max_extents_each is None else {"each": max_extents_each}),
    )  # fmt: skip
    bounds: dict[int, tuple[int, int]] = {}
    extents: dict[int, list[Extent]] = {}
    for row in rows:
        bounds[row.id] = (row.log_start_offset, row.high_watermark)
        if row.partition_id is not None:
            extents.setdefault(row.id, []).append(Extent(*row[3:]))
    # Those that the limit left without a row still learn their bounds.
    missing = [partition_id for partition_id, _ in positions if partition_id not in bounds]
    for row in (
        tx.rows(
            "SELECT partition_id, log_start_offset, next_offset FROM partitions WHERE partition_id IN (SELECT r.partition_id FROM "
            + tx.recordset("missing", "r", partition_id="bigint")
            + ")",
            missing=[[partition_id] for partition_id in missing],
        )
        if missing
        else ()
    ):
        bounds[row.partition_id] = (row.log_start_offset, row.next_offset)
    epochs = sorted({extent.broker_epoch for found in extents.values() for extent in found})
    found = [
        PartitionExtents(partition_id, *bounds[partition_id], tuple(extents.get(partition_id, ())))
        for partition_id, _ in positions
        if partition_id in bounds
    ]
    return ExtentsRead(tuple(found), writers(tx, broker_epochs=epochs))


def dated_extents(tx: Transaction, *, positions: Sequence[tuple[int, int]], max_extents_each: int) -> tuple[int, ExtentsRead]:
    """Look up (partition id, offset) pairs as `read_extents` does, with the time of the clock by which extents tell their commit."""
    most = max_extents_each * len(positions)
    return tx.now_ms(), read_extents(tx, positions=positions, max_extents=most, max_extents_each=max_extents_each)


def writers(tx: Transaction, *, broker_epochs: Iterable[int]) -> tuple[Writer, ...]:
    """Return what the keys of these writers' segments are made of."""
    epochs = sorted(set(broker_epochs))
    if not epochs:
        return ()
    rows = tx.rows(
        "SELECT broker_epoch, broker_id, incarnation FROM writers WHERE broker_epoch IN (SELECT r.broker_epoch FROM "
        + tx.recordset("epochs", "r", broker_epoch="bigint")
        + ") ORDER BY broker_epoch",
        epochs=[[epoch] for epoch in epochs],
    )
    return tuple(Writer(*row) for row in rows)


def find_extents(tx: Transaction, *, segments: Iterable[tuple[int, int, int]]) -> tuple[Extent, ...]:
    """Return all extents, released ones too, of (partition id, broker epoch, sequence): what a retried reference asks.

    Ask for the writer first where absence is to mean something: see `find_references`.
    """
    return tuple(Extent(*row) for row in tx.rows(extents_of(tx, "wanted"), wanted=sorted(segments)))


def extents_of(tx: Transaction, parameter: str) -> str:
    """Return the SELECT of `find_extents`; its parameter is the list of segments."""
    fragment = tx.recordset(parameter, "r", partition_id="bigint", broker_epoch="bigint", sequence="bigint")
    join = " ON e.broker_epoch = r.broker_epoch AND e.sequence = r.sequence AND e.partition_id = r.partition_id"
    return f"SELECT {_OF_E} FROM {fragment} JOIN extents e{join} UNION ALL SELECT {_OF_E} FROM {fragment} JOIN released_extents e{join}"


def find_references(tx: Transaction, *, segments: Iterable[tuple[int, int, int]]) -> tuple[tuple[Extent, ...], frozenset[tuple[int, int]]]:
    """Return the extents of retried references, and those (broker epoch, sequence) that nobody can commit any more.

    The writers are read first, the extents in a later statement: whatever was committed before its writer ended is
    found, so a segment without an extent here that is in the second answer never gets one (I5, I7).
    """
    wanted = sorted(set(segments))
    over = final_segments(tx, segments={(broker_epoch, sequence) for _, broker_epoch, sequence in wanted})
    return find_extents(tx, segments=wanted), over


def stored_bytes(tx: Transaction, *, after: int, limit: int) -> tuple[tuple[int, int], ...]:
    """Return how many bytes the extents of partitions refer to, as (partition id, bytes), for up to `limit` beyond the id `after`."""
    rows = tx.rows(
        "SELECT p.partition_id, (SELECT CAST(coalesce(sum(e.length), 0) AS bigint) FROM extents e WHERE e.partition_id = p.partition_id)"
        " AS bytes FROM partitions p WHERE p.partition_id > :after ORDER BY p.partition_id LIMIT :most",
        after=after,
        most=limit,
    )
    return tuple((row.partition_id, row.bytes) for row in rows)


def offset_for_time(tx: Transaction, *, partition_id: int, timestamp_ms: int) -> Extent | None:
    """Return the first readable extent that holds a record of this time or a later one; None where there is none."""
    rows = tx.rows(
        f"SELECT {_OF_E} FROM extents e JOIN partitions p ON p.partition_id = e.partition_id"
        " WHERE e.partition_id = :partition_id AND e.max_timestamp_ms >= :timestamp AND e.next_offset > p.log_start_offset"
        " ORDER BY e.base_offset LIMIT 1",
        partition_id=partition_id,
        timestamp=timestamp_ms,
    )
    return Extent(*rows[0]) if rows else None


def retention_points(tx: Transaction, *, limits: Sequence[tuple[int, int, int]]) -> dict[int, int]:
    """Return the log starts that retention asks for, of (partition id, time, bytes): extents before them were committed before that
    time (0: no matter when), or lie beyond so many bytes (-1: no matter how many).

    Whole extents only, and by size no extent without which less than `bytes` would be left: else one large merged extent could
    take all there is with it. Never lower than the present log start. Partitions that are no more are left out.
    """
    rows = tx.rows(
        "SELECT p.partition_id, p.log_start_offset,"
        " CASE WHEN r.before > 0 THEN coalesce((SELECT min(e.base_offset) FROM extents e WHERE e.partition_id = p.partition_id"
        "  AND e.commit_time_ms >= r.before), p.next_offset) ELSE 0 END AS by_time,"
        " CASE WHEN r.bytes >= 0 THEN coalesce((SELECT min(s.base_offset) FROM (SELECT e.base_offset,"
        "  sum(e.length) OVER (ORDER BY e.base_offset DESC) - e.length AS newer FROM extents e WHERE e.partition_id = p.partition_id) s"
        "  WHERE s.newer < r.bytes), p.next_offset) ELSE 0 END AS by_size FROM "
        + tx.recordset("limits", "r", partition_id="bigint", before="bigint", bytes="bigint")
        + " JOIN partitions p ON p.partition_id = r.partition_id",
        limits=list(limits),
    )
    return {row.partition_id: max(row.log_start_offset, row.by_time, row.by_size) for row in rows}


def advance_log_start(tx: Transaction, *, partition_id: int, leader_epoch: int, to: int) -> int:
    """Move the log start forward to `to`, at most to the end of the log, never back (I6); return where it is.

    Raises Fenced where the caller leads no more.
    """
    moved = advance_log_starts(tx, moves=[(partition_id, leader_epoch, to)])
    if partition_id not in moved:
        raise not_leader(partition_id, leader_epoch)
    return moved[partition_id]


def advance_log_starts(tx: Transaction, *, moves: Sequence[tuple[int, int, int]]) -> dict[int, int]:
    """Move log starts, of (partition id, leader epoch, offset), as `advance_log_start` does; return where they are, by partition id.

    Partitions that are not led in that leader epoch are left alone, and out.
    """
    wanted = {partition_id: to for partition_id, _, to in moves}
    locked = tx.rows(
        "SELECT p.partition_id, p.log_start_offset, p.next_offset FROM "
        + tx.recordset("moves", "r", partition_id="bigint", leader_epoch="bigint")
        + " JOIN partitions p ON p.partition_id = r.partition_id AND p.leader_epoch = r.leader_epoch ORDER BY p.partition_id"
        + tx.for_update("p"),
        moves=[(partition_id, leader_epoch) for partition_id, leader_epoch, _ in moves],
    )
    starts = {row.partition_id: max(row.log_start_offset, min(wanted[row.partition_id], row.next_offset)) for row in locked}
    moved = [(row.partition_id, starts[row.partition_id]) for row in locked if starts[row.partition_id] > row.log_start_offset]
    if moved:
        tx.execute(
            "UPDATE partitions SET log_start_offset = r.log_start_offset FROM "
            + tx.recordset("moved", "r", partition_id="bigint", log_start_offset="bigint")
            + " WHERE partitions.partition_id = r.partition_id",
            moved=moved,
        )
    return starts


def expired_extents(tx: Transaction, *, partition_ids: Sequence[int], limit: int) -> ExpiredExtents:
    """Return up to `limit` extents of these partitions that lie wholly below the log start."""
    rows = tx.rows(
        f"SELECT {_OF_E} FROM " + tx.recordset("partitions", "r", partition_id="bigint") + " JOIN partitions p"
        " ON p.partition_id = r.partition_id JOIN extents e ON e.partition_id = p.partition_id AND e.base_offset < p.log_start_offset"
        " WHERE e.next_offset <= p.log_start_offset ORDER BY e.partition_id, e.base_offset LIMIT :most",
        partitions=[[partition_id] for partition_id in partition_ids],
        most=limit,
    )
    extents = tuple(Extent(*row) for row in rows)
    if not extents:
        return ExpiredExtents((), {}, ())
    places = tx.rows(
        "SELECT partition_id, topic_id, partition FROM partitions WHERE partition_id IN (SELECT r.partition_id FROM "
        + tx.recordset("found", "r", partition_id="bigint")
        + ")",
        found=[[partition_id] for partition_id in sorted({extent.partition_id for extent in extents})],
    )
    return ExpiredExtents(
        extents,
        {row.partition_id: (row.topic_id, row.partition) for row in places},
        writers(tx, broker_epochs={extent.broker_epoch for extent in extents}),
    )


def release_expired(tx: Transaction, *, broker_epoch: int, sources: Sequence[ReleasedSource]) -> int:
    """Release extents below the log start, of any partitions; return how many there were. Anyone may: the log start decides.

    Extents that are not there any more, or that reach beyond the log start, stay as they are. `broker_epoch` is the
    caller's own, whose count of commits this raises: the objects may go now, which an older copy of the store does not
    know (I11).
    """
    partitions = tx.rows(
        "SELECT partition_id, log_start_offset FROM partitions WHERE partition_id IN (SELECT r.partition_id FROM "
        + tx.recordset("partitions", "r", partition_id="bigint")
        + ") ORDER BY partition_id"
        + tx.for_update(),
        partitions=[[partition_id] for partition_id in sorted({source.extent.partition_id for source in sources})],
    )
    log_starts = {row.partition_id: row.log_start_offset for row in partitions}
    below = [source for source in sources if source.extent.next_offset <= log_starts.get(source.extent.partition_id, -1)]
    return _release(tx, below, by=broker_epoch)


def swap(tx: Transaction, *, partition_id: int, leader_epoch: int, sources: Sequence[ReleasedSource], merged: Extent) -> bool:
    """Put one merged extent in the place of its sources. Returns whether it is in place; a second attempt says so too (I5).

    False, and nothing changed, where a source is not as it was read, or the merged segment's writer has ended or
    resolved its sequence (I7). Raises Fenced where the caller leads no more. Raises the count of commits of the merged
    segment's writer, who is the leader (I11).
    """
    assert (merged.base_offset, merged.next_offset) == (sources[0].extent.base_offset, sources[-1].extent.next_offset)
    segment = (merged.broker_epoch, merged.sequence)
    tx.rows(
        f"SELECT {tx.shared('blocks')} FROM writers WHERE broker_epoch = :epoch" + tx.for_share(),
        epoch=merged.broker_epoch,
        blocks=blocks([segment]),
    )
    try:
        lock_led(tx, partition_id=partition_id, leader_epoch=leader_epoch)
    except Fenced:
        if not _present(tx, merged):
            raise
    if _present(tx, merged):
        return True
    if final_segments(tx, segments=[segment]):  # in a later statement than the locks
        return False
    expected = {source.extent for source in sources}
    found = tx.rows(
        f"SELECT {_COLUMNS} FROM extents WHERE partition_id = :partition_id AND base_offset >= :base AND base_offset < :next"
        " ORDER BY base_offset" + tx.for_update(),
        partition_id=partition_id,
        base=merged.base_offset,
        next=merged.next_offset,
    )
    if {Extent(*row) for row in found} != expected:
        return False
    _release(tx, sources, by=merged.broker_epoch)
    values = ", ".join(f":{column.strip()}" for column in _COLUMNS.split(","))
    tx.execute(
        f"INSERT INTO extents ({_COLUMNS}) VALUES ({values})",
        partition_id=partition_id,
        base_offset=merged.base_offset,
        next_offset=merged.next_offset,
        broker_epoch=merged.broker_epoch,
        sequence=merged.sequence,
        position=merged.position,
        length=merged.length,
        record_count=merged.record_count,
        level=merged.level,
        max_timestamp_ms=merged.max_timestamp_ms,
        commit_time_ms=merged.commit_time_ms,
        leader_epoch=merged.leader_epoch,
    )
    return True


def _present(tx: Transaction, extent: Extent) -> bool:
    segment = (extent.partition_id, extent.broker_epoch, extent.sequence)
    return any(old.position == extent.position for old in find_extents(tx, segments=[segment]))


def _release(tx: Transaction, sources: Sequence[ReleasedSource], *, by: int) -> int:
    """Move extents of locked partitions out of sight and note their segments; return how many were moved.

    A source is moved only where it is the very extent that is there: a merged one may begin at the same offset.
    """
    keys = {tuple(getattr(source.extent, column) for column in _WHICH): source for source in sources}
    if not keys:
        return 0
    sought = (
        f"({', '.join(_WHICH)}) IN (SELECT {', '.join('r.' + column for column in _WHICH)} FROM {tx.recordset('sources', 'r', **_WHICH)})"
    )
    # Two statements that find the same rows: whoever changes extents holds their partitions' rows.
    tx.execute(f"INSERT INTO released_extents ({_COLUMNS}) SELECT {_COLUMNS} FROM extents WHERE {sought}", sources=sorted(keys))
    gone = tx.rows(f"DELETE FROM extents WHERE {sought} RETURNING {', '.join(_WHICH)}", sources=sorted(keys))
    moved = [keys[tuple(row)] for row in gone]
    if not moved:
        return 0
    segments = sorted({(s.extent.broker_epoch, s.extent.sequence, s.key) for s in moved})
    # DO UPDATE, not DO NOTHING: it waits for a cleaner that is about to remove the row, and then puts it back.
    tx.execute(
        "INSERT INTO released_segments (broker_epoch, sequence, key, released_at_ms)"
        " SELECT r.broker_epoch, r.sequence, r.key, CAST(:now AS bigint) FROM "
        + tx.recordset("segments", "r", broker_epoch="bigint", sequence="bigint", key="text")
        + " WHERE TRUE ORDER BY r.broker_epoch, r.sequence"
        " ON CONFLICT (broker_epoch, sequence) DO UPDATE SET released_at_ms = excluded.released_at_ms",
        segments=segments,
        now=tx.now_ms(),
    )
    tx.execute(COUNT_COMMIT, broker_epoch=by)
    return len(moved)
