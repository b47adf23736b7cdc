"""Commits, with producer rows, on both databases: one leader, one commit at a time.

Beside each figure stands what no code of ours could go below in the same run: of commits per second, how often this disk
syncs; of time and CPU, the very same statements on the bare driver. SQLite runs in this process: what its bare driver takes is
not the client's.
"""

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import event
from tidelog.clock import SystemClock
from tidelog.executors import ThreadExecutor
from tidelog.metadata.commits import Committed, NewExtent, Outcome, PartitionCommit, commit
from tidelog.metadata.leadership import LedPartition, ProducerWindow, take_over
from tidelog.metadata.membership import initialise, membership, register
from tidelog.metadata.postgres import PostgresSettings, open_postgres
from tidelog.metadata.sqlite import open_sqlite
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metadata.topics import TopicConfig, create_topic, partitions

from benchmarks.measure import Measure, seconds, wall_and_cpu
from benchmarks.running import postgres

Recorded = list[list[tuple[str, Any]]]
"""Of each transaction its statements with their parameters, as the driver got them."""


@dataclass(frozen=True, slots=True)
class Load:
    """What each commit of a figure is."""

    partitions: int
    extents: int
    """That each partition has already."""
    times: int

    def __str__(self) -> str:
        return f"{self.partitions} partitions" + (f" of {self.extents} extents" if self.extents else "")


def run(repeats: int) -> list[Measure]:
    folder = Path(tempfile.mkdtemp(prefix="tidelog-bench-"))
    try:
        with postgres(folder / "pg"):
            return asyncio.run(_run(folder, repeats))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, repeats: int) -> list[Measure]:
    sync_s = _sync_seconds(folder, repeats * 20)
    found = [Measure("this disk: 8 KiB appended and synced", 1 / sync_s, "syncs/s")]
    loads = [Load(1, 0, repeats * 60), Load(100, 0, repeats * 4), Load(1000, 0, repeats * 4), Load(1000, 200, repeats * 4)]
    for name in ("SQLite", "PostgreSQL"):
        for number, load in enumerate(loads):
            places = [str(folder / f"{number}-{copy}.db") if name == "SQLite" else await _database(folder, number, copy) for copy in "ab"]
            found += await _figures(name, load, places, sync_s)
    return found


async def _figures(name: str, load: Load, places: list[str], sync_s: float) -> list[Measure]:
    recorded: Recorded = []
    wall = cpu = 0.0
    for place in places:  # the second for the bare driver, which finds it as the first was found
        store = await _open(name, place)
        epoch, led = await _prepare(store, load)
        if not recorded:
            wall, cpu = await wall_and_cpu(_committing(store, load, epoch, led, recorded), load.times)
        await store.close()
    bare, bare_cpu = await (_bare_sqlite if name == "SQLite" else _bare_postgres)(places[1], recorded, load.times)
    rate_aim = {"SQLite": "≥ 500", "PostgreSQL": "≥ 300"}[name] if load.partitions == 1 else ""
    time_aim, cpu_aim = ("≤ 50", "≤ 15") if load.partitions == 1000 else ("", "")
    figures = [
        Measure(f"{name}, {load}", 1 / wall, "commits/s", 1 / sync_s, "syncs/s", aim=rate_aim),
        Measure(f"{name}, {load}: p50", wall * 1000, "ms", bare * 1000, "bare driver", aim=time_aim),
    ]
    if name == "SQLite":
        client = Measure(f"{name}, {load}: client CPU, less the bare driver's", (cpu - bare_cpu) * 1000, "ms", aim=cpu_aim)
        return [*figures, client, Measure(f"{name}, {load}: CPU of the bare driver", bare_cpu * 1000, "ms")]
    return [*figures, Measure(f"{name}, {load}: client CPU", cpu * 1000, "ms", bare_cpu * 1000, "bare driver", aim=cpu_aim)]


# ---- through the store


async def _open(name: str, place: str) -> MetadataStore:
    if name == "SQLite":
        return await open_sqlite(place, clock=SystemClock(), executor=ThreadExecutor("sqlite", threads=1))
    return await open_postgres(PostgresSettings(place, lease_ttl_ms=60_000))


async def _prepare(store: MetadataStore, load: Load) -> tuple[int, list[LedPartition]]:
    await store.run(initialise, cluster_id="c" * 32, format_version=1)
    epoch = (await store.run(register, broker_id="b", incarnation="i", zone="", address="", peer_address="", ttl_ms=3_600_000)).broker_epoch
    await store.run(create_topic, topic_id="a" * 32, name="t", partitions=load.partitions, config=TopicConfig())
    await store.run(_fill, load.extents)
    ids = [row.partition_id for row in await store.run(partitions, topic_id="a" * 32)]
    version = (await store.run(membership)).version
    return epoch, list(await store.run(take_over, broker_epoch=epoch, membership_version=version, partition_ids=ids))


