"""Reading against raw ranged GETs of the same bytes, and from memory."""

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tidelog.broker.cache import ReadStats
from tidelog.broker.catalog import Catalog, PartitionRef
from tidelog.broker.feed import Feed
from tidelog.broker.lookups import Lookups
from tidelog.broker.reader import PartitionCursor, Reader
from tidelog.broker.references import AnswerReceiver, FeedLink, FeedReceiver, ReferenceLink
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.executors import InlineExecutor, ThreadExecutor
from tidelog.metadata.commits import NewExtent, PartitionCommit, commit
from tidelog.metadata.leadership import take_over
from tidelog.metadata.membership import Broker, initialise, membership, register
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.topics import TopicConfig, create_topic, partitions
from tidelog.objects.local import open_directory
from tidelog.records.batch import scan
from tidelog.records.codec import encode_many
from tidelog.segments.format import ChunkSource, Origin, encode_intake
from tidelog.segments.keys import IntakeKey

from benchmarks.measure import Measure

SEGMENTS = 16
TOPIC = "01" * 16
READ_BYTES = 256 * 1024
SETTINGS = Settings.model_validate({})


class Alone:
    """Peers of a broker that has none."""

    def references(self, broker: Broker, receiver: AnswerReceiver) -> ReferenceLink:
        raise NotImplementedError

    def feed(self, broker: Broker, receiver: FeedReceiver) -> FeedLink:
        raise NotImplementedError

    def nudge(self, broker: Broker) -> None:
        raise NotImplementedError


def run(repeats: int) -> list[Measure]:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_run(Path(folder), max(3, repeats // 3)))


async def _run(folder: Path, repeats: int) -> list[Measure]:
    clock = SystemClock()
    metadata = await open_sqlite(IN_MEMORY, clock=clock, executor=InlineExecutor())
    objects = open_directory(folder, clock=clock, chance=random.Random(1), executor=ThreadExecutor("objects", threads=4))
    await metadata.run(initialise, cluster_id="c" * 32, format_version=1)
    joined = await metadata.run(register, broker_id="b0", incarnation="life", zone="", address="a:1", peer_address="a:2", ttl_ms=600_000)
    epoch = joined.broker_epoch
    await metadata.run(create_topic, topic_id=TOPIC, name="clicks", partitions=1, config=TopicConfig())
    [state] = await metadata.run(partitions, topic_id=TOPIC)
    version = (await metadata.run(membership)).version
    [led] = await metadata.run(take_over, broker_epoch=epoch, membership_version=version, partition_ids=[state.partition_id])
    part = encode_many([random.Random(1).randbytes(1000)] * 1000)
    headers = scan(part) * 8
    end = 0
    keys: list[str] = []
    size = 0
    for sequence in range(1, SEGMENTS + 1):
        content, footer = encode_intake(
            [ChunkSource(bytes.fromhex(TOPIC), 0, [part] * 8, headers)], Origin("c" * 32, "b0", epoch, sequence, 0)
        )
        keys.append(str(IntakeKey("b0", epoch, sequence, "life")))
        await objects.put_new(keys[-1], content)
        [chunk] = footer.chunks
        new = NewExtent(epoch, sequence, chunk.position, chunk.length, chunk.record_count, chunk.max_timestamp_ms)
        await metadata.run(commit, broker_epoch=epoch, partitions=[PartitionCommit(led.partition_id, led.leader_epoch, end, (new,))])
        end += chunk.record_count
        size += chunk.length
    catalog = Catalog(metadata)
    await catalog.refresh()
    ref = PartitionRef(led.partition_id, TOPIC, "clicks", 0)
    stats = ReadStats()
    lookups = Lookups(metadata, max_extents_each=64, stats=stats)
    executor = ThreadExecutor("reading", threads=1)
    feed = Feed(
        catalog=catalog, peers=Alone(), lookups=lookups, own_epoch=lambda: epoch, settings=SETTINGS, chance=random.Random(1), stats=stats
    )

    def reader() -> Reader:
        return Reader(
            metadata=metadata, objects=objects, feed=feed, lookups=lookups, settings=SETTINGS, clock=clock, executor=executor, stats=stats
        )

    async with feed:
        raw, cold = [], []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            await _raw(objects, keys, size // SEGMENTS)
            raw.append(time.perf_counter() - began)
            async with reader() as fresh, fresh.follow(ref) as cursor:
                began = time.perf_counter()
                await _scan(cursor, end)
                cold.append(time.perf_counter() - began)
        async with reader() as fresh, fresh.follow(ref) as cursor:
            small = encode_many([b"x" * 100] * 10)
            for number in range(1000):
                fresh.took_in(ref.partition_id, end + 10 * number, led.leader_epoch, [small], scan(small))
            reads = 0
            began = time.perf_counter()
            while time.perf_counter() - began < 0.2 * repeats:
                await cursor.read(end + 10 * (reads % 1000), max_bytes=1)
                reads += 1
            tail = reads / (time.perf_counter() - began)
    await executor.close()
    await objects.close()
    await metadata.close()
    return [
        Measure("cold scan, 16 segments of 8 MB", size / sorted(cold[1:])[repeats // 2] / 1e9, "GB/s",
                size / sorted(raw[1:])[repeats // 2] / 1e9, "ranged GETs of 1 MiB, 8 at once"),
        Measure("tail reads from memory, 10 records each", tail, "reads/s"),
    ]  # fmt: skip


async def _raw(objects: object, keys: Sequence[str], size: int) -> None:
    eight = asyncio.Semaphore(8)

    async def get(key: str, position: int) -> None:
        async with eight:
            await objects.get_range(key, position, 1 << 20)  # type: ignore[attr-defined]

    await asyncio.gather(*(get(key, position) for key in keys for position in range(0, size, 1 << 20)))


async def _scan(cursor: PartitionCursor, end: int) -> None:
    offset = 0
    while offset < end:
        offset = (await cursor.read(offset, max_bytes=READ_BYTES)).next_offset
