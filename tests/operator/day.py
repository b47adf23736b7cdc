"""Clients of a cluster at work while something is done to it, and what they noticed."""

import asyncio
import itertools
import os
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import tidelog

from tests.chaos.scenario import PARTITIONS, TOPIC, Chaos, Report
from tests.operator.kube.balancer import service
from tests.operator.rig import NAME, NAMESPACE, Rig
from tests.sim.history import check

PRODUCERS = 3
DOCS = Path(__file__).parents[2] / "docs/kubernetes.md"
WRITES = os.environ.get("OPERATOR_WRITES") == "1"
CONSUMERS = 2


@dataclass(frozen=True, slots=True)
class Address:
    """A place where brokers are reached, as `Chaos` wants one."""

    name: str
    address: str


@dataclass(slots=True)
class Phase:
    """Something that was done, and what clients noticed of it."""

    name: str
    planned: bool
    began: float
    ended: float = 0.0
    times: int = 1
    appends: int = 0
    errors: int = 0
    longest_append_s: float = 0.0
    longest_silence_s: float = 0.0
    """The longest time in which no partition's append was acknowledged to anybody."""
    longest_to_read_s: float = 0.0
    """From an acknowledgement until all consumers had read the record."""

    def __str__(self) -> str:
        longest = (self.longest_append_s, self.longest_silence_s, self.longest_to_read_s)
        told = [f"{self.ended - self.began:.0f}", str(self.appends), str(self.errors), *(f"{each * 1000:.0f}" for each in longest)]
        return f"| {' | '.join([self.name, str(self.times), *told])} |"

    def and_again(self, other: "Phase") -> "Phase":
        """Return both as one that was done several times."""
        return Phase(
            name=self.name,
            planned=self.planned,
            began=0.0,
            ended=self.ended - self.began + other.ended - other.began,
            times=self.times + other.times,
            appends=self.appends + other.appends,
            errors=self.errors + other.errors,
            longest_append_s=max(self.longest_append_s, other.longest_append_s),
            longest_silence_s=max(self.longest_silence_s, other.longest_silence_s),
            longest_to_read_s=max(self.longest_to_read_s, other.longest_to_read_s),
        )


HEAD = (
    "| what | times | s | appends | errors | longest append, ms | longest without any, ms | longest until read by all, ms |\n"
    "|---|---|---|---|---|---|---|---|"
)


class Day:
    """One cluster's day, under continuous produce and consume."""

    def __init__(self, it: Rig, chaos: Chaos) -> None:
        self.it = it
        self.chaos = chaos
        self.phases: list[Phase] = []

    @asynccontextmanager
    async def phase(self, name: str, *, planned: bool = True) -> AsyncIterator[None]:
        """What is done inside is a phase; a moment before and after belong to it."""
        phase = Phase(name, planned, time.monotonic())
        self.phases.append(phase)
        await asyncio.sleep(0.5)
        yield
        await asyncio.sleep(0.5)
        phase.ended = time.monotonic()

    def judge(self) -> str:
        """Work out what was noticed of each phase; return it as a table."""
        history = self.chaos.history
        read: dict[tuple[int, int], list[float]] = {}
        for poll in history.polls:
            if poll.reader < 200:
                for offset, _ in poll.pairs:
                    read.setdefault((poll.partition, offset), []).append(poll.ended)
        for phase in self.phases:
            sends = [send for send in history.sends if phase.began <= send.began < phase.ended]
            done = sorted((send for send in sends if send.kind == "ok"), key=lambda send: send.ended)
            phase.appends = len(done)
            phase.errors = len(sends) - len(done)
            phase.longest_append_s = max((send.ended - send.began for send in done), default=0.0)
            acks = [send.ended for send in done]
            phase.longest_silence_s = max((later - earlier for earlier, later in itertools.pairwise(acks)), default=0.0)
            for send in done:
                assert send.offset is not None
                seen = read.get((send.partition, send.offset), [])
                if len(seen) == CONSUMERS:
                    phase.longest_to_read_s = max(phase.longest_to_read_s, max(seen) - send.ended)
        together: dict[str, Phase] = {}
        for phase in self.phases:
            together[phase.name] = together[phase.name].and_again(phase) if phase.name in together else phase
        return "\n".join([HEAD, *map(str, together.values())])


def write(place: str, table: str) -> None:
    """Write a table into docs/kubernetes.md, where the test run is to do that."""
    if WRITES:
        new = f"<!-- {place} -->\n{table}\n<!-- /{place} -->"
        DOCS.write_text(re.sub(f"<!-- {place} -->.*<!-- /{place} -->", lambda _: new, DOCS.read_text(), flags=re.DOTALL))


@asynccontextmanager
async def day(it: Rig, seed: int, *, producers: int = PRODUCERS) -> AsyncIterator[Day]:
    """Clients come and go on working; in the end everything is read and the history is checked."""
    async with service(it.store, NAMESPACE, NAME, port=9595) as address:
        chaos = Chaos([Address("service", address)], random.Random(seed), Report(seed))  # type: ignore[list-item]  # all that it looks at
        today = Day(it, chaos)
        work = [asyncio.create_task(chaos.produce(number)) for number in range(producers)]
        work += [asyncio.create_task(chaos.consume(100 + number)) for number in range(CONSUMERS)]
        work.append(asyncio.create_task(chaos.ask()))
        try:
            yield today
        except BaseException:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            raise
        await _read_by_all(chaos, address)
        chaos.stopping.set()
        await asyncio.gather(*work)
        pods = [pod["status"]["podIP"] for pod in it.ready()]
        contents = await chaos.read_all(Address("broker", f"{chaos.chance.choice(pods)}:9595"))  # type: ignore[arg-type]
        ends = {place: found.next_offset for place, found in contents.items()}
        for name, anomalies in check(chaos.history, ends=ends).items():
            for what in anomalies:
                chaos.anomaly(name, what)


async def _read_by_all(chaos: Chaos, address: str) -> None:
    """Wait until the consumers have come as far as the log is now."""
    async with tidelog.connect(address) as log:
        described = await log.admin.describe_topic(TOPIC)
    async with asyncio.timeout(30):
        for partition in described.partitions:
            for reader in range(100, 100 + CONSUMERS):
                while (
                    max(
                        (
                            poll.pairs[-1][0]
                            for poll in chaos.history.polls
                            if (poll.reader, poll.partition) == (reader, partition.partition)
                        ),
                        default=-1,
                    )
                    < partition.next_offset - 1
                ):
                    await asyncio.sleep(0.05)
    assert len(described.partitions) == PARTITIONS
