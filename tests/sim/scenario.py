"""One seed's run: brokers, producers, readers and a nemesis; then everything heals, and all that was promised must be there."""

import asyncio
from dataclasses import dataclass

from tidelog.metadata.store import Transaction
from tidelog.metadata.topics import TopicConfig, create_topic

from tests.sim.clients import TOPIC, TOPIC_ID, Client, connect, fence, probe, read, states, trim
from tests.sim.history import check
from tests.sim.loop import SimLoop, State, run
from tests.sim.nemesis import heal, strike
from tests.sim.timeline import Violation
from tests.sim.world import World, begin, kill, open_world

FAULT_SECONDS = 30.0
HEALED_WITHIN_S = 30.0


@dataclass(frozen=True)
class Outcome:
    """What a seed's run came to."""

    seed: int
    world: World
    loop: SimLoop
    violations: list[Violation]
    """The first one first: what was seen on the spot, and what the history shows."""

    @property
    def found(self) -> dict[str, int]:
        """Violations by name."""
        names = [violation.name for violation in self.violations]
        return {name: names.count(name) for name in sorted(set(names))}


def look(tx: Transaction) -> list[tuple[str, object]]:
    """Return what breaks an invariant in SQL: extents dense and disjoint up to the end of each partition."""
    wrong: list[tuple[str, object]] = []
    at: dict[int, int] = {}
    rows = tx.rows("SELECT partition_id, base_offset, next_offset, record_count FROM extents ORDER BY partition_id, base_offset")
    for row in rows:
        end = at.get(row.partition_id, 0)
        if row.base_offset != end or row.next_offset - row.base_offset != row.record_count:
            wrong.append(("extents overlap" if row.base_offset < end else "extents have a gap", tuple(row)))
        at[row.partition_id] = row.next_offset
    ends = tx.rows("SELECT partition_id, next_offset FROM partitions")
    wrong += [("the end is not where extents end", tuple(row)) for row in ends if at.get(row.partition_id, 0) != row.next_offset]
    twice = "SELECT partition_id, broker_epoch, sequence, position FROM extents GROUP BY 1, 2, 3, 4 HAVING count(*) > 1"
    wrong += [("bytes committed twice", tuple(row)) for row in tx.rows(twice)]
    return wrong


async def nemesis(world: World, stop: float) -> None:
    """Strike again and again."""
    while world.loop.now < stop:
        await asyncio.sleep(world.chance.uniform(5, 15) if world.draw.mood == "calm" else world.chance.uniform(0.5, 3))
        if world.loop.now < stop:
            strike(world)


async def at_rest(world: World) -> None:
    """When nothing is asked of brokers any more, they hold nothing any more (I10)."""
    until = world.loop.now + world.draw.settings.append_timeout_ms / 1000 + 5
    alive = [process for process in world.brokers.values() if process.node.state is State.RUNNING]
    for process in alive:
        while (held := process.broker._budget.used_bytes) and world.loop.now < until:
            await asyncio.sleep(0.2)
        if held:
            world.violation("bytes never given back", f"{process.label} holds {held}")


async def scenario(world: World, seconds: float) -> None:
    """Run faults for so many seconds; then heal, and look whether all is there."""
    loop = world.loop
    # The first to come names the cluster and the topic; then the faults begin.
    for index in range(world.draw.brokers):
        begin(world, f"b{index}")
    await asyncio.sleep(2)
    await world.run(create_topic, topic_id=TOPIC_ID, name=TOPIC, partitions=world.draw.partitions, config=TopicConfig())
    for process in world.brokers.values():
        loop.call_soon(process.broker.nudge, context=process.context)
    await asyncio.sleep(1)
    stop = loop.now + seconds
    kinds = ("idempotent", "idempotent", "idempotent", "plain", "plain", "conditional")
    work = [loop.create_task(Client(world, number, kind, connect(world)).run(stop)) for number, kind in enumerate(kinds)]
    work += [loop.create_task(read(world, 100 + number, stop)) for number in range(3)]
    if world.draw.trims:
        work.append(loop.create_task(trim(world, stop)))
    if world.draw.fences:
        work += [loop.create_task(fence(world, stop)) for _ in range(2)]
    await nemesis(world, stop)
    heal(world)
    await asyncio.sleep(20)  # all restarts that are under way
    if world.chance.random() < 0.3 and len(world.brokers) > 2:
        kill(world, world.chance.choice(sorted(world.brokers)))
    await asyncio.gather(*work)
    await asyncio.gather(*(probe(world, partition, loop.now + HEALED_WITHIN_S) for partition in range(world.draw.partitions)))
    until = loop.now + 120
    await asyncio.gather(*(read(world, 200 + partition, until, partition=partition) for partition in range(world.draw.partitions)))
    await at_rest(world)
    for name, what in await world.run(look):
        world.violation(name, what)
    for row in await states(world):
        world.ends[row.partition], world.log_starts[row.partition] = row.next_offset, row.log_start_offset


def simulate(seed: int, *, seconds: float = FAULT_SECONDS, to_first: bool = False, mood: str | None = None) -> Outcome:
    """Run one seed with so many virtual seconds of faults, and check it; `to_first`: only up to the first violation."""
    worlds: list[World] = []

    async def main(loop: SimLoop) -> None:
        worlds.append(await open_world(loop, mood))
        worlds[0].to_first = to_first
        await scenario(worlds[0], seconds)

    loop = run(seed, main)
    [world] = worlds
    violations = list(world.violations)
    if not loop.halted:
        for name, anomalies in check(world.history, ends=world.ends, log_starts=world.log_starts).items():
            violations += (Violation(each.at, name, each.what, each.partition) for each in anomalies)
    return Outcome(seed, world, loop, sorted(violations, key=lambda violation: violation.at))
