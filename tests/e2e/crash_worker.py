"""A process that forks broker processes, each to be killed: for every line on its standard input one more.

Everything is imported before the first fork, so that a broker begins within milliseconds. Each child runs a real broker on
a directory and SQLite, appends without a pause, and reports an append only once it is acknowledged. With a second argument
it runs on a disk that may lose its power (`tests.e2e.power`); a third one plants a bug.
"""

import asyncio
import os
import random
import sqlite3
import stat
import sys
from pathlib import Path

from tidelog.broker.broker import Broker
from tidelog.broker.requests import AppendRequest
from tidelog.clock import Clock, SystemClock
from tidelog.config import Settings
from tidelog.executors import ThreadExecutor
from tidelog.metadata import sqlite
from tidelog.metadata.sqlite import open_sqlite
from tidelog.metrics import Metrics
from tidelog.objects.local import open_directory
from tidelog.randomness import system_random
from tidelog.records.codec import encode_many

from tests.cluster import Network
from tests.e2e import power

TOPIC = "crashes"
PARTITIONS = 3
MISSING = {"no file is synced": stat.S_ISREG, "no folder is synced": stat.S_ISDIR}
SETTINGS = ("synchronous = OFF", "synchronous = NORMAL")
PLANTED = (*MISSING, *SETTINGS)
"""Bugs that only a power cut shows."""


async def open_broker(folder: Path, *, threads: int = 2) -> Broker:
    """Return a broker on what the folder holds, not yet running."""
    clock, chance = SystemClock(), system_random()
    return Broker(
        store=await open_sqlite(folder / "metadata.db", clock=clock, executor=ThreadExecutor("sqlite", threads=1)),
        bucket=open_directory(folder / "objects", clock=clock, chance=chance, executor=ThreadExecutor("files", threads=threads)),
        peers=Network().port("one"),
        settings=Settings(auto_create_topics=True, default_partitions=PARTITIONS, max_latency_ms=5),
        clock=clock,
        chance=chance,
        executor=ThreadExecutor("server", threads=1),
        metrics=Metrics(),
        broker_id="one",
    )


async def started(broker: Broker) -> "asyncio.Future[None]":
    """Run a broker until it takes appends; return the rest of its life."""
    await broker.start()
    running = asyncio.ensure_future(broker.run(address="here:1", peer_address="here:2"))
    while broker.ready() is not None:
        await asyncio.wait([running], timeout=0.002)
        if running.done():
            await running
    return running


async def append_for_ever(folder: Path, life: int) -> None:
    broker = await open_broker(folder)
    running = await started(broker)
    await broker.ensure_topic(TOPIC)
    await asyncio.gather(running, *(append_to(broker, life, partition) for partition in range(PARTITIONS)))


async def append_to(broker: Broker, life: int, partition: int) -> None:
    chance = random.Random(life * 10 + partition)
    number = 0
    while True:
        values = [b"%d/%d/%d/%s" % (life, number, index, bytes(chance.randrange(300))) for index in range(chance.randrange(1, 20))]
        appended = await broker.append(AppendRequest(TOPIC, partition, encode_many(values)))
        assert appended.next_offset - appended.base_offset == len(values)
        os.write(1, b"ack %d %d %d %d %d\n" % (partition, appended.base_offset, life, number, len(values)))
        number += 1


def weaken(setting: str) -> None:
    """Have the metadata store be less careful than it believes."""
    connect = sqlite._connect

    def connected(path: str, clock: Clock) -> sqlite3.Connection:
        connection = connect(path, clock)
        connection.execute(f"PRAGMA {setting}")
        return connection

    sqlite._connect = connected


def live(folder: Path, life: int, memory: Path | None, planted: str) -> None:
    if memory is not None:
        power.watch(folder, memory, missing=MISSING.get(planted, power.nothing_missing))
    if planted in SETTINGS:
        weaken(planted)
    asyncio.run(append_for_ever(folder, life))


def main() -> None:
    folder, *more = map(Path, sys.argv[1:3])
    planted = sys.argv[3] if len(sys.argv) > 3 else ""
    for life, _ in enumerate(sys.stdin):
        child = os.fork()
        if child == 0:
            live(folder, life, more[0] if more else None, planted)
            os._exit(0)
        os.write(1, b"began %d\n" % child)
        _, status = os.waitpid(child, 0)
        os.write(1, b"ended %d\n" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
