"""The database is gone: what checkpoints and segments bring back, and what they say that they cannot know."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from tidelog.broker import checkpointer
from tidelog.broker import rebuild as rebuilding
from tidelog.broker.broker import Broker
from tidelog.broker.marker import Marker, newest_marker, renew
from tidelog.broker.rebuild import COUNT_LEAP, rebuild
from tidelog.broker.rebuild_partition import EPOCH_LEAP
from tidelog.broker.rebuild_report import Newer, Report
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.errors import MetadataUnusable, OutOfOrderSequence, StoreUnusable, TimeTravel, UnknownProducer
from tidelog.executors import InlineExecutor
from tidelog.metadata.cleaning import condemn, drop_deleted_topic, forget_writers, released_segments, writer_states
from tidelog.metadata.extents import Extent, ReleasedSource, read_extents, swap
from tidelog.metadata.groups import GroupOffset, GroupState, commit_group_offsets, write_group
from tidelog.metadata.membership import cluster_state
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metadata.topics import TopicConfig, partitions, topics
from tidelog.objects.memory import MemoryStore
from tidelog.objects.store import ObjectStore
from tidelog.records.batch import scan, stamp
from tidelog.records.codec import Producer, decode_values
from tidelog.segments.checkpoints import PREFIX, parse_checkpoint_key
from tidelog.segments.format import ChunkSource, Origin, encode_merged
from tidelog.segments.keys import ASIDE, IntakeKey, MergedKey

from tests.cluster import QUICK, Cluster, SharedStore, append, open_cluster, until
from tests.rebuilt_rows import all_rows, as_rebuilt, comparable

SOMETIMES = QUICK.model_copy(update={"checkpoint_interval_ms": 3600_000, "checkpoint_page_rows": 10})
"""A checkpoint when a broker begins; all others are a test's."""
CLEANING = QUICK.model_copy(
    update={
        "cleaner_interval_ms": 50,
        "retention_interval_ms": 50,
        "reader_grace_ms": 1,
        "checkpoint_interval_ms": 0,
        "orphan_age_seconds": 0,
        "orphan_scan_interval_ms": 100,
    }
)
"""What nobody needs goes at once."""


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with open_cluster() as cluster:
        yield cluster


async def begun(cluster: Cluster, name: str) -> Broker:
    """Start a broker, and wait for the checkpoint that it begins with; all others are a test's."""
    broker = await cluster.start(name, SOMETIMES)
    await until(lambda: outcomes(broker)["written"] > 0)
    assert broker.life
    broker.life.checkpointer.topics_changed = lambda version: None  # type: ignore[method-assign]
    return broker


async def checkpoint(broker: Broker) -> str:
    """Write a checkpoint; say what became of it."""
    assert broker.life is not None
    before = outcomes(broker)
    await broker.life.checkpointer.write()
    [changed] = [name for name, count in outcomes(broker).items() if count != before[name]]
    return changed


def outcomes(broker: Broker) -> dict[str, float]:
    return {name: counter._value.get() for name, counter in broker._metrics.checkpoints.items()}


def opened(store: MetadataStore) -> Callable[[], Awaitable[MetadataStore]]:
    async def answer() -> MetadataStore:
        return store

    return answer


@asynccontextmanager
async def rebuilt(cluster: Cluster, newer: Newer = "append") -> AsyncIterator[tuple[MetadataStore, Report]]:
    """Everything of the old store is gone; a new one, made of the bucket."""
    store = await open_sqlite(IN_MEMORY, clock=SystemClock(), executor=InlineExecutor())
    try:
        yield SharedStore(store), await rebuild(bucket=cluster.bucket, into=opened(store), newer=newer)
    finally:
        await cluster.close()
        await store.close()


async def values(broker: Broker, topic: str, partition: int) -> list[bytes]:
    """Read a partition from its beginning to its end, by what is stored alone."""
    found: list[bytes] = []
    [described] = await broker.topics([topic])
    state = next(row for row in await broker.partitions(described.topic_id) if row.partition == partition)
    offset = state.log_start_offset
    async with broker.follow(topic, partition) as cursor:
        while offset < state.next_offset:
            run = await cursor.read(offset, max_bytes=1 << 20)
            for header in scan(run.batches):
                of_batch = decode_values(run.batches[header.position : header.position + header.size])
                assert header.base_offset == state.log_start_offset + len(found), "dense, and where it was"
                found += [value or b"" for value in of_batch]
            assert run.next_offset > offset
            offset = run.next_offset
    return found


async def keys_below(cluster: Cluster, prefix: str) -> list[str]:
    return [found.key async for found in cluster.bucket.list(prefix)]


