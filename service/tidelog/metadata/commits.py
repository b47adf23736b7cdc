"""The commit: the one transaction that gives offsets (I1).

A leader asks for many partitions at once. Each stands or falls for itself: one whose leadership has passed, or whose
references may not be committed as proposed, drops out; the rest commits. What decides is read from rows that this
transaction has locked, the writers' before the partitions', each in ascending order.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import orjson

from tidelog.errors import TimeTravel
from tidelog.metadata.extents import COUNT_COMMIT, Extent, extents_of
from tidelog.metadata.leadership import ProducerWindow
from tidelog.metadata.marks import blocks
from tidelog.metadata.store import Transaction


@dataclass(frozen=True, slots=True)
class NewExtent:
    """A run of accepted bytes in one chunk. Its offsets follow from its place in the commit."""

    broker_epoch: int
    """Of the writer; with `sequence` it names the segment."""
    sequence: int
    position: int
    """Bytes, from the object's first."""
    length: int
    """Bytes."""
    record_count: int
    max_timestamp_ms: int


@dataclass(frozen=True, slots=True)
class PartitionCommit:
    """What a leader proposes for one partition."""

    partition_id: int
    leader_epoch: int
    next_offset: int
    """Where the leader believes the partition ends: the first extent's base offset."""
    extents: tuple[NewExtent, ...]
    """In the order of their offsets."""
    producers: tuple[ProducerWindow, ...] = ()
    """The whole windows, as they are after this commit, of the producers it concerns."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The extents stand at the proposed offsets, now or since an earlier attempt (I5)."""

    next_offset: int


@dataclass(frozen=True, slots=True)
class NotLeader:
    """Nothing was committed here: the leader epoch or the end of the log is another. Step down and reload."""

    leader_epoch: int
    next_offset: int


class Refusal(StrEnum):
    """Why a reference may not be committed as proposed."""

    WRITER_ENDED = "writer ended"
    SEQUENCE_RESOLVED = "sequence resolved"
    COMMITTED_BEFORE = "committed before"


