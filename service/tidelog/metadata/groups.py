"""Rows of consumer groups: written only under the coordinator's leader epoch and the generation before (I9).

What the rows mean is the group state machine's business; this module keeps them from going back (I6).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tidelog.errors import Fenced
from tidelog.metadata.leadership import not_leader
from tidelog.metadata.store import Transaction


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group's stored state; `state` is the coordinator's own JSON."""

    group_id: str
    generation: int
    state: str


@dataclass(frozen=True, slots=True)
class GroupOffset:
    """Where a group goes on in a partition."""

    partition_id: int
    next_offset: int
    note: str = ""


def read_group(tx: Transaction, *, group_id: str) -> GroupState | None:
    """Return the group's state, if it has one."""
    rows = tx.rows("SELECT group_id, generation, state FROM groups WHERE group_id = :group_id", group_id=group_id)
    return GroupState(*rows[0]) if rows else None


def list_groups(tx: Transaction) -> tuple[str, ...]:
    """Return the ids of all groups."""
    return tuple(row.group_id for row in tx.rows("SELECT group_id FROM groups ORDER BY group_id"))


def write_group(tx: Transaction, *, group: GroupState, previous_generation: int, coordinator_partition_id: int, leader_epoch: int) -> None:
    """Store a group's next state; `previous_generation` 0 stands for none. The same state again is right (I5).

    Raises Fenced where the coordinator leads no more, or the stored generation is another one.
    """
    assert group.generation >= max(previous_generation, 1)
    _coordinating(tx, partition_id=coordinator_partition_id, leader_epoch=leader_epoch)
    now = tx.now_ms()
    if previous_generation == 0:
        done = tx.rows(
            "INSERT INTO groups (group_id, generation, state, changed_at_ms) VALUES (:group_id, :generation, :state, :now)"
            " ON CONFLICT DO NOTHING RETURNING generation",
            group_id=group.group_id,
            generation=group.generation,
            state=group.state,
            now=now,
        )
    else:
        done = tx.rows(
            "UPDATE groups SET generation = :generation, state = :state, changed_at_ms = :now"
            " WHERE group_id = :group_id AND generation = :previous RETURNING generation",
            group_id=group.group_id,
            generation=group.generation,
            state=group.state,
            now=now,
            previous=previous_generation,
        )
    if not done and (stored := read_group(tx, group_id=group.group_id)) != group:
        raise Fenced(
            f"group {group.group_id!r} was to go from generation {previous_generation} to {group.generation}, but it is at"
            f" {stored.generation if stored else 'none'}; read it again"
        )


def commit_group_offsets(
    tx: Transaction,
    *,
    group_id: str,
    generation: int,
    offsets: Sequence[GroupOffset],
    coordinator_partition_id: int,
    leader_epoch: int,
) -> None:
    """Store where the group goes on. Raises Fenced for a generation that is not the stored one (I9), or a former coordinator.

    Going back is allowed within a generation: a member may rewind on purpose. Of several offsets of one partition the last
    counts.
    """
    _coordinating(tx, partition_id=coordinator_partition_id, leader_epoch=leader_epoch)
    rows = tx.rows("SELECT generation FROM groups WHERE group_id = :group_id" + tx.for_update(), group_id=group_id)
    if not rows or rows[0].generation != generation:
        raise Fenced(
            f"offsets of group {group_id!r} were to be committed in generation {generation}, but it is at"
            f" {rows[0].generation if rows else 'none'}; join again"
        )
    tx.execute(
        "INSERT INTO group_offsets (group_id, partition_id, next_offset, note, generation, committed_at_ms)"
        " SELECT :group_id, r.partition_id, r.next_offset, r.note, CAST(:generation AS bigint), CAST(:now AS bigint) FROM "
        + tx.recordset("offsets", "r", partition_id="bigint", next_offset="bigint", note="text")
        + " WHERE TRUE ORDER BY r.partition_id ON CONFLICT (group_id, partition_id) DO UPDATE SET next_offset = excluded.next_offset,"
        " note = excluded.note, generation = excluded.generation, committed_at_ms = excluded.committed_at_ms",
        group_id=group_id,
        generation=generation,
        now=tx.now_ms(),
        offsets=list({offset.partition_id: (offset.partition_id, offset.next_offset, offset.note) for offset in offsets}.values()),
    )


def group_offsets(tx: Transaction, *, group_id: str) -> tuple[GroupOffset, ...]:
    """Return all that the group has committed."""
    rows = tx.rows(
        "SELECT partition_id, next_offset, note FROM group_offsets WHERE group_id = :group_id ORDER BY partition_id", group_id=group_id
    )
    return tuple(GroupOffset(*row) for row in rows)


def delete_group(tx: Transaction, *, group_id: str, generation: int, coordinator_partition_id: int, leader_epoch: int) -> None:
    """Remove a group and its offsets. A group that is gone already is right; another generation raises Fenced."""
    _coordinating(tx, partition_id=coordinator_partition_id, leader_epoch=leader_epoch)
    rows = tx.rows("SELECT generation FROM groups WHERE group_id = :group_id" + tx.for_update(), group_id=group_id)
    if rows and rows[0].generation != generation:
        raise Fenced(f"group {group_id!r} was to be deleted in generation {generation}, but it is at {rows[0].generation}; read it again")
    tx.delete("group_offsets", "group_id = :group_id", key="group_id, partition_id", group_id=group_id)
    tx.execute("DELETE FROM groups WHERE group_id = :group_id", group_id=group_id)


def _coordinating(tx: Transaction, *, partition_id: int, leader_epoch: int) -> None:
    """Hold the coordinator's leadership still: a share lock, so that commits of many groups do not wait for each other."""
    rows = tx.rows(
        "SELECT partition_id FROM partitions WHERE partition_id = :partition_id AND leader_epoch = :epoch" + tx.for_share(),
        partition_id=partition_id,
        epoch=leader_epoch,
    )
    if not rows:
        raise not_leader(partition_id, leader_epoch)
