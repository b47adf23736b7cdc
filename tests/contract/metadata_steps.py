"""Short ways to a state that a metadata test begins from: each is one verb or two of the real store."""

from tidelog.metadata.commits import NewExtent, Outcome, PartitionCommit, commit
from tidelog.metadata.leadership import LedPartition, ProducerWindow, take_over
from tidelog.metadata.membership import Registration, initialise, membership, register
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metadata.topics import TopicConfig, create_topic, partitions

TTL_MS = 600_000
CLUSTER_ID = "6f1c24a2c2a84e0b9c1d0a5e8f3b7d11"
TOPIC_ID = "0102030405060708090a0b0c0d0e0f10"


async def join(store: MetadataStore, name: str, *, incarnation: str = "") -> Registration:
    await store.run(initialise, cluster_id=CLUSTER_ID, format_version=1)
    return await store.run(
        register,
        broker_id=name,
        incarnation=incarnation or f"life-of-{name}",
        zone="a",
        address=f"{name}:9595",
        peer_address=f"{name}:9597",
        ttl_ms=TTL_MS,
    )


def expire_now(tx: Transaction, broker_id: str) -> None:
    """Let a lease run out, as if its ttl had passed."""
    tx.execute("UPDATE brokers SET lease_expires_at_ms = 0 WHERE broker_id = :broker_id", broker_id=broker_id)


def unbroken_for_long(tx: Transaction, broker_id: str) -> None:
    """Let a lease have been renewed without a break, as if a ttl had passed."""
    tx.execute("UPDATE brokers SET unbroken_since_ms = 0 WHERE broker_id = :broker_id", broker_id=broker_id)


async def topic(store: MetadataStore, *, count: int = 1, topic_id: str = TOPIC_ID, name: str = "clicks") -> list[int]:
    await store.run(create_topic, topic_id=topic_id, name=name, partitions=count, config=TopicConfig())
    return [row.partition_id for row in await store.run(partitions, topic_id=topic_id)]


async def lead(store: MetadataStore, epoch: int, partition_ids: list[int]) -> dict[int, LedPartition]:
    version = (await store.run(membership)).version
    led = await store.run(take_over, broker_epoch=epoch, membership_version=version, partition_ids=partition_ids)
    return {partition.partition_id: partition for partition in led}


def extent(writer: int, sequence: int, *, position: int = 8, length: int = 100, records: int = 10, timestamp: int = 1000) -> NewExtent:
    return NewExtent(writer, sequence, position, length, records, timestamp)


async def append(
    store: MetadataStore,
    led: LedPartition,
    leader: int,
    *extents: NewExtent,
    at: int | None = None,
    producers: tuple[ProducerWindow, ...] = (),
) -> Outcome:
    proposal = PartitionCommit(led.partition_id, led.leader_epoch, led.next_offset if at is None else at, extents, producers)
    return (await store.run(commit, broker_epoch=leader, partitions=[proposal]))[led.partition_id]
