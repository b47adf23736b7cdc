"""Who is a broker: registration, leases, and the end of epochs.

Leases are told by the metadata store's clock alone. No lease decides what may be committed (I1): it only decides when
an epoch may be ended, and ending it is what fences.
"""

from dataclasses import dataclass

from tidelog.errors import BrokerIdTaken, Fenced
from tidelog.metadata.store import Transaction


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The one row that names the cluster, and how many commits the store has seen."""

    cluster_id: str
    format_version: int
    membership_version: int
    next_broker_epoch: int
    commit_count: int
    """Of commits, swaps and releases: what the bucket may know of (I11)."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A member of the cluster."""

    broker_id: str
    broker_epoch: int
    zone: str
    address: str
    peer_address: str
    draining: bool
    lease_expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Membership:
    """All members, and the version that every take-over and transfer is conditional on."""

    version: int
    now_ms: int
    brokers: tuple[Broker, ...]


@dataclass(frozen=True, slots=True)
class Registration:
    """A broker's new life."""

    broker_epoch: int
    membership_version: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The state of a lease after its renewal, on the store's clock."""

    expires_at_ms: int
    unbroken_since_ms: int
    now_ms: int
    membership_version: int
    expired: int
    """Other brokers' leases that have expired; `end_expired_epochs` may end them."""


def initialise(tx: Transaction, *, cluster_id: str, format_version: int) -> ClusterState:
    """Name the cluster if it has no name yet; return its state, which may carry another name that was there first."""
    tx.execute(
        "INSERT INTO cluster (one, cluster_id, format_version, membership_version, next_broker_epoch, next_producer_id, created_at_ms)"
        " VALUES (1, :cluster_id, :format_version, 1, 1, 1, :now) ON CONFLICT DO NOTHING",
        cluster_id=cluster_id,
        format_version=format_version,
        now=tx.now_ms(),
    )
    tx.execute("INSERT INTO changes (one, version) VALUES (1, 1) ON CONFLICT DO NOTHING")
    tx.execute("INSERT INTO cleaner (one, lease_expires_at_ms) VALUES (1, 0) ON CONFLICT DO NOTHING")
    return cluster_state(tx)


def cluster_state(tx: Transaction) -> ClusterState:
    """Return the cluster's state."""
    (row,) = tx.rows(
        "SELECT cluster_id, format_version, membership_version, next_broker_epoch,"
        " (SELECT CAST(coalesce(sum(commits), 0) AS bigint) FROM commit_counts) AS commit_count FROM cluster"
    )
    return ClusterState(*row)


def broker_ids(tx: Transaction) -> tuple[str, ...]:
    """Return the ids of all brokers that may have written."""
    return tuple(row.broker_id for row in tx.rows("SELECT DISTINCT broker_id FROM writers ORDER BY broker_id"))


