"""Produce and Consume streams over loopback, one client process and one server process, beside bare gRPC streams of equal messages.

The broker behind the server does nothing, and the client neither encodes nor decodes: what is measured is the server.
"""

import asyncio
import logging
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import structlog
from tidelog.broker.requests import Appended, AppendRequest, Position, Run
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.executors import InlineExecutor
from tidelog.metrics import Metrics
from tidelog.proto.v1 import log_pb2
from tidelog.server.server import Server

from benchmarks.measure import Measure
from tests.listed_broker import ListedBroker

LARGE, SMALL = 256 * 1024, 100
LARGE_MESSAGES, SMALL_MESSAGES = 2000, 20_000
GATHERED = 50
UPLOADS = 8
"""Files written at once, as by a broker."""
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class _EndlessCursor:
    """Has one run of batches at every offset."""

    def __init__(self, size: int) -> None:
        self._data = bytes(size)

    async def resolve(self, _position: Position) -> int:
        return 0

    async def read(self, offset: int, **_limits: int) -> Run:
        return Run(self._data, offset, offset + 1, 1 << 60, 0)

    async def wait(self, offset: int) -> None: ...


class _IdleBroker(ListedBroker):
    """Says yes at once."""

    def append(self, _request: AppendRequest) -> "asyncio.Future[Appended]":
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        future.set_result(Appended(0, 1))
        return future

    @asynccontextmanager
    async def follow(self, _topic: str, partition: int) -> AsyncIterator[Any]:
        yield _EndlessCursor(LARGE if partition else SMALL)


def write_synced(path: Path, parts: Sequence[bytes]) -> None:
    """Write a new file, and wait until the disk has it."""
    with path.open("wb", buffering=0) as file:
        for part in parts:
            file.write(part)
        os.fsync(file.fileno())


# ---- the server process


class _Bare(grpc.GenericRpcHandler):
    """Takes any message and answers with a small one, or keeps them in files of a size; or, asked with a size and a count, sends that."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(UPLOADS)

    def service(self, handler_call_details: Any) -> Any:
        behaviour = {"/bare/In": self._take, "/bare/Out": self._give, "/bare/Keep": self._keep}.get(handler_call_details.method)
        return behaviour and grpc.stream_stream_rpc_method_handler(behaviour)

    async def _take(self, _requests: object, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(b"0123456789")

    async def _keep(self, _requests: object, context: Any) -> None:
        size, folder = (await context.read()).split(b" ", 1)
        messages: list[bytes] = []
        files: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()

        def write() -> None:
            files.append(loop.run_in_executor(self._threads, write_synced, Path(os.fsdecode(folder), str(len(files))), messages.copy()))
            messages.clear()

        while (message := await context.read()) is not grpc.aio.EOF:
            messages.append(message)
            if sum(map(len, messages)) >= int(size):
                write()
            await context.write(b"0123456789")
        write()
        await asyncio.gather(*files)

    async def _give(self, _requests: object, context: Any) -> None:
        size, count = map(int, (await context.read()).split())
        message = bytes(size)
        for _ in range(count):
            await context.write(message)


async def _serve() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # stdout carries the addresses
    settings = Settings(listen="127.0.0.1:0", metrics_listen="", max_credit_bytes=1 << 30)
    server = Server(_IdleBroker(), settings, clock=SystemClock(), executor=InlineExecutor(), metrics=Metrics())
    await server.start()
    bare = grpc.aio.server(options=_OPTIONS)
    bare.add_generic_rpc_handlers((_Bare(),))
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    print(server.address, f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the parent closes it
    await bare.stop(None)
    await server.stop()


# ---- the client process


async def _push(
    channel: grpc.aio.Channel,
    method: str,
    message: bytes,
    count: int,
    answered: Callable[[Any], int],
    appends: int = 1,
    *,
    first: bytes = b"",
) -> float:
    """Send messages and wait for all of their answers; return the seconds."""
    call: Any = channel.stream_stream(method)()

    async def write() -> None:
        if first:
            await call.write(first)
        for _ in range(count):
            await call.write(message)
        await call.done_writing()

    began = time.perf_counter()
    writing = asyncio.create_task(write())
    done = 0
    while (response := await call.read()) is not grpc.aio.EOF:
        done += answered(response)
    await writing
    assert done == count * appends
    return time.perf_counter() - began


async def _pull(channel: grpc.aio.Channel, method: str, request: bytes, count: int) -> float:
    """Ask for messages and take as many; return the seconds."""
    call: Any = channel.stream_stream(method)()
    began = time.perf_counter()
    await call.write(request)
    for _ in range(count):
        assert await call.read() is not grpc.aio.EOF
    seconds = time.perf_counter() - began
    call.cancel()
    return seconds


def _results(response: bytes) -> int:
    return len(log_pb2.ProduceResponse.FromString(response).results)


def _append(size: int, count: int = 1) -> bytes:
    append = log_pb2.ProduceAppend(request_id=1, topic="t", partition=0, batches=bytes(size))
    return log_pb2.ProduceRequest(appends=[append] * count).SerializeToString()


def _subscribe(partition: int) -> bytes:
    where = log_pb2.TopicPartition(topic="t", partition=partition)
    add = log_pb2.AddPartition(subscription_id=1, partition=where, start=log_pb2.Position(offset=0))
    return log_pb2.ConsumeRequest(add=[add], credit_bytes=1 << 30).SerializeToString()


async def _measure(addresses: tuple[str, str], repeats: int) -> list[Measure]:
    async with (
        grpc.aio.insecure_channel(addresses[0], options=_OPTIONS) as ours,
        grpc.aio.insecure_channel(addresses[1], options=_OPTIONS) as bare,
    ):
        found = []
        for size, count, unit, scale in ((LARGE, LARGE_MESSAGES, "MB/s", LARGE / 1e6), (SMALL, SMALL_MESSAGES, "appends/s", 1.0)):
            name = "256 KiB" if size == LARGE else "100 B"
            message = _append(size)
            partition = 1 if size == LARGE else 0
            push = lambda: _push(ours, "/tidelog.v1.Log/Produce", message, count, _results)  # noqa: B023, E731 - awaited in this turn
            push_floor = lambda: _push(bare, "/bare/In", message, count, lambda _: 1)  # noqa: B023, E731
            pull = lambda: _pull(ours, "/tidelog.v1.Log/Consume", _subscribe(partition), count)  # noqa: B023, E731
            pull_floor = lambda: _pull(bare, "/bare/Out", b"%d %d" % (size, count), count)  # noqa: B023, E731
            for verb, work, floor, aim in (("Produce", push, push_floor, _AIMS[size]), ("Consume", pull, pull_floor, "")):
                seconds, floor_seconds = await _medians(work, floor, repeats)
                unit_here = unit if verb == "Produce" else unit.replace("appends", "responses")
                found.append(
                    Measure(f"{verb}, {name}", count * scale / seconds, unit_here, count * scale / floor_seconds, "bare grpc.aio", aim)
                )
        gathered = _append(SMALL, GATHERED)
        messages = 10 * SMALL_MESSAGES // GATHERED
        seconds, floor_seconds = await _medians(
            lambda: _push(ours, "/tidelog.v1.Log/Produce", gathered, messages, _results, GATHERED),
            lambda: _push(bare, "/bare/In", gathered, messages, lambda _: 1),
            repeats,
        )
        appends = messages * GATHERED
        name = f"Produce, 100 B, {GATHERED} in a message"
        found.append(Measure(name, appends / seconds, "appends/s", appends / floor_seconds, "bare grpc.aio, undecoded", _AIMS[SMALL]))
        return found


_AIMS = {LARGE: "≥ 500", SMALL: "≥ 10,000"}


async def _medians(work: Callable[[], Awaitable[float]], floor: Callable[[], Awaitable[float]], repeats: int) -> tuple[float, float]:
    """Take turns, so that a busy machine slows both alike."""
    pairs = [(await work(), await floor()) for _ in range(repeats)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


async def pull_bare(address: str, *, size: int, count: int) -> float:
    """Take messages from the bare server: the floor of whatever takes as many of that size. Return the seconds."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        return await _pull(channel, "/bare/Out", b"%d %d" % (size, count), count)


