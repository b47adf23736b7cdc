"""kill -9 and power cuts, again and again: whatever was acknowledged is there and whole."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tidelog.broker.broker import Broker
from tidelog.clock import SystemClock
from tidelog.errors import TidelogError
from tidelog.executors import ThreadExecutor
from tidelog.metadata.store import Transaction
from tidelog.objects.local import open_directory
from tidelog.randomness import system_random
from tidelog.records.batch import scan
from tidelog.records.codec import decode_values
from tidelog.segments.format import decode

from tests.e2e import power
from tests.e2e.crash_worker import PARTITIONS, PLANTED, TOPIC, open_broker, started
from tests.sim.scenario import look

KILLS = 100
SEED = 20


CUTS = 30
CUTS_TO_SHOW_A_BUG = 10


@pytest.mark.timeout(400)
def test_every_acknowledged_append_outlives_a_hundred_kills(tmp_path: Path) -> None:
    acknowledged = killed(tmp_path, times=KILLS, seed=SEED)
    assert len({life for _, _, life, _, _ in acknowledged}) > KILLS // 4, "most lives were long enough to append"
    assert lost(acknowledged, asyncio.run(everything(tmp_path))) == []


@pytest.mark.timeout(400)
def test_every_acknowledged_append_outlives_thirty_power_cuts(tmp_path: Path) -> None:
    disk, memory, chance = tmp_path / "disk", tmp_path / "memory", random.Random(SEED)
    acknowledged = struck(disk, memory, chance, times=CUTS, seed=SEED)
    assert len({life for _, _, life, _, _ in acknowledged}) > CUTS // 4, "most lives were long enough to append"
    assert lost(acknowledged, asyncio.run(everything(disk))) == []


@pytest.mark.timeout(400)
@pytest.mark.parametrize("planted", PLANTED)
def test_a_power_cut_shows_a_sync_that_is_missing(tmp_path: Path, planted: str) -> None:
    """Else the test above would prove nothing."""
    chance = random.Random(SEED)
    shown = []
    for number in range(CUTS_TO_SHOW_A_BUG):
        disk, memory = tmp_path / f"disk-{number}", tmp_path / f"memory-{number}"
        acknowledged = struck(disk, memory, chance, times=1, seed=number, planted=planted)
        try:
            shown += lost(acknowledged, asyncio.run(everything(disk)))
        except (TidelogError, ExceptionGroup, AssertionError) as error:  # what was left is not even sound
            shown.append(error)
        if shown:
            return
    pytest.fail(f"{CUTS_TO_SHOW_A_BUG} power cuts did not show it")


Acknowledged = tuple[int, int, int, int, int]
"""Partition, base offset, life, number, count."""


def lost(acknowledged: list[Acknowledged], values: list[list[bytes | None]]) -> list[object]:
    """Return the acknowledged appends that are not where they were said to be, and what is there twice."""
    wrong: list[object] = []
    for partition, base_offset, life, number, count in acknowledged:
        found = values[partition][base_offset : base_offset + count]
        if [value and value.rpartition(b"/")[0] for value in found] != [b"%d/%d/%d" % (life, number, index) for index in range(count)]:
            wrong.append((partition, base_offset, life, number, count))
    return wrong + [("twice", value) for column in values for value, count in Counter(column).items() if count > 1]


def struck(disk: Path, memory: Path, chance: random.Random, *, times: int, seed: int, planted: str = "") -> list[Acknowledged]:
    """Let a broker's disk lose its power again and again; return what was acknowledged."""
    disk.mkdir()
    power.begin(disk, memory)

    def cut() -> None:
        power.cut(disk, memory, chance, survives=chance.choice((0, 0.5)))

    return killed(disk, str(memory), planted, times=times, seed=seed, after=cut)


def killed(folder: Path, *arguments: str, times: int, seed: int, after: Callable[[], None] = lambda: None) -> list[Acknowledged]:
    """Kill a broker so many times at drawn moments, and do something after each; return what was acknowledged."""
    chance = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.e2e.crash_worker", str(folder), *arguments]
    acknowledged = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            for _ in range(times):
                # At any moment: while it starts, or shortly after so many appends; however fast the machine is.
                left = chance.randrange(1, 100) if times == 1 else chance.choice((0, chance.randrange(1, 100)))
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
                after()
        finally:
            worker.stdin.close()
            worker.wait(timeout=30)
    return acknowledged


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


async def everything(folder: Path) -> list[list[bytes | None]]:
    """Read all partitions through a new broker; and check every row, and every byte of every object that a row names."""
    broker = await open_broker(folder)
    try:
        running = await started(broker)
        assert await broker._store.run(look) == []
        await check_objects(folder, await broker._store.run(named))
        values = [await read(broker, partition) for partition in range(PARTITIONS)]
        running.cancel()
        await asyncio.wait([running])
        return values
    finally:
        await broker._store.close()


async def read(broker: Broker, partition: int) -> list[bytes | None]:
    values: list[bytes | None] = []
    async with broker.follow(TOPIC, partition) as cursor:
        while True:
            run = await cursor.read(len(values), max_bytes=1 << 20)
            if not run.batches:
                return values
            assert run.base_offset == len(values)
            view = memoryview(run.batches)
            for header in scan(run.batches):
                values += decode_values(view[header.position : header.position + header.size])


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