async def restarted(cluster: Cluster, store: MetadataStore, name: str = "one", settings: Settings = SOMETIMES) -> Broker:
    """A broker of the rebuilt store on the same bucket."""
    for old in list(cluster.tasks):
        await cluster.kill(old)
    cluster.store = store
    return await cluster.start(name, settings)


# ---- what comes back


async def test_all_that_a_checkpoint_holds_comes_back_as_it_was(cluster: Cluster) -> None:
    brokers = [await begun(cluster, "one"), await cluster.start("two", SOMETIMES)]
    one = brokers[0]
    await one.create_topic("clicks", partitions=3, config=TopicConfig(retention_ms=12345, retention_bytes=67, compact=True))
    await one.create_topic("gone", partitions=1, config=TopicConfig())
    await until(lambda: all(len(broker.catalog.topics()) == 2 for broker in brokers))
    producer_id, epoch = await one.init_producer()
    sent = [[b"%d/%d" % (partition, n) for n in range(40)] for partition in range(3)]
    for n in range(40):
        for partition in range(3):
            await append(brokers[n % 2], "clicks", sent[partition][n], partition=partition, producer=Producer(producer_id, epoch, n))
    await append(one, "gone", b"x")
    await one.set_fencing_token("clicks", 1, "mine", expected=None)
    await one.delete_records("clicks", 2, 7)
    await one.delete_topic("gone")
    partitions = {row.partition: row for row in await one.partitions((await one.topics(["clicks"]))[0].topic_id)}
    led = partitions[0]
    group = GroupState("readers", 3, '{"members": []}')
    where: dict[str, Any] = {"coordinator_partition_id": led.partition_id, "leader_epoch": led.leader_epoch}
    await cluster.store.run(write_group, group=group, previous_generation=0, **where)
    await cluster.store.run(
        commit_group_offsets, group_id="readers", generation=3, offsets=[GroupOffset(led.partition_id, 21, "note")], **where
    )
    for broker in brokers:  # else marks move between the checkpoint and a look at the rows
        await until(lambda: (life := broker.life) is not None and life.lease._reported == life.intake.resolved_sequence >= 60)  # noqa: B023
    assert await checkpoint(one) == "written"
    before = await all_rows(cluster.store)

    async with rebuilt(cluster) as (store, report):
        after = await all_rows(store)
        assert comparable(after) == as_rebuilt(before)
        assert after["resolved_marks"] == before["resolved_marks"]
        assert [row[:3] for row in after["writers"]] == [row[:3] for row in before["writers"]]
        assert all(row[3] for row in after["writers"]), "every epoch that was given before has ended"
        assert report.exact
        assert (report.topics, report.partitions, report.exact_records) == (2, 4, 40 * 3 - 7)

        broker = await restarted(cluster, store)
        assert [await values(broker, "clicks", partition) for partition in range(3)] == [sent[0], sent[1], sent[2][7:]]
        again = await append(broker, "clicks", sent[0][39], partition=0, producer=Producer(producer_id, epoch, 39))
        assert (again.base_offset, again.duplicate) == (39, True), "I8: a late retry finds its answer"
        assert (await append(broker, "clicks", b"next", partition=0, producer=Producer(producer_id, epoch, 40))).base_offset == 40


async def test_each_checkpoint_adds_what_came_since_the_one_before_and_nothing_is_written_for_nothing(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=2, config=TopicConfig())
    sent: list[list[bytes]] = [[], []]
    for turn in range(5):
        for n in range(turn * 7):
            sent[n % 2].append(b"%d/%d" % (turn, n))
            await append(broker, "clicks", sent[n % 2][-1], partition=n % 2)
        assert await checkpoint(broker) == "written"
    objects = await keys_below(cluster, PREFIX)
    assert await checkpoint(broker) in ("written", "unchanged"), "marks may have come after the last commit"
    await until(lambda: broker.life is not None and broker.life.intake.resolved_sequence == broker.life.lease._reported)
    await checkpoint(broker)
    objects = await keys_below(cluster, PREFIX)
    assert await checkpoint(broker) == "unchanged"
    assert await keys_below(cluster, PREFIX) == objects
    assert len({key.rpartition("/")[0] for key in objects}) == 1, "they build on each other"
    async with rebuilt(cluster) as (store, report):
        assert report.exact
        broker = await restarted(cluster, store)
        assert [await values(broker, "clicks", partition) for partition in (0, 1)] == sent


