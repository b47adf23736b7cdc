"""A cluster as large as it may get, simulated: how long a take-over takes, what SQL has to do for it, and how much it carries.

`python -m tests.sim.scale` runs 100 brokers with 100,000 partitions: the real broker, its membership, leadership, catalog, intake and
ledger, and the real SQL on SQLite in memory; nothing fails but what is killed. Time is virtual: a call of the database takes the
latency that is drawn for it, and what its statements took on this machine is counted beside it, as CPU. `--write` writes the table
into docs/reliability.md.
"""

import argparse
import asyncio
import gc
import logging
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tidelog.broker import leadership
from tidelog.broker.placement import desired_leader
from tidelog.broker.requests import AppendRequest
from tidelog.config import Settings
from tidelog.errors import TidelogError
from tidelog.executors import InlineExecutor
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import Transaction
from tidelog.metadata.topics import TopicConfig, create_topic
from tidelog.records.codec import encode_many

from tests.sim.loop import SimLoop, State, run
from tests.sim.world import Bucket, SimClock, World, begin, draw, kill

T = TypeVar("T")
DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
TOPIC_PARTITIONS = 1000
LOAD_S = 1.0
REST_S = 3.0
APPENDS_PER_SECOND = 50
"""Of each broker, each to a partition drawn from all."""
RECORD_BYTES = 100
PATIENCE_S = 300.0


class _Unwatched:
    """Stands where a simulated cluster's watcher does: looking at everything after each transaction takes too long here."""

    def sent(self, broker_epoch: int, sequence: int) -> None: ...

    def deleting(self, keys: Sequence[str]) -> None: ...


@dataclass
class Work:
    """What the database did."""

    calls: Counter[str] = field(default_factory=Counter)
    rows_written: int = 0
    cpu_s: float = 0.0


class LargeWorld(World):
    """A world that counts what is asked of SQL."""

    work: Work

    def __post_init__(self) -> None:
        self.watcher = _Unwatched()  # type: ignore[assignment]
        self.work = Work()

    async def run(self, verb: Callable[..., T], /, *args: Any, who: str = "world", **kwargs: Any) -> T:
        def counted(tx: Transaction, /, *args: Any, **kwargs: Any) -> T:
            db: Any = tx.connection
            before, began = db.total_changes, time.process_time()
            try:
                return verb(tx, *args, **kwargs)
            finally:
                self.work.calls[verb.__name__] += 1
                self.work.rows_written += db.total_changes - before
                self.work.cpu_s += time.process_time() - began

        return await self.store.run(counted, *args, **kwargs)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    partitions: int
    virtual_s: float
    work: Work

    def __str__(self) -> str:
        calls = self.work.calls
        ordering = calls["take_over"] + calls["transfer"]
        return (
            f"| {self.what} | {self.partitions:,} | {self.virtual_s:.2f} s | {ordering:,} | {calls['commit']:,} | {sum(calls.values()):,}"
            f" | {self.work.rows_written:,} | {self.work.cpu_s:.2f} s |"
        )


HEAD = """\
| what | partitions concerned | virtual time | take-overs and transfers | commits | all transactions | rows written | CPU of SQL |
|---|---|---|---|---|---|---|---|"""


def alive(world: World) -> list[Any]:
    return [process for process in world.brokers.values() if process.node.state is State.RUNNING]


def loaded(world: World) -> int:
    """Return how many partitions have a leader that has loaded them."""
    return sum(len(process.broker.life.ledger.led()) for process in alive(world) if process.broker.life is not None)


async def until_led(world: LargeWorld, partitions: int) -> None:
    give_up_at = world.loop.now + PATIENCE_S
    while loaded(world) != partitions:
        if world.loop.now > give_up_at:
            raise RuntimeError(f"only {loaded(world)} of {partitions} partitions are led after {PATIENCE_S} s")
        await asyncio.sleep(0.05)


async def append_everywhere(world: LargeWorld, partitions: int) -> tuple[list[float], Counter[str]]:
    """Append at every broker to partitions drawn from all; return the latencies of what was acknowledged, and what became of all."""
    latencies: list[float] = []
    outcomes: Counter[str] = Counter()
    batch = encode_many([b"x" * RECORD_BYTES])
    stop = world.loop.now + LOAD_S
    waiting: set[asyncio.Task[None]] = set()

    async def append(process: Any) -> None:
        drawn = world.chance.randrange(partitions)
        began = world.loop.now
        try:
            await process.broker.append(AppendRequest(f"topic-{drawn // TOPIC_PARTITIONS}", drawn % TOPIC_PARTITIONS, batch))
        except TidelogError as error:
            outcomes[error.reason] += 1
        else:
            outcomes["ok"] += 1
            latencies.append(world.loop.now - began)

    async def client(process: Any) -> None:
        while world.loop.now < stop:
            await asyncio.sleep(world.chance.expovariate(APPENDS_PER_SECOND))
            work = world.loop.create_task(append(process), context=process.context)
            waiting.add(work)
            work.add_done_callback(waiting.discard)

    await asyncio.gather(*(client(process) for process in alive(world)))
    if waiting:
        await asyncio.wait(waiting)
    return sorted(latencies), outcomes


def references(world: World) -> int:
    names = ("tidelog_references_sent_total",)
    families = (family for process in world.lives for family in process.metrics.registry.collect())
    return sum(int(sample.value) for family in families for sample in family.samples if sample.name in names)


