"""Who leads which partition. Every change begins a new leader epoch, which fences all earlier ones (I1, I6).

Take-over and transfer are conditional on the membership version from which the caller derived the desired leaders.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidelog.errors import ConditionFailed, Fenced, UnknownTopic
from tidelog.metadata.store import Transaction


@dataclass(frozen=True, slots=True)
class ProducerWindow:
    """What a partition remembers of one idempotent producer (I8)."""

    producer_id: int
    producer_epoch: int
    batches: tuple[tuple[int, int, int], ...]
    """Up to five (first sequence, last sequence, base offset), oldest first."""


@dataclass(frozen=True, slots=True)
class LedPartition:
    """All that a leader needs to begin."""

    partition_id: int
    topic_id: str
    partition: int
    leader_epoch: int
    log_start_offset: int
    next_offset: int
    fencing_token: str | None
    producers: tuple[ProducerWindow, ...]


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads a partition; `leader_broker_epoch` is None while nobody does."""

    partition_id: int
    topic_id: str
    partition: int
    leader_broker_epoch: int | None
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class TokenSet:
    """A fencing token was set: no leader has it in memory before a leader epoch above `leader_epoch`."""

    leader_epoch: int
    next_offset: int
    """Where the partition ended then."""


def take_over(tx: Transaction, *, broker_epoch: int, membership_version: int, partition_ids: Iterable[int]) -> tuple[LedPartition, ...]:
    """Become leader of those of the partitions that nobody alive leads, or that the caller leads on paper already.

    Each begins a new leader epoch, and comes with its state. Partitions that another live broker leads, and those of
    deleted topics, are left out.

    Raises Fenced where the membership has changed or the caller's epoch has ended.
    """
    _check_membership(tx, membership_version=membership_version, member=broker_epoch)
    wanted = [[partition_id] for partition_id in sorted(set(partition_ids))]
    # Locked first: a deletion that commits while the next statement waits for a partition is not seen by its sub-selects.
    living = tx.rows(
        "SELECT t.topic_id FROM topics t WHERE NOT t.deleted AND t.topic_id IN (SELECT p.topic_id FROM partitions p JOIN "
        + tx.recordset("wanted", "r", partition_id="bigint")
        + " ON p.partition_id = r.partition_id) ORDER BY t.topic_id"
        + tx.for_share(),
        wanted=wanted,
    )
    found = tx.rows(
        "SELECT p.partition_id, p.topic_id, p.partition, p.leader_epoch, p.log_start_offset, p.next_offset, p.fencing_token"
        " FROM partitions p WHERE p.partition_id IN (SELECT r.partition_id FROM "
        + tx.recordset("wanted", "r", partition_id="bigint")
        + ") AND (p.leader_broker_epoch IS NULL OR p.leader_broker_epoch = :epoch"
        "  OR NOT EXISTS (SELECT 1 FROM brokers b WHERE b.broker_epoch = p.leader_broker_epoch))"
        " AND p.topic_id IN (SELECT l.topic_id FROM "
        + tx.recordset("living", "l", topic_id="text")
        + ") ORDER BY p.partition_id"
        + tx.for_update("p"),
        wanted=wanted,
        living=[[row.topic_id] for row in living],
        epoch=broker_epoch,
    )
    if not found:
        return ()
    taken = [[row.partition_id] for row in found]
    _lead(tx, broker_epoch=broker_epoch, taken=taken)
    windows: dict[int, list[ProducerWindow]] = {}
    for row in tx.rows(
        "SELECT s.partition_id, s.producer_id, s.producer_epoch, s.batches FROM producers s"
        " WHERE s.partition_id IN (SELECT r.partition_id FROM "
        + tx.recordset("taken", "r", partition_id="bigint")
        + ") ORDER BY s.partition_id, s.producer_id",
        taken=taken,
    ):
        batches = tuple((first, last, base) for first, last, base in json.loads(row.batches))
        windows.setdefault(row.partition_id, []).append(ProducerWindow(row.producer_id, row.producer_epoch, batches))
    return tuple(
        LedPartition(
            partition_id=row.partition_id,
            topic_id=row.topic_id,
            partition=row.partition,
            leader_epoch=row.leader_epoch + 1,
            log_start_offset=row.log_start_offset,
            next_offset=row.next_offset,
            fencing_token=row.fencing_token,
            producers=tuple(windows.get(row.partition_id, ())),
        )
        for row in found
    )


