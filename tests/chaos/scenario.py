"""One chaos run: producers and consumers on every broker, a nemesis, healing, and a checker that reads the history."""

import asyncio
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tidelog
from tidelog.errors import OutcomeUnknown, TidelogError

from tests.chaos.cluster import LEASE_MS, BrokerProcess, broker_processes, tail
from tests.sim.history import History, Poll, Send, check

TOPIC = "chaos"
PARTITIONS = 6
PRODUCERS = 3
HEALED_WITHIN_S = 15
Fault = Callable[[], Awaitable[object]]


@dataclass
class Plan:
    """What is to be done to the brokers."""

    seconds: float
    kills: int = 0
    """It goes on until there were so many of them."""
    weights: dict[str, int] = field(default_factory=lambda: {"kill": 6, "pause": 4, "drain": 1})
    others: Mapping[str, Fault] = field(default_factory=dict)
    """What else strikes, each with weight 2, and at least once."""
    between_s: tuple[float, float] = (0.2, 1.5)
    spared: int = 1
    """So many brokers are always left to themselves."""
    away_leases: float = 2.0
    """A killed broker comes back at once, or up to so many leases later."""


@dataclass
class Report:
    """What a run did and found."""

    seed: int
    anomalies: dict[str, list[object]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    sends: Counter[str] = field(default_factory=Counter)
    most_rss_mib: int = 0


class Chaos:
    """The state of one run."""

    def __init__(self, brokers: list[BrokerProcess], plan: Plan, *, seed: int) -> None:
        self.brokers = brokers
        self.plan = plan
        self.chance = random.Random(seed)
        self.history = History()
        self.report = Report(seed)
        self.stopping = asyncio.Event()
        self._values = 0
        self._busy: set[str] = set()

    def address(self) -> str:
        """All brokers, in a drawn order: a client begins with the first that answers."""
        return ",".join(broker.address for broker in self.chance.sample(self.brokers, len(self.brokers)))

    # ---- clients

    async def produce(self, number: int) -> None:
        """Append unique values, a few at a time, for as long as the run lasts; a session ends with an append that did not go well."""
        session = 0
        async with tidelog.connect(self.address()) as log:
            while not self.stopping.is_set():
                session += 1
                async with log.producer(linger_ms=2, delivery_timeout_ms=20_000) as producer:
                    numbers: Counter[int] = Counter()
                    healthy = True
                    while healthy and not self.stopping.is_set():
                        sends = []
                        for _ in range(self.chance.randrange(1, 6)):
                            partition = self.chance.randrange(PARTITIONS)
                            self._values += 1
                            send = Send((number, session), numbers[partition], partition, self._values, time.monotonic())
                            numbers[partition] += 1
                            self.history.sends.append(send)
                            future = producer.send_nowait(TOPIC, b"%d" % send.value, partition=partition)
                            sends.append((send, future))
                        healthy = all([await self._settle(send, future) for send, future in sends])
                        await asyncio.sleep(self.chance.uniform(0, 0.02))

    async def _settle(self, send: Send, future: "asyncio.Future[tidelog.Ack]") -> bool:
        try:
            ack = await future
        except OutcomeUnknown:
            send.kind = "info"
        except TidelogError:
            send.kind = "fail"
        else:
            send.kind, send.offset = "ok", ack.offset
        send.ended = time.monotonic()
        self.report.sends[send.kind] += 1
        return send.kind == "ok"

    async def consume(self, number: int) -> None:
        """Follow everything from the beginning, across whatever happens."""
        async with tidelog.connect(self.address()) as log:
            reading = asyncio.create_task(self._consume(number, log))
            await self.stopping.wait()
            reading.cancel()
            await asyncio.wait([reading])

    async def _consume(self, number: int, log: tidelog.Log) -> None:
        async for batch in log.consume(TOPIC, start="earliest").batches():
            self._polled(number, batch)

    def _polled(self, number: int, batch: "tidelog.ConsumedBatch") -> None:
        pairs = [(offset, int(value or b"0")) for offset, value in enumerate(batch.values, batch.base_offset)]
        now = time.monotonic()
        self.history.polls.append(Poll(number, 0, batch.partition, now, now, pairs))

    # ---- faults

    async def nemesis(self) -> None:
        """Strike until it is over, then wait until all is undone."""
        plan = self.plan
        end = time.monotonic() + plan.seconds
        running: set[asyncio.Task[object]] = set()
        strikes: dict[str, Callable[[BrokerProcess], Awaitable[object]]] = {
            "kill": self._kill,
            "pause": self._pause,
            "drain": self._drain,
        }
        weights = plan.weights | dict.fromkeys(plan.others, 2)
        while time.monotonic() < end or self.report.faults["kill"] < plan.kills or not all(map(self.report.faults.get, plan.others)):
            await asyncio.sleep(self.chance.uniform(*plan.between_s))
            [name] = self.chance.choices(list(weights), weights=list(weights.values()))
            if name in plan.others:
                self.report.faults[name] += 1
                running.add(asyncio.ensure_future(plan.others[name]()))
                continue
            free = [broker for broker in self.brokers if broker.name not in self._busy]
            if len(free) > plan.spared:
                self.report.faults[name] += 1
                victim = self.chance.choice(free)
                if not victim.alive:
                    self.anomaly("a broker ended by itself", (victim.name, tail(victim)))
                    await victim.start()
                self._busy.add(victim.name)
                running.add(asyncio.ensure_future(self._strike(strikes[name], victim)))
        await asyncio.gather(*running)

    async def _strike(self, strike: Callable[[BrokerProcess], Awaitable[object]], victim: BrokerProcess) -> None:
        try:
            await strike(victim)
        finally:
            self._busy.discard(victim.name)

    async def _kill(self, victim: BrokerProcess) -> None:
        await victim.kill()
        await asyncio.sleep(self.chance.choice((0, self.chance.uniform(0, self.plan.away_leases * LEASE_MS / 1000))))
        await victim.start()

    async def _pause(self, victim: BrokerProcess) -> None:
        victim.send(signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.5, 3) * LEASE_MS / 1000)
        victim.send(signal.SIGCONT)

    async def _drain(self, victim: BrokerProcess) -> None:
        code = await victim.drain()
        if code not in (0, -signal.SIGTERM):  # the latter where the process had hardly begun
            self.anomaly("drain", (victim.name, code))
        await victim.start()

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
        self._values += 1
        send = Send(None, 0, partition, self._values, time.monotonic())
        self.history.sends.append(send)
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
        async with asyncio.timeout(60), tidelog.connect(broker.address) as log:
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


async def run(folder: Path, plan: Plan, *, seed: int, bucket: str, metadata: str) -> tuple[Report, list[BrokerProcess]]:
    """Run chaos as planned, let everything heal, and check."""
    async with broker_processes(folder, free_ports(3), bucket=bucket, metadata=metadata) as brokers:
        chaos = Chaos(brokers, plan, seed=seed)
        await _begin(brokers)
        work = [asyncio.create_task(chaos.produce(number)) for number in range(PRODUCERS)]
        work += [asyncio.create_task(chaos.consume(100 + number)) for number in range(2)]
        measuring = asyncio.create_task(chaos.measure())
        await chaos.nemesis()
        chaos.stopping.set()
        await asyncio.gather(*work)
        await asyncio.gather(*(chaos.probe(broker, partition) for broker in brokers for partition in range(PARTITIONS)))
        ends = [await chaos.read_all(200 + number, broker) for number, broker in enumerate(brokers)]
        measuring.cancel()
        chaos.report.most_rss_mib = max(broker.most_rss for broker in brokers) // 2**20
        for name, found in check(chaos.history, ends=ends[-1]).items():
            for what in found:
                chaos.anomaly(name, what)
        return chaos.report, brokers


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