async def test_a_topic_that_goes_while_a_checkpoint_is_taken_does_not_come_back(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await begun(cluster, "one")
    gone = await broker.create_topic("gone", partitions=2, config=TopicConfig())
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a")
    marks = checkpointer._Copy._marks

    async def gone_meanwhile(self: checkpointer._Copy) -> list[Sequence[Any]]:
        """Topics were read, partitions not yet."""
        await broker.delete_topic("gone")
        assert await cluster.store.run(drop_deleted_topic, topic_id=gone.topic_id)
        return await marks(self)

    monkeypatch.setattr(checkpointer._Copy, "_marks", gone_meanwhile)
    assert broker.life is not None
    broker.life.checkpointer._chain = None
    assert await checkpoint(broker) == "written"
    async with rebuilt(cluster) as (store, report):
        assert (report.exact, report.topics) == (True, 1)
        assert [topic.name for topic in await store.run(topics, names=None)] == ["clicks"]


async def test_a_delete_of_records_alone_is_a_change(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(5):
        await append(broker, "clicks", b"%d" % n)
    await checkpoint(broker)
    await broker.delete_records("clicks", 0, 3)
    assert await checkpoint(broker) == "written"
    async with rebuilt(cluster) as (store, _):
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"3", b"4"]


async def test_another_broker_goes_on_when_the_first_is_gone_and_old_ones_are_removed(cluster: Cluster) -> None:
    for turn in range(4):
        broker = await begun(cluster, f"b{turn}")
        if turn == 0:
            await broker.create_topic("clicks", partitions=1, config=TopicConfig())
        await until(lambda: broker.catalog.topic("clicks") is not None)  # noqa: B023 - awaited here
        await append(broker, "clicks", b"%d" % turn)
        assert await checkpoint(broker) == "written"
        await broker.drain_and_end()
        await cluster.kill(f"b{turn}")
    keys = [parse_checkpoint_key(key) for key in await keys_below(cluster, PREFIX)]
    assert len({key.folder for key in keys if key}) == SOMETIMES.checkpoints_kept
    async with rebuilt(cluster) as (store, report):
        assert report.exact
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"0", b"1", b"2", b"3"]


async def test_what_is_drained_leaves_everything_in_the_bucket(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a", b"b")
    await broker.drain_and_end()
    async with rebuilt(cluster) as (store, report):
        assert report.certain
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"a", b"b"]


async def test_what_segments_do_not_tell_is_in_doubt_unless_the_last_broker_had_drained(cluster: Cluster) -> None:
    """A delete of records after the checkpoint is undone, and nothing in the bucket tells of it."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(5):
        await append(broker, "clicks", b"%d" % n)
    await checkpoint(broker)
    assert await broker.delete_records("clicks", 0, 3) == 3
    would = await rebuild(bucket=cluster.bucket, into=None, newer="append")
    assert (would.whole, would.exact, would.drained, would.certain) == (True, True, False, False)
    await until(lambda: broker.life is not None and broker.life.intake.resolved_sequence == broker.life.lease._reported)
    await checkpoint(broker)
    assert await checkpoint(broker) == "unchanged"
    await broker.drain_and_end()
    would = await rebuild(bucket=cluster.bucket, into=None, newer="append")
    assert would.certain, "a last checkpoint is written even if nothing has changed"
    await cluster.kill("one")
    broker = await cluster.start("two", QUICK.model_copy(update={"checkpoint_interval_ms": 0}))
    await until(lambda: broker.catalog.topic("clicks") is not None)
    await append(broker, "clicks", b"5")
    would = await rebuild(bucket=cluster.bucket, into=None, newer="append")
    assert not would.drained, "another has begun since"


async def test_only_one_of_several_brokers_writes_them(cluster: Cluster) -> None:
    brokers = [await begun(cluster, "one"), await cluster.start("two", SOMETIMES)]
    await until(lambda: all(len(broker.catalog.membership.brokers) == 2 for broker in brokers))
    before = outcomes(brokers[1])
    assert brokers[1].life
    await brokers[1].life.checkpointer.write()
    assert outcomes(brokers[1]) == before
    assert await checkpoint(brokers[0]) in ("written", "unchanged")


async def test_a_topic_is_in_a_checkpoint_soon_after_it_was_made(cluster: Cluster) -> None:
    broker = await cluster.start("one", SOMETIMES)
    await until(lambda: outcomes(broker)["written"] > 0)
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await until(lambda: outcomes(broker)["written"] > 1)
    async with rebuilt(cluster) as (_, report):
        assert report.topics == 1


async def test_no_copy_is_made_of_a_store_that_is_older_than_the_bucket_or_than_it_was(cluster: Cluster) -> None:
    """I11: a rebuild would take it for the newest there is."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a")
    await checkpoint(broker)
    await renew(cluster.bucket, lambda: cluster.store.run(cluster_state))
    before = await keys_below(cluster, PREFIX)
    await cluster.store.run(lambda tx: tx.execute("UPDATE commit_counts SET commits = 0"))
    assert broker.life is not None
    for chain in (broker.life.checkpointer._chain, None):
        broker.life.checkpointer._chain = chain
        with pytest.raises(TimeTravel, match="older copy"):
            await broker.life.checkpointer.write()
    assert await keys_below(cluster, PREFIX) == before


