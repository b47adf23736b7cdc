"""One producer and one consumer process against a broker that does nothing, in a process of its own: what the client costs."""

import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import tidelog
from tidelog.errors import Throttled

from benchmarks.measure import Measure

COUNT = 1_000_000
SINGLE = 200_000
RECORD_BYTES = 100


def run(repeats: int) -> list[Measure]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.echo_broker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as broker:
        assert broker.stdin is not None
        assert broker.stdout is not None
        try:
            return asyncio.run(_run(broker.stdout.readline().strip(), min(repeats, 5)))
        finally:
            broker.stdin.close()


async def _run(address: str, repeats: int) -> list[Measure]:
    chance = random.Random(1)
    values: list[bytes | None] = [chance.randbytes(RECORD_BYTES) for _ in range(COUNT)]
    keys: list[bytes | None] = [b"user-%d" % chance.randrange(10_000) for _ in range(COUNT)]
    async with tidelog.connect(address) as log, log.producer() as producer:

        async def send_many() -> int:
            return len(await producer.send_many("t", values))

        async def send_many_keys() -> int:
            return len(await producer.send_many("t", values[:SINGLE], keys=keys[:SINGLE]))

        async def send_nowait(with_keys: bool = False) -> int:
            future = None
            for value, key in zip(values[:SINGLE], keys, strict=False):
                try:
                    future = producer.send_nowait("t", value, key=key if with_keys else None)
                except Throttled:
                    await producer.ready()
                    future = producer.send_nowait("t", value, key=key if with_keys else None)
            await producer.flush()
            assert future is not None
            assert future.done()
            return SINGLE

        async def lists() -> int:
            return sum([len(batch.values) async for batch in log.consume("t", max_records=COUNT).batches()])

        async def buffers() -> int:
            return sum([len(batch.buffers().offsets) - 1 async for batch in log.consume("t", max_records=COUNT).batches()])

        async def records() -> int:
            return len([None async for _ in log.consume("t", max_records=SINGLE)])

        return [
            await _measure("send_many", send_many, repeats, "≥ 2,000,000"),
            await _measure("send_many with keys", send_many_keys, repeats),
            await _measure("send_nowait", send_nowait, repeats, "≥ 200,000"),
            await _measure("send_nowait with keys", lambda: send_nowait(True), repeats),
            await _measure("consume values", lists, repeats, "≥ 2,000,000"),
            await _measure("consume buffers", buffers, repeats, "≥ 3,000,000"),
            await _measure("consume records", records, repeats),
        ]


async def _measure(name: str, work: Callable[[], Awaitable[int]], repeats: int, aim: str = "") -> Measure:
    """Return records per second by the wall clock; beside it what the client's CPU alone would allow."""
    await work()
    rates, cpu_rates = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        count = await work()
        rates.append(count / (time.perf_counter() - wall))
        cpu_rates.append(count / (time.process_time() - cpu))
    return Measure(
        f"{name}, {RECORD_BYTES} bytes", statistics.median(rates), "records/s", statistics.median(cpu_rates), "per CPU second", aim
    )
