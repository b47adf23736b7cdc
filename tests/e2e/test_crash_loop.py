"""kill -9, again and again: whatever was acknowledged is there and whole."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tidelog.clock import SystemClock
from tidelog.executors import ThreadExecutor
from tidelog.metadata.store import Transaction
from tidelog.objects.local import open_directory
from tidelog.randomness import system_random
from tidelog.records.batch import scan
from tidelog.records.codec import decode_values
from tidelog.segments.format import decode

from tests.e2e.crash_worker import PARTITIONS, TOPIC, open_broker
from tests.sim.scenario import look

KILLS = 100
SEED = 20


@pytest.mark.timeout(400)
def test_every_acknowledged_append_outlives_a_hundred_kills(tmp_path: Path) -> None:
    acknowledged = killed(tmp_path)
    assert len({life for _, _, life, _, _ in acknowledged}) > KILLS // 4, "most lives were long enough to append"
    values = asyncio.run(everything(tmp_path))
    for partition, base_offset, life, number, count in acknowledged:
        found = values[partition][base_offset : base_offset + count]
        assert [value and value.rpartition(b"/")[0] for value in found] == [b"%d/%d/%d" % (life, number, index) for index in range(count)]
    assert all(len(set(column)) == len(column) for column in values), "nothing twice"


def killed(folder: Path) -> list[tuple[int, int, int, int, int]]:
    """Kill a broker a hundred times at drawn moments; return what was acknowledged: (partition, base offset, life, number, count)."""
    chance = random.Random(SEED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.e2e.crash_worker", str(folder)]
    acknowledged = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            for _ in range(KILLS):
                # At any moment: while it starts, or shortly after so many appends; however fast the machine is.
                left = chance.choice((0, chance.randrange(1, 100)))
                worker.stdin.write("\n")
                worker.stdin.flush()
                for line in worker.stdout:
                    word, *numbers = line.split()
                    if word == "ended":
                        assert int(numbers[0]) == -signal.SIGKILL, "no life ends by itself"
                        break
                    if word == "began":
                        child = int(numbers[0])
                    else:
                        partition, base_offset, life, number, count = map(int, numbers)
                        acknowledged.append((partition, base_offset, life, number, count))
                        left -= 1
                    if left == 0:
                        left = -1
                        threading.Timer(chance.uniform(0, 0.3 if word == "began" else 0.01), kill, [child]).start()
        finally:
            worker.stdin.close()
            worker.wait(timeout=30)
    return acknowledged


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


async def everything(folder: Path) -> list[list[bytes | None]]:
    """Read all partitions through a new broker; and check every row, and every byte of every object that a row names."""
    broker = await open_broker(folder)
    await broker.start()
    running = asyncio.ensure_future(broker.run(address="here:1", peer_address="here:2"))
    while broker.ready() is not None:
        await asyncio.wait([running], timeout=0.01)
    assert await broker._store.run(look) == []
    await check_objects(folder, await broker._store.run(named))
    values: list[list[bytes | None]] = []
    for partition in range(PARTITIONS):
        found: list[bytes | None] = []
        async with broker.follow(TOPIC, partition) as cursor:
            while True:
                run = await cursor.read(len(found), max_bytes=1 << 20)
                if not run.batches:
                    break
                assert run.base_offset == len(found)
                view = memoryview(run.batches)
                for header in scan(run.batches):
                    found += decode_values(view[header.position : header.position + header.size])
        values.append(found)
    running.cancel()
    await asyncio.wait([running])
    await broker._store.close()
    return values


def named(tx: Transaction) -> set[str]:
    """The ends of the keys of all segments that rows name."""
    return {f"{row.broker_epoch:010}/{row.sequence:020}" for row in tx.rows("SELECT DISTINCT broker_epoch, sequence FROM extents")}


async def check_objects(folder: Path, wanted: set[str]) -> None:
    bucket = open_directory(folder / "objects", clock=SystemClock(), chance=system_random(), executor=ThreadExecutor("files", threads=1))
    found = {}
    async for each in bucket.list("intake/"):
        found[each.key.partition("one/")[2].rpartition("-")[0]] = each
    assert wanted <= found.keys()
    for name in wanted:
        decode(await bucket.get_range(found[name].key, 0, found[name].size))
    await bucket.close()