def register(tx: Transaction, *, broker_id: str, incarnation: str, zone: str, address: str, peer_address: str, ttl_ms: int) -> Registration:
    """Begin a broker epoch that was never given before (I6).

    The same incarnation asking again, because it did not hear the answer, gets the same epoch. An expired row of this id
    is ended in the same transaction: else nobody could begin after a full stop.

    Raises BrokerIdTaken while another process holds the id.
    """
    (cluster,) = tx.rows("SELECT membership_version, next_broker_epoch FROM cluster" + tx.for_update())
    now = tx.now_ms()
    for row in tx.rows(
        "SELECT broker_epoch, incarnation, lease_expires_at_ms FROM brokers WHERE broker_id = :broker_id" + tx.for_update(),
        broker_id=broker_id,
    ):
        if row.incarnation == incarnation:
            tx.execute(
                "UPDATE brokers SET lease_expires_at_ms = :expires, unbroken_since_ms = :now WHERE broker_id = :broker_id",
                expires=now + ttl_ms,
                now=now,
                broker_id=broker_id,
            )
            return Registration(row.broker_epoch, cluster.membership_version)
        left_ms = row.lease_expires_at_ms - now
        if left_ms >= 0:
            raise BrokerIdTaken(
                f"broker id {broker_id!r} was asked for, but another process holds it for {left_ms} ms more; wait until that"
                " lease has expired, or give this broker another id",
                expires_in_ms=left_ms,
            )
        _end(tx, [row.broker_epoch])
    epoch: int = cluster.next_broker_epoch
    version: int = cluster.membership_version + 1
    tx.execute("UPDATE cluster SET membership_version = :version, next_broker_epoch = :next", version=version, next=epoch + 1)
    tx.execute(
        "INSERT INTO brokers (broker_id, broker_epoch, incarnation, zone, address, peer_address, lease_expires_at_ms, unbroken_since_ms)"
        " VALUES (:broker_id, :epoch, :incarnation, :zone, :address, :peer_address, :expires, :now)",
        broker_id=broker_id,
        epoch=epoch,
        incarnation=incarnation,
        zone=zone,
        address=address,
        peer_address=peer_address,
        expires=now + ttl_ms,
        now=now,
    )
    tx.execute(
        "INSERT INTO writers (broker_epoch, broker_id, incarnation) VALUES (:epoch, :broker_id, :incarnation)",
        epoch=epoch,
        broker_id=broker_id,
        incarnation=incarnation,
    )
    tx.execute("INSERT INTO resolved_marks (broker_epoch, sequence) VALUES (:epoch, 0)", epoch=epoch)
    tx.execute("INSERT INTO commit_counts (broker_epoch, commits) VALUES (:epoch, 0)", epoch=epoch)
    return Registration(epoch, version)


def renew_lease(tx: Transaction, *, broker_id: str, broker_epoch: int, ttl_ms: int) -> Lease:
    """Extend the lease by `ttl_ms` from now. One that had expired is renewed too, but counts as broken; so does one renewed late.

    Late is: when more than half of it is over, while brokers renew after a third. An outage of the store that lets one lease
    expire keeps everyone from renewing for about two thirds of a ttl at least: so it ends nobody's epoch, whoever is back first.

    Raises Fenced where the epoch has ended: the broker must drop all it leads and register anew.
    """
    now = tx.now_ms()
    rows = tx.rows(
        "UPDATE brokers SET lease_expires_at_ms = :expires,"
        " unbroken_since_ms = CASE WHEN lease_expires_at_ms < :late THEN :now ELSE unbroken_since_ms END"
        " WHERE broker_id = :broker_id AND broker_epoch = :epoch"
        " RETURNING unbroken_since_ms, (SELECT membership_version FROM cluster) AS membership_version,"
        " (SELECT count(*) FROM brokers b WHERE b.lease_expires_at_ms < :now AND b.broker_id <> :broker_id) AS expired",
        expires=now + ttl_ms,
        late=now + ttl_ms // 2,
        now=now,
        broker_id=broker_id,
        epoch=broker_epoch,
    )
    if not rows:
        raise _ended(broker_id, broker_epoch)
    return Lease(now + ttl_ms, rows[0].unbroken_since_ms, now, rows[0].membership_version, rows[0].expired)


def end_expired_epochs(tx: Transaction, *, broker_id: str, broker_epoch: int, ttl_ms: int) -> tuple[int, ...]:
    """End the epochs of brokers whose leases have expired; return those epochs.

    Does nothing unless the caller's own lease stands and has been renewed without a break for one whole ttl: after an
    outage of the store everyone's lease has expired, and everyone shall have the time to renew.
    """
    tx.rows("SELECT one FROM cluster" + tx.for_update())
    now = tx.now_ms()
    expired = tx.rows("SELECT broker_epoch FROM brokers WHERE lease_expires_at_ms < :now ORDER BY broker_id" + tx.for_update(), now=now)
    own = tx.rows(
        "SELECT lease_expires_at_ms, unbroken_since_ms FROM brokers WHERE broker_id = :broker_id AND broker_epoch = :epoch",
        broker_id=broker_id,
        epoch=broker_epoch,
    )
    if not own:
        raise _ended(broker_id, broker_epoch)
    if own[0].lease_expires_at_ms < now or now - own[0].unbroken_since_ms < ttl_ms:
        return ()
    epochs = [row.broker_epoch for row in expired]
    _end(tx, epochs)
    return tuple(epochs)


