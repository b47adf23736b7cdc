"""Appends through brokers of one cluster: any broker takes them, leaders order them, SQL makes it so."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tidelog.errors import ConditionFailed, OutcomeUnknown, OutOfOrderSequence, TimeTravel, UnknownProducer, UnknownTopic
from tidelog.metadata import topics as topic_verbs
from tidelog.metadata.extents import read_extents
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig
from tidelog.records.codec import Producer

from tests.cluster import QUICK, Cluster, append, open_cluster, until

AUTO_CREATE = QUICK.model_copy(update={"auto_create_topics": True})


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with open_cluster() as cluster:
        yield cluster


async def test_an_append_gets_the_next_offsets(cluster: Cluster) -> None:
    broker = await cluster.start("one")
    await broker.create_topic("clicks", partitions=2, config=TopicConfig())
    first = await append(broker, "clicks", b"a", b"b")
    second = await append(broker, "clicks", b"c")
    assert (first.base_offset, first.next_offset, second.base_offset) == (0, 2, 2)
    assert (await append(broker, "clicks", b"x", partition=1)).base_offset == 0


async def test_appends_through_every_broker_of_three_make_one_dense_order(cluster: Cluster) -> None:
    brokers = [await cluster.start(name) for name in ("one", "two", "three")]
    await brokers[0].create_topic("clicks", partitions=24, config=TopicConfig())
    await until(lambda: all(len(broker.catalog.topics()) == 1 for broker in brokers))
    work = [append(brokers[n % 3], "clicks", b"v%d" % n, partition=n % 6) for n in range(300)]
    done = await asyncio.gather(*work)
    for partition in range(6):
        offsets = sorted(done[n].base_offset for n in range(300) if n % 6 == partition)
        assert offsets == list(range(50))
    assert sum(len(broker.life.ledger.led()) for broker in brokers if broker.life) == 24
    assert all(broker.life and broker.life.ledger.led() for broker in brokers), "leadership is spread"


async def test_a_killed_leader_is_a_pause_and_not_an_error(cluster: Cluster) -> None:
    brokers = [await cluster.start(name) for name in ("one", "two", "three")]
    await brokers[0].create_topic("clicks", partitions=6, config=TopicConfig())
    await until(lambda: all(len(broker.catalog.topics()) == 1 for broker in brokers))
    await asyncio.gather(*(append(brokers[0], "clicks", b"before", partition=p) for p in range(6)))
    await cluster.kill("two")
    done = await asyncio.gather(*(append(brokers[0], "clicks", b"after", partition=p) for p in range(6)))
    assert [each.base_offset for each in done] == [1] * 6


async def test_a_leader_whose_metadata_store_went_back_ends_and_says_so(cluster: Cluster) -> None:
    """I11: a standby that lagged took the store's place; nobody may give its offsets again."""
    broker = await cluster.start("one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a", b"b")
    await cluster.store.run(lambda tx: tx.execute_all(["DELETE FROM extents", "UPDATE partitions SET next_offset = 0"]))
    with pytest.raises(OutcomeUnknown):
        await append(broker, "clicks", b"c")
    with pytest.raises(ExceptionGroup) as ended:
        await cluster.tasks.pop("one")
    assert ended.group_contains(TimeTravel, match="was at leader epoch 1 and offset 2 .* has it at 1 and 0")