def _fill(tx: Transaction, extents: int) -> None:
    """Give each partition so many extents of ten records, one of each segment, in the order in which commits would."""
    tx.execute(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :extents) INSERT INTO extents (partition_id,"
        " base_offset, next_offset, broker_epoch, sequence, position, length, record_count, level, max_timestamp_ms, commit_time_ms,"
        " leader_epoch) SELECT p.partition_id, 10 * n.i, 10 * n.i + 10, 1, n.i, 100 * p.partition_id, 100, 10, 0, 1, 1, 1"
        " FROM n CROSS JOIN partitions p WHERE n.i < :extents ORDER BY n.i, p.partition_id",
        extents=extents,
    )
    tx.execute("UPDATE partitions SET next_offset = :end", end=10 * extents)


def _committing(
    store: MetadataStore, load: Load, epoch: int, led: list[LedPartition], recorded: Recorded
) -> Callable[[], Awaitable[object]]:
    at, sequence = 10 * load.extents, load.extents

    def recording(tx: Transaction, proposals: list[PartitionCommit]) -> dict[int, Outcome]:
        statements: list[tuple[str, Any]] = []
        recorded.append(statements)

        def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
            statements.append((statement, parameters))

        if tx.dialect == "sqlite":

            def run(sql: str, values: dict[str, object]) -> Sequence[Any]:
                statements.append((sql, values))
                return tx.run(sql, values)

            return commit(Transaction(tx.connection, run, dialect="sqlite"), broker_epoch=epoch, partitions=proposals)
        event.listen(tx.connection, "before_cursor_execute", note)
        try:
            return commit(tx, broker_epoch=epoch, partitions=proposals)
        finally:
            event.remove(tx.connection, "before_cursor_execute", note)

    async def once() -> None:
        nonlocal at, sequence
        sequence += 1  # the figures include making the proposals
        window = tuple((at + 10 * n, at + 10 * n + 9, at + 10 * n) for n in range(5))
        proposals = [
            PartitionCommit(
                p.partition_id,
                p.leader_epoch,
                at,
                (NewExtent(epoch, sequence, 8 + 100 * n, 100, 10, at),),
                (ProducerWindow(n, 0, window),),
            )
            for n, p in enumerate(led)
        ]
        outcomes = await store.run(recording, proposals)
        at += 10
        assert set(outcomes.values()) == {Committed(at)}

    return once


# ---- floors


def _sync_seconds(folder: Path, times: int) -> float:
    """Median time of appending 8 KiB to a file, as a log does, and syncing it."""
    file = os.open(folder / "sync", os.O_WRONLY | os.O_CREAT)
    try:

        def append() -> None:
            os.write(file, b"x" * 8192)
            os.fdatasync(file)

        return seconds(append, times)
    finally:
        os.close(file)


async def _bare_sqlite(path: str, recorded: Recorded, times: int) -> tuple[float, float]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.create_function("tidelog_now_ms", 0, SystemClock().wall_ms)
    connection.execute("PRAGMA synchronous = FULL")
    transactions = iter(recorded)

    async def replay() -> None:
        connection.execute("BEGIN IMMEDIATE")
        for statement, parameters in next(transactions):
            connection.execute(statement, parameters).fetchall()
        connection.execute("COMMIT")

    try:
        return await wall_and_cpu(replay, times)
    finally:
        connection.close()


async def _bare_postgres(url: str, recorded: Recorded, times: int) -> tuple[float, float]:
    connection = await asyncpg.connect(url)
    prepared = {statement: await connection.prepare(statement) for statement, _ in recorded[0]}
    transactions = iter(recorded)

    async def replay() -> None:
        await connection.execute("BEGIN")
        for statement, parameters in next(transactions):
            await prepared[statement].fetch(*parameters)
        await connection.execute("COMMIT")

    try:
        return await wall_and_cpu(replay, times)
    finally:
        await connection.close()


async def _database(folder: Path, number: int, copy: str) -> str:
    """Make a database of the server; return its URL."""
    connection = await asyncpg.connect(f"postgresql://postgres@/postgres?host={folder / 'pg'}")
    await connection.execute(f"CREATE DATABASE bench_{number}_{copy}")
    await connection.close()
    return f"postgresql://postgres@/bench_{number}_{copy}?host={folder / 'pg'}"
