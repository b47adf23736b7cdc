"""Merging: how often a byte is written for it, what is left, how fast that is read, and what appends feel of it.

A day of intake is planned by the real planner, on rows without bytes; the bytes are merged, and read, by a real broker.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import tidelog
from tidelog.broker.broker import Broker
from tidelog.broker.merge_plan import MergeLimits, is_full, plan
from tidelog.broker.reader import PartitionCursor
from tidelog.broker.requests import AppendRequest
from tidelog.clock import SystemClock
from tidelog.config import MIB, Settings
from tidelog.executors import ThreadExecutor
from tidelog.metadata.extents import Extent
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig
from tidelog.metrics import Metrics
from tidelog.objects.latency import SlowStore
from tidelog.objects.local import open_directory
from tidelog.objects.metered import MeteredObjectStore
from tidelog.objects.store import ObjectStore
from tidelog.records.batch import scan, stamp
from tidelog.records.codec import encode_many
from tidelog.segments.format import MergedEncoder, Origin

from benchmarks.measure import Measure
from benchmarks.reading import Alone
from benchmarks.running import Running, broker, growth
from benchmarks.service import quantile, senders

DAY_MS = 24 * 3600 * 1000
GIB = 2**30
PARTITIONS = 4
APPENDS = 96
"""Of a MiB, to each partition."""
BACKLOG_BYTES = 256 * MIB
SECONDS = 6.0
NARROW, FLUSHES = 100, 60


def run(repeats: int) -> list[Measure]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TIDELOG_BENCH_DIR")) as name:
        folder = Path(name)
        found = [*_days(), *asyncio.run(_bytes(folder / "bytes", max(3, repeats // 3))), *asyncio.run(_narrow(folder / "narrow"))]
        return [*found, *_appends(folder / "appends", max(2, repeats // 3))]


# ---- a day, planned


@dataclass
class _Partition:
    """One partition's rows."""

    limits: MergeLimits
    rows: list[Extent] = field(default_factory=list)
    appended: int = 0
    written: int = 0
    most_waiting: int = 0
    look_at: tuple[float, float, float] = (0, 0, 0)
    since: tuple[int, int] = (0, 0)

    def append(self, length: int, at_ms: int) -> None:
        base = self.rows[-1].next_offset if self.rows else 0
        self.rows.append(Extent(1, base, base + 1, 1, base + 1, 8, length, 1, 0, 0, at_ms, 1))
        self.appended += length
        self.since = self.since[0] + 1, self.since[1] + length
        if self.since[0] >= self.look_at[0] or self.since[1] >= self.look_at[1] or at_ms >= self.look_at[2]:
            self.merge(at_ms)

    def merge(self, now_ms: int) -> None:
        """As the broker does, until nothing is left to be done now."""
        while True:
            self.most_waiting = max(self.most_waiting, sum(not is_full(row, self.limits) for row in self.rows))
            planned = plan(self.rows, self.limits, now_ms=now_ms)
            for run in planned.runs:
                at = self.rows.index(run[0])
                length = sum(row.length for row in run)
                level = max(row.level for row in run) + 1
                self.rows[at : at + len(run)] = [replace(run[-1], base_offset=run[0].base_offset, length=length, level=level)]
                self.written += length + _overhead(length)
            if not planned.runs:
                break
        self.look_at = planned.more_extents, planned.more_bytes, planned.look_at_ms or float("inf")
        self.since = (0, 0)


