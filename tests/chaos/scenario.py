"""One run: clients of all brokers, whatever befalls them, healing, and a checker that reads the history."""

import asyncio
import itertools
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
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
                f"anomalies {told(found)}",
            )
        )


class Chaos:
    """The clients of one run, and what they saw."""

    def __init__(self, brokers: list[BrokerProcess], chance: random.Random, report: Report) -> None:
        self.brokers = brokers
        self.chance = chance
        self.history = History()
        self.report = report
        self.stopping = asyncio.Event()
        self._values = 0

    def begin(self, session: tuple[int, int] | None, number: int, partition: int) -> Send:
        """Note that an append of a value that nobody else sends begins now."""
        self._values += 1
        send = Send(session, number, partition, self._values, time.monotonic())
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
                    if not error.retriable:
                        self.anomaly("an error that no retry mends", repr(error))
                    self.report.sends[f"not begun: {error.reason}"] += 1

    async def _session(self, log: tidelog.Log, number: int, session: int) -> None:
        async with log.producer(linger_ms=2, delivery_timeout_ms=20_000, request_timeout_ms=8000) as producer:
            numbers: Counter[int] = Counter()
            healthy = True
            while healthy and not self.stopping.is_set():
                sends = []
                for _ in range(self.chance.randrange(1, 6)):
                    partition = self.chance.randrange(PARTITIONS)
                    send = self.begin((number, session), numbers[partition], partition)
                    numbers[partition] += 1
                    future = producer.send_nowait(TOPIC, b"%d" % send.value, partition=partition)
                    sends.append((send, future))
                healthy = all([await self.settle(send, future) for send, future in sends])
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
            if not error.retriable:
                self.anomaly("an error that no retry mends", repr(error))
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
            self._polled(number, batch)

    def _polled(self, number: int, batch: "tidelog.ConsumedBatch") -> None:
        pairs = [(offset, int(value or b"0")) for offset, value in enumerate(batch.values, batch.base_offset)]
        now = time.monotonic()
        self.history.polls.append(Poll(number, 0, batch.partition, now, now, pairs))
        self.report.reads += len(pairs)

    async def ask(self) -> None:
        """Ask for the ends of all partitions, again and again."""
        async with tidelog.connect(self.address()) as log:
            while not self.stopping.is_set():
                began = time.monotonic()
                try:
                    described = await log.admin.describe_topic(TOPIC)
                except TidelogError as error:
                    if not error.retriable:
                        self.anomaly("an error that no retry mends", repr(error))
                else:
                    now = time.monotonic()
                    for each in described.partitions:
                        self.history.asked.append(Asked(each.partition, began, now, each.next_offset, each.log_start_offset))
                        self.report.questions += 1
                await asyncio.sleep(self.chance.uniform(0, 0.2))

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

    async def probe(self, broker: BrokerProcess, partition: int) -> None:
        """Every partition takes appends again, through this broker."""
        send = self.begin(None, 0, partition)
        try:
            async with asyncio.timeout(HEALED_WITHIN_S), tidelog.connect(broker.address) as log, log.producer() as producer:
                ack = await producer.send(TOPIC, b"%d" % send.value, partition=partition)
        except (TimeoutError, TidelogError) as error:
            self.anomaly("no appends after healing", (broker.name, partition, repr(error)))
        else:
            send.kind, send.offset = "ok", ack.offset
        send.ended = time.monotonic()

    async def read_all(self, number: int, broker: BrokerProcess) -> dict[int, int]:
        """Read every partition from its beginning to its end through one broker; return the ends."""
        async with asyncio.timeout(600), tidelog.connect(broker.address) as log:
            async for batch in log.consume(TOPIC, start="earliest", follow=False).batches():
                self._polled(number, batch)
            described = await log.admin.describe_topic(TOPIC)
        return {partition.partition: partition.next_offset for partition in described.partitions}


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
    folder: Path, befall: Callable[[Chaos], Awaitable[object]], *, seed: int, brokers: int = 3, links: Links | None = None, **flags: Any
) -> tuple[Report, list[BrokerProcess]]:
    """Run brokers and clients of theirs, have something befall them, let everything heal, and check."""
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
        await asyncio.gather(*(chaos.probe(broker, partition) for broker in processes for partition in range(PARTITIONS)))
        ends = await chaos.read_all(200, chaos.chance.choice(processes))
        measuring.cancel()
        report.most_rss_mib = max(broker.most_rss for broker in processes) // 2**20
        if links is not None:
            report.connections = links.connections
        for name, found in check(chaos.history, ends=ends).items():
            for what in found:
                chaos.anomaly(name, what)
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
