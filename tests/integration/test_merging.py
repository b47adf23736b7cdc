"""Merging in brokers of one cluster: rows become few, objects large, and every record stays where it is."""

import asyncio
import gc
import random
import tracemalloc
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tidelog.broker.broker import Broker
from tidelog.clock import SystemClock
from tidelog.errors import MetadataOutcomeUnknown, MetadataUnavailable
from tidelog.executors import ThreadExecutor
from tidelog.metadata.extents import Extent, dated_extents
from tidelog.metadata.leadership import set_fencing_token
from tidelog.metadata.postgres import PostgresSettings, open_postgres
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metadata.topics import TopicConfig
from tidelog.objects.local import open_directory
from tidelog.objects.memory import MemoryStore
from tidelog.objects.s3 import S3Settings, open_s3
from tidelog.objects.store import ObjectStore
from tidelog.records.batch import scan
from tidelog.records.codec import decode
from tidelog.segments.format import SegmentKind
from tidelog.segments.format import decode as decode_segment

from tests.cluster import QUICK, Cluster, SharedStore, append, on_virtual_time

MERGING = QUICK.model_copy(
    update={
        "merge_target_bytes": 256 * 1024,
        "merge_least_extents": 8,
        "merge_most_extents": 64,
        "merge_max_age_ms": 60_000,
        "merge_settle_ms": 600_000,
        "merge_buffer_bytes": 256 * 1024,
        "cache_bytes": 0,
        "segment_bytes": 4096,
    }
)


async def extents(store: MetadataStore, partition_id: int = 1) -> list[Extent]:
    def rows(tx: Transaction) -> list[Extent]:
        columns = ", ".join(Extent.__dataclass_fields__)
        found = tx.rows(f"SELECT {columns} FROM extents WHERE partition_id = :p ORDER BY base_offset", p=partition_id)
        return [Extent(*row) for row in found]

    return await store.run(rows)


async def values(broker: Broker, topic: str, partition: int, first: int = 0) -> list[bytes]:
    """Read a partition to its end, each batch held to the offsets that it is given for."""
    found: list[bytes] = []
    async with broker.follow(topic, partition) as cursor:
        offset = first
        while True:
            run = await cursor.read(offset, max_bytes=100_000)
            if run.next_offset == offset:
                return found
            for header in scan(run.batches):
                batch = memoryview(run.batches)[header.position : header.position + header.size]
                for record in decode(batch, header=header):
                    if record.offset >= offset:
                        assert record.offset == first + len(found)
                        found.append(record.value or b"")
            offset = run.next_offset


async def write(broker: Broker, count: int, *, partitions: int = 1, size: int = 100, first: int = 0) -> None:
    for number in range(first, first + count):
        await asyncio.gather(*(append(broker, "clicks", b"%06d" % number + bytes(size), partition=p) for p in range(partitions)))


def expected(count: int, size: int = 100) -> list[bytes]:
    return [b"%06d" % number + bytes(size) for number in range(count)]


async def merged_to(store: MetadataStore, most: int, partition_ids: Sequence[int] = (1,), seconds: float = 3600) -> None:
    async with asyncio.timeout(seconds):
        while any([len(await extents(store, each)) > most for each in partition_ids]):
            await asyncio.sleep(0.5)


def test_small_extents_become_large_ones_and_every_record_is_read_where_it_was() -> None:
    @on_virtual_time
    async def scenario(cluster: Cluster) -> None:
        broker = await cluster.start("one", MERGING)
        await broker.create_topic("clicks", partitions=3, config=TopicConfig())
        await write(broker, 400, partitions=3)
        await merged_to(cluster.store, 4, (1, 2, 3))
        for partition in range(3):
            assert await values(broker, "clicks", partition) == expected(400)
            assert await values(broker, "clicks", partition, first=123) == expected(400)[123:]
        rows = await extents(cluster.store)
        assert max(row.level for row in rows) >= 2
        merged = [row for row in rows if row.level]
        keys = [found.key async for found in cluster.bucket.list("merged/")]
        for row in merged:
            [key] = [key for key in keys if key.endswith(f"-{row.sequence:020}.seg")]
            content = await cluster.bucket.get_range(key, 0, 1 << 30)
            footer = decode_segment(content)
            assert footer.kind is SegmentKind.MERGED
            assert (footer.chunks[0].position, footer.chunks[0].length, footer.chunks[0].record_count) == (
                row.position,
                row.length,
                row.record_count,
            )
        moved = {
            sample.name.removeprefix("tidelog_")
            for family in broker._metrics.registry.collect()
            for sample in family.samples
            if "merge" in sample.name and sample.value
        }
        assert moved >= {"merges_total", "merged_extents_total", "merged_bytes_total", "merge_read_bytes_total", "merge_seconds_count"}
        assert broker.life is not None
        assert broker.life.intake.resolved_sequence == broker.life.intake._sequence, "no sequence is held for ever"

    scenario()


