"""Whether deletion keeps up with intake, and what it costs those who append, on both databases.

One broker takes an append to each of 100 partitions 25 times a second, on a bucket as slow as S3, and keeps seconds of it. The rest has
to go as fast as it comes: extents, their segments' rows, and objects. Beside appends' p99 stands that of the same load, in the same run,
with retention and cleaning switched off; the two take turns.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import asyncpg
from tidelog.broker.broker import Broker
from tidelog.broker.references import AnswerReceiver, FeedLink, FeedReceiver, ReferenceLink
from tidelog.broker.requests import AppendRequest
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.executors import ThreadExecutor
from tidelog.metadata.membership import Broker as Member
from tidelog.metadata.postgres import PostgresSettings, open_postgres
from tidelog.metadata.sqlite import open_sqlite
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig
from tidelog.metrics import Metrics
from tidelog.objects.latency import SlowStore
from tidelog.objects.memory import MemoryStore
from tidelog.records.codec import encode_many

from benchmarks.measure import Measure
from benchmarks.running import postgres

PARTITIONS = 100
FLUSHES = 25
"""A second, as they are asked for; some are done together."""
SECONDS = 40
SETTLED_S = 15
"""What is kept has come together by then, and what goes goes."""
KEPT_S = 3
VALUE = b"v" * 100


class Nobody:
    """The port to other brokers, where there are none."""

    def references(self, broker: Member, receiver: AnswerReceiver) -> ReferenceLink:
        raise AssertionError(f"{broker} was called, and {receiver} would hear")

    def feed(self, broker: Member, receiver: FeedReceiver) -> FeedLink:
        raise AssertionError(f"{broker} was called, and {receiver} would hear")

    def nudge(self, broker: Member) -> None:
        raise AssertionError(f"{broker} was called")


@dataclass
class Run:
    """What one run came to, once it had settled."""

    p99_ms: float = 0.0
    flushes_per_s: float = 0.0
    created: int = 0
    deleted: int = 0
    rows: list[int] = field(default_factory=list)
    """Of extents and of what was released, once a second."""
    objects: list[int] = field(default_factory=list)


def run(repeats: int) -> list[Measure]:
    folder = Path(tempfile.mkdtemp(prefix="tidelog-bench-"))
    try:
        with postgres(folder / "pg"):
            return asyncio.run(_run(folder, max(1, repeats // 4)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, turns: int) -> list[Measure]:
    found: list[Measure] = []
    for name in ("SQLite", "PostgreSQL"):
        without: list[Run] = []
        cleaning: list[Run] = []
        for turn in range(turns):
            for runs, on in ((without, False), (cleaning, True)):
                runs.append(await _load(name, folder, f"{turn}_{int(on)}", on=on))
        last = cleaning[-1]
        half = len(last.rows) // 2
        created, deleted = (sum(getattr(each, what) for each in cleaning) for what in ("created", "deleted"))
        found += [
            Measure(f"{name}: flushes of {PARTITIONS} partitions", median(each.flushes_per_s for each in cleaning), "1/s", aim="≥ 20"),
            Measure(f"{name}: objects deleted", deleted, "", created, "created", aim="≥ 0.95"),
            Measure(f"{name}: rows, second half", max(last.rows[half:]), "", max(last.rows[:half]), "first half", aim="≤ 1.1"),
            Measure(f"{name}: objects, second half", max(last.objects[half:]), "", max(last.objects[:half]), "first half", aim="≤ 1.1"),
            Measure(
                f"{name}: append p99",
                median(each.p99_ms for each in cleaning),
                "ms",
                median(each.p99_ms for each in without),
                "without",
                aim="≤ 1.3",
            ),
        ]
    return found


async def _load(name: str, folder: Path, place: str, *, on: bool) -> Run:
    found = Run()
    settings = Settings(
        retention=on,
        cleaning=on,
        merging=False,
        checkpoint_interval_ms=0,
        retention_interval_ms=500,
        cleaner_interval_ms=500,
        reader_grace_ms=1000,
        max_latency_ms=30,
        puts_per_second=2 * FLUSHES,
        max_uploads=16,
    )
    memory, metrics = MemoryStore(clock=SystemClock()), Metrics()
    async with _opened(name, folder, place) as store:
        broker = Broker(
            store=store, bucket=SlowStore(memory, chance=random.Random(1)), peers=Nobody(), settings=settings, clock=SystemClock(),
            chance=random.Random(2), executor=ThreadExecutor("broker", threads=2), metrics=metrics, broker_id="bench",
        )  # fmt: skip
        await broker.start()
        life = asyncio.create_task(broker.run(address="b:1", peer_address="b:2"))
        while broker.ready() is not None:
            await asyncio.sleep(0.01)
        keep_bytes = KEPT_S * FLUSHES * len(encode_many([VALUE]))
        await broker.create_topic("t", partitions=PARTITIONS, config=TopicConfig(-1, keep_bytes))
        try:
            await _append(broker, metrics, store, memory, found)
        finally:
            life.cancel()
            with suppress(asyncio.CancelledError):
                await life
    return found


async def _append(broker: Broker, metrics: Metrics, store: MetadataStore, memory: MemoryStore, found: Run) -> None:
    """Append in the pace of the flushes, and look once a second at what there is."""
    batch = encode_many([VALUE])
    waits: list[float] = []
    pending: set[asyncio.Future[object]] = set()
    began = time.perf_counter()
    base = (0, 0)

    def counts() -> tuple[int, int]:
        return int(metrics.uploads["done"]._value.get()), int(metrics.objects_deleted["released"]._value.get())

    for tick in range(SECONDS * FLUSHES):
        sent = time.perf_counter()
        for partition in range(PARTITIONS):
            answer: asyncio.Future[object] = asyncio.ensure_future(broker.append(AppendRequest("t", partition, batch)))
            pending.add(answer)
            answer.add_done_callback(pending.discard)
            if tick >= SETTLED_S * FLUSHES:
                answer.add_done_callback(lambda _, sent=sent: waits.append(time.perf_counter() - sent))  # type: ignore[misc]
        if tick == SETTLED_S * FLUSHES:
            base = counts()
        if tick >= SETTLED_S * FLUSHES and tick % FLUSHES == 0:
            found.rows.append(await _rows(store))
            found.objects.append(sum([1 async for _ in memory.list("intake/")]))
        await asyncio.sleep(max(0.0, began + (tick + 1) / FLUSHES - time.perf_counter()))
    lasted_s = time.perf_counter() - began - SETTLED_S
    found.created, found.deleted = (now - before for now, before in zip(counts(), base, strict=True))
    found.flushes_per_s = found.created / lasted_s
    if pending:
        await asyncio.wait(pending)
    found.p99_ms = quantiles(waits, n=100)[98] * 1000


async def _rows(store: MetadataStore) -> int:
    tables = ("extents", "released_extents", "released_segments")
    counts = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    [row] = await store.run(lambda tx: tx.rows(f"SELECT {counts} AS rows"))
    total: int = row.rows
    return total


@asynccontextmanager
async def _opened(name: str, folder: Path, place: str) -> AsyncIterator[MetadataStore]:
    store: MetadataStore
    if name == "SQLite":
        store = await open_sqlite(folder / f"{place}.db", clock=SystemClock(), executor=ThreadExecutor("sqlite", threads=1))
    else:
        connection = await asyncpg.connect(f"postgresql://postgres@/postgres?host={folder / 'pg'}")
        await connection.execute(f'CREATE DATABASE "cleaning_{place}"')
        await connection.close()
        store = await open_postgres(PostgresSettings(f"postgresql://postgres@/cleaning_{place}?host={folder / 'pg'}", lease_ttl_ms=10_000))
    try:
        yield store
    finally:
        await store.close()