def end_epoch(tx: Transaction, *, broker_epoch: int) -> bool:
    """End one's own epoch, after a drain. Returns whether it had not ended before."""
    tx.rows("SELECT one FROM cluster" + tx.for_update())
    present = tx.rows("SELECT broker_epoch FROM brokers WHERE broker_epoch = :epoch" + tx.for_update(), epoch=broker_epoch)
    _end(tx, [row.broker_epoch for row in present])
    return bool(present)


def end_every_epoch(tx: Transaction) -> tuple[int, ...]:
    """End all epochs. Only for a store whose process lock proves every earlier broker dead (SQLite)."""
    tx.rows("SELECT one FROM cluster" + tx.for_update())
    epochs = [row.broker_epoch for row in tx.rows("SELECT broker_epoch FROM brokers ORDER BY broker_id" + tx.for_update())]
    _end(tx, epochs)
    return tuple(epochs)


def set_draining(tx: Transaction, *, broker_id: str, draining: bool, broker_epoch: int | None = None) -> int:
    """Mark a broker as draining, or not; return the membership version. Raises Fenced where it is no member.

    With `broker_epoch`, only that life of it is marked: a broker that leaves must not send away whoever came after it.
    """
    (cluster,) = tx.rows("SELECT membership_version FROM cluster" + tx.for_update())
    rows = tx.rows("SELECT broker_epoch, draining FROM brokers WHERE broker_id = :broker_id" + tx.for_update(), broker_id=broker_id)
    if not rows:
        raise Fenced(f"broker {broker_id!r} was asked to drain, but it is not a member of the cluster; list members to see who is")
    if broker_epoch is not None and rows[0].broker_epoch != broker_epoch:
        raise _ended(broker_id, broker_epoch)
    version: int = cluster.membership_version
    if bool(rows[0].draining) != draining:
        version += 1
        tx.execute("UPDATE cluster SET membership_version = :version", version=version)
        tx.execute("UPDATE brokers SET draining = :draining WHERE broker_id = :broker_id", draining=draining, broker_id=broker_id)
    return version


def membership(tx: Transaction) -> Membership:
    """Return all members with the version they belong to, from one snapshot."""
    rows = tx.rows(
        "SELECT c.membership_version, b.broker_id, b.broker_epoch, b.zone, b.address, b.peer_address, b.draining, b.lease_expires_at_ms"
        " FROM cluster c LEFT JOIN brokers b ON TRUE ORDER BY b.broker_id"
    )
    members = tuple(
        Broker(r.broker_id, r.broker_epoch, r.zone, r.address, r.peer_address, bool(r.draining), r.lease_expires_at_ms)
        for r in rows
        if r.broker_id is not None
    )
    return Membership(rows[0].membership_version, tx.now_ms(), members)


def allocate_producer_ids(tx: Transaction, *, count: int) -> int:
    """Take `count` producer ids that were never given before; return the first."""
    (row,) = tx.rows("UPDATE cluster SET next_producer_id = next_producer_id + :count RETURNING next_producer_id", count=count)
    first: int = row.next_producer_id - count
    return first


def _end(tx: Transaction, epochs: list[int]) -> None:
    """End epochs. The caller holds the cluster's row, and those of the brokers."""
    if not epochs:
        return
    for epoch in sorted(epochs):  # one by one: waits for the commits that share-lock the row, in the order of the keys
        tx.execute("UPDATE writers SET ended = TRUE WHERE broker_epoch = :epoch", epoch=epoch)
        tx.execute("DELETE FROM brokers WHERE broker_epoch = :epoch", epoch=epoch)
    tx.execute("UPDATE cluster SET membership_version = membership_version + 1")


def _ended(broker_id: str, broker_epoch: int) -> Fenced:
    return Fenced(f"broker {broker_id!r} asked in epoch {broker_epoch}, which has ended; drop all leadership and register anew")