def _overhead(length: int) -> int:
    """Bytes of a merged segment beside its batches, generously: footer, and an entry of the index every 64 KiB."""
    return _FIXED_BYTES + _ENTRY_BYTES * (length // 65536 + 1)


def _ending_bytes(batches: int) -> int:
    """Return how large what follows the batches is in a segment of batches of 64 KiB, at large offsets."""
    encoder = MergedEncoder(
        b"t" * 16, 1000, Origin("c" * 32, "b" * 63, 10**6, 10**9, 10**13), base_offset=10**12, next_offset=10**12 + 10**9
    )
    batch = bytearray(encode_many([bytes(65400)], timestamps_ms=1_750_000_000_000))
    for number in range(batches):
        stamp(batch, scan(batch), base_offset=10**12 + 1000 * number, leader_epoch=10**6)
        encoder.add(bytes(batch), scan(batch))
    return sum(map(len, encoder.end()[0])) + 8


_ENTRY_BYTES = (_ending_bytes(1001) - _ending_bytes(1)) // 1000 + 1
_FIXED_BYTES = _ending_bytes(1)


def _days() -> list[Measure]:
    settings = Settings()
    limits = MergeLimits(
        target_bytes=settings.merge_target_bytes,
        least_extents=settings.merge_least_extents,
        most_extents=settings.merge_most_extents,
        max_age_ms=settings.merge_max_age_ms,
        settle_ms=settings.merge_settle_ms,
        max_span_ms=settings.default_retention_ms // 8,
    )
    found = []
    for name, length, every_ms in (
        ("1 MB/s over 100 partitions, 4 flushes/s", 2500, 250),
        ("1 MB/s into 1 partition, 4 flushes/s", 250_000, 250),
        ("100 MB/s over 100 partitions, 20 flushes/s", 50_000, 50),
    ):
        partition = _Partition(limits)
        for at in range(0, DAY_MS, every_ms):
            partition.append(length, at)
        amplification = partition.written / partition.appended
        partition.merge(DAY_MS + settings.merge_max_age_ms)
        partition.merge(DAY_MS + settings.merge_settle_ms + settings.merge_max_age_ms)
        rows = len(partition.rows) / (partition.appended / GIB)
        found += [
            Measure(f"merging ÷ appended bytes in 24 h: {name}", amplification, "", aim="≤ 2"),
            Measure(f"objects and rows per GiB after it: {name}", rows, "", aim="≤ 16"),
            Measure(f"rows of a partition that wait, at most: {name}", partition.most_waiting, ""),
        ]
    return found


# ---- bytes, merged and read


@asynccontextmanager
async def _living(metadata: MetadataStore, bucket: ObjectStore, name: str, **changes: object) -> AsyncIterator[Broker]:
    settings = Settings.model_validate({"lease_ms": 60_000, **changes})
    executor = ThreadExecutor("work", threads=2)
    living = Broker(
        store=metadata, bucket=bucket, peers=Alone(), settings=settings, clock=SystemClock(), chance=random.Random(name), executor=executor,
        metrics=Metrics(), broker_id=name,
    )  # fmt: skip
    await living.start()
    task = asyncio.create_task(living.run(address=f"{name}:1", peer_address=f"{name}:2"))
    try:
        while living.ready() is not None:
            await asyncio.sleep(0.01)
        yield living
    finally:
        await living.drain_and_end()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await executor.close()


async def _bytes(folder: Path, repeats: int) -> list[Measure]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        metadata = await open_sqlite(IN_MEMORY, clock=clock, executor=ThreadExecutor("sqlite", threads=1))
        stack.push_async_callback(metadata.close)
        bucket = open_directory(folder, clock=clock, chance=random.Random(1), executor=ThreadExecutor("files", threads=8))
        stack.push_async_callback(bucket.close)
        chance = random.Random(1)
        appended = 0
        async with _living(metadata, bucket, "writer", merging=False) as writer:
            await writer.create_topic("clicks", partitions=PARTITIONS, config=TopicConfig())
            while len(writer.life.ledger.led() if writer.life else {}) < PARTITIONS:
                await asyncio.sleep(0.01)
            for _ in range(APPENDS):
                batches = encode_many([chance.randbytes(1000)] * 1020)
                appended += PARTITIONS * len(batches)
                await asyncio.gather(*(writer.append(AppendRequest("clicks", p, batches)) for p in range(PARTITIONS)))
        async with _living(metadata, bucket, "merger", merge_max_age_ms=1, merge_bytes_per_second=1 << 40) as merger:
            while any(row.level == 0 for row in await metadata.run(_rows)):
                await asyncio.sleep(0.05)
            seconds = merger._metrics.merge_seconds._sum.get()  # one after the other: each is written as a stream
            merged = merger._metrics.merged_bytes._value.get()
        rows = await metadata.run(_rows)
        objects = {found.key: found.size async for found in bucket.list("merged/")}
        scanned, raw = [], []
        slow = SlowStore(bucket, chance=random.Random(2))
        for _ in range(repeats):
            began = time.perf_counter()
            await _raw(slow, objects)
            raw.append(sum(objects.values()) / (time.perf_counter() - began) / 1e6)
            async with _living(metadata, slow, "reader", merging=False) as reader:
                began = time.perf_counter()
                await asyncio.gather(
                    *(_scan(reader, p, max(row.next_offset for row in rows if row.partition_id == p + 1)) for p in range(PARTITIONS))
                )
                scanned.append(appended / (time.perf_counter() - began) / 1e6)
    gib = appended / GIB
    ordered = sorted(scanned)[len(scanned) // 2], sorted(raw)[len(raw) // 2]
    return [
        Measure(f"merging {appended >> 20} MiB in segments of 4 MiB, on a directory", merged / seconds / 1e6, "MB/s"),
        Measure("merging ÷ appended bytes, really written", sum(objects.values()) / appended, "", aim="≤ 2"),
        Measure("objects per GiB, really left", len(objects) / gib, "", aim="≤ 16"),
        Measure("rows per GiB, really left", len(rows) / gib, "", aim="≤ 16"),
        Measure("cold scan of 4 merged partitions, S3-like", ordered[0], "MB/s", ordered[1], "ranged GETs of 1 MiB, 8 at once", "≥ 0.8"),
    ]  # fmt: skip


async def _narrow(folder: Path) -> list[Measure]:
    """The first step for many slow partitions: their bytes lie in the same objects, which are read once for all of them."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        metadata = await open_sqlite(IN_MEMORY, clock=clock, executor=ThreadExecutor("sqlite", threads=1))
        stack.push_async_callback(metadata.close)
        bucket = open_directory(folder, clock=clock, chance=random.Random(1), executor=ThreadExecutor("files", threads=8))
        stack.push_async_callback(bucket.close)
        batches = encode_many([bytes(1000)] * 2)
        async with _living(metadata, bucket, "writer", merging=False, puts_per_second=1000) as writer:
            await writer.create_topic("slow", partitions=NARROW, config=TopicConfig())
            while len(writer.life.ledger.led() if writer.life else {}) < NARROW:
                await asyncio.sleep(0.01)
            for _ in range(FLUSHES):
                await asyncio.gather(*(writer.append(AppendRequest("slow", p, batches)) for p in range(NARROW)))
        objects = len([found async for found in bucket.list("intake/")])
        rows = len(await metadata.run(_rows))
        metrics = Metrics()
        counted = MeteredObjectStore(bucket, metrics=metrics, clock=clock)
        cpu = time.process_time()
        async with _living(metadata, counted, "merger", merge_max_age_ms=1, merge_bytes_per_second=1 << 40):
            while any(row.level == 0 for row in await metadata.run(_rows)):
                await asyncio.sleep(0.2)
        cpu = time.process_time() - cpu
        gets = metrics.store_calls["get"]["done"]._value.get()
    return [
        Measure(
            f"GETs for each object of {NARROW} slow partitions that is merged away", gets / objects, "", rows / objects, "extents in it"
        ),
        Measure("CPU for each small extent that is merged away", cpu / rows * 1e6, "µs"),
    ]


def _rows(tx: object) -> list[Extent]:
    columns = ", ".join(Extent.__dataclass_fields__)
    return [Extent(*row) for row in tx.rows(f"SELECT {columns} FROM extents ORDER BY partition_id, base_offset")]  # type: ignore[attr-defined]


async def _raw(bucket: ObjectStore, objects: dict[str, int]) -> None:
    """Get the same bytes, as many at once as a broker does."""
    eight = asyncio.Semaphore(8)

    async def get(key: str, position: int) -> None:
        async with eight:
            await bucket.get_range(key, position, MIB)

    await asyncio.gather(*(get(key, position) for key, size in objects.items() for position in range(0, size, MIB)))


async def _scan(reader: Broker, partition: int, end: int) -> None:
    async with reader.follow("clicks", partition) as cursor:
        await _to_the_end(cursor, end)


async def _to_the_end(cursor: PartitionCursor, end: int) -> None:
    offset = 0
    while offset < end:
        offset = (await cursor.read(offset, max_bytes=256 * 1024)).next_offset


# ---- appends beside it


def _appends(folder: Path, rounds: int) -> list[Measure]:
    """What merging does to the latency of appends: the same backlog is there with it and without it."""
    folder.mkdir()
    alone: list[float] = []
    beside: list[float] = []
    busy = {"merge-max-age-ms": 1, "merge-bytes-per-second": 32 * MIB}
    with (
        broker(
            folder / "without", bucket=f"file://{folder}/without/objects?latency=s3", **{"broker-id": "without", "merging": False}
        ) as one,
        broker(folder / "with", bucket=f"file://{folder}/with/objects?latency=s3", **{"broker-id": "with", **busy}) as other,
    ):
        merged = asyncio.run(_rounds(one, other, rounds, alone, beside))
    least, most = quantile(alone, 99), quantile(beside, 99)
    return [
        Measure("append p99, S3-like, while merging runs", most, "ms", least, "no merging"),
        Measure("append p99 while merging runs ÷ without", most / least, "", aim="≤ 1.3"),
        Measure("which merged", merged / rounds / SECONDS / 1e6, "MB/s"),
    ]


async def _rounds(one: Running, other: Running, rounds: int, alone: list[float], beside: list[float]) -> float:
    """Measure both by turns; return how many bytes the other merged meanwhile."""
    merged = 0.0
    for _ in range(rounds):
        alone += await _beside_backlog(one)
        before = other.metrics()
        beside += await _beside_backlog(other)
        merged += growth(before, other.metrics(), "tidelog_merged_bytes_total")
    return merged


async def _beside_backlog(running: Running) -> list[float]:
    values: Sequence[bytes] = [b"x" * 1000] * (BACKLOG_BYTES // PARTITIONS // 1000)
    async with tidelog.connect(running.address) as log:
        if "backlog" not in await log.admin.list_topics():
            await log.admin.create_topic("backlog", partitions=PARTITIONS)
        async with log.producer() as producer:
            for partition in range(PARTITIONS):
                await producer.send_many("backlog", values, partition=partition)
        return await senders(log, seconds=SECONDS)