def test_merging_is_switched_off_by_its_setting() -> None:
    @on_virtual_time
    async def scenario(cluster: Cluster) -> None:
        broker = await cluster.start("one", MERGING.model_copy(update={"merging": False}))
        await broker.create_topic("clicks", partitions=1, config=TopicConfig())
        await write(broker, 100)
        await asyncio.sleep(700)
        assert {row.level for row in await extents(cluster.store)} == {0}

    scenario()


def test_what_another_leader_wrote_and_merged_is_merged_on_by_the_next() -> None:
    @on_virtual_time
    async def scenario(cluster: Cluster) -> None:
        one = await cluster.start("one", MERGING)
        await one.create_topic("clicks", partitions=1, config=TopicConfig())
        await write(one, 200)
        await cluster.kill("one")
        two = await cluster.start("two", MERGING)
        await asyncio.sleep(5)
        await write(two, 200, first=200)
        await merged_to(cluster.store, 3)
        assert await values(two, "clicks", 0) == expected(400)

    scenario()


def test_a_corrupt_source_is_let_alone_and_reported_while_all_else_is_merged() -> None:
    @on_virtual_time
    async def scenario(cluster: Cluster) -> None:
        broker = await cluster.start("one", MERGING.model_copy(update={"merging": False}))
        await broker.create_topic("clicks", partitions=2, config=TopicConfig())
        await write(broker, 60, partitions=2)
        bad = (await extents(cluster.store))[30]
        [key] = [f.key async for f in cluster.bucket.list("intake/") if f"/{bad.sequence:020}-" in f.key]
        content = bytearray(await cluster.bucket.get_range(key, 0, 1 << 30))
        content[bad.position + 70] ^= 1
        await cluster.bucket.delete_many([key])
        await cluster.bucket.put_new(key, [content])
        await cluster.kill("one")
        again = await cluster.start("two", MERGING)
        await merged_to(cluster.store, 5)
        await merged_to(cluster.store, 1, (2,))
        assert bad in await extents(cluster.store)
        assert again._metrics.merges["corrupt"]._value.get() >= 1
        assert again._metrics.merge_quarantined._value.get() == 1
        assert await values(again, "clicks", 1) == expected(60)

    scenario()


def test_what_retention_separates_is_not_merged_together() -> None:
    @on_virtual_time
    async def scenario(cluster: Cluster) -> None:
        broker = await cluster.start("one", MERGING.model_copy(update={"retention": False}))
        await broker.create_topic("clicks", partitions=1, config=TopicConfig(retention_ms=8 * 100_000))
        for number in range(60):
            await write(broker, 10, first=number * 10)
            await asyncio.sleep(20)
        await asyncio.sleep(2000)
        rows = await extents(cluster.store)
        times = [0, *(row.commit_time_ms for row in rows)]
        assert 10 <= len(rows) <= 40
        assert max(after - before for before, after in pairwise(times)) <= 100_000 + 60_000 + 5000
        assert await values(broker, "clicks", 0) == expected(600)

    scenario()


async def test_extents_on_postgresql_are_merged_too(postgres_url: str) -> None:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        store = await open_postgres(PostgresSettings(postgres_url, lease_ttl_ms=10_000))
        stack.push_async_callback(store.close)
        cluster = Cluster(store, MemoryStore(clock=clock), clock)
        stack.push_async_callback(cluster.close)
        broker = await cluster.start("one", MERGING.model_copy(update={"lease_ms": 10_000, "max_latency_ms": 1}))
        await broker.create_topic("clicks", partitions=2, config=TopicConfig())
        [one, two] = sorted([row.partition_id for row in await broker.partitions(broker.catalog.topics()[0].topic_id)])
        await write(broker, 150, partitions=2)
        await merged_to(store, 30, (one, two), seconds=60)
        for partition in range(2):
            assert await values(broker, "clicks", partition) == expected(150)


def test_a_swap_whose_answer_was_lost_is_asked_again_and_a_merge_that_was_fenced_changes_nothing() -> None:
    @on_virtual_time
    async def scenario(cluster: Cluster) -> None:
        lost: list[str] = []
        tokens = iter(("first", "second", "third"))

        class Deaf:
            exclusive = False

            def __init__(self, store: MetadataStore) -> None:
                self._store = store
                self.run_reserved = store.run_reserved
                self.close = store.close

            async def run(self, verb: Any, /, *args: Any, **kwargs: Any) -> Any:
                if verb.__name__ == "swap" and len(lost) == 1:  # leadership begins anew before the second swap
                    lost.append("fenced")
                    await self._store.run(set_fencing_token, partition_id=kwargs["partition_id"], token=next(tokens))
                answer = await self._store.run(verb, *args, **kwargs)
                if verb.__name__ == "swap" and not lost:
                    lost.append("unknown")
                    raise MetadataOutcomeUnknown("the answer was lost")
                return answer

        broker = await cluster.start("one", MERGING, wrap=Deaf)
        await broker.create_topic("clicks", partitions=1, config=TopicConfig())
        await write(broker, 200)
        await merged_to(cluster.store, 4)
        assert lost == ["unknown", "fenced"]
        merges = broker._metrics.merges
        assert merges["merged"]._value.get() >= 2
        assert merges["refused"]._value.get() >= 1
        assert await values(broker, "clicks", 0) == expected(200)

    scenario()


