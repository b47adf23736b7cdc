"""Resolved marks: up to which sequence a writer's segments can never be committed any more (I7).

A mark must not pass a segment that a commit under way is about to refer to. A lock on the writer's row would see to that;
but PostgreSQL lets all who share a lock pass by one who waits for it alone, so in a busy cluster a mark would never move.
So sequences are locked by blocks: a commit shares those of its segments, and a mark takes its blocks if they are free,
stops before the first that is not, and never waits. A commit reads the mark in a later statement than it locks.
"""

from collections.abc import Iterable

from tidelog.errors import Fenced
from tidelog.metadata.store import Transaction

BLOCK_SEQUENCES = 64
_MOST_BLOCKS = 256
"""In one report: each takes a place in the server's table of locks until the transaction ends."""


def blocks(segments: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what `Transaction.shared` has to hold of these segments, as (broker epoch, sequence)."""
    return sorted({(broker_epoch, sequence // BLOCK_SEQUENCES) for broker_epoch, sequence in segments})


def report_resolved(tx: Transaction, *, broker_epoch: int, sequence: int) -> int:
    """Say that no reference to `sequence` or a lower one will be sent again; return how far the mark has come by that.

    That is less than was said while a commit holds segments beyond it: say it again later. Never goes back (I6). Raises
    Fenced where the epoch has ended.
    """
    rows = tx.rows(
        "SELECT m.sequence, w.ended FROM resolved_marks m JOIN writers w ON w.broker_epoch = m.broker_epoch WHERE m.broker_epoch = :epoch"
        + tx.for_update("m"),
        epoch=broker_epoch,
    )
    if not rows or rows[0].ended:
        raise Fenced(f"writer epoch {broker_epoch} reported sequence {sequence} as resolved, but that epoch has ended; register anew")
    mark: int = rows[0].sequence
    if sequence <= mark:
        return mark
    first = (mark + 1) // BLOCK_SEQUENCES
    end = min(sequence // BLOCK_SEQUENCES + 1, first + _MOST_BLOCKS)
    reached = min(sequence, tx.take_while_free(broker_epoch, first, end) * BLOCK_SEQUENCES - 1)
    if reached <= mark:
        return mark
    tx.execute("UPDATE resolved_marks SET sequence = :reached WHERE broker_epoch = :epoch", reached=reached, epoch=broker_epoch)
    return reached


def final_segments(tx: Transaction, *, segments: Iterable[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    """Return those (broker epoch, sequence) that nobody can commit any more: writer ended, or sequence resolved (I7b).

    Neither is ever taken back, so no lock is needed to rely on it.
    """
    wanted = sorted(set(segments))
    living = {
        row.broker_epoch: row.sequence
        for row in tx.rows(
            "SELECT m.broker_epoch, m.sequence FROM resolved_marks m JOIN writers w ON w.broker_epoch = m.broker_epoch"
            " WHERE NOT w.ended AND w.broker_epoch IN (SELECT r.broker_epoch FROM "
            + tx.recordset("epochs", "r", broker_epoch="bigint")
            + ")",
            epochs=[[epoch] for epoch in sorted({epoch for epoch, _ in wanted})],
        )
    }
    return frozenset((epoch, sequence) for epoch, sequence in wanted if epoch not in living or sequence <= living[epoch])
