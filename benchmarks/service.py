"""A whole broker in a process of its own and one client process: how fast, how soon, how large.

On a directory and SQLite, beside what the disk and bare gRPC can do; on a store in memory (0 ms), and on one as slow as S3. Files
are kept below `TIDELOG_BENCH_DIR`; overload lasts `TIDELOG_BENCH_OVERLOAD_SECONDS` (30). Consuming is measured in `consume`.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import psutil
import tidelog
from tidelog.errors import Throttled

from benchmarks import overload
from benchmarks.measure import Measure, alternate
from benchmarks.running import Running, broker, environment, growth
from benchmarks.scanning import READERS, scans
from benchmarks.transport import UPLOADS, echo_bare, keep_bare, push_bare, serving, write_synced

COUNT = 1_000_000
SINGLE = 400_000
RECORD_BYTES = 100
SENDERS = 64
SCANNED = 2_000_000
"""Records that are there to be scanned: several times what the caches hold."""
WIDE = 10_000
FEW_PARTITIONS = {"default-partitions": 4}
_SECONDS = 4.0


def run(repeats: int) -> list[Measure]:
    repeats = min(repeats, 5)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TIDELOG_BENCH_DIR")) as name, serving() as (_, bare):
        folder = Path(name)
        found = _imports(folder)
        with broker(folder / "idle", bucket=f"file://{folder}/idle/objects") as running:
            found += _idle(running)
        with broker(folder / "files", bucket=f"file://{folder}/files/objects", **FEW_PARTITIONS) as running:
            found += asyncio.run(_throughput(running, bare, folder, repeats))
        with broker(folder / "memory", bucket="memory://", **FEW_PARTITIONS) as running:
            found += asyncio.run(_senders_of_one(running, bare))
            found += asyncio.run(_beside_scans(running, "0 ms store", seconds=_SECONDS))
        with broker(folder / "slow", bucket="memory://?latency=s3", **FEW_PARTITIONS) as running:
            found += asyncio.run(_latency(running, repeats))
            found += asyncio.run(_beside_scans(running, "S3-like", seconds=3 * _SECONDS, aim="≤ 1.3"))  # few PUTs decide about its p99
        found += overload.run(folder / "overload", seconds=float(os.environ.get("TIDELOG_BENCH_OVERLOAD_SECONDS", "30")))
        return found + _wide(folder / "wide")


# ---- a process by itself


def _imports(folder: Path) -> list[Measure]:
    """How long a program waits for its import, and for its first use, which loads the client."""
    code = "import time; began = time.perf_counter(); import tidelog; {}; print(time.perf_counter() - began)"
    found = []
    for name, use, aim in (("import tidelog", "pass", "≤ 0.25"), ("import tidelog, and load its client", "tidelog.connect", "")):
        command = [sys.executable, "-c", code.format(use)]
        times = [float(subprocess.check_output(command, env=environment(folder))) for _ in range(6)]
        found.append(Measure(name, statistics.median(times[1:]), "s", aim=aim))
    return found


def _idle(running: Running) -> list[Measure]:
    running.process.cpu_percent()
    time.sleep(5)
    return [
        Measure("idle RSS", running.rss_mib, "MiB", aim="≤ 150"),
        Measure("idle CPU", running.process.cpu_percent(), "% of a core", aim="≤ 2"),
    ]


def _wide(folder: Path) -> list[Measure]:
    """A broker with very many partitions: how soon it takes appends all over them, and how large it is."""
    bucket = f"file://{folder}/objects"
    with broker(folder, bucket=bucket) as running:
        asyncio.run(_make_wide(running))
    with broker(folder, bucket=bucket) as running:
        began = time.perf_counter()
        asyncio.run(_append_all_over(running, SENDERS))
        start = running.start_seconds + time.perf_counter() - began
        few = running.rss_mib
        asyncio.run(_append_all_over(running, WIDE))
        return [
            Measure(f"start with {WIDE:,} partitions, until appends are answered", start, "s", aim="≤ 10"),
            Measure(f"RSS with {WIDE:,} partitions", few, "MiB", aim="≤ 250"),
            Measure(f"RSS with {WIDE:,} partitions, after an append to each", running.rss_mib, "MiB", aim="≤ 250"),
        ]


async def _make_wide(running: Running) -> None:
    async with tidelog.connect(running.address) as log:
        await log.admin.create_topic("wide", partitions=WIDE)


async def _append_all_over(running: Running, partitions: int) -> None:
    """Append one record to each of so many partitions that lie evenly apart."""
    async with tidelog.connect(running.address) as log, log.producer() as producer:
        await asyncio.gather(*(producer.send("wide", b"x", partition=each) for each in range(0, WIDE, WIDE // partitions)))


# ---- throughput


async def _throughput(running: Running, bare: str, folder: Path, repeats: int) -> list[Measure]:
    chance = random.Random(1)
    values: list[bytes | None] = [chance.randbytes(RECORD_BYTES) for _ in range(COUNT)]
    processes = {"client": psutil.Process(), "broker": running.process}
    spent: dict[str, list[float]] = {name: [] for name in processes}
    async with tidelog.connect(running.address) as log, log.producer() as producer:

        async def send_many() -> float:
            before = {name: _cpu_seconds(process) for name, process in processes.items()}
            began = time.perf_counter()
            await producer.send_many("many", values)
            rate = COUNT / (time.perf_counter() - began)
            for name, process in processes.items():
                spent[name].append((_cpu_seconds(process) - before[name]) / COUNT * 1e6)
            return rate

        async def send_nowait() -> float:
            began = time.perf_counter()
            for value in islice(cycle(values[:10_000]), SINGLE):  # of few: the collector would walk a long list again and again
                try:
                    producer.send_nowait("single", value)
                except Throttled:
                    await producer.ready()
                    producer.send_nowait("single", value)
            await producer.flush()
            return SINGLE / (time.perf_counter() - began)

        before = running.metrics()
        await send_many()
        after = running.metrics()
        await send_nowait()
        size = growth(before, after, 'tidelog_append_bytes_total{result="accepted"}')
        append = int(size / growth(before, after, 'tidelog_appends_total{result="accepted"}'))
        segment = int(size / growth(before, after, "tidelog_segment_bytes_count"))

        async def stream() -> float:
            count = int(size) // append
            return count * append / await push_bare(bare, size=append, count=count) / (size / COUNT)

        async def files() -> float:
            return await asyncio.to_thread(_synced_files, folder, size=segment, total=int(size)) / (size / COUNT)

        async def both() -> float:
            count = int(size) // append
            with tempfile.TemporaryDirectory(dir=folder) as inside:
                seconds = await keep_bare(bare, Path(inside), file_bytes=segment, size=append, count=count)
            return count * append / seconds / (size / COUNT)

        rates = await alternate(repeats, {"stream": stream, "files": files, "both": both, "many": send_many, "nowait": send_nowait})
    floor, floor_name = rates["both"], "bare gRPC into synced files"
    return [
        Measure(f"floor: bare grpc.aio, messages of {append // 1024} KiB", rates["stream"], "records/s"),
        Measure(f"floor: synced files of {segment // 1024} KiB, {UPLOADS} at once", rates["files"], "records/s"),
        Measure("floor: the one into the other", rates["both"], "records/s"),
        Measure("send_many", rates["many"], "records/s", floor, floor_name, "≥ 2,000,000; ratio ≥ 0.4"),
        *(Measure(f"send_many: CPU of the {name}", statistics.median(spent[name]), "s per million") for name in processes),
        Measure("send_nowait, record by record", rates["nowait"], "records/s", floor, floor_name, "≥ 200,000"),
        Measure("RSS after it", running.rss_mib, "MiB"),
    ]


def _synced_files(folder: Path, *, size: int, total: int) -> float:
    """Bytes a second that new files of this size take, each synced, as many at once as a broker uploads."""
    data = random.Random(1).randbytes(size)
    with ThreadPoolExecutor(UPLOADS) as threads, tempfile.TemporaryDirectory(dir=folder) as inside:
        paths = [Path(inside, str(number)) for number in range(max(1, total // size))]
        began = time.perf_counter()
        list(threads.map(lambda path: write_synced(path, [data]), paths))
        return len(paths) * size / (time.perf_counter() - began)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# ---- latency


async def _senders_of_one(running: Running, bare: str) -> list[Measure]:
    async with tidelog.connect(running.address) as log:
        await senders(log, seconds=1)
        latencies = await senders(log, seconds=_SECONDS)
    echoes = await echo_bare(bare, size=RECORD_BYTES, waiting=SENDERS, seconds=_SECONDS)
    name = f"{SENDERS} senders of one record, 0 ms store"
    return [
        Measure(name, len(latencies) / _SECONDS, "appends/s", len(echoes) / _SECONDS, "bare gRPC", "≥ 10,000"),
        *(Measure(f"{name}: p{q}", quantile(latencies, q), "ms", quantile(echoes, q), "bare gRPC") for q in (50, 99)),
    ]


async def _latency(running: Running, repeats: int) -> list[Measure]:
    async with tidelog.connect(running.address) as log:
        waits, floor = await _one_by_one(running, log, count=20 * repeats)
        loaded = await senders(log, seconds=3 * _SECONDS)
    beyond = [wait - least for wait, least in zip(waits, floor, strict=True)]
    return [
        Measure("idle append, S3-like: p50", statistics.median(waits), "ms", statistics.median(floor), "its PUT + its commit"),
        Measure("idle append beyond its PUT and its commit: p50", statistics.median(beyond), "ms", aim="≤ 5"),
        Measure(f"{SENDERS} senders of one record, S3-like", len(loaded) / (3 * _SECONDS), "appends/s"),
        Measure("loaded append, S3-like: p50", quantile(loaded, 50), "ms"),
        Measure("loaded append, S3-like: p99", quantile(loaded, 99), "ms", aim="≤ 500"),
    ]


async def _one_by_one(running: Running, log: tidelog.Log, *, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each append that is alone, and those of the PUT and the commit that it waited for."""
    waits, floor = [], []
    async with log.producer(linger_ms=0) as producer:
        await producer.send("idle", b"first")
        before = running.metrics()
        for _ in range(count):
            began = time.perf_counter()
            await producer.send("idle", b"x" * RECORD_BYTES)
            waits.append((time.perf_counter() - began) * 1000)
            after = running.metrics()
            floor.append(sum(growth(before, after, f"tidelog_{stage}_seconds_sum") for stage in ("upload", "commit")) * 1000)
            before = after
    return waits, floor


