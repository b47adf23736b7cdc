"""A whole broker in a process of its own, on a directory and SQLite or on a store as slow as S3, and one client process."""

import asyncio
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import tidelog
from tidelog.errors import Throttled

from benchmarks.measure import Measure

COUNT = 1_000_000
SINGLE = 200_000
RECORD_BYTES = 100
SENDERS = 64
PARTITIONS = 4


@contextmanager
def broker(folder: Path, *, bucket: str, **settings: object) -> Iterator[tuple[str, str, psutil.Process]]:
    """Run a broker; give its address, that of its metrics, and its process."""
    flags = {
        "broker-id": "bench",
        "bucket": bucket,
        "metadata": f"sqlite://{folder / 'metadata.db'}",
        "listen": "127.0.0.1:0",
        "metrics-listen": "127.0.0.1:0",
        "auto-create-topics": True,
        "default-partitions": PARTITIONS,
        "log-format": "json",
        **settings,
    }
    command = [sys.executable, "-m", "tidelog", "broker", *(f"--{name}={value}" for name, value in flags.items())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            ready = next(line for line in process.stderr if "broker_ready" in line)
            found = dict(re.findall(r'"(address|metrics_address)": "([^"]+)"', ready))
            yield found["address"], found["metrics_address"], psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def run(repeats: int) -> list[Measure]:
    repeats = min(repeats, 5)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TIDELOG_BENCH_DIR")) as name:
        folder = Path(name)
        floor = _fsync_floor(folder)
        (folder / "fast").mkdir()
        with broker(folder / "fast", bucket=f"file://{folder / 'fast' / 'objects'}") as (address, _, process):
            found = asyncio.run(_throughput(address, repeats, floor))
            found.append(Measure("RSS after it", process.memory_info().rss / 2**20, "MiB"))
        (folder / "idle").mkdir()
        with broker(folder / "idle", bucket=f"file://{folder / 'idle' / 'objects'}") as (_, _, process):
            found += _idle(process)
        (folder / "slow").mkdir()
        with broker(folder / "slow", bucket="memory://?latency=s3") as (address, metrics, _):
            found += asyncio.run(_latency(address, metrics, repeats))
    return found


def _fsync_floor(folder: Path) -> float:
    """Bytes a second that files of 8 MiB, each synced, take on this disk."""
    data = random.Random(1).randbytes(8 * 2**20)
    rates = []
    for number in range(8):
        began = time.perf_counter()
        with (folder / f"floor-{number}").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rates.append(len(data) / (time.perf_counter() - began))
    return statistics.median(rates)


def _idle(process: psutil.Process) -> list[Measure]:
    process.cpu_percent()
    time.sleep(5)
    return [
        Measure("idle RSS", process.memory_info().rss / 2**20, "MiB", aim="≤ 150"),
        Measure("idle CPU", process.cpu_percent(), "% of a core", aim="≤ 2"),
    ]


async def _throughput(address: str, repeats: int, fsync_bytes: float) -> list[Measure]:
    chance = random.Random(1)
    values: list[bytes | None] = [chance.randbytes(RECORD_BYTES) for _ in range(COUNT)]
    found = []
    async with tidelog.connect(address) as log:
        async with log.producer() as producer:

            async def send_many() -> int:
                return len(await producer.send_many("many", values))

            async def send_nowait() -> int:
                for value in values[:SINGLE]:
                    try:
                        producer.send_nowait("single", value)
                    except Throttled:
                        await producer.ready()
                        producer.send_nowait("single", value)
                await producer.flush()
                return SINGLE

            rate = await _rate(send_many, repeats)
            found.append(Measure("send_many", rate, "records/s", fsync_bytes / RECORD_BYTES, "synced files", "≥ 2,000,000"))
            found.append(Measure("send_nowait", await _rate(send_nowait, repeats), "records/s", aim="≥ 200,000"))

        rate, latencies = await _senders(log, seconds=3)
        found.append(Measure(f"{SENDERS} senders of one record", rate, "appends/s", aim="≥ 10,000"))
        found += _quantiles("their append", latencies)
    return found


async def _latency(address: str, metrics: str, repeats: int) -> list[Measure]:
    found = []
    async with tidelog.connect(address) as log:
        async with log.producer(linger_ms=0) as producer:
            await producer.send("idle", b"first")
            before = _stages(metrics)
            waits = []
            for _ in range(15 * repeats):
                began = time.perf_counter()
                await producer.send("idle", b"x" * RECORD_BYTES)
                waits.append((time.perf_counter() - began) * 1000)
            after = _stages(metrics)
            floor = sum((after[each][0] - before[each][0]) / (after[each][1] - before[each][1]) for each in ("upload", "commit")) * 1000
        found.append(Measure("idle append p50, S3-like", statistics.median(waits), "ms", floor, "mean PUT + commit", "≤ floor + 5"))
        _, latencies = await _senders(log, seconds=5)
        found += _quantiles("loaded append, S3-like", latencies, aim="≤ 500")
    return found


def _stages(metrics: str) -> dict[str, tuple[float, float]]:
    """Seconds and number of uploads and commits so far."""
    with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
        text = answer.read().decode()
    found = {}
    for stage in ("upload", "commit"):
        total, count = (re.search(rf"^tidelog_{stage}_seconds_{end} (\S+)$", text, re.M) for end in ("sum", "count"))
        assert total
        assert count
        found[stage] = float(total[1]), float(count[1])
    return found


async def _senders(log: tidelog.Log, *, seconds: float) -> tuple[float, list[float]]:
    """Let many senders each wait for one append at a time; return appends/s and the latencies in milliseconds."""
    latencies: list[float] = []
    async with log.producer(linger_ms=0) as producer:
        end = time.perf_counter() + seconds

        async def send() -> None:
            while (began := time.perf_counter()) < end:
                await producer.send("senders", b"x" * RECORD_BYTES)
                latencies.append((time.perf_counter() - began) * 1000)

        await asyncio.gather(*(send() for _ in range(SENDERS)))
    return len(latencies) / seconds, latencies


def _quantiles(name: str, latencies: list[float], aim: str = "") -> list[Measure]:
    cuts = statistics.quantiles(latencies, n=100)
    return [Measure(f"{name} p50", cuts[49], "ms"), Measure(f"{name} p99", cuts[98], "ms", aim=aim)]


async def _rate(work: Callable[[], Awaitable[int]], repeats: int) -> float:
    await work()
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        rates.append(await work() / (time.perf_counter() - began))
    return statistics.median(rates)
