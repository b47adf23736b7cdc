"""What is done in each act. Whatever the demo says of it was measured here, or read back from the service."""

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tidelog.cli.demo.service import Service
from tidelog.cli.demo.text import Piece, Text
from tidelog.client.client import connect

Step = Callable[[int], None]
"""Told how many more are done."""

PRODUCERS = 4
PARTITIONS = 6
COMPRESSION = "zstd"
_CALL_LINES = 2_000
_LOAD_CALLS = 3
_LOAD_CALL_RECORDS = 50


def digest(lines: Sequence[bytes]) -> str:
    """Return the SHA-256 of lines, each with a newline."""
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


# ---- a text in, and out again


async def append_text(service: Service, topic: str, text: Text, step: Step) -> float:
    """Append a text through several producers, each piece by one of them, under its key; return how long it took."""
    async with connect(service.address) as log:
        await log.admin.create_topic(topic, partitions=PARTITIONS)
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(PRODUCERS):
            group.create_task(_append_pieces(service, topic, text.pieces[number::PRODUCERS], step))
    return time.perf_counter() - began


async def _append_pieces(service: Service, topic: str, pieces: Sequence[Piece], step: Step) -> None:
    async with connect(service.address) as log, log.producer(compression=COMPRESSION) as producer:

        async def call(keys: list[bytes | None], values: list[bytes | None]) -> None:
            step(len(await producer.send_many(topic, values, keys=keys)))

        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        for piece in pieces:
            keys += [piece.key] * len(piece.lines)
            values += piece.lines
            if len(values) >= _CALL_LINES:
                await call(keys, values)
                keys, values = [], []
        if values:
            await call(keys, values)


@dataclass(frozen=True, slots=True)
class Read:
    """What came out."""

    lines: dict[bytes, list[bytes]]
    """By key, in the order in which they came."""
    partitions: int
    """How many had any."""
    seconds: float


async def read_text(service: Service, topic: str, step: Step) -> Read:
    """Read a whole topic."""
    lines: dict[bytes, list[bytes]] = defaultdict(list)
    partitions = set()
    began = time.perf_counter()
    async with connect(service.address) as log:
        async for batch in log.consume(topic, follow=False).batches():
            partitions.add(batch.partition)
            for record in batch.records():
                lines[record.key or b""].append(record.value or b"")
            step(len(batch))
    return Read(dict(lines), len(partitions), time.perf_counter() - began)


# ---- kill -9 under load


@dataclass
class Load:
    """Producers that number their records and never pause, and what they were told."""

    records_each: int
    acknowledged: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """By value: partition and offset."""
    sent: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def total(self) -> int:
        """How many records there will be."""
        return self.records_each * PRODUCERS

    @property
    def in_flight(self) -> int:
        """How many have been sent and wait for their acknowledgement."""
        return self.sent - len(self.acknowledged)

    async def run(self, service: Service, topic: str, step: Step) -> None:
        """Append all; a producer retries by itself for as long as the service is away."""
        async with asyncio.TaskGroup() as group:
            for number in range(PRODUCERS):
                group.create_task(self._produce(service, topic, number, step))

    async def _produce(self, service: Service, topic: str, number: int, step: Step) -> None:
        room = asyncio.Semaphore(_LOAD_CALLS)
        async with connect(service.address) as log, log.producer() as producer, asyncio.TaskGroup() as group:

            async def call(values: list[bytes | None]) -> None:
                self.sent += len(values)
                try:
                    acks = await producer.send_many(topic, values, partition=number % PARTITIONS)
                finally:
                    room.release()
                for value, ack in zip(values, acks, strict=True):
                    assert value is not None
                    self.acknowledged[value] = (ack.partition, ack.offset)
                step(len(values))
                self._changed.set()

            for first in range(0, self.records_each, _LOAD_CALL_RECORDS):
                await room.acquire()
                last = min(first + _LOAD_CALL_RECORDS, self.records_each)
                group.create_task(call([b"producer %d, record %d" % (number, index) for index in range(first, last)]))
                await asyncio.sleep(0)  # it takes its place in the producer now, so that records keep their order

    async def until(self, share: float) -> None:
        """Wait until this share is acknowledged while more is in flight."""
        while len(self.acknowledged) < share * self.total or not self.in_flight:
            self._changed.clear()
            await self._changed.wait()

    async def next_acknowledgement(self) -> None:
        """Wait for one more."""
        self._changed.clear()
        await self._changed.wait()


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill -9, and what it meant to producers."""

    process_id: int
    acknowledged: int
    in_flight: int
    pause_s: float
    """From the kill to the next acknowledgement."""
    successor: int
    """The process that has taken over."""


async def kill_under_load(service: Service, load: Load, share: float) -> Kill:
    """Kill the service once this share is acknowledged, and start it again."""
    await load.until(share)
    acknowledged, in_flight = len(load.acknowledged), load.in_flight
    began = time.perf_counter()
    killed = await service.kill()
    await service.start()
    await load.next_acknowledgement()
    return Kill(killed, acknowledged, in_flight, time.perf_counter() - began, service.process_id)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What reading everything back has shown."""

    read: int
    lost: int
    """Acknowledged, and not where it was said to be."""
    repeated: int
    out_of_order: int
    """Behind a later record of the same producer."""


async def judge(service: Service, topic: str, load: Load) -> Verdict:
    """Read a topic back and compare it with what was acknowledged."""
    found: dict[tuple[int, int], bytes] = {}
    newest: dict[bytes, int] = {}
    out_of_order = 0
    async with connect(service.address) as log:
        async for record in log.consume(topic, follow=False):
            assert record.value is not None
            found[record.partition, record.offset] = record.value
            producer, _, number = record.value.rpartition(b" ")
            out_of_order += int(number) <= newest.get(producer, -1)
            newest[producer] = max(int(number), newest.get(producer, -1))
    lost = sum(found.get(place) != value for value, place in load.acknowledged.items())
    return Verdict(len(found), lost, len(found) - len(set(found.values())), out_of_order)


# ---- the database is deleted


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What `tidelog rebuild` said."""

    objects: int
    """What was left: everything in the bucket."""
    topics: int
    records: int
    """Those whose offsets are certain."""
    certain: bool
    seconds: float


async def lose_database(service: Service) -> Rebuilt:
    """Stop the service, delete its database, rebuild that from the bucket, and start the service again."""
    await service.stop()
    for path in service.folder.glob("metadata.db*"):
        path.unlink()
    objects = sum(path.is_file() for path in (service.folder / "objects").rglob("*"))
    began = time.perf_counter()
    report = await service.rebuild()
    seconds = time.perf_counter() - began
    await service.start()
    return Rebuilt(objects, report["topics"], report["exact_records"], report["certain"], seconds)


# ---- what it cost, and what was written where


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the folder."""

    objects: int
    segments: int
    object_bytes: int
    segment_records: int
    metadata_bytes: int
    example: Path
    """The largest segment."""


def look(folder: Path) -> Written:
    """Look at every object, and check every byte of every segment. Raises CorruptSegment."""
    from tidelog.segments.format import decode

    objects = [path for path in (folder / "objects").rglob("*") if path.is_file()]
    segments = [path for path in objects if path.suffix == ".seg"]
    records = sum(chunk.record_count for path in segments for chunk in decode(path.read_bytes()).chunks)
    metadata = sum(path.stat().st_size for path in folder.glob("metadata.db*"))
    return Written(
        len(objects), len(segments), sum(map(_size, objects)), records, metadata, max(segments, key=_size)
    )  # fmt: skip


def _size(path: Path) -> int:
    return path.stat().st_size
