"""A metadata store in the middle of its life: where the tests of concurrent transactions begin, again and again."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Concatenate

import asyncpg
import pytest
import pytest_asyncio
from tidelog.metadata.cleaning import (
    ReleasedSegment,
    acquire_cleaner,
    condemn,
    drop_deleted_topic,
    expire_producers,
    forget_released,
    forget_writers,
    judge,
    note_checkpoint,
    orphans,
)
from tidelog.metadata.commits import Committed, NewExtent, PartitionCommit, commit
from tidelog.metadata.extents import (
    Extent,
    ReleasedSource,
    advance_log_start,
    advance_log_starts,
    expired_extents,
    find_references,
    offset_for_time,
    read_extents,
    release_expired,
    retention_points,
    swap,
)
from tidelog.metadata.groups import GroupOffset, GroupState, commit_group_offsets, delete_group, write_group
from tidelog.metadata.leadership import ProducerWindow, set_fencing_token, take_over, transfer
from tidelog.metadata.marks import report_resolved
from tidelog.metadata.membership import (
    allocate_producer_ids,
    end_epoch,
    end_every_epoch,
    end_expired_epochs,
    initialise,
    register,
    renew_lease,
    set_draining,
)
from tidelog.metadata.postgres import PostgresSettings, PostgresStore, open_postgres
from tidelog.metadata.retention import Rule, apply_retention, deleted_topics, strip_deleted_topic
from tidelog.metadata.schema import tables_metadata
from tidelog.metadata.store import MetadataStore, P, T, Transaction
from tidelog.metadata.topics import TopicConfig, alter_topic, create_partitions, create_topic, delete_topic

from tests.contract.metadata_steps import TOPIC_ID, TTL_MS, append, expire_now, extent, join, lead, topic, unbroken_for_long
from tests.postgres_server import PostgresServer

DELETED_ID = "ff02030405060708090a0b0c0d0e0f10"
DELETED_EARLIER_ID = "ee02030405060708090a0b0c0d0e0f10"
WINDOWS = (ProducerWindow(1, 0, ((0, 9, 0),)), ProducerWindow(2, 0, ((0, 9, 0),)))
VERSION = 4
"""The membership version: one, and three registrations."""
Verb = Callable[[Transaction], object]
State = dict[str, list[dict[str, Any]]]

_PARENTS_FIRST = [table.name for table in tables_metadata.sorted_tables]


def source(found: Extent) -> ReleasedSource:
    return ReleasedSource(found, f"intake/{found.broker_epoch}/{found.sequence}.seg")


async def play(store: MetadataStore) -> None:
    """Fill an empty store, by its own verbs. Broker epochs, partition ids and leader epochs count from 1.

    Brokers: b0 (epoch 1), b1 (2), b2 (3, expired). Topic *clicks*: partitions 1 and 2 led by b0, 3 by b1, 4 by b2.
    Segments, as (epoch, sequence): (1, 1) has an expired extent in partition 1 and a released one in 2; (1, 2) is resolved
    and live in 1 and 2; (1, 3) is live in 1; (2, 1) in 3; (3, 1) in 4. Topic *old*, deleted: partitions 5 and 6, whose extents
    in the resolved segment (2, 2) are released. Topic *older*, deleted: partition 7, whose extent in (2, 3) is not.
    Group *g*, generation 1, is coordinated by partition 3 and has offsets in 6, 5, 2, 1, written in that order.
    """
    for name in ("b0", "b1", "b2"):
        await join(store, name)
    assert await topic(store, count=4) == [1, 2, 3, 4]
    assert await topic(store, count=2, topic_id=DELETED_ID, name="old") == [5, 6]
    assert await topic(store, topic_id=DELETED_EARLIER_ID, name="older") == [7]
    led = await lead(store, 1, [1, 2]) | await lead(store, 2, [3, 5, 6, 7]) | await lead(store, 3, [4])
    for at, sequence in enumerate((1, 2, 3)):
        assert await append(store, led[1], 1, extent(1, sequence), at=10 * at, producers=WINDOWS) == Committed(10 * at + 10)
    for at, sequence in enumerate((1, 2)):
        await append(store, led[2], 1, extent(1, sequence, position=200), at=10 * at, producers=WINDOWS[::-1])
    await append(store, led[3], 2, extent(2, 1))
    await append(store, led[4], 3, extent(3, 1))
    for partition in (6, 5):
        await append(store, led[partition], 2, extent(2, 2, position=8 * partition), producers=WINDOWS[::-1])
    await append(store, led[7], 2, extent(2, 3), producers=WINDOWS)
    for broker_epoch in (1, 2):
        await store.run(report_resolved, broker_epoch=broker_epoch, sequence=2)
    for partition in (1, 2):
        await store.run(advance_log_start, partition_id=partition, leader_epoch=1, to=10)
    expired = (await store.run(read_extents, positions=[(2, 0)], max_extents=1)).partitions[0].extents
    await store.run(release_expired, broker_epoch=1, sources=[source(found) for found in expired])
    group = GroupState("g", 1, "{}")
    await store.run(write_group, group=group, previous_generation=0, coordinator_partition_id=3, leader_epoch=1)
    for partition in (6, 5, 2, 1):
        await store.run(
            commit_group_offsets,
            group_id="g",
            generation=1,
            offsets=[GroupOffset(partition, 0)],
            coordinator_partition_id=3,
            leader_epoch=1,
        )
    for topic_id in (DELETED_EARLIER_ID, DELETED_ID):
        await store.run(delete_topic, topic_id=topic_id)
    for partition in (6, 5):
        [live] = (await store.run(read_extents, positions=[(partition, 0)], max_extents=1)).partitions[0].extents
        assert await store.run(release_expired, broker_epoch=2, sources=[source(live)]) == 1
    await store.run(expire_now, "b2")
    await store.run(unbroken_for_long, "b0")
    await store.run(_forget_times)


def _forget_times(tx: Transaction) -> None:
    """Make extents known without a look at the store."""
    for table in ("extents", "released_extents"):
        tx.execute(f"UPDATE {table} SET commit_time_ms = 0")
    tx.execute("UPDATE released_segments SET released_at_ms = 0")


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Keeps a copy of all rows inside the database, and puts it back."""

    connection: "asyncpg.Connection[asyncpg.Record]"

    async def take(self) -> None:
        copies = "".join(f"CREATE TABLE kept.{table} AS TABLE public.{table};" for table in _PARENTS_FIRST)
        await self.connection.execute(f"SET synchronous_commit = off; CREATE SCHEMA kept; {copies}")

    async def restore(self) -> None:
        emptied = "".join(f"DELETE FROM {table};" for table in reversed(_PARENTS_FIRST))
        filled = "".join(f"INSERT INTO {table} SELECT * FROM kept.{table};" for table in _PARENTS_FIRST)
        sequence = "SELECT setval(pg_get_serial_sequence('partitions', 'partition_id'), 100)"
        await self.connection.execute(emptied + filled + sequence)

    async def state(self) -> State:
        """Return all rows by table."""
        rows = ", ".join(f"'{table}', (SELECT coalesce(json_agg(t), '[]') FROM {table} t)" for table in _PARENTS_FIRST)
        found: State = json.loads(await self.connection.fetchval(f"SELECT json_build_object({rows})"))
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """A database with the scene, and a copy of it."""
    async with postgres_server.database() as url:
        store = await open_postgres(PostgresSettings(url))
        await play(store)
        await store.close()
        connection = await asyncpg.connect(url)
        await Snapshots(connection).take()
        await connection.close()
        yield url


