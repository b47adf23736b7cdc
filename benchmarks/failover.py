"""Three brokers on one directory and one PostgreSQL: how long appends pause when a leader is killed, and when one is drained.

A sender for each partition appends a record, waits for it, and appends the next, through the two brokers that stay. A pause is
the longest that any of them waited.
"""

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path

import tidelog
from tidelog.errors import TidelogError

from benchmarks.measure import Measure
from benchmarks.running import Running, broker, postgres

PARTITIONS = 24
LEASE_MS = 5000
_BEFORE_S, _AFTER_KILL_S, _AFTER_DRAIN_S = 1.0, 10.0, 4.0


def run(repeats: int) -> list[Measure]:
    folder = Path(tempfile.mkdtemp(prefix="tidelog-bench-"))
    try:
        with postgres(folder / "postgres"):
            metadata = f"postgresql://postgres@/postgres?host={folder / 'postgres'}"
            return asyncio.run(_run(folder, metadata, min(repeats, 3)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, metadata: str, repeats: int) -> list[Measure]:
    kills: list[float] = []
    drains: list[float] = []
    plain: list[float] = []
    errors: list[TidelogError] = []

    def started(number: int) -> AbstractContextManager[Running]:
        settings = {"metadata": metadata, "broker-id": f"b{number}", "lease-ms": LEASE_MS}
        return broker(folder / f"b{number}", bucket=f"file://{folder}/objects", **settings)

    with ExitStack() as stack:
        stay = [stack.enter_context(started(number)) for number in (1, 2)]
        addresses = ",".join(running.address for running in stay)
        async with tidelog.connect(addresses) as log:
            await log.admin.create_topic("t", partitions=PARTITIONS)
            for _ in range(repeats):
                with started(3) as leader:
                    await _leads(log)
                    async with _appending(log, errors) as waits:
                        await asyncio.sleep(_BEFORE_S)
                        plain.append(max(waits))
                        waits.clear()
                        leader.process.kill()
                        await asyncio.sleep(_AFTER_KILL_S)
                    kills.append(max(waits))
                with started(3):
                    await _leads(log)
                    async with _appending(log, errors) as waits:
                        await asyncio.sleep(_BEFORE_S)
                        waits.clear()
                        while not (await log.admin.drain("b3"))[0]:
                            await asyncio.sleep(0.1)
                        await asyncio.sleep(_AFTER_DRAIN_S)
                    drains.append(max(waits))
    return [
        Measure("longest wait of an append, undisturbed", statistics.median(plain), "s"),
        Measure(f"longest wait when a leader is killed (lease {LEASE_MS / 1000:g} s)", max(kills), "s", aim="≤ 8"),
        Measure("longest wait when a broker is drained", max(drains), "s", aim="≤ 1"),
        Measure("errors that senders saw", len(errors), "", aim="0"),
    ]


async def _leads(log: tidelog.Log) -> None:
    """Wait until the third broker leads partitions."""
    while not any(each.broker_id == "b3" and each.led_partitions for each in (await log.admin.describe_cluster()).brokers):
        await asyncio.sleep(0.1)


@asynccontextmanager
async def _appending(log: tidelog.Log, errors: list[TidelogError]) -> AsyncIterator[list[float]]:
    """Have a sender for each partition; give how long each of their appends waited, the last of each included when the context ends."""
    waits: list[float] = []
    ended = asyncio.Event()

    async def send(partition: int) -> None:
        while not ended.is_set():
            began = time.perf_counter()
            try:
                await producer.send("t", b"x" * 100, partition=partition)
            except TidelogError as error:
                errors.append(error)
            waits.append(time.perf_counter() - began)

    async with log.producer(linger_ms=0) as producer:
        senders = [asyncio.create_task(send(partition)) for partition in range(PARTITIONS)]
        yield waits
        ended.set()
        await asyncio.gather(*senders)