async def test_idempotent_appends_are_answered_once_and_gaps_refused(cluster: Cluster) -> None:
    broker = await cluster.start("one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    producer_id, epoch = await broker.init_producer()

    def who(sequence: int) -> Producer:
        return Producer(producer_id, epoch, sequence)

    first, again = await asyncio.gather(
        append(broker, "clicks", b"a", b"b", producer=who(0)), append(broker, "clicks", b"a", b"b", producer=who(0))
    )
    assert (first.base_offset, again.base_offset) == (0, 0)
    assert sorted((first.duplicate, again.duplicate)) == [False, True]
    assert (await append(broker, "clicks", b"c", producer=who(2))).base_offset == 2
    assert (await append(broker, "clicks", b"a", b"b", producer=who(0))).duplicate
    with pytest.raises(OutOfOrderSequence, match="but 3 comes next"):
        await append(broker, "clicks", b"z", producer=who(4))
    with pytest.raises(UnknownProducer):
        await append(broker, "clicks", b"z", producer=Producer(999, 0, 7))


async def test_a_duplicate_after_the_leaders_death_has_its_first_offsets(cluster: Cluster) -> None:
    one = await cluster.start("one")
    await one.create_topic("clicks", partitions=8, config=TopicConfig())
    producer_id, epoch = await one.init_producer()
    for partition in range(8):
        await append(one, "clicks", b"pad", partition=partition)
        await append(one, "clicks", b"a", partition=partition, producer=Producer(producer_id, epoch, 0))
    await cluster.kill("one")
    two = await cluster.start("two")
    await until(lambda: two.life is not None and len(two.life.ledger.led()) == 8)
    for partition in range(8):
        again = await append(two, "clicks", b"a", partition=partition, producer=Producer(producer_id, epoch, 0))
        assert (again.base_offset, again.duplicate) == (1, True)


async def test_a_condition_is_decided_with_what_is_pending(cluster: Cluster) -> None:
    broker = await cluster.start("one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    results = await asyncio.gather(*(append(broker, "clicks", b"%d" % n, expected_next_offset=0) for n in range(5)), return_exceptions=True)
    assert sum(not isinstance(each, BaseException) for each in results) == 1
    assert all(isinstance(each, ConditionFailed) for each in results if isinstance(each, BaseException))


async def test_a_refused_append_splits_its_chunk(cluster: Cluster) -> None:
    broker = await cluster.start("one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    results = await asyncio.gather(
        append(broker, "clicks", b"a"),
        append(broker, "clicks", b"refused", expected_next_offset=7),
        append(broker, "clicks", b"b"),
        return_exceptions=True,
    )
    assert [getattr(each, "base_offset", None) for each in results] == [0, None, 1]
    found = await cluster.store.run(read_extents, positions=[(1, 0)], max_extents=10)
    assert [(extent.base_offset, extent.next_offset) for extent in found.partitions[0].extents] == [(0, 1), (1, 2)]


async def test_an_unknown_topic_is_refused_before_anything_is_taken(cluster: Cluster) -> None:
    broker = await cluster.start("one")
    with pytest.raises(UnknownTopic):
        await append(broker, "nothing", b"a")
    with pytest.raises(UnknownTopic):
        await broker.ensure_topic("nothing")


async def test_a_topic_that_another_makes_at_the_same_moment_is_known_at_once(cluster: Cluster) -> None:
    """A producer's first append and its question for the partitions make the same topic, and so may two brokers."""
    one = await cluster.start("one", AUTO_CREATE)

    class Late:
        """The metadata store, seen by a broker that is always the second to create a topic."""

        exclusive = False

        def __init__(self, store: MetadataStore) -> None:
            self.run_reserved = store.run_reserved
            self.close = store.close

        async def run(self, function: Callable[..., Any], /, *_: Any, **arguments: Any) -> Any:
            if function is topic_verbs.create_topic:
                await one.create_topic(arguments["name"], partitions=3, config=TopicConfig())
            return await cluster.store.run(function, **arguments)

    two = await cluster.start("two", AUTO_CREATE, wrap=Late)
    await cluster.kill("two")  # and with it the polls that might have told it of the topic; it can still be asked
    assert (await two.ensure_topic("first")).partitions == 3
    assert two.catalog.partition("first", 2) is not None, "or the append that asked is refused as of an unknown topic"


async def test_a_drained_broker_hands_over_and_leaves(cluster: Cluster) -> None:
    one, two = [await cluster.start(name) for name in ("one", "two")]
    await one.create_topic("clicks", partitions=8, config=TopicConfig())
    await until(lambda: two.catalog.topic("clicks") is not None)
    await asyncio.gather(*(append(one, "clicks", b"a", partition=p) for p in range(8)))
    pending = [append(two, "clicks", b"b", partition=p) for p in range(8)]
    tasks = [asyncio.ensure_future(each) for each in pending]
    await asyncio.sleep(0)
    await one.drain_and_end()
    assert [each.base_offset for each in await asyncio.gather(*tasks)] == [1] * 8
    await until(lambda: two.life is not None and len(two.life.ledger.led()) == 8)
    assert [each.broker_id for each in (await two.membership()).brokers] == ["two"]


async def test_a_broker_comes_back_under_a_new_epoch_after_its_epoch_was_ended(cluster: Cluster) -> None:
    from tidelog.metadata.membership import end_epoch

    broker = await cluster.start("one")
    await broker.create_topic("clicks", partitions=2, config=TopicConfig())
    await append(broker, "clicks", b"a")
    assert broker.life is not None
    before = broker.life.identity.broker_epoch
    await cluster.store.run(end_epoch, broker_epoch=before)
    await until(lambda: broker.life is not None and broker.life.identity.broker_epoch > before and broker.ready() is None)
    assert (await append(broker, "clicks", b"b")).base_offset == 1


async def test_an_idle_append_does_not_wait_for_company(cluster: Cluster) -> None:
    broker = await cluster.start("one", QUICK.model_copy(update={"max_latency_ms": 5000}))
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    async with asyncio.timeout(2):
        await append(broker, "clicks", b"a")


async def test_a_producer_that_was_silent_for_long_is_forgotten_and_told_so(cluster: Cluster) -> None:
    broker = await cluster.start("one", QUICK.model_copy(update={"producer_expiry_ms": 300}))
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    producer_id, epoch = await broker.init_producer()
    await append(broker, "clicks", b"a", producer=Producer(producer_id, epoch, 0))

    async def forgotten() -> bool:
        rows = await cluster.store.run(lambda tx: tx.rows("SELECT producer_id FROM producers"))
        return not rows

    async with asyncio.timeout(10):
        while not await forgotten():
            await asyncio.sleep(0.02)
    with pytest.raises(UnknownProducer, match="has expired"):
        await append(broker, "clicks", b"b", producer=Producer(producer_id, epoch, 1))


async def test_sequences_wrap_around(cluster: Cluster) -> None:
    broker = await cluster.start("one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    producer_id, epoch = await broker.init_producer()
    last = 2**31 - 1
    window = f"[[{last - 1}, {last - 1}, 0]]"
    await append(broker, "clicks", b"a", producer=Producer(producer_id, epoch, 0))
    await cluster.store.run(lambda tx: tx.execute("UPDATE producers SET batches = :window", window=window))
    await cluster.kill("one")
    broker = await cluster.start("two")
    await until(lambda: broker.life is not None and len(broker.life.ledger.led()) == 1)
    over = await append(broker, "clicks", b"b", b"c", b"d", producer=Producer(producer_id, epoch, last))
    assert (over.base_offset, over.next_offset) == (1, 4)
    assert (await append(broker, "clicks", b"e", producer=Producer(producer_id, epoch, 2))).base_offset == 4
    assert (await append(broker, "clicks", b"b", b"c", b"d", producer=Producer(producer_id, epoch, last))).duplicate