@pytest.fixture
async def scene(scene_url: str) -> AsyncIterator[tuple[PostgresStore, Snapshots]]:
    store = await open_postgres(PostgresSettings(scene_url, lease_ttl_ms=60_000), allow_migration=False)
    connection = await asyncpg.connect(scene_url, server_settings={"synchronous_commit": "off"})
    yield store, Snapshots(connection)
    await connection.close()
    await store.close()


# ---- verbs, bound to what they are asked


def bound(verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> Verb:
    def asked(tx: Transaction) -> T:
        return verb(tx, *args, **kwargs)

    asked.__name__ = verb.__name__
    return asked


def committing(*proposals: tuple[int, int, int, NewExtent], leader: int = 1) -> Verb:
    """Commit proposals, each as (partition, leader epoch, next offset, extent)."""
    return bound(
        commit,
        broker_epoch=leader,
        partitions=[PartitionCommit(partition, epoch, at, (e,), WINDOWS[::-1]) for partition, epoch, at, e in proposals],
    )


def taking_over(broker_epoch: int, *partitions: int) -> Verb:
    return bound(take_over, broker_epoch=broker_epoch, membership_version=VERSION, partition_ids=partitions)


def handing_over(to: int, *led: tuple[int, int]) -> Verb:
    return bound(transfer, to_broker_epoch=to, membership_version=VERSION, led=led)


def registering(broker_id: str, incarnation: str) -> Verb:
    return bound(register, broker_id=broker_id, incarnation=incarnation, zone="a", address="c:1", peer_address="p:1", ttl_ms=TTL_MS)


def creating(topic_id: str, name: str) -> Verb:
    return bound(create_topic, topic_id=topic_id, name=name, partitions=2, config=TopicConfig())


def swapping(sequence: int, *sources: Extent) -> Verb:
    first, last = sources[0], sources[-1]
    merged = Extent(
        first.partition_id, first.base_offset, last.next_offset, 1, sequence, 8, 150, last.next_offset - first.base_offset, 1, 1000, 0, 1
    )
    return bound(swap, partition_id=first.partition_id, leader_epoch=1, sources=[source(e) for e in sources], merged=merged)


def releasing(*sources: Extent) -> Verb:
    return bound(release_expired, broker_epoch=1, sources=[source(e) for e in sources])


def condemning(*segments: tuple[int, int]) -> Verb:
    """Condemn segments as the scene notes them."""
    return bound(condemn, notes=[ReleasedSegment(*segment, "", 0) for segment in segments])


def going_on(generation: int, state: str, previous: int, *, group_id: str = "g") -> Verb:
    group = GroupState(group_id, generation, state)
    return bound(write_group, group=group, previous_generation=previous, coordinator_partition_id=3, leader_epoch=1)


def remembering(generation: int, *offsets: tuple[int, int]) -> Verb:
    return bound(
        commit_group_offsets,
        group_id="g",
        generation=generation,
        offsets=[GroupOffset(*offset) for offset in offsets],
        coordinator_partition_id=3,
        leader_epoch=1,
    )


def at(partition: int, base: int, broker_epoch: int, sequence: int, position: int = 8) -> Extent:
    """One of the extents that the scene begins with."""
    return Extent(partition, base, base + 10, broker_epoch, sequence, position, 100, 10, 0, 1000, 0, 1)


E11, E12, E13 = at(1, 0, 1, 1), at(1, 10, 1, 2), at(1, 20, 1, 3)
E22 = at(2, 10, 1, 2, 200)
E71 = at(7, 0, 2, 3)

VERBS: dict[str, Verb] = {
    "commit": committing((1, 1, 30, extent(1, 5))),
    "commit another segment": committing((1, 1, 30, extent(1, 6))),
    "commit under the next leader epoch": committing((1, 2, 30, extent(1, 6))),
    "commit at the next offset": committing((1, 1, 40, extent(1, 6))),
    "commit to 1 and 2": committing((1, 1, 30, extent(2, 5)), (2, 1, 20, extent(1, 5))),
    "commit to 2 and 1": committing((2, 1, 20, extent(3, 5)), (1, 1, 30, extent(2, 6))),
    "commit to 3": committing((3, 1, 10, extent(2, 5)), leader=2),
    "commit of the expired writer": committing((1, 1, 30, extent(3, 5))),
    "commit to deleted topics": committing((5, 1, 10, extent(2, 5)), (7, 1, 10, extent(2, 5)), leader=2),
    "take over": taking_over(1, 1, 2),
    "take over what nobody leads": taking_over(1, 4, 3),
    "the other takes over what nobody leads": taking_over(2, 4, 3),
    "transfer": handing_over(2, (1, 1), (2, 1)),
    "take over as target": taking_over(2, 1, 2),
    "end expired epochs": bound(end_expired_epochs, broker_id="b0", broker_epoch=1, ttl_ms=1000),
    "end every epoch": bound(end_every_epoch),
    "initialise": bound(initialise, cluster_id="another", format_version=1),
    "end own epoch": bound(end_epoch, broker_epoch=1),
    "end the expired epoch": bound(end_epoch, broker_epoch=3),
    "register": registering("b3", "first"),
    "register anew": registering("b2", "second"),
    "register anew in another process": registering("b2", "third"),
    "renew": bound(renew_lease, broker_id="b0", broker_epoch=1, ttl_ms=TTL_MS),
    "renew the expired lease": bound(renew_lease, broker_id="b2", broker_epoch=3, ttl_ms=TTL_MS),
    "drain": bound(set_draining, broker_id="b1", draining=True),
    "allocate producer ids": bound(allocate_producer_ids, count=10),
    "resolve": bound(report_resolved, broker_epoch=1, sequence=5),
    "resolve nothing": bound(report_resolved, broker_epoch=1, sequence=0),
    "resolve less": bound(report_resolved, broker_epoch=1, sequence=4),
    "judge": bound(judge, segments=[(1, 5)]),
    "judge sources": bound(judge, segments=[(1, 4), (1, 3), (1, 2)]),
    "judge segments of the expired writer": bound(judge, segments=[(3, 5), (3, 1)]),
    "condemn expired": condemning((1, 2), (1, 1)),
    "condemn released": condemning((2, 3), (2, 2), (1, 1)),
    "look for orphans": bound(orphans, segments=[(3, 5), (3, 1), (1, 5), (1, 4), (1, 2), (1, 1)]),
    "forget writers": bound(forget_writers, broker_epochs=[3, 2, 1]),
    "apply retention": bound(apply_retention, rules=[Rule(1, 1, -1, 150)]),
    "apply retention by time": bound(apply_retention, rules=[Rule(2, 1, 0, -1)]),
    "apply retention to many": bound(apply_retention, rules=[Rule(2, 1, 0, -1), Rule(1, 1, -1, 150), Rule(3, 1, -1, -1)]),
    "release of many": releasing(E71, E22, E11),
    "look for deleted topics": bound(deleted_topics, limit=10),
    "strip the topic deleted earlier": bound(strip_deleted_topic, topic_id=DELETED_EARLIER_ID, limit=10),
    "read": bound(read_extents, positions=[(2, 15), (1, 0), (7, 0)], max_extents=100),
    "read little": bound(read_extents, positions=[(1, 0), (2, 0)], max_extents=1, max_extents_each=1),
    "look for a time": bound(offset_for_time, partition_id=1, timestamp_ms=1),
    "look for what retention asks": bound(retention_points, limits=[(1, 0, 150)]),
    "look for what has expired": bound(expired_extents, partition_ids=[1], limit=10),
    "look up": bound(find_references, segments=[(1, 1, 5), (1, 3, 5)]),
    "forget": bound(forget_released, notes=[ReleasedSegment(*segment, "", 0) for segment in ((2, 2), (1, 3), (1, 2), (1, 1))]),
    "acquire cleaner": bound(acquire_cleaner, broker_epoch=1, ttl_ms=TTL_MS),
    "the other acquires cleaner": bound(acquire_cleaner, broker_epoch=2, ttl_ms=TTL_MS),
    "note checkpoint": bound(note_checkpoint, begun_at_ms=TTL_MS),
    "advance log start": bound(advance_log_start, partition_id=1, leader_epoch=1, to=30),
    "advance log starts": bound(advance_log_starts, moves=[(2, 1, 20), (1, 1, 30)]),
    "advance log start less": bound(advance_log_start, partition_id=1, leader_epoch=1, to=20),
    "release": releasing(E11),
    "release all": releasing(E13, E12, E11),
    "release in 2": releasing(E22),
    "release of a deleted topic": releasing(E71),
    "swap": swapping(4, E12, E13),
    "swap to another": swapping(5, E12, E13),
    "swap the first": swapping(5, E12),
    "swap in a deleted topic": swapping(5, E71),
    "expire producers": bound(expire_producers, partition_ids=[6, 5, 2, 1], unused_for_ms=-(1 << 50)),
    "set fencing token": bound(set_fencing_token, partition_id=1, token="t"),
    "create topic": creating("aa" * 16, "new"),
    "create a topic of that name": creating("bb" * 16, "new"),
    "create another topic": creating("cc" * 16, "newer"),
    "add partitions": bound(create_partitions, topic_id=TOPIC_ID, partitions=6),
    "alter topic": bound(alter_topic, topic_id=TOPIC_ID, config=TopicConfig(5, 5)),
    "delete topic": bound(delete_topic, topic_id=TOPIC_ID),
    "drop deleted topic": bound(drop_deleted_topic, topic_id=DELETED_ID),
    "drop the topic deleted earlier": bound(drop_deleted_topic, topic_id=DELETED_EARLIER_ID),
    "take over of a deleted topic": taking_over(1, 6, 5),
    "create group": going_on(1, "{}", 0, group_id="h"),
    "create group otherwise": going_on(1, "[]", 0, group_id="h"),
    "write group": going_on(2, "{}", 1),
    "write group otherwise": going_on(2, "[]", 1),
    "take over the coordinator": taking_over(2, 3),
    "commit group offsets": remembering(1, (1, 5), (2, 5), (5, 5), (6, 5)),
    "commit other group offsets": remembering(1, (6, 7), (2, 7)),
    "delete group": bound(delete_group, group_id="g", generation=1, coordinator_partition_id=3, leader_epoch=1),
}
"""Every verb that locks, and some that read, as they are asked in the scene."""
