"""Reading what is committed, on real SQL and real segments: all of it, in order, and nothing else."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tidelog
from tidelog.broker.cache import ReadStats
from tidelog.broker.catalog import Catalog, PartitionRef
from tidelog.broker.feed import Feed, FeedHub, HubSession, _Trust
from tidelog.broker.lookups import Lookups
from tidelog.broker.reader import PartitionCursor, Reader
from tidelog.broker.references import AnswerReceiver, CommittedExtents, FeedLink, FeedReceiver, ReferenceLink
from tidelog.broker.requests import AtTime, Bound, OffsetFound, Position
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.errors import (
    CorruptBatch,
    CorruptSegment,
    MetadataUnavailable,
    MetadataUnusable,
    ObjectNotFound,
    OffsetOutOfRange,
    StoreUnavailable,
    UnknownTopic,
)
from tidelog.executors import Executor, InlineExecutor, ThreadExecutor
from tidelog.metadata.commits import Committed, NewExtent
from tidelog.metadata.extents import Extent, ReleasedSource, advance_log_start, read_extents, swap
from tidelog.metadata.leadership import LedPartition
from tidelog.metadata.membership import Broker, end_epoch
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metadata.topics import TopicConfig
from tidelog.objects.faults import FaultRates, FaultyStore
from tidelog.objects.latency import Latencies, Latency, SlowStore
from tidelog.objects.local import open_directory
from tidelog.objects.memory import MemoryStore
from tidelog.objects.store import ObjectStore
from tidelog.records.batch import scan, stamp
from tidelog.records.codec import Record, encode, encode_many
from tidelog.segments.format import ChunkSource, Origin, encode_intake, encode_merged
from tidelog.segments.keys import IntakeKey, MergedKey

from tests import virtual_time
from tests.cluster import QUICK, open_cluster, until
from tests.cluster import append as append_to
from tests.contract.metadata_steps import CLUSTER_ID, TOPIC_ID, append, join, lead, topic
from tests.listed_broker import ListedBroker
from tests.served import serving

KIB = 1024
SMALL = Settings.model_validate(
    {"cache_bytes": 64 * KIB, "block_cache_bytes": 64 * KIB, "read_block_bytes": 4 * KIB, "follower_poll_ms": 5}
)
ROOMY = Settings.model_validate({"read_block_bytes": 64 * KIB, "follower_poll_ms": 5})


class CountingStore:
    """Counts ranged GETs by what they asked for; `before_get` may do something between planning and reading."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.gets: Counter[tuple[str, int]] = Counter()
        self.before_get: Callable[[], Any] | None = None

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        self.gets[key, position] += 1
        if self.before_get is not None:
            act, self.before_get = self.before_get, None
            await act()
        return await self.store.get_range(key, position, length)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class GatedStore(CountingStore):
    """Ranged GETs wait while the gate is closed."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.gate = asyncio.Event()
        self.gate.set()

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        await self.gate.wait()
        return await super().get_range(key, position, length)


class StuckPast(GatedStore):
    """Ranged GETs of what is there now wait while the gate is closed; of what is written later they do not."""

    def __init__(self, store: ObjectStore, past: set[str]) -> None:
        super().__init__(store)
        self.past = past

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        return await (super().get_range if key in self.past else self.store.get_range)(key, position, length)


class FlakyMetadata:
    """A metadata store that can be away, and counts its statements' verbs."""

    exclusive = True

    def __init__(self, store: MetadataStore) -> None:
        self.store = store
        self.away = False
        self.ran: Counter[str] = Counter()

    async def run(self, verb: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self.away:
            raise MetadataUnavailable("the metadata store does not answer; nothing was done")
        self.ran[verb.__name__] += 1
        return await self.store.run(verb, *args, **kwargs)

    run_reserved = run

    async def close(self) -> None:
        await self.store.close()


class HubPeers:
    """Peers in one process: a feed from each broker's hub, delivered in a later turn of the loop, as a network would."""

    def __init__(self) -> None:
        self.hubs: dict[int, FeedHub] = {}
        self.open: list[tuple[FeedReceiver, HubSession]] = []
        self.refusing = False

    def feed(self, broker: Broker, receiver: FeedReceiver) -> FeedLink:
        loop = asyncio.get_running_loop()

        class Later:
            def committed(self, news: CommittedExtents) -> None:
                loop.call_soon(receiver.committed, news)

        session = self.hubs[broker.broker_epoch].open(Later())
        if self.refusing:
            loop.call_soon(receiver.broken)
        else:
            self.open.append((receiver, session))
        return session

    def cut(self) -> None:
        for receiver, session in self.open:
            session.close()
            receiver.broken()
        self.open.clear()

    def references(self, broker: Broker, receiver: AnswerReceiver) -> ReferenceLink:
        raise NotImplementedError

    def nudge(self, broker: Broker) -> None:
        raise NotImplementedError


class Log:
    """One topic, led by one broker, written without an intake; and what was written, as readers should get it."""

    def __init__(self, metadata: FlakyMetadata, objects: ObjectStore, epoch: int, led: dict[int, LedPartition]) -> None:
        self.metadata = metadata
        self.objects = objects
        self.broker = "b0"
        self.epoch = epoch
        self.led = led
        self.ids = list(led)
        self.ends = dict.fromkeys(led, 0)
        self.expected: dict[int, list[tuple[int, bytes]]] = {i: [] for i in led}
        self.sequence = 0
        self.peers = HubPeers()
        self.peers.hubs[epoch] = FeedHub()
        self.listeners: list[Callable[[CommittedExtents], None]] = [self.peers.hubs[epoch].publish]

    def ref(self, place: int = 0) -> PartitionRef:
        return PartitionRef(self.ids[place], TOPIC_ID, "clicks", place)

    async def write(self, batches: dict[int, Sequence[bytes]], *, tell: bool = True) -> None:
        """Upload one segment of unstamped batches by place of the partition, commit it, and tell."""
        self.sequence += 1
        sources = [ChunkSource(bytes.fromhex(TOPIC_ID), place, list(parts), scan(b"".join(parts))) for place, parts in batches.items()]
        content, footer = encode_intake(sources, Origin(CLUSTER_ID, self.broker, self.epoch, self.sequence, 0))
        await self.objects.put_new(str(IntakeKey(self.broker, self.epoch, self.sequence, f"life-of-{self.broker}")), content)
        for chunk in footer.chunks:
            led = self.led[self.ids[chunk.partition]]
            new = NewExtent(self.epoch, self.sequence, chunk.position, chunk.length, chunk.record_count, chunk.max_timestamp_ms)
            base = self.ends[led.partition_id]
            after = base + chunk.record_count
            assert await append(self.metadata, led, self.epoch, new, at=base) == Committed(after)
            stamped = bytearray(b"".join(batches[chunk.partition]))
            headers = scan(stamped)
            stamp(stamped, headers, base_offset=base, leader_epoch=led.leader_epoch)
            for header in scan(stamped):
                self.expected[led.partition_id].append(
                    (header.base_offset, bytes(stamped[header.position : header.position + header.size]))
                )
            self.ends[led.partition_id] = after
            read = await self.metadata.run(read_extents, positions=[(led.partition_id, base)], max_extents=9)
            for listener in self.listeners if tell else ():
                listener(CommittedExtents(led.partition_id, read.partitions[0].extents, after, 0))

    async def write_many(self, segments: int, *, batches: int = 2, records: int = 5, value_bytes: int = 100, tell: bool = True) -> None:
        chance = random.Random(segments)
        for _ in range(segments):
            await self.write({0: [batch(records, value_bytes, chance) for _ in range(batches)]}, tell=tell)

    async def extents(self, place: int = 0) -> tuple[Extent, ...]:
        read = await self.metadata.run(read_extents, positions=[(self.ids[place], 0)], max_extents=100_000)
        found: tuple[Extent, ...] = read.partitions[0].extents
        return found

    async def merge(self, sources: Sequence[Extent], *, place: int = 0, drop: Callable[[int], bool] = lambda base: False) -> None:
        """Put a merged segment in the place of extents; `drop` says which batches compaction removes, by base offset."""
        base, end = sources[0].base_offset, sources[-1].next_offset
        expected = self.expected[self.ids[place]]
        kept = [(at, data) for at, data in expected if not (base <= at < end and drop(at))]
        self.expected[self.ids[place]] = kept
        parts = [data for at, data in kept if base <= at < end]
        self.sequence += 1
        source = ChunkSource(bytes.fromhex(TOPIC_ID), place, parts, scan(b"".join(parts)))
        origin = Origin(CLUSTER_ID, "b0", self.epoch, self.sequence, 0)
        content, footer = encode_merged(source, origin, base_offset=base, next_offset=end)
        await self.objects.put_new(str(MergedKey(TOPIC_ID, place, base, "b0", self.epoch, self.sequence)), content)
        chunk = footer.chunks[0]
        merged = replace(
            sources[0], next_offset=end, sequence=self.sequence, level=1, position=chunk.position, length=chunk.length,
            record_count=chunk.record_count, max_timestamp_ms=chunk.max_timestamp_ms,
        )  # fmt: skip
        released = [ReleasedSource(e, self.key_of(e)) for e in sources]
        led = self.led[self.ids[place]]
        assert await self.metadata.run(swap, partition_id=led.partition_id, leader_epoch=led.leader_epoch, sources=released, merged=merged)

    def key_of(self, extent: Extent) -> str:
        assert extent.level == 0
        return str(IntakeKey("b0", extent.broker_epoch, extent.sequence, "life-of-b0"))

    def bytes_from(self, offset: int, place: int = 0) -> bytes:
        return b"".join(data for base, data in self.expected[self.ids[place]] if scan(data)[0].next_offset > offset)


def batch(records: int, value_bytes: int, chance: random.Random) -> bytes:
    return encode_many([chance.randbytes(value_bytes) for _ in range(records)], timestamps_ms=1000)


@asynccontextmanager
async def a_log(objects: ObjectStore | None = None, *, partitions: int = 1) -> AsyncIterator[Log]:
    store = await open_sqlite(IN_MEMORY, clock=SystemClock(), executor=InlineExecutor())
    try:
        metadata = FlakyMetadata(store)
        epoch = (await join(store, "b0")).broker_epoch
        led = await lead(store, epoch, await topic(store, count=partitions))
        yield Log(metadata, objects or MemoryStore(clock=SystemClock()), epoch, dict(sorted(led.items())))
    finally:
        await store.close()


@asynccontextmanager
async def reading(
    log: Log,
    settings: Settings = ROOMY,
    *,
    objects: ObjectStore | None = None,
    own: bool = True,
    executor: Executor | None = None,
    catalog: Catalog | None = None,
) -> AsyncIterator[Reader]:
    """A broker's reading side: of the leader itself, or of another broker that has its feed."""
    catalog = catalog or Catalog(log.metadata)
    await catalog.refresh()
    stats = ReadStats()
    lookups = Lookups(log.metadata, max_extents_each=settings.read_ahead_extents, stats=stats)
    async with AsyncExitStack() as stack:
        executor = executor or ThreadExecutor("reading", threads=1)
        stack.push_async_callback(executor.close)
        feed = await stack.enter_async_context(
            Feed(
                catalog=catalog,
                peers=log.peers,
                lookups=lookups,
                own_epoch=lambda: log.epoch if own else -1,
                settings=settings,
                chance=random.Random(1),
                stats=stats,
            )
        )
        if own:
            log.listeners.append(feed.committed)
        yield await stack.enter_async_context(
            Reader(
                metadata=log.metadata,
                objects=objects or log.objects,
                feed=feed,
                lookups=lookups,
                settings=settings,
                clock=SystemClock(),
                executor=executor,
                stats=stats,
            )
        )
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, "reading leaves nothing behind"


async def read_all(cursor: PartitionCursor, offset: int = 0, *, max_bytes: int = 4096) -> bytes:
    pieces: list[bytes] = []
    high_watermark = 0
    while True:
        run = await cursor.read(offset, max_bytes=max_bytes)
        assert run.high_watermark >= high_watermark, "I6"
        high_watermark = run.high_watermark
        if run.next_offset == offset:
            assert not run.batches
            assert offset == high_watermark
            return b"".join(pieces)
        assert run.next_offset > offset
        headers = scan(run.batches)
        if headers:
            assert run.base_offset == min(offset, headers[0].base_offset)
            assert len(headers) == 1 or len(run.batches) <= max_bytes, "about max_bytes, but at least one batch"
        pieces.append(bytes(run.batches))
        offset = run.next_offset


async def test_a_scan_over_many_segments_gives_what_was_written_byte_for_byte() -> None:
    async with a_log() as log, reading(log) as reader:
        await log.write_many(150)
        async with reader.follow(log.ref()) as cursor:
            assert await read_all(cursor) == log.bytes_from(0)
        assert reader.stats.look_ups <= 5, "extents are looked up ahead"


async def test_a_scan_with_little_memory_gives_the_same() -> None:
    async with a_log() as log, reading(log, SMALL) as reader:
        await log.write_many(40, batches=5, records=20)
        async with reader.follow(log.ref()) as cursor:
            for max_bytes in (1, 3000, 100_000):
                assert await read_all(cursor, max_bytes=max_bytes) == log.bytes_from(0)
                assert reader.records.used_bytes <= SMALL.cache_bytes
                assert reader.blocks.used_bytes <= SMALL.block_cache_bytes


async def test_a_large_extent_is_read_in_pieces_each_fetched_once() -> None:
    async with a_log() as log:
        objects = CountingStore(log.objects)
        async with reading(log, SMALL, objects=objects) as reader:
            await log.write_many(1, batches=100, records=50)  # 500 KiB in one extent, caches of 64 KiB
            async with reader.follow(log.ref()) as cursor:
                assert await read_all(cursor) == log.bytes_from(0)
            assert sum(objects.gets.values()) <= 3 * len(objects.gets), (
                "progress is remembered; the extent is not read from its start each time"
            )


async def test_a_batch_larger_than_what_is_asked_for_comes_whole() -> None:
    async with a_log() as log, reading(log) as reader:
        await log.write_many(3, batches=2, records=300, value_bytes=1000)
        async with reader.follow(log.ref()) as cursor:
            assert await read_all(cursor, max_bytes=10) == log.bytes_from(0)


async def test_reading_in_the_middle_of_a_batch_begins_with_that_batch() -> None:
    async with a_log() as log, reading(log) as reader:
        await log.write_many(10, batches=3, records=7)
        async with reader.follow(log.ref()) as cursor:
            for offset in (0, 1, 6, 7, 20, 21, 22, 100, 209):
                assert await read_all(cursor, offset) == log.bytes_from(offset)
                run = await cursor.read(offset, max_bytes=1)
                assert run.base_offset == offset // 7 * 7


async def test_merged_segments_are_read_by_their_index_and_gaps_are_passed() -> None:
    async with a_log() as log:
        await log.write_many(30, batches=10, records=100)  # 3 MB
        extents = await log.extents()
        await log.merge(extents[:20], drop=lambda base: base % 700 == 0 or base >= 19_500)
        objects = CountingStore(log.objects)
        async with reading(log, objects=objects) as reader, reader.follow(log.ref()) as cursor:
            middle = 12_345
            run = await cursor.read(middle, max_bytes=1)
            assert run.base_offset <= middle < run.next_offset
            assert len(objects.gets) <= 4, "a few blocks, not the whole object"
            assert await read_all(cursor) == log.bytes_from(0)
            assert await read_all(cursor, 19_600) == log.bytes_from(19_600), "from within a gap"
            run = await cursor.read(10_500, max_bytes=1)
            assert (run.base_offset, scan(run.batches)[0].base_offset) == (10_500, 10_600), "a run tells of the gap that it begins with"


async def test_a_client_passes_the_gaps_that_compaction_left() -> None:
    class Broker(ListedBroker):
        reader: Reader
        log: Log

        def follow(self, topic: str, partition: int) -> Any:
            return self.reader.follow(self.log.ref(partition))

        async def list_offset(self, topic: str, partition: int, position: Position) -> OffsetFound:
            return await self.reader.list_offset(self.log.ref(partition), position)

    async with a_log() as log, reading(log, SMALL) as reader:
        await log.write_many(60, batches=4, records=10, tell=False)
        extents = await log.extents()
        for first in range(0, 60, 6):
            await log.merge(extents[first : first + 6], drop=lambda base: base // 10 % 12 not in (3, 4))
        broker = Broker()
        broker.reader, broker.log = reader, log
        await broker.create_topic("t", partitions=1, config=TopicConfig())
        async with serving(broker) as served, tidelog.connect(served.server.address) as client:
            for start in (0, 35, 50, 51, 2_399):
                found = [batch.data async for batch in client.consume("t", start=start, follow=False).batches()]
                assert b"".join(found) == log.bytes_from(start)


async def test_the_tail_comes_from_memory_where_this_broker_took_it_in() -> None:
    async with a_log() as log:
        objects = CountingStore(log.objects)
        async with reading(log, objects=objects) as reader, reader.follow(log.ref()) as cursor:
            chance = random.Random(1)
            for number in range(20):
                waiting = asyncio.ensure_future(cursor.wait(number * 5))
                await asyncio.sleep(0)
                part = batch(5, 100, chance)
                await log.write({0: [part]}, tell=False)
                assert not waiting.done()
                reader.took_in(log.ids[0], number * 5, log.led[log.ids[0]].leader_epoch, [memoryview(part)], scan(part))
                await waiting
                run = await cursor.read(number * 5, max_bytes=1)
                assert run.batches == log.bytes_from(number * 5)
            assert await read_all(cursor) == log.bytes_from(0)
            assert not objects.gets


async def test_the_tail_comes_from_the_bucket_as_another_brokers_feed_tells() -> None:
    seldom = ROOMY.model_copy(update={"follower_poll_ms": 60_000})
    async with a_log() as log, reading(log, seldom, own=False) as reader, reader.follow(log.ref()) as cursor:
        assert await read_all(cursor) == b""
        await asyncio.sleep(0)
        asked = log.metadata.ran["read_extents"] + log.metadata.ran["writers"]
        for number in range(10):
            waiting = asyncio.ensure_future(cursor.wait(number * 10))
            await log.write_many(1, tell=True)
            await waiting
            run = await cursor.read(number * 10, max_bytes=10_000)
            assert run.batches == log.bytes_from(number * 10)
        verbs = log.metadata.ran["read_extents"] + log.metadata.ran["writers"]
        assert verbs - asked == 10 + 1, "the ten of `write` itself; one asks for the writer's name"


async def test_a_feed_that_breaks_is_replaced_by_polls_and_opened_again() -> None:
    async with a_log() as log, reading(log, own=False) as reader, reader.follow(log.ref()) as cursor:
        await log.write_many(1, tell=True)
        await cursor.wait(9)
        log.peers.refusing = True
        log.peers.cut()
        await log.write_many(1, tell=True)
        async with asyncio.timeout(10):
            await cursor.wait(19)
        assert reader.stats.polls
        async with asyncio.timeout(10):
            while reader.stats.feeds_broken < 2:  # tried once more, in vain
                await asyncio.sleep(0.005)
        log.peers.refusing = False
        async with asyncio.timeout(10):
            while not log.peers.open:
                await asyncio.sleep(0.005)
        await log.write_many(1, tell=True)
        async with asyncio.timeout(10):
            await cursor.wait(29)
        assert reader.stats.feeds_opened >= 3
        assert await read_all(cursor) == log.bytes_from(0)


def test_polls_go_on_after_the_database_was_away_for_a_day() -> None:
    async def outage() -> None:
        async with (
            a_log() as log,
            reading(log, own=False, executor=InlineExecutor()) as reader,
            reader.follow(log.ref()) as cursor,
        ):
            log.peers.refusing = True
            log.metadata.away = True
            await asyncio.sleep(24 * 3600)
            log.metadata.away = False
            await log.write_many(1, tell=False)
            async with asyncio.timeout(11):
                await cursor.wait(9)

    virtual_time.run(outage)


async def test_news_that_got_lost_on_a_feed_that_stands_are_found_by_a_sweep() -> None:
    async with a_log() as log, reading(log, own=False) as reader, reader.follow(log.ref()) as cursor:
        assert await read_all(cursor) == b""
        await until(lambda: cursor._followed.trust is _Trust.SURE)
        await log.write_many(1, tell=False)
        async with asyncio.timeout(30):
            await cursor.wait(0)
        assert await read_all(cursor) == log.bytes_from(0)


async def test_a_follower_goes_over_to_the_next_leader_and_misses_nothing_between() -> None:
    seldom = ROOMY.model_copy(update={"follower_poll_ms": 300})
    async with a_log() as log:
        catalog = Catalog(log.metadata)
        async with reading(log, seldom, own=False, catalog=catalog) as reader, reader.follow(log.ref()) as cursor:
            await log.write_many(1)
            await cursor.wait(9)
            late = log.peers.open[0][1].receiver
            await log.metadata.run(end_epoch, broker_epoch=log.epoch)
            log.broker, log.epoch = "b1", (await join(log.metadata, "b1")).broker_epoch
            log.led = await lead(log.metadata, log.epoch, log.ids)
            hub = log.peers.hubs[log.epoch] = FeedHub()
            log.listeners = [hub.publish]
            await log.write_many(1)  # while nobody has heard of the new leader
            await catalog.refresh()
            assert reader.stats.feeds_opened == 2
            late.committed(CommittedExtents(log.ids[0], (), 10, 0))  # what the old one said last arrives after that
            async with asyncio.timeout(10):
                await cursor.wait(19)
            polls = reader.stats.polls
            waiting = asyncio.ensure_future(cursor.wait(29))
            await log.write_many(1)
            await waiting
            assert reader.stats.polls == polls, "the new leader's feed told it"
            assert await read_all(cursor) == log.bytes_from(0)


async def test_all_followed_partitions_are_polled_in_one_statement_and_none_that_nobody_follows() -> None:
    async with a_log(partitions=20) as log, reading(log, own=False) as reader:
        log.peers.refusing = True
        await asyncio.sleep(0.02)
        assert reader.stats.polls == 0
        async with AsyncExitStack() as stack:
            cursors = [await stack.enter_async_context(reader.follow(log.ref(place))) for place in range(20)]
            chance = random.Random(1)
            await log.write({place: [batch(1, 10, chance)] for place in range(20)}, tell=False)
            before = log.metadata.ran["read_extents"]
            async with asyncio.timeout(10):
                await asyncio.gather(*(cursor.wait(0) for cursor in cursors))
            assert log.metadata.ran["read_extents"] - before <= 2
        await asyncio.sleep(0.02)
        polls = reader.stats.polls
        await asyncio.sleep(0.03)
        assert reader.stats.polls <= polls + 1


async def test_look_ups_of_one_moment_share_a_statement() -> None:
    async with a_log(partitions=20) as log, reading(log, ROOMY.model_copy(update={"follower_poll_ms": 60_000})) as reader:
        chance = random.Random(1)
        for _ in range(3):
            await log.write({place: [batch(2, 50, chance)] for place in range(20)}, tell=False)
        async with AsyncExitStack() as stack:
            cursors = [await stack.enter_async_context(reader.follow(log.ref(place))) for place in range(20)]
            before = log.metadata.ran["read_extents"]
            runs = await asyncio.gather(*(cursor.read(0, max_bytes=10_000) for cursor in cursors))
            assert [run.batches for run in runs] == [log.bytes_from(0, place) for place in range(20)]
            assert log.metadata.ran["read_extents"] - before <= 3, "one for all, and the poll's"


async def test_many_readers_of_one_place_fetch_it_once() -> None:
    async with a_log() as log:
        slow = SlowStore(log.objects, chance=random.Random(1), latencies=Latencies(get=Latency(5, 10)))
        objects = CountingStore(slow)
        await log.write_many(20, batches=4, records=20)
        async with reading(log, objects=objects) as reader, AsyncExitStack() as stack:
            cursors = [await stack.enter_async_context(reader.follow(log.ref())) for _ in range(8)]
            found = await asyncio.gather(*(read_all(cursor, max_bytes=20_000) for cursor in cursors))
            assert set(found) == {log.bytes_from(0)}
            assert set(objects.gets.values()) == {1}


async def test_many_readers_of_the_past_take_turns() -> None:
    async with a_log(partitions=60) as log:
        gated = GatedStore(log.objects)
        chance = random.Random(1)
        for place in range(60):
            await log.write({place: [batch(10, 300, chance)]}, tell=False)
        async with reading(log, SMALL, objects=gated) as reader, AsyncExitStack() as stack:
            cursors = [await stack.enter_async_context(reader.follow(log.ref(place))) for place in range(60)]
            gated.gate.clear()
            reads = [asyncio.ensure_future(cursor.read(0, max_bytes=100)) for cursor in cursors]
            while reader.cold.free or reader.segments.turns[False].free:
                await asyncio.sleep(0)
            assert reader.stats.block_misses == 2 * SMALL.max_cold_reads, "no more hold memory, however many wait"
            gated.gate.set()
            assert [run.batches for run in await asyncio.gather(*reads)] == [log.bytes_from(0, place) for place in range(60)]


async def test_the_tail_waits_for_no_read_of_the_past() -> None:
    async with a_log(partitions=61) as log, AsyncExitStack() as stack:
        chance = random.Random(1)
        for place in range(60):
            await log.write({place: [batch(10, 300, chance)]}, tell=False)
        stuck = StuckPast(log.objects, {found.key async for found in log.objects.list()})
        reader = await stack.enter_async_context(reading(log, SMALL, objects=stuck, own=False))
        tail = await stack.enter_async_context(reader.follow(log.ref(60)))
        assert await read_all(tail) == b""
        cursors = [await stack.enter_async_context(reader.follow(log.ref(place))) for place in range(60)]
        stuck.gate.clear()
        reads = [asyncio.ensure_future(cursor.read(0, max_bytes=100)) for cursor in cursors]
        while reader.cold.free:
            await asyncio.sleep(0)
        await log.write({60: [batch(10, 300, chance)]})
        async with asyncio.timeout(10):
            await tail.wait(0)
            assert (await tail.read(0, max_bytes=10_000)).batches == log.bytes_from(0, 60)
        stuck.gate.set()
        await asyncio.gather(*reads)


async def test_reads_of_the_past_make_way_while_the_event_loop_lags() -> None:
    async with a_log() as log:
        await log.write_many(1, tell=False)
        gated = GatedStore(log.objects)
        async with reading(log, objects=gated) as reader, reader.follow(log.ref()) as cursor:
            gated.gate.clear()
            waiting = asyncio.ensure_future(cursor.read(0, max_bytes=100))
            async with asyncio.timeout(10):
                while reader.cold.allowed == reader.cold.most:
                    await asyncio.sleep(0)
                    time.sleep(0.2)
            assert reader.tail.allowed == reader.tail.most
            gated.gate.set()
            await waiting


async def test_what_lies_below_the_log_start_is_out_of_range_and_sql_says_so() -> None:
    async with a_log() as log, reading(log) as reader, reader.follow(log.ref()) as cursor:
        await log.write_many(3)
        assert await read_all(cursor) == log.bytes_from(0)
        led = log.led[log.ids[0]]
        await log.metadata.run(advance_log_start, partition_id=led.partition_id, leader_epoch=led.leader_epoch, to=15)
        with pytest.raises(OffsetOutOfRange, match="15 to 30") as refused:
            await cursor.resolve(-1)
        assert (refused.value.log_start_offset, refused.value.high_watermark) == (15, 30)
        with pytest.raises(OffsetOutOfRange):
            await cursor.read(14, max_bytes=1)
        with pytest.raises(OffsetOutOfRange):
            await cursor.read(31, max_bytes=1)
        assert await read_all(cursor, 15) == log.bytes_from(15)
        assert await cursor.resolve(Bound.EARLIEST) == 15
        await log.write_many(1, tell=False)
        assert await cursor.resolve(Bound.LATEST) == 40, "asked of SQL, whatever the feed has told"


async def test_whoever_reads_or_follows_a_topic_that_is_deleted_is_told() -> None:
    async with open_cluster() as cluster:
        one, other = await cluster.start("one"), await cluster.start("other")
        await one.create_topic("t", partitions=1, config=TopicConfig())
        await append_to(one, "t", *[b"v"] * 10)
        async with other.follow("t", 0) as waits, other.follow("t", 0) as reads:
            assert (await waits.read(0, max_bytes=1)).next_offset == 10
            waiting = asyncio.ensure_future(waits.wait(10))
            await asyncio.sleep(0)
            await one.delete_topic("t")
            with pytest.raises(UnknownTopic, match="'t' was being read, but it has been deleted"):
                await reads.resolve(11)  # SQL is asked, and then whether the topic is still there
            async with asyncio.timeout(10):
                await waiting
            with pytest.raises(UnknownTopic, match="'t' was being read, but it has been deleted"):
                await waits.read(10, max_bytes=1)


async def test_an_object_that_was_merged_away_meanwhile_is_found_in_its_new_place() -> None:
    async with a_log() as log:
        objects = CountingStore(log.objects)
        await log.write_many(10)
        extents = await log.extents()
        async with reading(log, SMALL, objects=objects) as reader, reader.follow(log.ref()) as cursor:

            async def merged() -> None:
                await log.merge(extents)
                await log.objects.delete_many([log.key_of(extent) for extent in extents])

            objects.before_get = merged
            assert await read_all(cursor) == log.bytes_from(0)
            assert reader.stats.missing_objects == 1


async def test_one_of_several_objects_may_be_merged_away_while_they_are_read_together() -> None:
    async with a_log() as log:
        await log.write_many(10, tell=False)
        async with reading(log, SMALL) as reader, reader.follow(log.ref()) as cursor:
            begun = await cursor.read(0, max_bytes=1)  # looks up all extents, and reads the first few
            extents = (await log.extents())[6:9]
            await log.merge(extents)
            await log.objects.delete_many([log.key_of(extent) for extent in extents])
            assert await read_all(cursor, begun.next_offset, max_bytes=100_000) == log.bytes_from(begun.next_offset)
            assert reader.stats.missing_objects == 1


async def test_what_comes_before_an_object_that_is_gone_is_read() -> None:
    async with a_log() as log:
        await log.write_many(3, tell=False)
        await log.objects.delete_many([log.key_of((await log.extents())[2])])
        async with reading(log) as reader, reader.follow(log.ref()) as cursor:
            assert (await cursor.read(0, max_bytes=100_000)).next_offset == 10
            assert (await cursor.read(10, max_bytes=100_000)).next_offset == 20
            with pytest.raises(CorruptSegment, match="offset 20 in an object that is not there"):
                await cursor.read(20, max_bytes=100_000)


async def test_an_object_that_is_gone_for_good_is_an_error_and_nothing_is_skipped() -> None:
    async with a_log() as log, reading(log) as reader, reader.follow(log.ref()) as cursor:
        await log.write_many(3)
        await log.objects.delete_many([log.key_of((await log.extents())[1])])
        with pytest.raises(CorruptSegment, match="not there"):
            await read_all(cursor, 10)
        assert reader.stats.missing_objects <= 3


async def test_a_gap_between_extents_is_an_error_and_nothing_is_skipped() -> None:
    def lose(tx: Transaction) -> None:
        tx.execute("DELETE FROM extents WHERE base_offset = 10")

    async with a_log() as log:
        await log.write_many(3)
        await log.metadata.run(lose)
        async with reading(log) as reader, reader.follow(log.ref()) as cursor:
            with pytest.raises(MetadataUnusable, match="no extent has offset 10"):
                await read_all(cursor)


async def test_while_sql_is_away_what_is_known_is_read_and_the_rest_is_refused() -> None:
    async with a_log() as log, AsyncExitStack() as stack:
        await log.write_many(100)
        reader = await stack.enter_async_context(reading(log))
        cursor = await stack.enter_async_context(reader.follow(log.ref()))
        await cursor.read(0, max_bytes=1)
        log.metadata.away = True
        offset = 0
        pieces: list[bytes] = []

        async def read_on() -> None:
            nonlocal offset
            while True:
                run = await cursor.read(offset, max_bytes=5000)
                pieces.append(bytes(run.batches))
                offset = run.next_offset

        with pytest.raises(MetadataUnavailable, match="not in memory"):
            await read_on()
        assert offset >= 500
        assert log.bytes_from(0).startswith(b"".join(pieces))
        with pytest.raises(MetadataUnavailable):
            await cursor.resolve(Bound.LATEST)
        with pytest.raises(MetadataUnavailable):
            await cursor.read(10_000, max_bytes=1)
        log.metadata.away = False
        assert b"".join(pieces) + await read_all(cursor, offset) == log.bytes_from(0)


async def test_a_consumer_reads_on_while_the_database_is_away_and_the_rest_when_it_is_back() -> None:
    little = {"cache_bytes": 64 * KIB, "block_cache_bytes": 64 * KIB, "read_block_bytes": 4 * KIB, "response_bytes": 1 * KIB}
    settings = QUICK.model_copy(update=little | {"read_ahead_extents": 16})
    async with open_cluster() as cluster:
        database = FlakyMetadata(cluster.store)
        broker = await cluster.start("one", settings, wrap=lambda _: database)
        await broker.create_topic("t", partitions=1, config=TopicConfig())
        values = [b"%d" % number + bytes(2000) for number in range(200)]
        for first in range(0, 200, 2):
            await append_to(broker, "t", *values[first : first + 2])  # an extent of 4 KB each
        served_by: Any = broker
        async with serving(served_by) as served, tidelog.connect(served.server.address) as client:
            found: list[bytes | None] = []

            async def consume() -> None:
                async for record in client.consume("t", credit_bytes=4 * KIB):
                    found.append(record.value)
                    await asyncio.sleep(0.001)

            consuming = asyncio.create_task(consume())
            await until(lambda: len(found) > 2, task=consuming)
            database.away = True
            before = len(found)
            await asyncio.sleep(2 * settings.lease_ms / 1000)  # as long as it takes: the broker has lost its lease meanwhile
            assert before + 8 < len(found) < 200, "what is known of extents is read from the bucket, and the rest is not"
            database.away = False
            await until(lambda: len(found) >= 200, task=consuming)
            assert found == values
            consuming.cancel()
            await asyncio.wait([consuming])


async def test_while_sql_is_away_reading_can_begin_with_what_is_in_memory() -> None:
    async with a_log() as log, reading(log) as reader:
        part = batch(5, 100, random.Random(1))
        for _ in range(2):
            await log.write({0: [part]}, tell=False)
        reader.took_in(log.ids[0], 5, log.led[log.ids[0]].leader_epoch, [part], scan(part))
        log.metadata.away = True
        async with reader.follow(log.ref()) as cursor:
            assert await cursor.resolve(7) == 7
            assert (await cursor.read(7, max_bytes=1)).batches == log.bytes_from(7)
            with pytest.raises(MetadataUnavailable, match="offset 0 of partition 0 of topic 'clicks' is not in memory"):
                await cursor.resolve(0)


async def test_the_high_watermark_is_known_before_the_first_record_is_given() -> None:
    async with a_log() as log, reading(log, ROOMY.model_copy(update={"follower_poll_ms": 60_000})) as reader:
        part = batch(5, 100, random.Random(1))
        for _ in range(3):
            await log.write({0: [part]}, tell=False)
        reader.took_in(log.ids[0], 0, log.led[log.ids[0]].leader_epoch, [part], scan(part))
        async with reader.follow(log.ref()) as cursor:
            run = await cursor.read(await cursor.resolve(0), max_bytes=1)
            assert (run.next_offset, run.high_watermark) == (5, 15)


@pytest.mark.parametrize("merge", [False, True])
async def test_altered_and_truncated_bodies_are_errors_or_read_again_never_data(merge: bool) -> None:
    async with a_log() as log:
        await log.write_many(30, batches=3, records=20)
        if merge:
            await log.merge(await log.extents())
        faulty = FaultyStore(log.objects, clock=SystemClock(), chance=random.Random(7), rates=FaultRates(altered=0.05, truncated=0.05))
        async with reading(log, SMALL, objects=faulty) as reader, reader.follow(log.ref()) as cursor:
            offset, errors = 0, 0
            pieces: list[bytes] = []
            while offset < 1800:
                try:
                    run = await cursor.read(offset, max_bytes=5000)
                except CorruptSegment:
                    errors += 1
                    continue
                pieces.append(bytes(run.batches))
                offset = run.next_offset
            assert b"".join(pieces) == log.bytes_from(0)
            assert reader.stats.corrupt_reads > errors, "most are mended by reading again"
            faulty.rates = FaultRates(altered=1.0)
            with pytest.raises(CorruptSegment):
                await read_all(cursor)


async def test_a_store_that_is_down_is_an_error_and_reading_goes_on_when_it_is_back() -> None:
    async with a_log() as log:
        await log.write_many(5)
        faulty = FaultyStore(log.objects, clock=SystemClock(), chance=random.Random(7), rates=FaultRates())
        async with reading(log, objects=faulty) as reader, reader.follow(log.ref()) as cursor:
            faulty.down = True
            with pytest.raises(StoreUnavailable):
                await cursor.read(0, max_bytes=1)
            faulty.down = False
            assert await read_all(cursor) == log.bytes_from(0)


async def test_a_scan_does_not_push_the_tail_out_of_memory() -> None:
    async with a_log(partitions=2) as log:
        objects = CountingStore(log.objects)
        await log.write_many(20, batches=10, records=20)  # 400 KiB, caches of 64 KiB
        async with (
            reading(log, SMALL, objects=objects) as reader,
            reader.follow(log.ref(0)) as past,
            reader.follow(log.ref(1)) as tail,
        ):
            part = batch(20, 1000, random.Random(3))
            await log.write({1: [part]})
            reader.took_in(log.ids[1], 0, log.led[log.ids[1]].leader_epoch, [part], scan(part))
            assert await read_all(past, max_bytes=20_000) == log.bytes_from(0)
            before = sum(objects.gets.values())
            assert (await tail.read(0, max_bytes=1)).batches == log.bytes_from(0, 1)
            assert sum(objects.gets.values()) == before


async def test_a_reader_that_does_not_come_again_holds_no_memory_beyond_the_limits() -> None:
    async with a_log() as log, reading(log, SMALL) as reader, reader.follow(log.ref()) as cursor:
        chance = random.Random(1)
        for number in range(60):
            part = batch(10, 500, chance)
            await log.write({0: [part]})
            reader.took_in(log.ids[0], number * 10, log.led[log.ids[0]].leader_epoch, [part], scan(part))
            assert reader.records.used_bytes <= SMALL.cache_bytes
        assert await read_all(cursor) == log.bytes_from(0)
        assert reader.records.used_bytes <= SMALL.cache_bytes


async def test_an_offset_is_found_by_time() -> None:
    async with a_log() as log, reading(log) as reader:
        for start in (1000, 2000, 3000):
            part = [encode([Record(b"v", timestamp_ms=start + n) for n in range(first, first + 5)]) for first in (0, 5)]
            await log.write({0: part}, tell=False)
        assert await reader.list_offset(log.ref(), AtTime(2007)) == await reader.list_offset(log.ref(), AtTime(2007))
        found = [await reader.list_offset(log.ref(), AtTime(time)) for time in (0, 1009, 1010, 2007, 3009, 3010)]
        assert [(f.offset, f.timestamp_ms) for f in found] == [(0, 1000), (9, 1009), (10, 2000), (17, 2007), (29, 3009), (30, -1)]
        led = log.led[log.ids[0]]
        await log.metadata.run(advance_log_start, partition_id=led.partition_id, leader_epoch=led.leader_epoch, to=12)
        assert (await reader.list_offset(log.ref(), AtTime(0))).offset == 12
        assert (await reader.list_offset(log.ref(), Bound.EARLIEST)).offset == 12
        assert (await reader.list_offset(log.ref(), Bound.LATEST)).offset == 30


async def test_an_offset_is_found_by_time_while_the_log_start_passes_it() -> None:
    async with a_log() as log:
        objects = CountingStore(log.objects)
        for start in (1000, 2000, 3000):
            await log.write({0: [encode([Record(b"v", timestamp_ms=start + n) for n in range(10)])]}, tell=False)
        led = log.led[log.ids[0]]
        async with reading(log, objects=objects) as reader:

            async def expire() -> None:
                await log.metadata.run(advance_log_start, partition_id=led.partition_id, leader_epoch=led.leader_epoch, to=15)
                raise ObjectNotFound("the object has been deleted")

            objects.before_get = expire
            assert await reader.list_offset(log.ref(), AtTime(1003)) == OffsetFound(15, 2005)


async def test_a_small_batch_that_becomes_large_is_looked_into_beside_the_event_loop() -> None:
    class Noting(ThreadExecutor):
        def __init__(self) -> None:
            super().__init__("reading", threads=1)
            self.ran: list[str] = []

        async def run(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.ran.append(function.__name__)
            return await super().run(function, *args, **kwargs)

    executor = Noting()
    async with a_log() as log:
        value = random.Random(1).randbytes(1000) * 100
        await log.write({0: [encode([Record(value, timestamp_ms=1000)], compression="zstd")]}, tell=False)
        async with reading(log, executor=executor) as reader:
            assert await reader.list_offset(log.ref(), AtTime(1)) == OffsetFound(0, 1000)
            assert executor.ran == ["decode"]
        async with reading(log, ROOMY.model_copy(update={"max_decompressed_bytes": 65536})) as reader:
            with pytest.raises(CorruptBatch, match="grow beyond"):
                await reader.list_offset(log.ref(), AtTime(1))


async def test_readers_that_leave_in_the_middle_take_nothing_from_the_others() -> None:
    async with a_log() as log:
        slow = SlowStore(log.objects, chance=random.Random(1), latencies=Latencies(get=Latency(3, 20)))
        await log.write_many(30, batches=4, records=20)
        async with reading(log, SMALL, objects=slow) as reader, reader.follow(log.ref()) as cursor:

            async def leave_early(seconds: float) -> None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds), reader.follow(log.ref()) as other:
                        await read_all(other)

            leaving = [leave_early(n / 1000) for n in range(1, 40, 3)]
            found, *_ = await asyncio.gather(read_all(cursor, max_bytes=20_000), *leaving)
            assert found == log.bytes_from(0)
            assert reader.cold.free == reader.cold.allowed


async def test_a_directory_is_read_as_well(tmp_path: Path) -> None:
    objects = open_directory(tmp_path, clock=SystemClock(), chance=random.Random(1), executor=ThreadExecutor("objects", threads=2))
    async with a_log(objects) as log, reading(log) as reader, reader.follow(log.ref()) as cursor:
        await log.write_many(30)
        assert await read_all(cursor) == log.bytes_from(0)
    await objects.close()


async def test_the_high_watermark_never_goes_back() -> None:
    async with a_log() as log, reading(log) as reader, reader.follow(log.ref()) as cursor:
        await log.write_many(3, tell=True)
        reader.feed.committed(CommittedExtents(log.ids[0], (), 10, 0))
        assert (await cursor.read(0, max_bytes=1)).high_watermark == 30