async def large(loop: SimLoop, brokers: int, partitions: int, told: list[str]) -> None:
    clock = SimClock(loop)
    settings = Settings(
        append_timeout_ms=60_000, intake_budget_bytes=1 << 24, cache_bytes=1 << 20, block_cache_bytes=1 << 18, drain_timeout_ms=60_000
    )
    drawn = replace(draw(loop.chance, "calm"), brokers=brokers, store_s=0.03, metadata_s=0.004, network_s=0.001, settings=settings)
    world = LargeWorld(loop, drawn, await open_sqlite(IN_MEMORY, clock=clock, executor=InlineExecutor()), Bucket(clock=clock), clock)
    wall, several = time.monotonic(), max(1, brokers // 10)

    async def measured(what: str, concerned: int, work: Callable[[], Any]) -> None:
        world.work, began = Work(), loop.now
        await work()
        row = Row(what, concerned, loop.now - began, world.work)
        told.append(str(row))
        print(f"{row}  ({time.monotonic() - wall:.0f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB)", flush=True)

    async def start() -> None:
        for index in range(brokers):
            begin(world, f"b{index:03}")
        while len({process.broker.catalog.membership.version for process in alive(world)}) != 1 or not all(
            len(process.broker.catalog.membership.brokers) == brokers for process in alive(world)
        ):
            await asyncio.sleep(0.05)

    async def create() -> None:
        for number in range(partitions // TOPIC_PARTITIONS):
            await world.run(
                create_topic, topic_id=f"{number:032x}", name=f"topic-{number}", partitions=TOPIC_PARTITIONS, config=TopicConfig()
            )
        await until_led(world, partitions)

    def led_by(name: str) -> int:
        life = world.brokers[name].broker.life
        return 0 if life is None else len(life.ledger.led())

    async def die() -> None:
        kill(world, "b000")
        await until_led(world, partitions)

    async def come() -> None:
        begin(world, "b000")
        while led_by("b000") != before:
            await asyncio.sleep(0.05)
        await until_led(world, partitions)

    async def leave() -> None:
        await world.brokers["b001"].drain()
        await until_led(world, partitions)

    async def die_together() -> None:
        for index in range(2, 2 + several):
            kill(world, f"b{index:03}")
        await until_led(world, partitions)

    async def idle() -> None:
        await asyncio.sleep(REST_S)

    latencies: list[float] = []
    outcomes: Counter[str] = Counter()

    async def load() -> None:
        found, became = await append_everywhere(world, partitions)
        latencies.extend(found)
        outcomes.update(became)

    await measured(f"{brokers} brokers begin", 0, start)
    await measured("topics are created, until all is led", partitions, create)
    await measured(f"{REST_S:.0f} s of rest", 0, idle)
    sent = references(world)
    await measured(f"{brokers * APPENDS_PER_SECOND:,} appends per second, for {LOAD_S:.0f} s", partitions, load)
    sent = references(world) - sent
    rows = await world.run(_sizes)
    before = led_by("b000")
    await measured("a broker is killed, until all is led", before, die)
    await measured("it begins again, until it leads its own", before, come)
    await measured("a broker is drained", led_by("b001"), leave)
    dying = sum(led_by(f"b{index:03}") for index in range(2, 2 + several))
    await measured(f"{several} brokers are killed at once", dying, die_together)
    p50, p99 = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
    told.append("")
    told.append(
        f"Under that load {sent / LOAD_S:,.0f} references per second went to leaders; of {sum(outcomes.values()):,} appends"
        f" {outcomes['ok']:,} were acknowledged, after {p50 * 1000:.0f} ms (median) and {p99 * 1000:.0f} ms (99 of 100). SQL then held"
        f" {', '.join(f'{count:,} {table}' for table, count in rows.items())}. Lease {settings.lease_ms:,} ms, polls every"
        f" {settings.catalog_poll_ms} ms; the whole run took {time.monotonic() - wall:,.0f} s and"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB."
    )
    print(told[-1])


def _sizes(tx: Transaction) -> dict[str, int]:
    return {
        table: tx.rows(f"SELECT count(*) AS n FROM {table}")[0].n for table in ("partitions", "extents", "producers", "writers", "brokers")
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.scale", description=__doc__)
    parser.add_argument("--brokers", type=int, default=100)
    parser.add_argument("--partitions", type=int, default=100_000, help=f"a multiple of {TOPIC_PARTITIONS}")
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCS.name}")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    told = [f"{asked.brokers} brokers, {asked.partitions:,} partitions, {time.strftime('%Y-%m-%d')}:", "", HEAD]
    gc.freeze()
    known = lru_cache(maxsize=None)(desired_leader)
    with pytest.MonkeyPatch.context() as patch:
        # Every broker computes the same placement: here it is computed once for all of them.
        patch.setattr(leadership, "desired_leader", lambda topic_id, partition, brokers: known(topic_id, partition, tuple(brokers)))
        run(1, lambda loop: large(loop, asked.brokers, asked.partitions, told))
    if asked.write:
        new = "<!-- scale -->\n" + "\n".join(told) + "\n<!-- /scale -->"
        DOCS.write_text(re.sub(r"<!-- scale -->.*<!-- /scale -->", lambda _: new, DOCS.read_text(), flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