async def _beside_scans(running: Running, store: str, *, seconds: float, aim: str = "") -> list[Measure]:
    """What cold scans do to the latency of appends."""
    alone: list[float] = []
    beside: list[float] = []
    rates: list[float] = []
    async with tidelog.connect(running.address) as log:
        await log.admin.create_topic("scanned", partitions=READERS)
        async with log.producer() as producer:
            for partition in range(READERS):
                await producer.send_many("scanned", [b"x" * RECORD_BYTES] * (SCANNED // READERS), partition=partition)
        for _ in range(3):
            alone += await senders(log, seconds=seconds)
            with scans(running.address, "scanned", rates):
                beside += await senders(log, seconds=seconds)
    name = f"append p99, {store}, beside {READERS} cold scans"
    least, most = quantile(alone, 99), quantile(beside, 99)
    return [
        Measure(name, most, "ms", least, "no scans"),
        Measure(f"{name} ÷ without", most / least, "", aim=aim),
        Measure("which read", statistics.median(rates) / 1e6, "MB/s"),
    ]


async def senders(log: tidelog.Log, *, seconds: float) -> list[float]:
    """Let many senders each wait for one append at a time; return the latencies in milliseconds."""
    latencies: list[float] = []
    async with log.producer(linger_ms=0) as producer:
        end = time.perf_counter() + seconds

        async def send() -> None:
            while (began := time.perf_counter()) < end:
                await producer.send("senders", b"x" * RECORD_BYTES)
                latencies.append((time.perf_counter() - began) * 1000)

        await asyncio.gather(*(send() for _ in range(SENDERS)))
    return latencies


def quantile(latencies: list[float], percent: int) -> float:
    return statistics.quantiles(latencies, n=100)[percent - 1]