async def test_a_marker_that_is_renewed_while_a_copy_begins_proves_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())

    async def renewed_meanwhile(bucket: ObjectStore) -> Marker | None:
        await append(broker, "clicks", b"a")
        await renew(bucket, lambda: cluster.store.run(cluster_state))
        return await newest_marker(bucket)

    monkeypatch.setattr(checkpointer, "newest_marker", renewed_meanwhile)
    assert broker.life is not None
    broker.life.checkpointer._chain = None
    assert await checkpoint(broker)


async def test_an_interval_of_0_switches_them_off(cluster: Cluster) -> None:
    broker = await cluster.start("one", QUICK.model_copy(update={"checkpoint_interval_ms": 0}))
    assert broker.life
    await broker.life.checkpointer.write()
    assert await keys_below(cluster, PREFIX) == []


# ---- what is newer than the checkpoint


async def test_newer_records_are_appended_in_their_order_and_told_of(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    sent = [b"%d" % n for n in range(20)]
    for value in sent[:5]:
        await append(broker, "clicks", value)
    await checkpoint(broker)
    for value in sent[5:]:
        await append(broker, "clicks", value)
    async with rebuilt(cluster) as (store, report):
        [newer] = report.unknown_order
        assert (newer.topic, newer.partition, newer.records, newer.base_offset, newer.next_offset) == ("clicks", 0, 15, 5, 20)
        assert (report.exact_records, report.certain, report.whole) == (5, False, True)
        broker = await restarted(cluster, store)
        assert await values(broker, "clicks", 0) == sent
        assert (await append(broker, "clicks", b"next")).base_offset == 20


async def test_newer_records_are_left_aside_where_that_is_asked(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"certain")
    await checkpoint(broker)
    await append(broker, "clicks", b"in doubt", b"also")
    async with rebuilt(cluster, "aside") as (store, report):
        [newer] = report.unknown_order
        assert (newer.records, newer.base_offset, newer.next_offset) == (2, None, None)
        assert report.aside == (await keys_below(cluster, "intake/"))[-1:]
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"certain"]


