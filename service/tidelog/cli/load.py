"""The load that `tidelog bench` generates, and what it measures.

At a rate, each append has a time at which it is due, fixed before anything is sent; its latency counts from then, so a
service that stalls is charged for all that waited (no coordinated omission). Flat out, an append is due when there is room
for it: such latencies tell how deep the pipe is, not how quick the service.
"""

import asyncio
import math
import random
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidelog.client.client import Log
    from tidelog.client.producer import Producer

_IN_FLIGHT_BYTES = 16 << 20
_OVERHEAD_BYTES = 16
_SINGLE_IN_FLIGHT = 10_000
_LEAST_BYTES = 24
"""Room for the number that tells records apart."""
_DELIVERY_TIMEOUT_S = 30.0
_SEED = 1


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the service."""

    topic: str
    partitions: int
    seconds: float
    record_bytes: int
    batch: int
    """Records of one call."""
    compression: str
    senders: int
    rate: float
    """Records per second, of all senders; 0: flat out."""
    readers: int = 0
    """How many read; partitions are shared among them."""
    deadline_s: float = 120
    """After this an append's outcome is reported, whatever it is."""

    @property
    def shares(self) -> list[list[int]]:
        """The partitions of each reader."""
        readers = min(self.readers, self.partitions)
        return [list(range(number, self.partitions, readers)) for number in range(readers)]


@dataclass
class Meter:
    """What has come of it so far."""

    records: int = 0
    """Appended, or, where nothing is, read."""
    size: int = 0
    """Their bytes."""
    delivered: int | None = None
    """Records that came back to readers meanwhile; None: nobody reads beside the senders."""
    latencies: "dict[str, array[float]]" = field(default_factory=dict)
    """Seconds, by what they are of: one for each call."""
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None

    def note(self, kind: str, seconds: float) -> None:
        """Take a latency."""
        self.latencies.setdefault(kind, array("d")).append(seconds)

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return (self.ended or time.perf_counter()) - self.began

    def percentiles_ms(self, *, latest: int = 0) -> dict[str, dict[str, float]]:
        """Return p50, p99, p99.9 and the maximum of each kind of latency: of all, or of so many latest."""
        found = {}
        for kind, seconds in self.latencies.items():
            ordered = sorted(seconds[-latest:])
            found[kind] = {name: percentile(ordered, share) * 1000 for name, share in PERCENTILES.items()}
        return found


PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def percentile(ordered: "list[float]", share: float) -> float:
    """Return the smallest value that at least this share of all do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def values(load: Load) -> list[bytes | None]:
    """Return a call's values: hexadecimal digits, which compress to about a half; the same in every run."""
    chance = random.Random(_SEED)  # noqa: S311 - no secret
    return [chance.randbytes((load.record_bytes + 1) // 2).hex().encode()[: load.record_bytes] for _ in range(load.batch)]


def _producer(log: "Log", load: Load, *, linger_ms: float = 5) -> "Producer":
    deadline_ms = round(load.deadline_s * 1000)
    return log.producer(
        linger_ms=linger_ms, compression=load.compression, delivery_timeout_ms=deadline_ms, request_timeout_ms=min(deadline_ms, 30_000)
    )


async def produce(connect: "Callable[[], Log]", load: Load, meter: Meter) -> None:
    """Append for as long as the load says; each sender has its own connection."""
    meter.began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(load.senders):
            group.create_task(_send(connect, load, meter, number))
    meter.ended = time.perf_counter()


async def _send(connect: "Callable[[], Log]", load: Load, meter: Meter, number: int) -> None:
    column = values(load)
    call_bytes = load.batch * (load.record_bytes + _OVERHEAD_BYTES)
    room = asyncio.Semaphore(max(2, _IN_FLIGHT_BYTES // call_bytes))
    async with connect() as log, _producer(log, load) as producer, asyncio.TaskGroup() as group:

        async def call(due: float) -> None:
            try:
                await producer.send_many(load.topic, column)
            finally:
                room.release()
            meter.note("append", time.perf_counter() - due)
            meter.records += load.batch
            meter.size += load.batch * load.record_bytes

        async for due in _due_times(load, meter.began, number, per_call=load.batch):
            await room.acquire()
            group.create_task(call(due if load.rate else time.perf_counter()))


async def _due_times(load: Load, began: float, number: int, *, per_call: int) -> AsyncIterator[float]:
    """Yield the times at which a sender's calls are due, each when it has come; late ones at once."""
    interval = per_call * load.senders / load.rate if load.rate else 0.0
    step = 0
    while True:
        now = time.perf_counter()
        due = began + interval * (step + number / load.senders) if load.rate else now
        if due >= began + load.seconds:
            return
        if due > now:
            await asyncio.sleep(due - now)
        yield due
        step += 1


class _Undelivered:
    """What was sent and has not come back yet: when each was due, by its value."""

    def __init__(self) -> None:
        self.due_times: dict[bytes, float] = {}
        self.none = asyncio.Event()

    def add(self, value: bytes, due: float) -> None:
        self.due_times[value] = due
        self.none.clear()

    def take(self, value: bytes) -> float | None:
        due = self.due_times.pop(value, None)
        if not self.due_times:
            self.none.set()
        return due


async def latency(connect: "Callable[[], Log]", load: Load, meter: Meter) -> None:
    """Append single records at a rate, and read them as they commit: until acknowledged, and until delivered."""
    undelivered = _Undelivered()
    async with connect() as log, asyncio.TaskGroup() as group:
        starts = await log.admin.list_offsets(load.topic)
        readers = [group.create_task(_deliveries(log, load.topic, place, undelivered, meter)) for place in starts.items()]
        meter.began = time.perf_counter()
        async with asyncio.TaskGroup() as senders:
            for number in range(load.senders):
                senders.create_task(_send_singly(connect, load, meter, number, undelivered))
        if undelivered.due_times:
            await _or_timed_out(undelivered.none, lambda: len(undelivered.due_times))
        meter.ended = time.perf_counter()
        for reader in readers:
            reader.cancel()


async def _send_singly(connect: "Callable[[], Log]", load: Load, meter: Meter, number: int, undelivered: _Undelivered) -> None:
    filling = b"." * load.record_bytes
    room = asyncio.Semaphore(_SINGLE_IN_FLIGHT)
    async with connect() as log, _producer(log, load, linger_ms=0) as producer, asyncio.TaskGroup() as group:

        async def call(value: bytes, due: float) -> None:
            try:
                await producer.send(load.topic, value)
            finally:
                room.release()
            meter.note("append", time.perf_counter() - due)
            meter.records += 1
            meter.size += len(value)

        step = 0
        async for due in _due_times(load, meter.began, number, per_call=1):
            await room.acquire()
            value = (b"%d-%d-" % (number, step) + filling)[: max(load.record_bytes, _LEAST_BYTES)]
            undelivered.add(value, due)
            group.create_task(call(value, due))
            step += 1


async def _deliveries(log: "Log", topic: str, place: tuple[int, int], undelivered: _Undelivered, meter: Meter) -> None:
    partition, start = place
    async with aclosing(log.consume(topic, partitions=[partition], start=start).batches()) as batches:
        async for batch in batches:
            now = time.perf_counter()
            for value in batch.values:
                due = undelivered.take(value or b"")
                if due is not None:
                    meter.note("delivery", now - due)


async def mixed(connect: "Callable[[], Log]", load: Load, meter: Meter) -> None:
    """Append as `produce` does, while readers follow; it ends when all that was appended has been read."""
    async with connect() as log:
        starts = await log.admin.list_offsets(load.topic)
    meter.delivered = 0
    caught_up = asyncio.Event()
    appended = False

    async def follow(partitions: list[int]) -> None:
        async with connect() as log, asyncio.TaskGroup() as group:
            for partition in partitions:
                group.create_task(read(log, partition))

    async def read(log: "Log", partition: int) -> None:
        async with aclosing(log.consume(load.topic, partitions=[partition], start=starts[partition]).batches()) as batches:
            async for batch in batches:
                meter.delivered = (meter.delivered or 0) + len(batch.values)
                if appended and meter.delivered >= meter.records:
                    caught_up.set()

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(follow(share)) for share in load.shares]
        await produce(connect, load, meter)
        appended = True
        if meter.delivered < meter.records:
            await _or_timed_out(caught_up, lambda: meter.records - (meter.delivered or 0))
        meter.ended = time.perf_counter()
        for reader in readers:
            reader.cancel()


async def consume(connect: "Callable[[], Log]", load: Load, meter: Meter) -> None:
    """Read all that is in the topic, the partitions shared among readers with a connection each."""

    async def read(partitions: list[int]) -> None:
        async with connect() as log:
            async for batch in log.consume(load.topic, partitions=partitions, follow=False).batches():
                column = batch.values
                meter.records += len(column)
                meter.size += sum(map(len, filter(None, column)))

    meter.began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for share in load.shares:
            group.create_task(read(share))
    meter.ended = time.perf_counter()


async def _or_timed_out(delivered: asyncio.Event, missing: "Callable[[], int]") -> None:
    """Wait until all is delivered. Raises TimedOut where it takes too long."""
    try:
        async with asyncio.timeout(_DELIVERY_TIMEOUT_S):
            await delivered.wait()
    except TimeoutError:
        from tidelog.errors import TimedOut

        raise TimedOut(
            f"{missing()} records were acknowledged, but not delivered within {_DELIVERY_TIMEOUT_S:g} s;"
            " look at the brokers (tidelog top), and try a lower --rate"
        ) from None


async def fill(log: "Log", load: Load, records: int) -> None:
    """Append so many records, to be read afterwards."""
    column = values(load) * (1 + 50_000 // load.batch)
    async with log.producer(compression=load.compression) as producer:
        done = 0
        while done < records:
            done += len(await producer.send_many(load.topic, column[: records - done]))