@pytest.mark.parametrize("kind", ["directory", "s3"])
async def test_a_real_bucket_is_merged_by_streams_within_a_small_buffer(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    clock = SystemClock()
    settings = MERGING.model_copy(
        update={"merge_target_bytes": 24 << 20, "merge_buffer_bytes": 4 << 20, "merge_least_extents": 4, "segment_bytes": 1 << 20}
    )
    async with AsyncExitStack() as stack:
        bucket: ObjectStore
        if kind == "s3":
            s3: S3Settings = request.getfixturevalue("s3_settings")
            bucket = await open_s3(s3, clock=clock, chance=random.Random(1))
        else:
            bucket = open_directory(tmp_path / "objects", clock=clock, chance=random.Random(1), executor=ThreadExecutor("f", threads=4))
        stack.push_async_callback(bucket.close)
        store = await open_sqlite(IN_MEMORY, clock=clock, executor=ThreadExecutor("sqlite", threads=1))
        stack.push_async_callback(store.close)
        cluster = Cluster(store, bucket, clock)
        stack.push_async_callback(cluster.close)
        broker = await cluster.start("one", settings)
        await broker.create_topic("clicks", partitions=1, config=TopicConfig())
        await write(broker, 40, size=700_000)
        await merged_to(store, 20, seconds=60)
        assert max(row.length for row in await extents(store)) > 20 << 20, "one was written as a stream"
        assert await values(broker, "clicks", 0) == expected(40, 700_000)


async def test_a_stream_never_holds_more_of_a_segment_than_its_buffer(tmp_path: Path) -> None:
    clock = SystemClock()
    off = MERGING.model_copy(update={"merging": False, "segment_bytes": 4 << 20})
    async with AsyncExitStack() as stack:
        bucket = open_directory(tmp_path, clock=clock, chance=random.Random(1), executor=ThreadExecutor("files", threads=2))
        stack.push_async_callback(bucket.close)
        store = await open_sqlite(IN_MEMORY, clock=clock, executor=ThreadExecutor("sqlite", threads=1))
        stack.push_async_callback(store.close)
        cluster = Cluster(SharedStore(store), bucket, clock)
        stack.push_async_callback(cluster.close)
        writer = await cluster.start("one", off)
        await writer.create_topic("clicks", partitions=1, config=TopicConfig())
        await write(writer, 60, size=900_000)
        await cluster.kill("one")
        buffer = 4 << 20
        on = {"merging": True, "merge_target_bytes": 128 << 20, "merge_max_age_ms": 1, "merge_buffer_bytes": buffer}
        await cluster.start("two", off.model_copy(update=on))
        gc.collect()
        tracemalloc.start()
        try:
            await merged_to(store, 1, seconds=60)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        [row] = await extents(store)
        assert row.length > 50_000_000
        assert most < buffer + (2 << 20)  # and what is not bytes of segments


@on_virtual_time
async def test_a_database_that_is_away_between_two_looks_has_nothing_forgotten(cluster: Cluster) -> None:
    settings = MERGING.model_copy(update={"merge_least_extents": 5, "merge_max_age_ms": 4000})
    broker = await cluster.start("one", settings)
    await broker.create_topic("clicks", partitions=100, config=TopicConfig(-1, -1))
    for _ in range(2):
        for partition in range(100):
            await append(broker, "clicks", b"value", partition=partition)
    assert broker.life is not None
    merging = broker.life.merging
    real, looks = merging._store, []

    class Away:
        exclusive = False
        run_reserved, close = real.run_reserved, real.close

        async def run(self, verb: Any, /, *args: Any, **asked: Any) -> Any:
            answer = await real.run(verb, *args, **asked)
            if verb is dated_extents and answer[0] - min(each.extents[0].commit_time_ms for each in answer[1].partitions) >= 4000:
                looks.append(verb)
                if len(looks) == 2:  # what the first look found is planned by now
                    merging._store = real
                    raise MetadataUnavailable("away for a moment")
            return answer

    merging._store = Away()
    await asyncio.sleep(60)
    assert merging._store is real
    assert {extent.level for partition_id in range(1, 101) for extent in await extents(cluster.store, partition_id)} == {1}