@dataclass(frozen=True, slots=True)
class RefusedExtent:
    """One proposed extent that may not be committed; `found` are those that cover its bytes already."""

    extent: NewExtent
    refusal: Refusal
    found: tuple[Extent, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was committed here: decide again without these."""

    extents: tuple[RefusedExtent, ...]


Outcome = Committed | NotLeader | Refused


def commit(tx: Transaction, *, broker_epoch: int, partitions: Sequence[PartitionCommit]) -> dict[int, Outcome]:
    """Commit all that may be committed; return every partition's outcome by its id.

    `broker_epoch` is the leader's own, whose count of commits this raises (I11). Trying again after an unknown outcome
    is always right: what was committed the first time answers as it did (I5).

    Raises TimeTravel where a partition is behind what its leader was told before (I11).
    """
    proposals = sorted(partitions, key=lambda proposal: proposal.partition_id)
    assert len({proposal.partition_id for proposal in proposals}) == len(proposals), "one proposal per partition"
    now_ms, living, state = _lock(tx, proposals)
    # A later statement than the locks: it sees what an earlier attempt of this very commit left behind, and marks as they are.
    found, marks = _committed_before(tx, proposals)
    resolved = {broker_epoch: marks[broker_epoch] for broker_epoch in living}
    outcomes: dict[int, Outcome] = {}
    accepted: list[PartitionCommit] = []
    for proposal in proposals:
        outcome = _decide(proposal, state.get(proposal.partition_id), resolved, found)
        outcomes[proposal.partition_id] = outcome or Committed(_end(proposal))
        if outcome is None:
            accepted.append(proposal)
    if accepted:
        _write(tx, broker_epoch, accepted, now_ms)
    return outcomes


def _lock(tx: Transaction, proposals: Sequence[PartitionCommit]) -> tuple[int, set[int], dict[int, tuple[int, int]]]:
    """Lock writers and their segments (shared) and partitions; return the time, the living writers, and partitions' states.

    One statement, to save a round trip: the branches of UNION ALL run one after the other, writers first.
    """
    held = blocks((e.broker_epoch, e.sequence) for p in proposals for e in p.extents)
    rows = tx.rows(
        "WITH w AS (SELECT broker_epoch, ended FROM writers WHERE broker_epoch IN (SELECT r.broker_epoch FROM "
        + tx.recordset("blocks", "r", broker_epoch="bigint")
        + ") ORDER BY broker_epoch"
        + tx.for_share()
        + "), p AS (SELECT partition_id, leader_epoch, next_offset FROM partitions WHERE partition_id IN (SELECT r.partition_id FROM "
        + tx.recordset("partitions", "r", partition_id="bigint")
        + ") ORDER BY partition_id"
        + tx.for_update()
        + ") SELECT 0 AS kind, broker_epoch AS id, 0 AS a, CASE WHEN ended THEN 1 ELSE 0 END AS b FROM w"
        " UNION ALL SELECT 1, partition_id, leader_epoch, next_offset FROM p"
        f" UNION ALL SELECT 2, {tx.now}, {tx.shared('blocks')}, 0",
        blocks=held,
        partitions=[[p.partition_id] for p in proposals],
    )
    living = {broker_epoch for kind, broker_epoch, _, ended in rows if kind == 0 and not ended}
    state = {partition_id: (leader_epoch, next_offset) for kind, partition_id, leader_epoch, next_offset in rows if kind == 1}
    (now_ms,) = (now for kind, now, _, _ in rows if kind == 2)
    return now_ms, living, state


def _committed_before(
    tx: Transaction, proposals: Iterable[PartitionCommit]
) -> tuple[dict[tuple[int, int, int], list[Extent]], dict[int, int]]:
    """Return the extents that the proposed segments have already, and their writers' marks: in one statement, too."""
    segments = sorted({(p.partition_id, e.broker_epoch, e.sequence) for p in proposals for e in p.extents})
    rows = tx.rows(
        extents_of(tx, "wanted") + " UNION ALL SELECT NULL, m.sequence, 0, m.broker_epoch, 0, 0, 0, 0, 0, 0, 0, 0 FROM resolved_marks m"
        " WHERE m.broker_epoch IN (SELECT r.broker_epoch FROM " + tx.recordset("writers", "r", broker_epoch="bigint") + ")",
        wanted=segments,
        writers=[[epoch] for epoch in sorted({epoch for _, epoch, _ in segments})],
    )
    found: dict[tuple[int, int, int], list[Extent]] = defaultdict(list)
    for row in rows:
        if row.partition_id is not None:
            found[row.partition_id, row.broker_epoch, row.sequence].append(Extent(*row))
    return found, {row.broker_epoch: row.base_offset for row in rows if row.partition_id is None}


def _decide(
    proposal: PartitionCommit,
    state: tuple[int, int] | None,
    resolved: dict[int, int],
    found: dict[tuple[int, int, int], list[Extent]],
) -> Outcome | None:
    """Return what stands against the proposal, or the answer that it got before; None: it may be written."""
    covering = {}
    if found:  # hardly ever: spare a first attempt the work
        covering = {extent: old for extent in proposal.extents if (old := _overlapping(proposal.partition_id, extent, found))}
    if covering and _stands(proposal, covering):
        return Committed(_end(proposal))  # I5: an earlier attempt of this commit went through, whoever leads now
    if state is None:  # its topic was deleted, and is gone
        return NotLeader(0, 0)
    expected = (proposal.leader_epoch, proposal.next_offset)
    if state[0] < expected[0] or state[1] < expected[1]:  # neither ever goes back (I6)
        raise TimeTravel(
            f"partition {proposal.partition_id} was at leader epoch {expected[0]} and offset {expected[1]} when its leader last asked,"
            f" but this metadata store has it at {state[0]} and {state[1]}: it was restored from an older copy, or a standby that lagged"
            " behind took its place. Nothing was committed; bring back the newer database, or rebuild it from the bucket"
        )
    if state != expected:  # I1
        return NotLeader(*state)
    refused = []
    for extent in proposal.extents:
        if extent in covering:  # I5: never twice
            refused.append(RefusedExtent(extent, Refusal.COMMITTED_BEFORE, covering[extent]))
        elif extent.broker_epoch not in resolved:  # I7
            refused.append(RefusedExtent(extent, Refusal.WRITER_ENDED))
        elif extent.sequence <= resolved[extent.broker_epoch]:  # I7
            refused.append(RefusedExtent(extent, Refusal.SEQUENCE_RESOLVED))
    return Refused(tuple(refused)) if refused else None


def _overlapping(partition_id: int, extent: NewExtent, found: dict[tuple[int, int, int], list[Extent]]) -> tuple[Extent, ...]:
    return tuple(
        old
        for old in found.get((partition_id, extent.broker_epoch, extent.sequence), ())
        if old.position < extent.position + extent.length and extent.position < old.position + old.length
    )


def _stands(proposal: PartitionCommit, covering: dict[NewExtent, tuple[Extent, ...]]) -> bool:
    """Say whether every proposed extent is there, just as proposed."""
    offset = proposal.next_offset
    for extent in proposal.extents:
        old = covering.get(extent, ())
        if [(e.base_offset, e.position, e.length) for e in old] != [(offset, extent.position, extent.length)]:
            return False
        offset += extent.record_count
    return True


def _end(proposal: PartitionCommit) -> int:
    return proposal.next_offset + sum(extent.record_count for extent in proposal.extents)


def _write(tx: Transaction, broker_epoch: int, accepted: Sequence[PartitionCommit], now_ms: int) -> None:
    extents: list[tuple[int, ...]] = []
    ends = []
    for proposal in accepted:
        offset = proposal.next_offset
        for e in proposal.extents:
            extents.append(
                (
                    proposal.partition_id, offset, e.broker_epoch, e.sequence, e.position,
                    e.length, e.record_count, e.max_timestamp_ms, proposal.leader_epoch,
                )
            )  # fmt: skip
            offset += e.record_count
        ends.append((proposal.partition_id, offset))
    producers = [
        # As text within the JSON, which the database need not parse.
        (proposal.partition_id, window.producer_id, window.producer_epoch, orjson.dumps(window.batches).decode())
        for proposal in accepted
        for window in sorted(proposal.producers, key=lambda window: window.producer_id)  # the order of locks
    ]
    # PostgreSQL runs these from the last to the first: so the count, which this broker's swaps and releases raise too, is locked last.
    statements = [
        COUNT_COMMIT,
        "INSERT INTO extents (partition_id, base_offset, next_offset, broker_epoch, sequence, position, length, record_count,"
        " max_timestamp_ms, leader_epoch, level, commit_time_ms)"
        " SELECT r.partition_id, r.base_offset, r.base_offset + r.record_count, r.broker_epoch, r.sequence, r.position, r.length,"
        " r.record_count, r.max_timestamp_ms, r.leader_epoch, 0, CAST(:now AS bigint) FROM "
        + tx.recordset(
            "extents",
            "r",
            partition_id="bigint",
            base_offset="bigint",
            broker_epoch="bigint",
            sequence="bigint",
            position="bigint",
            length="bigint",
            record_count="bigint",
            max_timestamp_ms="bigint",
            leader_epoch="bigint",
        ),
        # I8: in the same transaction as the extents it describes.
        "INSERT INTO producers (partition_id, producer_id, producer_epoch, batches, appended_at_ms)"
        " SELECT r.partition_id, r.producer_id, r.producer_epoch, r.batches, CAST(:now AS bigint) FROM "
        + tx.recordset("producers", "r", partition_id="bigint", producer_id="bigint", producer_epoch="bigint", batches="text")
        + " WHERE TRUE ON CONFLICT (partition_id, producer_id) DO UPDATE SET producer_epoch = excluded.producer_epoch,"
        " batches = excluded.batches, appended_at_ms = excluded.appended_at_ms",
        "UPDATE partitions SET next_offset = r.next_offset FROM "
        + tx.recordset("partitions", "r", partition_id="bigint", next_offset="bigint")
        + " WHERE partitions.partition_id = r.partition_id",
    ]
    if not producers:
        del statements[2]
    tx.execute_all(
        statements,
        now=now_ms,
        extents=extents,
        producers=producers,
        partitions=ends,
        broker_epoch=broker_epoch,
    )