async def push_bare(address: str, *, size: int, count: int) -> float:
    """Send messages to the bare server: the floor of whatever sends as many of that size. Return the seconds."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        await _push(channel, "/bare/In", b"connected", 1, lambda _: 1)
        return await _push(channel, "/bare/In", random.Random(1).randbytes(size), count, lambda _: 1)


async def keep_bare(address: str, folder: Path, *, file_bytes: int, size: int, count: int) -> float:
    """Send messages to the bare server, which keeps them in synced files of about `file_bytes`; return the seconds."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        await _push(channel, "/bare/In", b"connected", 1, lambda _: 1)
        first = b"%d %s" % (file_bytes, os.fsencode(folder))
        return await _push(channel, "/bare/Keep", random.Random(1).randbytes(size), count, lambda _: 1, first=first)


async def echo_bare(address: str, *, size: int, waiting: int, seconds: float) -> list[float]:
    """Have so many messages at a time wait for the bare server's answers, on one stream; return the milliseconds of each."""
    latencies = []
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        call: Any = channel.stream_stream("/bare/In")()
        message = bytes(size)
        sent = []
        for _ in range(waiting):
            sent.append(time.perf_counter())
            await call.write(message)
        end = time.perf_counter() + seconds
        for began in sent:  # grows while it is walked
            await call.read()
            now = time.perf_counter()
            latencies.append((now - began) * 1000)
            if now < end:
                sent.append(now)
                await call.write(message)
        call.cancel()
    return latencies


@contextmanager
def serving() -> Iterator[tuple[str, str]]:
    """Run the server process; give the addresses of our server and of the bare one."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.transport"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            ours, bare = server.stdout.readline().split()
            yield ours, bare
        finally:
            server.stdin.close()


def run(repeats: int) -> list[Measure]:
    """Measure, with a server process beside this one."""
    with serving() as addresses:
        return asyncio.run(_measure(addresses, repeats))


if __name__ == "__main__":
    asyncio.run(_serve())
