"""More is sent than a broker can take, for a while: how large it grows, and what it says.

Half of the streams send large appends, half very many small ones, each as fast as flow control lets it; what is refused is not sent
again. Objects are kept in a directory, as slow as S3, and taken away soon after they were written, so that the disk does not fill.
"""

import asyncio
import threading
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import tidelog
from tidelog.client import wire
from tidelog.proto.v1 import log_pb2
from tidelog.records.codec import encode_many

from benchmarks.measure import Measure
from benchmarks.running import Running, broker

STREAMS = 16
PARTITIONS = 64
_LARGE_RECORDS, _SMALL_APPENDS = 5000, 100
_KEPT_S = 5.0
_LOOK_EVERY_S = 0.1


def run(folder: Path, *, seconds: float) -> list[Measure]:
    objects = folder / "objects"
    with broker(folder, bucket=f"file://{objects}?latency=s3") as running:
        over = threading.Event()
        sizes: list[float] = []
        watchers = [threading.Thread(target=_watch, args=(running, over, sizes)), threading.Thread(target=_sweep, args=(objects, over))]
        for watcher in watchers:
            watcher.start()
        began = time.perf_counter()
        try:
            asyncio.run(_overload(running.address, seconds))
            elapsed = time.perf_counter() - began  # until the last answer
        finally:
            over.set()
            for watcher in watchers:
                watcher.join()
        said = running.metrics()
    name = f"{seconds:.0f} s of overload"
    taken, pushed_back = ('tidelog_append_bytes_total{result="accepted"}', 'tidelog_appends_total{result="throttled"}')
    return [
        Measure(f"largest RSS in {name}", max(sizes), "MiB", aim="≤ 512"),
        Measure(f"taken in {name}", said[taken] / elapsed / 1e6, "MB/s"),
        Measure(f"pushed back in {name}", said[pushed_back] / elapsed, "appends/s"),
    ]


async def _overload(address: str, seconds: float) -> None:
    async with tidelog.connect(address) as log:
        await log.admin.create_topic("flooded", partitions=PARTITIONS)
    async with asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            group.create_task(_flood(address, _messages(large=bool(number % 2)), time.perf_counter() + seconds))


def _messages(*, large: bool) -> list[bytes]:
    """Return messages for all partitions, each with one large append, or with many small ones."""
    batches = encode_many([bytes(100)] * (_LARGE_RECORDS if large else 1), timestamps_ms=1)
    appends = [(log_pb2.ProduceAppend(request_id=1, topic="flooded", partition=each), batches) for each in range(PARTITIONS)]
    return [wire.produce_request([each] if large else [each] * _SMALL_APPENDS) for each in appends]


async def _flood(address: str, messages: list[bytes], end: float) -> None:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.stream_stream("/tidelog.v1.Log/Produce")()
        answers = asyncio.create_task(_read(call))
        for message in cycle(messages):
            if time.perf_counter() > end or answers.done():
                break
            await call.write(message)
        await call.done_writing()
        await answers


async def _read(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
    assert await call.code() is grpc.StatusCode.OK, await call.details()


def _watch(running: Running, over: threading.Event, sizes: list[float]) -> None:
    while not over.wait(_LOOK_EVERY_S):
        sizes.append(running.rss_mib)


def _sweep(objects: Path, over: threading.Event) -> None:
    while not over.wait(1):
        for path in objects.rglob("*.seg"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _KEPT_S:
                    path.unlink()
