"""A process that forks broker processes, each to be killed: for every line on its standard input one more.

Everything is imported before the first fork, so that a broker begins within milliseconds. Each child runs a real broker on
a directory and SQLite, appends without a pause, and reports an append only once it is acknowledged.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from tidelog.broker.broker import Broker
from tidelog.broker.requests import AppendRequest
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.executors import ThreadExecutor
from tidelog.metadata.sqlite import open_sqlite
from tidelog.metrics import Metrics
from tidelog.objects.local import open_directory
from tidelog.randomness import system_random
from tidelog.records.codec import encode_many

from tests.cluster import Network

TOPIC = "crashes"
PARTITIONS = 3


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


async def append_for_ever(folder: Path, life: int) -> None:
    broker = await open_broker(folder)
    await broker.start()
    running = asyncio.ensure_future(broker.run(address="here:1", peer_address="here:2"))
    while broker.ready() is not None:
        await asyncio.wait([running], timeout=0.002)
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


def main() -> None:
    folder = Path(sys.argv[1])
    for life, _ in enumerate(sys.stdin):
        child = os.fork()
        if child == 0:
            asyncio.run(append_for_ever(folder, life))
            os._exit(0)
        os.write(1, b"began %d\n" % child)
        _, status = os.waitpid(child, 0)
        os.write(1, b"ended %d\n" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
