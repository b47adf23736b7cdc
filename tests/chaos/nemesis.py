"""What befalls a cluster of processes: a shuffled deck of faults, dealt again and again, a few of them at the same time.

So every kind of fault strikes at least once, and next to others.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tests.chaos.cluster import LEASE_MS, BrokerProcess, tail
from tests.chaos.links import CLIENT, FAULTS, Links
from tests.chaos.scenario import Chaos
from tests.postgres_server import PostgresServer

Fault = Callable[[], Awaitable[object]]
KINDS = ("broker-broker", "broker-S3", "broker-SQL", "client-broker")
"""Of links."""
S3, SQL = "S3", "SQL"
_LEASE_S = LEASE_MS / 1000


@dataclass
class Plan:
    """What is to be done to a cluster."""

    seconds: float
    """It lasts so long, and until the deck has been dealt once."""
    processes: Mapping[str, int]
    """How many cards of the deck are a `kill`, a `pause` or a `drain` of a broker."""
    others: Mapping[str, Fault] = field(default_factory=dict)
    """What else is in the deck, once."""
    links: Links | None = None
    """Each fault of each kind of link is in the deck, once."""
    between_s: tuple[float, float] = (0.1, 0.9)
    calm: float = 0.0
    """How often everything may heal, and stay so for a moment, before the next card."""
    spared: int = 1
    """So many brokers are always left to themselves by what happens to processes."""
    away_leases: float = 2.0
    """A killed broker comes back at once, or up to so many leases later."""


class Nemesis:
    """Deals the deck."""

    def __init__(self, plan: Plan, chaos: Chaos) -> None:
        self._plan = plan
        self._brokers = chaos.brokers
        self._chance = chaos.chance
        self._struck = chaos.report.faults
        self._anomaly = chaos.anomaly
        self._busy: set[str] = set()
        self._running: set[asyncio.Task[object]] = set()

    async def run(self) -> None:
        """Strike until it is over, then wait until all is undone."""
        end = time.monotonic() + self._plan.seconds
        once = False
        while not once or time.monotonic() < end:
            for name, card in self._shuffled():
                if once and time.monotonic() >= end:
                    break
                await asyncio.sleep(self._chance.uniform(*self._plan.between_s))
                if self._chance.random() < self._plan.calm:
                    await self._healed()
                    await asyncio.sleep(self._chance.uniform(1, 2) * _LEASE_S)
                await card()
                self._struck[name] += 1
            once = True
        await self._healed()

    async def _healed(self) -> None:
        await asyncio.gather(*self._running)
        self._running.clear()

    def _shuffled(self) -> list[tuple[str, Fault]]:
        processes = {"kill": self._kill, "pause": self._pause, "drain": self._drain}
        deck = [(name, self._to_a_broker(processes[name])) for name, count in self._plan.processes.items() for _ in range(count)]
        deck += [(name, self._beside(other)) for name, other in self._plan.others.items()]
        if self._plan.links is not None:
            deck += [(f"{kind}: {fault}", self._beside(self._bend(kind, fault))) for kind in KINDS for fault in FAULTS]
        self._chance.shuffle(deck)
        return deck

    def _beside(self, fault: Fault) -> Fault:
        async def strike() -> None:
            self._running.add(asyncio.ensure_future(fault()))

        return strike

    # ---- processes

    def _to_a_broker(self, fault: Callable[[BrokerProcess], Awaitable[object]]) -> Fault:
        async def strike() -> None:
            while len(free := [broker for broker in self._brokers if broker.name not in self._busy]) <= self._plan.spared:
                done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*done)
            victim = self._chance.choice(free)
            if not victim.alive:
                self._anomaly("a broker ended by itself", (victim.name, await victim.ended(), tail(victim)))
                await victim.start()
            self._busy.add(victim.name)
            self._running.add(asyncio.ensure_future(self._strike(fault, victim)))

        return strike

    async def _strike(self, fault: Callable[[BrokerProcess], Awaitable[object]], victim: BrokerProcess) -> None:
        try:
            await fault(victim)
        finally:
            self._busy.discard(victim.name)

    async def _kill(self, victim: BrokerProcess) -> None:
        await victim.kill()
        await asyncio.sleep(self._chance.choice((0, self._chance.uniform(0, self._plan.away_leases * _LEASE_S))))
        await victim.start()

    async def _pause(self, victim: BrokerProcess) -> None:
        victim.send(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.5, 3) * _LEASE_S)
        victim.send(signal.SIGCONT)

    async def _drain(self, victim: BrokerProcess) -> None:
        code = await victim.drain()
        if code not in (0, -signal.SIGTERM):  # the latter where the process had hardly begun
            self._anomaly("drain", (victim.name, code, tail(victim)))
        await victim.start()

    # ---- links

    def _bend(self, kind: str, fault: str) -> Fault:
        async def bend() -> None:
            assert self._plan.links is not None
            seconds = self._chance.uniform(0.2, 3) * _LEASE_S
            await asyncio.gather(*(self._plan.links.between(*pair).suffer(fault, seconds) for pair in self._pairs(kind)))

        return bend

    def _pairs(self, kind: str) -> Iterable[tuple[str, str]]:
        """Draw which links of a kind: one, one both ways, or all of a broker's; for a service also everyone's."""
        chance = self._chance
        names = [broker.name for broker in self._brokers]
        victim, other = chance.sample(names, 2)
        if kind == "broker-broker":
            both = [(victim, other), (other, victim)]
            all_of_one = [pair for name in names if name != victim for pair in ((victim, name), (name, victim))]
            return chance.choice((both[:1], both, all_of_one))
        if kind == "client-broker":
            return [(CLIENT, victim)]
        service = S3 if kind == "broker-S3" else SQL
        return [(name, service) for name in chance.choice(([victim], [victim], names))]


def database_faults(server: PostgresServer, database: str) -> dict[str, Fault]:
    """Return what can befall a database: one at a time."""
    one_at_a_time = asyncio.Lock()

    async def restarts() -> None:
        async with one_at_a_time:
            await server.restart(crash=False)

    async def crashes() -> None:
        async with one_at_a_time:
            await server.restart(crash=True)

    async def stays_away() -> None:
        async with one_at_a_time:
            await server.restart(crash=False, away_s=1.5 * _LEASE_S)

    async def cut_sessions() -> None:
        async with one_at_a_time:
            await server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")

    return {
        "database: restarts": restarts,
        "database: crashes": crashes,
        "database: stays away": stays_away,
        "database: sessions cut": cut_sessions,
    }
