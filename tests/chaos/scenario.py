"""One run: clients of all brokers, whatever befalls them, healing, and a checker that reads the history."""

import asyncio
import itertools
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tidelog
from tidelog.errors import OutcomeUnknown, TidelogError

from tests.chaos.cluster import BrokerProcess, broker_processes, owner, tail
from tests.chaos.links import Links, tcp
from tests.sim.history import Asked, History, Poll, Send, check

TOPIC = "chaos"
PARTITIONS = 6
PRODUCERS = 3
HEALED_WITHIN_S = 15


@dataclass
class Report:
    """What a run did and found."""

    seed: int
    seconds: float = 0
    faults: Counter[str] = field(default_factory=Counter)
    sends: Counter[str] = field(default_factory=Counter)
    """Appends by outcome: ok, unknown, or the reason for which they were refused."""
    questions: int = 0
    reads: int = 0
    """Records read."""
    connections: dict[tuple[str, str], int] = field(default_factory=dict)
    """Through each link."""
    most_rss_mib: int = 0
    lives: Counter[str] = field(default_factory=Counter)
    """What became of segments, of old records, and of what was rebuilt."""
    anomalies: dict[str, list[object]] = field(default_factory=dict)

    def __str__(self) -> str:
        def told(counts: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"

        found = Counter({name: len(what) for name, what in self.anomalies.items()})
        kinds: dict[str, Counter[str]] = {}
        for name, count in sorted(self.faults.items()):
            kind, _, fault = name.rpartition(": ")
            kinds.setdefault(kind or "broker", Counter())[fault] += count
        return "\n".join(
            (
                "",
                f"seed      {self.seed}, {self.seconds:.0f} s",
                f"faults    {self.faults.total()}",
                *(f"  {kind:14}  {told(counts)}" for kind, counts in kinds.items()),
                f"links     {sum(self.connections.values())} connections through {len(self.connections)} links",
                f"appends   {told(self.sends)}",
                f"questions {self.questions} for the end of a partition",
                f"reads     {self.reads} records",
                f"memory    {self.most_rss_mib} MiB at most",
                f"lives     {told(self.lives)}",
                f"anomalies {told(found)}",
            )
        )


@dataclass(frozen=True)
class Contents:
    """What a partition holds."""

    log_start_offset: int
    next_offset: int
    pairs: list[tuple[int, int]]
    """Offsets and values."""


class Chaos:
    """The clients of one run, and what they saw."""

    def __init__(self, brokers: list[BrokerProcess], chance: random.Random, report: Report) -> None:
        self.brokers = brokers
        self.chance = chance
        self.history = History()
        self.report = report
        self.stopping = asyncio.Event()
        self.places = [(TOPIC, partition) for partition in range(PARTITIONS)]
        """Topics and their partitions; the history knows them by their places in this list."""
        self.padding: Sequence[int] = (0,)
        """How many bytes values are made longer by."""
        self._values = 0
        self._readers = 200

    def begin(self, session: tuple[int, int] | None, number: int, place: int) -> Send:
        """Note that an append of a value that nobody else sends begins now."""
        self._values += 1
        send = Send(session, number, place, self._values, time.monotonic())
        self.history.sends.append(send)
        return send

    def address(self) -> str:
        """All brokers, in a drawn order: a client begins with the first that answers."""
        return ",".join(broker.address for broker in self.chance.sample(self.brokers, len(self.brokers)))

    async def produce(self, number: int) -> None:
        """Append unique values, a few at a time, for as long as the run lasts; a session ends with an append that did not go well."""
        async with tidelog.connect(self.address()) as log:
            for session in itertools.count(1):
                if self.stopping.is_set():
                    return
                try:
                    await self._session(log, number, session)
                except TidelogError as error:  # nobody could be reached for as long as a client looks for somebody
                    self.mended(error)
                    self.report.sends[f"not begun: {error.reason}"] += 1

    async def _session(self, log: tidelog.Log, number: int, session: int) -> None:
        async with log.producer(linger_ms=2, delivery_timeout_ms=20_000, request_timeout_ms=8000) as producer:
            numbers: Counter[int] = Counter()
            healthy = True
            while healthy and not self.stopping.is_set():
                sends = []
                for _ in range(self.chance.randrange(1, 6)):
                    place = self.chance.randrange(len(self.places))
                    send = self.begin((number, session), numbers[place], place)
                    numbers[place] += 1
                    topic, partition = self.places[place]
                    value = b"%d" % send.value + b" " * self.chance.choice(self.padding)
                    sends.append((send, producer.send_nowait(topic, value, partition=partition)))
                # All at the same time: an answer that has come is noted when it comes, whatever the others wait for.
                healthy = all(await asyncio.gather(*(self.settle(send, future) for send, future in sends)))
                await asyncio.sleep(self.chance.uniform(0, 0.02))

    async def load(self, number: int, *, size: int, per_second: float) -> None:
        """Append values of so many bytes at a steady rate, whatever becomes of those before."""
        settled: set[asyncio.Task[bool]] = set()
        async with tidelog.connect(self.address()) as log, log.producer(linger_ms=5, delivery_timeout_ms=15_000) as producer:
            for count in itertools.count():
                await producer.ready()
                if self.stopping.is_set():
                    break
                if producer.closed:
                    self.anomaly("a producer ended by itself", number)
                    break
                send = self.begin((number, 0), count, self.chance.randrange(PARTITIONS))
                future = producer.send_nowait(TOPIC, (b"%d" % send.value).ljust(size), partition=send.partition)
                settled = {task for task in settled if not task.done()} | {asyncio.create_task(self.settle(send, future))}
                await asyncio.sleep(1 / per_second)
            await asyncio.gather(*settled)

    async def settle(self, send: Send, future: "asyncio.Future[tidelog.Ack]") -> bool:
        """Note what became of an append; return whether it was acknowledged."""
        try:
            ack = await future
        except OutcomeUnknown:
            send.kind, outcome = "info", "unknown"
        except TidelogError as error:
            send.kind, outcome = "fail", error.reason
            self.mended(error)
        else:
            send.kind, outcome, send.offset = "ok", "ok", ack.offset
        send.ended = time.monotonic()
        self.report.sends[outcome] += 1
        return send.kind == "ok"

    async def consume(self, number: int) -> None:
        """Follow everything from the beginning, across whatever happens."""
        async with tidelog.connect(self.address()) as log:
            reading = asyncio.create_task(self._consume(number, log))
            stopped = asyncio.create_task(self.stopping.wait())
            await asyncio.wait([reading, stopped], return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                self.anomaly("a consumer ended by itself", repr(reading.exception()))
                await stopped
            reading.cancel()
            await asyncio.wait([reading])

    async def _consume(self, number: int, log: tidelog.Log) -> None:
        async for batch in log.consume(TOPIC, start="earliest").batches():
            self.polled(number, batch)

    def polled(self, number: int, batch: "tidelog.ConsumedBatch", *, generation: int = 0) -> list[tuple[int, int]]:
        """Note what a reader was given, and return it as pairs of offset and value."""
        pairs = [(offset, int(value or b"0")) for offset, value in enumerate(batch.values, batch.base_offset)]
        now = time.monotonic()
        place = self.places.index((batch.topic, batch.partition))
        self.history.polls.append(Poll(number, generation, place, now, now, pairs))
        self.report.reads += len(pairs)
        return pairs

    async def ask(self) -> None:
        """Ask for the bounds of all partitions, again and again."""
        async with tidelog.connect(self.address()) as log:
            while not self.stopping.is_set():
                began = time.monotonic()
                try:
                    bounds = await self.bounds(log)
                except TidelogError as error:
                    self.mended(error)
                else:
                    now = time.monotonic()
                    self.history.asked += [Asked(place, began, now, end, start) for place, (start, end) in bounds.items()]
                    self.report.questions += len(bounds)
                await asyncio.sleep(self.chance.uniform(0, 0.2))

    async def bounds(self, log: tidelog.Log) -> dict[int, tuple[int, int]]:
        """Ask where each partition begins and ends."""
        described = await log.admin.describe_topics(sorted({topic for topic, _ in self.places}))
        return {
            self.places.index((topic.name, each.partition)): (each.log_start_offset, each.next_offset)
            for topic in described
            for each in topic.partitions
        }

    def mended(self, error: TidelogError) -> None:
        """A retry must mend an error."""
        if not error.retriable:
            self.anomaly("an error that no retry mends", repr(error))

    def anomaly(self, name: str, what: object) -> None:
        """Note what may not be."""
        self.report.anomalies.setdefault(name, []).append(what)

    async def measure(self) -> None:
        """Watch the brokers' memory."""
        while True:
            for broker in self.brokers:
                broker.measure()
            await asyncio.sleep(0.5)

    # ---- afterwards

    async def probe(self, broker: BrokerProcess, place: int) -> None:
        """Every partition takes appends again, through this broker."""
        send = self.begin(None, 0, place)
        topic, partition = self.places[place]
        try:
            async with asyncio.timeout(HEALED_WITHIN_S), tidelog.connect(broker.address) as log, log.producer() as producer:
                ack = await producer.send(topic, b"%d" % send.value, partition=partition)
        except (TimeoutError, TidelogError) as error:
            self.anomaly("no appends after healing", (broker.name, topic, partition, repr(error)))
        else:
            send.kind, send.offset = "ok", ack.offset
        send.ended = time.monotonic()

    async def read_all(self, broker: BrokerProcess) -> dict[int, Contents]:
        """Read every partition from its beginning to its end through one broker."""
        self._readers += 1
        async with asyncio.timeout(600), tidelog.connect(broker.address) as log:
            found: dict[int, list[tuple[int, int]]] = {place: [] for place in range(len(self.places))}
            async for batch in log.consume(sorted({topic for topic, _ in self.places}), start="earliest", follow=False).batches():
                found[self.places.index((batch.topic, batch.partition))] += self.polled(self._readers, batch)
            bounds = await self.bounds(log)
        return {place: Contents(*bounds[place], pairs) for place, pairs in found.items()}


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


async def front(links: Links | None, ports: list[int]) -> list[str]:
    """Return where brokers that listen on these ports are reached: through links, where there are any."""
    addresses = [f"127.0.0.1:{port}" for port in ports]
    if links is None:
        return addresses
    return [await links.listen(f"b{number}", tcp(address)) for number, address in enumerate(addresses)]


async def run(
    folder: Path,
    befall: Callable[[Chaos], Awaitable[object]],
    *,
    seed: int,
    brokers: int = 3,
    links: Links | None = None,
    afterwards: Callable[[Chaos], Awaitable[object]] | None = None,
    **flags: Any,
) -> tuple[Report, list[BrokerProcess]]:
    """Run brokers and clients of theirs, have something befall them, let everything heal, and check; then go on as `afterwards` says."""
    ports = free_ports(brokers)
    report = Report(seed)
    async with broker_processes(folder, ports, advertise=await front(links, ports), **flags) as processes:
        chaos = Chaos(processes, random.Random(seed), report)
        if links is not None:
            links.know(lambda port: owner(processes, port))
        await _begin(processes)
        began = time.monotonic()
        work = [asyncio.create_task(chaos.produce(number)) for number in range(PRODUCERS)]
        work += [asyncio.create_task(chaos.consume(100 + number)) for number in range(2)]
        work.append(asyncio.create_task(chaos.ask()))
        measuring = asyncio.create_task(chaos.measure())
        await befall(chaos)
        for broker in processes:
            if not broker.alive:
                chaos.anomaly("a broker ended by itself", (broker.name, tail(broker)))
        report.seconds = time.monotonic() - began
        chaos.stopping.set()
        await asyncio.gather(*work)
        await wait_until_served(processes)  # how long a process takes to begin is the machine's business
        await asyncio.gather(*(chaos.probe(broker, place) for broker in processes for place in range(len(chaos.places))))
        contents = await chaos.read_all(chaos.chance.choice(processes))
        ends = {place: found.next_offset for place, found in contents.items()}
        log_starts = {place: found.log_start_offset for place, found in contents.items()}
        for name, found in check(chaos.history, ends=ends, log_starts=log_starts).items():
            for what in found:
                chaos.anomaly(name, what)
        if afterwards is not None:
            await afterwards(chaos)
        measuring.cancel()
        report.most_rss_mib = max(broker.most_rss for broker in processes) // 2**20
        if links is not None:
            report.connections = links.connections
        return report, processes


async def _begin(brokers: list[BrokerProcess]) -> None:
    await wait_until_served(brokers)
    async with tidelog.connect(brokers[0].address) as log:
        await log.admin.create_topic(TOPIC, partitions=PARTITIONS)


async def wait_until_served(brokers: list[BrokerProcess]) -> None:
    """Wait until all brokers answer."""
    async with asyncio.timeout(60):
        for broker in brokers:
            while True:
                try:
                    async with tidelog.connect(broker.address) as log:
                        await log.admin.describe_cluster()
                    break
                except TidelogError:
                    assert broker.alive, broker.log.read_text()
                    await asyncio.sleep(0.1)
