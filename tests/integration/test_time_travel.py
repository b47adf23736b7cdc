"""A metadata store that goes back under running brokers, as a standby does that lost what came last (I11)."""

import asyncio
from collections.abc import Sequence

import pytest
from tidelog.errors import TimeTravel
from tidelog.metadata.topics import TopicConfig

from tests.cluster import Cluster, append, open_cluster


async def ended(cluster: Cluster, statements: Sequence[str]) -> None:
    """Let a broker live, change its metadata store, and wait for its end."""
    broker = await cluster.start("one")
    await broker.create_topic("clicks", partitions=2, config=TopicConfig())
    await append(broker, "clicks", b"a")
    await cluster.store.run(lambda tx: [tx.execute(statement) for statement in statements])  # type: ignore[func-returns-value]
    running = cluster.tasks.pop("one")
    async with asyncio.timeout(10):
        await running


async def test_a_broker_ends_when_changes_that_it_had_seen_are_gone() -> None:
    async with open_cluster() as cluster:
        with pytest.RaisesGroup(pytest.RaisesExc(TimeTravel, match="counts 1 changes of topics and leaders"), allow_unwrapped=True):
            await ended(cluster, ["UPDATE changes SET version = 1"])


async def test_a_broker_ends_when_it_is_given_an_epoch_a_second_time() -> None:
    async with open_cluster() as cluster:
        forgotten = [f"DELETE FROM {table}" for table in ("commit_counts", "extents", "brokers", "writers", "resolved_marks")]
        with pytest.RaisesGroup(pytest.RaisesExc(TimeTravel, match="had epoch 1 and was given 1"), allow_unwrapped=True):
            await ended(cluster, [*forgotten, "UPDATE cluster SET next_broker_epoch = 1"])


async def test_a_broker_does_not_begin_on_a_bucket_with_segments_of_an_epoch_that_was_never_given_out() -> None:
    async with open_cluster() as cluster:
        broker = await cluster.start("one")
        await broker.create_topic("clicks", partitions=1, config=TopicConfig())
        await append(broker, "clicks", b"a")
        await cluster.kill("one")
        forgotten = [f"DELETE FROM {table}" for table in ("commit_counts", "extents", "brokers", "writers", "resolved_marks")]
        statements = [*forgotten, "UPDATE cluster SET next_broker_epoch = 1"]
        await cluster.store.run(lambda tx: [tx.execute(statement) for statement in statements])  # type: ignore[func-returns-value]
        with pytest.raises(TimeTravel, match="epochs below 1, but the bucket holds 'intake/one/0000000001/"):
            await cluster.start("two")


async def test_a_stray_object_among_the_segments_keeps_nobody_from_beginning() -> None:
    async with open_cluster() as cluster:
        for key in ("intake/readme", "intake/one/readme"):
            await cluster.bucket.put_new(key, [b"not ours"])
        broker = await cluster.start("one")
        await broker.create_topic("clicks", partitions=1, config=TopicConfig())
        await append(broker, "clicks", b"a")