async def test_a_producer_that_appended_after_the_checkpoint_is_refused_and_others_go_on(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    (early, epoch), (late, _) = await broker.init_producer(), await broker.init_producer()
    await append(broker, "clicks", b"early", producer=Producer(early, epoch, 0))
    await append(broker, "clicks", b"late 0", producer=Producer(late, epoch, 0))
    await checkpoint(broker)
    await append(broker, "clicks", b"late 1", producer=Producer(late, epoch, 1))
    given, _ = await broker.init_producer()
    async with rebuilt(cluster) as (store, report):
        assert (report.producers, report.producers_forgotten) == (1, 1)
        broker = await restarted(cluster, store)
        with pytest.raises(UnknownProducer):
            await append(broker, "clicks", b"late 2", producer=Producer(late, epoch, 2))
        assert (await append(broker, "clicks", b"early", producer=Producer(early, epoch, 0))).duplicate
        with pytest.raises(OutOfOrderSequence):
            await append(broker, "clicks", b"far", producer=Producer(early, epoch, 9))
        assert (await broker.init_producer())[0] > given + COUNT_LEAP // 2
        assert await values(broker, "clicks", 0) == [b"early", b"late 0", b"late 1"]


async def test_what_an_idempotent_producer_sent_twice_is_appended_once(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    producer_id, epoch = await broker.init_producer()
    await append(broker, "clicks", b"a", producer=Producer(producer_id, epoch, 0))
    await checkpoint(broker)
    for value, sequence in ((b"a", 0), (b"b", 1), (b"b", 1), (b"c", 2)):
        await append(broker, "clicks", value, producer=Producer(producer_id, epoch, sequence))
    async with rebuilt(cluster) as (store, report):
        [newer] = report.unknown_order
        assert (newer.records, newer.duplicates) == (2, 2)
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"a", b"b", b"c"]


async def test_records_of_a_topic_made_after_the_checkpoint_are_told_of(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    topic = await broker.create_topic("new", partitions=1, config=TopicConfig())
    await append(broker, "new", b"a", b"b")
    async with rebuilt(cluster) as (_, report):
        assert report.unknown_topics == {topic.topic_id: 2}
        assert not report.certain


async def test_records_of_a_topic_dropped_before_the_checkpoint_are_nothing_new(cluster: Cluster) -> None:
    """Though their segments could still be committed then, or were merged since the folder's first checkpoint."""
    broker = await begun(cluster, "one")
    await broker.create_topic("gone", partitions=1, config=TopicConfig())
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(4):
        await append(broker, "gone", b"%d" % n)
    await append(broker, "clicks", b"a")
    await merge(cluster, broker, "gone", sequence=1_000, base=0, end=2, delete=False)
    await broker.delete_topic("gone")
    assert broker.life is not None
    await broker.life.cleaner._topics.work()
    assert [topic.name for topic in await broker.topics(None)] == ["clicks"]
    for move in (_forget_marks, _resolve_all):
        await cluster.store.run(move)
        assert await checkpoint(broker) == "written"
        would = await rebuild(bucket=cluster.bucket, into=None, newer="append")
        assert (would.exact, would.unknown_topics, would.aside) == (True, {}, [])


async def test_what_is_left_aside_outlives_the_cleaner_of_the_new_store(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the new store it is an orphan; but its records were acknowledged."""
    monkeypatch.setattr(rebuilding, "STREAM_PART_BYTES", 100)
    broker = await begun(cluster, "one")
    await broker.create_topic("new", partitions=1, config=TopicConfig())
    await append(broker, "new", b"a", b"b")
    await append(broker, "new", b"c" * 1000)
    await append(broker, "new", b"d")
    before = {key: await content(cluster, key) for key in await keys_below(cluster, "intake/")}
    assert isinstance(cluster.bucket, MemoryStore)
    damaged, *_ = before
    _, info = cluster.bucket._objects[damaged]
    before[damaged] = before[damaged][:-9] + b"x" + before[damaged][-8:]
    cluster.bucket._objects[damaged] = before[damaged], info
    would = await rebuild(bucket=cluster.bucket, into=None, newer="append")
    assert would.aside == sorted(before)
    assert await keys_below(cluster, ASIDE) == []
    async with rebuilt(cluster) as (store, report):
        assert report.aside == sorted(before)
        assert len(report.damaged) == 1
        await restarted(cluster, store, settings=CLEANING)
        async with asyncio.timeout(10):
            while await keys_below(cluster, "intake/"):
                await asyncio.sleep(0.02)
        assert {key: await content(cluster, ASIDE + key) for key in report.aside} == before


async def content(cluster: Cluster, key: str) -> bytes:
    return await cluster.bucket.get_range(key, 0, 1 << 20)


# ---- merged and deleted since


async def merge(cluster: Cluster, broker: Broker, topic: str, *, sequence: int, base: int, end: int, delete: bool = True) -> MergedKey:
    """Put one merged segment in the place of extents, and delete the objects of those."""
    [described] = await broker.topics([topic])
    [state] = await broker.partitions(described.topic_id)
    read = await cluster.store.run(read_extents, positions=[(state.partition_id, base)], max_extents=1000)
    extents = [extent for extent in read.partitions[0].extents if extent.next_offset <= end]
    writers = {writer.broker_epoch: writer for writer in read.writers}
    data = bytearray()
    sources = []
    for extent in extents:
        writer = writers[extent.broker_epoch]
        key = str(IntakeKey(writer.broker_id, extent.broker_epoch, extent.sequence, writer.incarnation))
        piece = bytearray(await cluster.bucket.get_range(key, extent.position, extent.length))
        stamp(piece, scan(piece), base_offset=extent.base_offset, leader_epoch=extent.leader_epoch)
        data += piece
        sources.append(ReleasedSource(extent, key))
    assert broker.life is not None
    who = broker.life.identity
    source = ChunkSource(bytes.fromhex(described.topic_id), 0, [bytes(data)], scan(data))
    origin = Origin(who.cluster_id, who.broker_id, who.broker_epoch, sequence, 1)
    parts, footer = encode_merged(source, origin, base_offset=base, next_offset=end)
    merged_key = MergedKey(described.topic_id, 0, base, who.broker_id, who.broker_epoch, sequence)
    await cluster.bucket.put_new(str(merged_key), parts)
    chunk = footer.chunks[0]
    merged = Extent(
        state.partition_id, base, end, who.broker_epoch, sequence, chunk.position, chunk.length, chunk.record_count, 1,
        chunk.max_timestamp_ms, 0, extents[-1].leader_epoch,
    )  # fmt: skip
    assert await cluster.store.run(swap, partition_id=state.partition_id, leader_epoch=state.leader_epoch, sources=sources, merged=merged)
    if delete:
        await cluster.bucket.delete_many([each.key for each in sources])
    return merged_key


async def test_what_was_merged_after_the_checkpoint_is_found_by_its_footer(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    sent = [b"%d" % n for n in range(12)]
    for value in sent[:8]:
        await append(broker, "clicks", value)
    await checkpoint(broker)
    for value in sent[8:]:
        await append(broker, "clicks", value)
    await merge(cluster, broker, "clicks", sequence=1_000, base=0, end=6)
    await merge(cluster, broker, "clicks", sequence=1_001, base=6, end=10)  # beyond the checkpoint's end: exact all the same
    async with rebuilt(cluster) as (store, report):
        [newer] = report.unknown_order
        assert (report.exact_records, newer.base_offset, newer.next_offset) == (10, 10, 12)
        assert not report.missing
        assert not report.log_starts_moved
        assert await values(await restarted(cluster, store), "clicks", 0) == sent


async def test_what_a_merged_segment_holds_is_not_appended_again_while_its_sources_are_still_there(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await checkpoint(broker)
    sent = [b"%d" % n for n in range(6)]
    for value in sent:
        await append(broker, "clicks", value)
    await merge(cluster, broker, "clicks", sequence=1_000, base=0, end=4, delete=False)
    async with rebuilt(cluster) as (store, report):
        [newer] = report.unknown_order
        assert (report.exact_records, newer.records, newer.duplicates) == (4, 2, 4)
        assert await values(await restarted(cluster, store), "clicks", 0) == sent


async def test_what_was_released_before_the_checkpoint_is_not_taken_for_something_new(cluster: Cluster) -> None:
    """Its segment is not final yet, and its extent is not read any more: only the released row tells that it was decided."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(4):
        await append(broker, "clicks", b"%d" % n)
    await merge(cluster, broker, "clicks", sequence=1_000, base=0, end=4, delete=False)
    await cluster.store.run(_forget_marks)
    assert await checkpoint(broker) == "written"
    async with rebuilt(cluster) as (store, report):
        assert report.exact
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"0", b"1", b"2", b"3"]


async def test_a_mark_that_moves_while_a_checkpoint_is_taken_makes_nothing_new(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was released is told by the marks that the checkpoint has, not by those of when it ends."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(4):
        await append(broker, "clicks", b"%d" % n)
    await cluster.store.run(_forget_marks)  # as while a long merge holds them
    read = checkpointer._Copy._partitions

    async def partitions(self: checkpointer._Copy, rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        await merge(cluster, broker, "clicks", sequence=1_000, base=0, end=4, delete=False)
        found = await read(self, rows)
        await cluster.store.run(_resolve_all)
        return found

    monkeypatch.setattr(checkpointer._Copy, "_partitions", partitions)
    assert await checkpoint(broker) == "written"
    async with rebuilt(cluster) as (store, report):
        assert report.exact
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"0", b"1", b"2", b"3"]


async def test_what_is_condemned_while_a_checkpoint_is_taken_makes_nothing_new(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was released long before, and final only after the checkpoint had read the marks; its object may outlive its row."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(4):
        await append(broker, "clicks", b"%d" % n)
    await merge(cluster, broker, "clicks", sequence=1_000, base=0, end=4, delete=False)
    await cluster.store.run(_forget_marks)
    notes = await cluster.store.run(released_segments, grace_ms=0, limit=100)
    read = checkpointer._Copy._partitions

    async def partitions(self: checkpointer._Copy, rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        found = await read(self, rows)
        await cluster.store.run(_resolve_all)
        assert len((await cluster.store.run(condemn, notes=notes)).condemned) == 4
        return found

    monkeypatch.setattr(checkpointer._Copy, "_partitions", partitions)
    assert broker.life is not None
    broker.life.checkpointer._chain = None
    assert await checkpoint(broker) == "written"
    async with rebuilt(cluster) as (store, report):
        assert report.exact
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"0", b"1", b"2", b"3"]


def _resolve_all(tx: Transaction) -> None:
    tx.execute("UPDATE resolved_marks SET sequence = 1000")


def _forget_marks(tx: Transaction) -> None:
    tx.execute("UPDATE resolved_marks SET sequence = 0")


async def test_a_merged_segment_that_was_never_put_in_place_is_not_used(cluster: Cluster) -> None:
    """It was final when the first checkpoint was taken, and no checkpoint names it: some older cluster's, or a failed merge's."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a")
    [described] = await broker.topics(["clicks"])
    data = bytearray(_stamped(b"from nowhere", base_offset=1))
    source = ChunkSource(bytes.fromhex(described.topic_id), 0, [bytes(data)], scan(data))
    assert broker.life
    who = broker.life.identity
    parts, _ = encode_merged(source, Origin(who.cluster_id, "one", who.broker_epoch, 7, 1), base_offset=1, next_offset=2)
    await cluster.bucket.put_new(str(MergedKey(described.topic_id, 0, 1, "one", who.broker_epoch, 7)), parts)
    await broker.drain_and_end()
    await cluster.kill("one")
    broker = await begun(cluster, "two")
    await checkpoint(broker)
    async with rebuilt(cluster) as (store, report):
        assert report.exact
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"a"]


async def test_a_late_write_of_a_forgotten_writer_is_no_new_record(cluster: Cluster) -> None:
    one = await cluster.start("one", CLEANING)
    await one.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(one, "clicks", b"was deleted")
    [key] = await keys_below(cluster, "intake/")
    data = await cluster.bucket.get_range(key, 0, 1 << 20)
    await cluster.kill("one")
    two = await cluster.start("two", CLEANING)
    await until(lambda: two.life is not None and len(two.life.ledger.led()) == 1)
    await two.delete_records("clicks", 0, -1)
    async with asyncio.timeout(20):
        while len(await cluster.store.run(writer_states)) > 1:
            await asyncio.sleep(0.02)
    await cluster.kill("two")
    three = await begun(cluster, "three")
    await until(lambda: three.life is not None and len(three.life.ledger.led()) == 1)
    await append(three, "clicks", b"next")
    assert await checkpoint(three) == "written"
    await cluster.bucket.put_new(key, [data])
    async with rebuilt(cluster) as (store, report):
        assert not report.unknown_order
        assert await values(await restarted(cluster, store, "three"), "clicks", 0) == [b"next"]


async def test_a_merged_segment_of_a_forgotten_writer_takes_nobodys_place(cluster: Cluster) -> None:
    """It was left aside by a first rebuild; after that its offsets were given to other records, and the database was lost again."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a")
    assert await checkpoint(broker) == "written"
    for value in (b"b", b"old c", b"old d"):
        await append(broker, "clicks", value)
    aside = await merge(cluster, broker, "clicks", sequence=1_000, base=2, end=4)
    async with rebuilt(cluster) as (store, first):
        assert [(each.base_offset, each.next_offset) for each in first.unplaced] == [(2, 4)]
        assert first.aside == [str(aside)]
        quiet = CLEANING.model_copy(update={"checkpoint_interval_ms": 3600_000, "orphan_cleaning": False})
        two = await restarted(cluster, store, "two", settings=quiet)
        assert two.life is not None
        two.life.checkpointer.topics_changed = lambda version: None  # type: ignore[method-assign]
        for value in (b"new c", b"new d"):
            await append(two, "clicks", value)
        await two.delete_records("clicks", 0, 2)
        async with asyncio.timeout(10):
            while not await store.run(forget_writers, broker_epochs=[aside.broker_epoch]):
                await two.life.checkpointer.write()  # lets what was released go
                await asyncio.sleep(0.05)
        two.life.checkpointer._chain = None
        assert await checkpoint(two) == "written", "a whole one: only the first says what was final before it"
        assert str(aside) in await keys_below(cluster, "merged/")
        async with rebuilt(cluster) as (again, second):
            assert not second.unplaced
            assert await values(await restarted(cluster, again, "three"), "clicks", 0) == [b"new c", b"new d"]


def _stamped(value: bytes, *, base_offset: int) -> bytes:
    from tests.cluster import batch

    data = bytearray(batch(value))
    stamp(data, scan(data), base_offset=base_offset, leader_epoch=1)
    return bytes(data)


async def delete_segments(cluster: Cluster, keep: Sequence[int]) -> None:
    """Delete intake objects but those at these places, in the order of their keys."""
    keys = await keys_below(cluster, "intake/")
    await cluster.bucket.delete_many([key for place, key in enumerate(keys) if place not in keep])


async def test_where_the_first_objects_are_gone_the_log_begins_after_them(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(5):
        await append(broker, "clicks", b"%d" % n)
    await checkpoint(broker)
    await delete_segments(cluster, keep=(2, 3, 4))
    async with rebuilt(cluster) as (store, report):
        [moved] = report.log_starts_moved
        assert (moved.base_offset, moved.next_offset) == (0, 2)
        assert (report.exact_records, report.certain, report.whole) == (3, False, False)
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"2", b"3", b"4"]


async def test_an_object_that_is_missing_in_the_middle_is_told_of_and_its_offsets_are_not_given_to_others(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(4):
        await append(broker, "clicks", b"%d" % n)
    await checkpoint(broker)
    await delete_segments(cluster, keep=(0, 2, 3))
    async with rebuilt(cluster) as (store, report):
        [missing] = report.missing
        assert (missing.base_offset, missing.next_offset, report.exact_records) == (1, 2, 3)
        assert (report.certain, report.whole) == (False, False)
        broker = await restarted(cluster, store)
        await broker.delete_records("clicks", 0, 2)
        assert await values(broker, "clicks", 0) == [b"2", b"3"]


async def test_where_all_objects_are_gone_nothing_is_certain(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for n in range(5):
        await append(broker, "clicks", b"%d" % n)
    await checkpoint(broker)
    await delete_segments(cluster, keep=())
    async with rebuilt(cluster) as (_, report):
        assert [(each.base_offset, each.next_offset) for each in report.log_starts_moved] == [(0, 5)]
        assert (report.exact_records, report.certain, report.whole) == (0, False, False)


# ---- what is refused, and what is fenced


async def test_a_store_that_was_used_is_refused(cluster: Cluster) -> None:
    await begun(cluster, "one")
    with pytest.raises(MetadataUnusable, match="holds brokers or topics already"):
        await rebuild(bucket=cluster.bucket, into=opened(cluster.store), newer="append")


async def test_a_bucket_without_a_checkpoint_is_refused(cluster: Cluster) -> None:
    await cluster.start("one", QUICK.model_copy(update={"checkpoint_interval_ms": 0}))
    with pytest.raises(StoreUnusable, match="no whole checkpoint"):
        await rebuild(bucket=cluster.bucket, into=None, newer="append")


async def test_a_dry_run_writes_nothing_and_says_the_same(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await checkpoint(broker)
    await append(broker, "clicks", b"a")
    objects = await keys_below(cluster, "")
    would = await rebuild(bucket=cluster.bucket, into=None, newer="append")
    assert await keys_below(cluster, "") == objects
    async with rebuilt(cluster) as (_, report):
        assert (would.unknown_order, would.topics, would.extents) == (report.unknown_order, report.topics, report.extents)


async def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(cluster: Cluster) -> None:
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a")
    await checkpoint(broker)
    await append(broker, "clicks", b"b")
    await checkpoint(broker)
    assert isinstance(cluster.bucket, MemoryStore)
    head = (await keys_below(cluster, PREFIX))[-1]
    content, info = cluster.bucket._objects[head]
    cluster.bucket._objects[head] = content[:-1] + bytes([content[-1] ^ 1]), info
    async with rebuilt(cluster) as (store, report):
        assert [problem.partition(":")[0] for problem in report.damaged] == [head]
        assert [newer.records for newer in report.unknown_order] == [1]
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"a", b"b"]


async def test_nothing_of_the_old_cluster_can_be_taken_for_something_of_the_new(cluster: Cluster) -> None:
    """I1, I6, I11: every number that fences continues above all that was ever given, and the old database is noticed."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a")
    await checkpoint(broker)
    assert broker.life
    old_epoch = broker.life.identity.broker_epoch
    old_store = cluster.store
    async with rebuilt(cluster) as (store, report):
        marker = await newest_marker(cluster.bucket)
        assert marker is not None
        assert marker.commit_count == report.commit_count > COUNT_LEAP
        new = await restarted(cluster, store)
        assert new.life
        assert new.life.identity.broker_epoch == report.next_broker_epoch > old_epoch + EPOCH_LEAP - 10
        await append(new, "clicks", b"b")
        await cluster.kill("one")
        cluster.store = old_store
        with pytest.raises(TimeTravel):
            await cluster.start("two", SOMETIMES)
    # And the new one can be lost as well.
    async with rebuilt(cluster) as (store, again):
        assert again.next_broker_epoch > report.next_broker_epoch
        assert await values(await restarted(cluster, store), "clicks", 0) == [b"a", b"b"]


async def test_a_second_rebuild_from_the_same_checkpoint_gives_no_number_that_the_first_gave(cluster: Cluster) -> None:
    """Nothing in the bucket but the marker tells of what was given out in between."""
    broker = await begun(cluster, "one")
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    await append(broker, "clicks", b"a")
    await checkpoint(broker)
    numbers = []
    for _ in range(3):
        async with rebuilt(cluster) as (store, report):
            state = await store.run(cluster_state)
            [topic] = await store.run(topics, names=None)
            [partition] = await store.run(partitions, topic_id=topic.topic_id)
            rows = await all_rows(store)
            numbers.append(
                (state.next_broker_epoch, report.next_producer_id, state.commit_count, state.membership_version, rows["changes"][0][1],
                 partition.leader_epoch)
            )  # fmt: skip
    leaps = [[after - before for before, after in pairwise(of_one)] for of_one in zip(*numbers, strict=True)]
    assert leaps == [[EPOCH_LEAP] * 2, *[[COUNT_LEAP] * 2] * 4, [EPOCH_LEAP] * 2]