def transfer(tx: Transaction, *, to_broker_epoch: int, membership_version: int, led: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Hand partitions, as (partition id, leader epoch), to another member; return the ids of those handed over.

    A partition that the caller does not lead any more in that epoch is left out. The target still has to take over: it
    loads the state and begins an epoch of its own.

    Raises Fenced where the membership has changed or the target is no member.
    """
    _check_membership(tx, membership_version=membership_version, member=to_broker_epoch)
    found = tx.rows(
        "SELECT p.partition_id FROM partitions p JOIN "
        + tx.recordset("led", "r", partition_id="bigint", leader_epoch="bigint")
        + " ON p.partition_id = r.partition_id AND p.leader_epoch = r.leader_epoch ORDER BY p.partition_id"
        + tx.for_update("p"),
        led=sorted(led),
    )
    if found:
        _lead(tx, broker_epoch=to_broker_epoch, taken=[[row.partition_id] for row in found])
    return tuple(row.partition_id for row in found)


def set_fencing_token(tx: Transaction, *, partition_id: int, token: str | None, expected: str | None = None) -> TokenSet:
    """Set the token that fenced appends must show, and begin a new leader epoch: whoever leads has the old token in memory, and can
    commit nothing more before it has loaded the new one (I1).

    `expected`: only where the token is this one now ("": none is). The token that it already is, is set again (I5).

    Raises ConditionFailed where another token is set, UnknownTopic where the topic has been deleted.
    """
    living = tx.rows(
        "SELECT t.topic_id FROM topics t WHERE NOT t.deleted"
        " AND t.topic_id = (SELECT p.topic_id FROM partitions p WHERE p.partition_id = :partition_id)" + tx.for_share(),
        partition_id=partition_id,
    )
    if not living:
        raise UnknownTopic("the topic whose fencing token was to be set has been deleted meanwhile; list topics to see what there is")
    (row,) = tx.rows(
        "SELECT leader_broker_epoch, leader_epoch, next_offset, fencing_token FROM partitions WHERE partition_id = :partition_id"
        + tx.for_update(),
        partition_id=partition_id,
    )
    if expected is not None and row.fencing_token not in (expected or None, token):
        raise ConditionFailed(
            f"the fencing token was to be set where it is {expected!r}, but it is another by now; somebody else has taken over: stop, or"
            " take over without a condition"
        )
    tx.execute(
        "UPDATE partitions SET fencing_token = :token, leader_epoch = leader_epoch + 1, changed_version = :version"
        " WHERE partition_id = :partition_id",
        token=token,
        version=next_change(tx),
        partition_id=partition_id,
    )
    return TokenSet(row.leader_epoch + 1, row.next_offset)


def lock_led(tx: Transaction, *, partition_id: int, leader_epoch: int) -> None:
    """Lock a partition for a change that only its leader may make. Raises Fenced where the caller leads no more (I1)."""
    row = tx.rows(
        "SELECT partition_id FROM partitions WHERE partition_id = :partition_id AND leader_epoch = :epoch" + tx.for_update(),
        partition_id=partition_id,
        epoch=leader_epoch,
    )
    if not row:
        raise not_leader(partition_id, leader_epoch)


def not_leader(partition_id: int, leader_epoch: int) -> Fenced:
    """Return the error for a change under a leader epoch that has passed."""
    return Fenced(
        f"partition {partition_id} was to be changed under leader epoch {leader_epoch}, which has passed; step down and reload it"
    )


def next_change(tx: Transaction) -> int:
    """Count one more change of topics or leadership; its row stays locked until the transaction ends."""
    (row,) = tx.rows("UPDATE changes SET version = version + 1 RETURNING version")
    version: int = row.version
    return version


def _check_membership(tx: Transaction, *, membership_version: int, member: int) -> None:
    """Hold the membership still, by a share lock that ending an epoch has to wait for."""
    (cluster,) = tx.rows("SELECT membership_version FROM cluster" + tx.for_share())
    if cluster.membership_version != membership_version:
        raise Fenced(
            f"leadership was to change under membership version {membership_version}, but it is {cluster.membership_version} now;"
            " read the membership again"
        )
    if not tx.rows("SELECT 1 FROM brokers WHERE broker_epoch = :epoch", epoch=member):
        raise Fenced(f"broker epoch {member} was to lead, but it is no member of version {membership_version}; it has to register anew")


def _lead(tx: Transaction, *, broker_epoch: int, taken: list[list[int]]) -> None:
    """Give partitions, whose rows are locked, to `broker_epoch` under their next leader epochs."""
    tx.execute(
        "UPDATE partitions SET leader_broker_epoch = :epoch, leader_epoch = leader_epoch + 1, changed_version = :version"
        " WHERE partition_id IN (SELECT r.partition_id FROM " + tx.recordset("taken", "r", partition_id="bigint") + ")",
        epoch=broker_epoch,
        version=next_change(tx),
        taken=taken,
    )
