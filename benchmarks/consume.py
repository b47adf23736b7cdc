"""One consumer process and one broker process, on a directory and SQLite, beside bare gRPC streams of equal messages.

From the tail: what was produced just now, and lies in the broker's memory; or is being produced by another process. Cold:
from a broker that was started anew, more than its caches hold; the files may still lie in the system's memory.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import psutil
import tidelog

from benchmarks.measure import Measure
from benchmarks.running import broker
from benchmarks.transport import pull_bare, serving

RECORD_BYTES = 100
TAIL_COUNT, COLD_COUNT, FOLLOWED_COUNT = 350_000, 1_500_000, 2_000_000
AT_ONCE = 50_000
MESSAGE_BYTES = 256 * 1024
AIMS = {"lists": "≥ 2,000,000", "buffers": "≥ 3,000,000"}
FLOOR = "bare grpc.aio, equal messages"


class Run(NamedTuple):
    """Records per second, and CPU seconds per million records."""

    rate: float
    consumer: float
    broker: float


def run(repeats: int) -> list[Measure]:
    repeats = min(repeats, 7)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TIDELOG_BENCH_DIR")) as name, serving() as (_, bare):
        folder = Path(name)
        bucket = f"file://{folder / 'objects'}"
        with broker(folder / "broker", bucket=bucket) as running:
            found = asyncio.run(_tail(running.address, running.process, bare, repeats))
        with broker(folder / "broker", bucket=bucket) as running:
            return found + asyncio.run(_cold(running.address, running.process, bare, repeats))


async def _tail(server: str, process: psutil.Process, bare: str, repeats: int) -> list[Measure]:
    runs: dict[str, list[Run]] = defaultdict(list)
    floors = []
    async with tidelog.connect(server) as log:
        await _produce(log, "cold", COLD_COUNT)
        for number in range(repeats + 1):
            floors.append(await _floor(bare, TAIL_COUNT))
            for form in AIMS:
                topic = f"tail-{form}-{number}"
                await _produce(log, topic, TAIL_COUNT)
                runs[form].append(await _consume(log, topic, TAIL_COUNT, form, process))
        return [*_measures("tail", runs, floors), await _followed(log, server, process)]


async def _cold(server: str, process: psutil.Process, bare: str, repeats: int) -> list[Measure]:
    runs: dict[str, list[Run]] = defaultdict(list)
    floors = []
    async with tidelog.connect(server) as log:
        for _ in range(repeats + 1):
            floors.append(await _floor(bare, COLD_COUNT))
            for form in AIMS:
                runs[form].append(await _consume(log, "cold", COLD_COUNT, form, process))
    return _measures("cold", runs, floors)


def _measures(name: str, runs: dict[str, list[Run]], floors: list[float]) -> list[Measure]:
    """Medians of all but the first turn, which warms up."""
    floor = statistics.median(floors[1:])
    found = []
    for form, these in runs.items():
        rate, consumer, server = (statistics.median(column) for column in zip(*these[1:], strict=True))
        found += [
            Measure(f"{name}, {form}", rate, "records/s", floor, FLOOR, AIMS[form]),
            Measure(f"{name}, {form}: CPU of the consumer", consumer, "s per million"),
            Measure(f"{name}, {form}: CPU of the broker", server, "s per million"),
        ]
    return found


async def _consume(log: tidelog.Log, topic: str, count: int, form: str, process: psutil.Process) -> Run:
    before, cpu, wall = process.cpu_times(), time.process_time(), time.perf_counter()
    found = 0
    async for batch in log.consume(topic, max_records=count).batches():
        found += len(batch.values) if form == "lists" else len(batch.buffers().offsets) - 1
    wall, cpu, after = time.perf_counter() - wall, time.process_time() - cpu, process.cpu_times()
    assert found == count
    server = after.user + after.system - before.user - before.system
    return Run(count / wall, cpu / count * 1e6, server / count * 1e6)


async def _followed(log: tidelog.Log, server: str, process: psutil.Process) -> Measure:
    """Follow a topic while another process produces it, in lists: whoever keeps up is as fast as that."""
    await _produce(log, "followed", AT_ONCE)
    batches = log.consume("followed", start="latest", max_records=FOLLOWED_COUNT).batches()
    reading = asyncio.ensure_future(anext(batches))
    producer = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.consume", server, stdout=subprocess.PIPE)
    batch = await reading
    began, found = time.perf_counter(), 0
    while True:
        found += len(batch.values)
        if (following := await anext(batches, None)) is None:
            break
        batch = following
    seconds = time.perf_counter() - began
    told, _ = await producer.communicate()
    return Measure("tail, lists, while another process produces", found / seconds, "records/s", float(told), "that process")


async def _floor(address: str, count: int) -> float:
    """Return how many records a second would come, were they nothing but messages of the same size."""
    messages = max(1, count * RECORD_BYTES // MESSAGE_BYTES)
    seconds = await pull_bare(address, size=MESSAGE_BYTES, count=messages)
    return messages * MESSAGE_BYTES / RECORD_BYTES / seconds


async def _produce(log: tidelog.Log, topic: str, count: int) -> float:
    """Produce, and return how many records a second that was."""
    chance = random.Random(1)
    values: list[bytes | None] = [chance.randbytes(RECORD_BYTES) for _ in range(AT_ONCE)]
    async with log.producer() as producer:
        began = time.perf_counter()
        for _ in range(count // AT_ONCE):
            await producer.send_many(topic, values)
        return count / (time.perf_counter() - began)


async def _produce_alone(server: str) -> None:
    async with tidelog.connect(server) as log:
        print(await _produce(log, "followed", FOLLOWED_COUNT))


if __name__ == "__main__":
    asyncio.run(_produce_alone(sys.argv[1]))
