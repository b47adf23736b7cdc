"""One seed's run: brokers, producers, readers and a nemesis; then everything heals, and all that was promised must be there."""

import asyncio
import sys
from dataclasses import dataclass

from tidelog.broker.lookups import object_key
from tidelog.broker.verification import Scope, verify_store
from tidelog.executors import InlineExecutor
from tidelog.metadata.store import Transaction
from tidelog.metadata.topics import create_topic
from tidelog.metadata.verification import segments
from tidelog.metrics import ScrubFinding
from tidelog.segments.keys import parse_key

from tests.sim import rebuilding
from tests.sim.clients import TOPIC, TOPIC_ID, Client, below, connect, doomed, fence, probe, read, states, trim
from tests.sim.history import check
from tests.sim.loop import SimLoop, State, run
from tests.sim.nemesis import heal, strike
from tests.sim.timeline import Violation
from tests.sim.world import World, begin, kill, open_world

FAULT_SECONDS = 30.0
HEALED_WITHIN_S = 30.0
DRAINED_WITHIN_S = 240.0
"""Within which at least one thing more must have gone."""
ROT_FOUND_WITHIN_S = 300.0


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
    """Return what breaks an invariant in SQL: extents disjoint, and dense from the log start to the end of each partition."""
    wrong: list[tuple[str, object]] = []
    bounds = {row.partition_id: (row.log_start_offset, row.next_offset) for row in tx.rows("SELECT * FROM partitions")}
    at = {partition_id: log_start for partition_id, (log_start, _) in bounds.items()}
    before: dict[int, int] = {}
    rows = tx.rows("SELECT partition_id, base_offset, next_offset, record_count FROM extents ORDER BY partition_id, base_offset")
    for row in rows:
        log_start, end = bounds[row.partition_id][0], at[row.partition_id]
        begins = row.base_offset <= log_start < row.next_offset
        if row.base_offset < before.get(row.partition_id, 0) or row.next_offset - row.base_offset != row.record_count:
            wrong.append(("extents overlap", tuple(row)))
        if row.next_offset > log_start:
            if row.base_offset != end and not begins:
                wrong.append(("extents have a gap", tuple(row)))
            at[row.partition_id] = row.next_offset
        before[row.partition_id] = row.next_offset
    wrong += [("the end is not where extents end", (i, end)) for i, (_, end) in bounds.items() if at[i] != end]
    twice = "SELECT partition_id, broker_epoch, sequence, position FROM extents GROUP BY 1, 2, 3, 4 HAVING count(*) > 1"
    wrong += [("bytes committed twice", tuple(row)) for row in tx.rows(twice)]
    return wrong


def _needed(tx: Transaction) -> tuple[set[tuple[int, int]], int]:
    """Return the segments that live extents refer to, and how many rows there are of what should be gone."""
    live = {(row.broker_epoch, row.sequence) for row in tx.rows("SELECT DISTINCT broker_epoch, sequence FROM extents")}
    notes = tx.rows("SELECT broker_epoch, sequence FROM released_extents UNION ALL SELECT broker_epoch, sequence FROM released_segments")
    leftover = sum((row.broker_epoch, row.sequence) not in live for row in notes)
    return live, leftover + len(tx.rows("SELECT topic_id FROM topics WHERE deleted"))


async def drained(world: World) -> None:
    """When all is healed, everything that nobody needs goes: objects, deleted topics, and what was noted of them."""
    least, until = sys.maxsize, world.loop.now
    while True:
        needed, leftover = await world.run(_needed)
        keys = [(name, key) for name in world.bucket.names() if (key := parse_key(name)) is not None]
        orphans = [name for name, key in keys if (key.broker_epoch, key.sequence) not in needed]
        stored = {(key.broker_epoch, key.sequence) for _, key in keys}
        for segment in sorted(needed - stored):
            world.violation("dangling", f"segment {segment} is referred to, and not stored")
        if not orphans and not leftover:
            world.counts["all drained"] += 1
            return
        if (left := len(orphans) + leftover) < least:
            least, until = left, world.loop.now + DRAINED_WITHIN_S
        if world.loop.now > until:
            world.violation("what nobody needs stays", f"{len(orphans)} objects, as {orphans[:3]}, and {leftover} rows")
            return
        await asyncio.sleep(1)


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
        life = process.broker.life
        lent = set(life.intake._lent) if life is not None else set()
        while life is not None and life is process.broker.life and (lent := lent & life.intake._lent) and world.loop.now < until + 120:
            await asyncio.sleep(0.2)
        if life is not None and life is process.broker.life and lent & life.intake._lent:
            world.violation("sequence held for ever", f"{process.label} holds {sorted(lent)}")


async def verified(world: World) -> None:
    """Check everything as `tidelog fsck` does: at the stores themselves, while brokers go on with what they do by themselves."""
    report = await verify_store(
        world.store, world.bucket, scope=Scope(look_again_after_s=0.5), clock=world.clock, executor=InlineExecutor()
    )
    for finding in report.findings:
        if finding.severity != "waste" or finding.code in ("damaged-remains", "unnoted-release", "strange-object"):
            world.violation(f"fsck: {finding.code}", finding.sentence)
    world.counts["fsck: segments"] += report.segments
    world.counts["fsck: looked at again"] += report.looked_at_again


def scrubbed(world: World, found: ScrubFinding) -> int:
    """Return how many extents all scrubs found so."""
    return sum(int(process.metrics.scrubbed[found]._value.get()) for process in world.lives)


async def rot(world: World) -> None:
    """No scrub has called anything damage so far; then one bit of what is stored turns, and one must find it."""
    if missing := scrubbed(world, "missing"):
        world.violation("scrub: missing, but it was there", missing)
    if (damaged := scrubbed(world, "damaged")) and not world.counts["body damaged"] + world.counts["body cut"]:
        world.violation("scrub: damaged, but it was sound", damaged)
    readable = (
        "SELECT e.broker_epoch, e.sequence, e.partition_id, e.position FROM extents e JOIN partitions p ON p.partition_id = e.partition_id"
        " WHERE e.base_offset >= p.log_start_offset ORDER BY 1, 2, 3, 4 LIMIT 1"
    )
    found = await world.store.run(lambda tx: tx.rows(readable))
    if not found:
        return
    [segment] = await world.store.run(segments, wanted=[(found[0].broker_epoch, found[0].sequence)])
    [(extent, place)] = [
        (each, at) for each, at in segment.extents if (each.partition_id, each.position) == (found[0].partition_id, found[0].position)
    ]
    assert place is not None
    assert segment.writer is not None
    key = object_key(extent, segment.writer, topic_id=place.topic_id, partition=place.partition)
    world.bucket.turn_bit(key, extent.position + extent.length - 1)
    extents = (await world.store.run(lambda tx: tx.rows("SELECT count(*) AS count FROM extents")))[0].count
    each_s = 1 / world.draw.settings.scrub_reads_per_second + 2 * world.draw.store_s
    within_s = ROT_FOUND_WITHIN_S + 2 * extents * each_s  # it may just have been looked at
    until = world.loop.now + within_s
    while scrubbed(world, "damaged") == damaged:
        if found[0] not in await world.store.run(lambda tx: tx.rows(readable.replace(" LIMIT 1", ""))):
            world.counts["rotten extent not kept"] += 1
            return
        if world.loop.now > until:
            world.violation("scrub: damaged, but not found", f"{key} since {within_s:g} s")
            return
        await asyncio.sleep(1)
    world.counts["scrub: damage found"] += 1


async def checkpointed(world: World) -> None:
    """Wait until there was time for a checkpoint of everything: retention may move log starts meanwhile."""
    starts = None
    while starts != (starts := [row.log_start_offset for row in await states(world)]):
        await asyncio.sleep(2 * world.draw.settings.checkpoint_interval_ms / 1000 + 3)


async def scenario(world: World, seconds: float) -> None:
    """Run faults for so many seconds; then heal, and look whether all is there."""
    loop = world.loop
    # The first to come names the cluster and the topic; then the faults begin.
    for index in range(world.draw.brokers):
        begin(world, f"b{index}")
    await asyncio.sleep(2)
    await world.run(create_topic, topic_id=TOPIC_ID, name=TOPIC, partitions=world.draw.partitions, config=world.draw.keeps)
    for process in world.brokers.values():
        loop.call_soon(process.broker.nudge, context=process.context)
    await asyncio.sleep(1)
    stop = loop.now + seconds
    kinds = ("idempotent", "idempotent", "idempotent", "plain", "plain", "conditional")
    work = [loop.create_task(Client(world, number, kind, connect(world)).run(stop)) for number, kind in enumerate(kinds)]
    work += [loop.create_task(read(world, 100 + number, stop)) for number in range(3)]
    if world.draw.trims:
        work.append(loop.create_task(trim(world, stop)))
    if world.draw.dooms:
        work.append(loop.create_task(doomed(world, stop)))
    if world.draw.fences:
        work += [loop.create_task(fence(world, stop)) for _ in range(2)]
    work.append(loop.create_task(rebuilding.strike(world, stop)))
    await nemesis(world, stop)
    heal(world)
    await asyncio.sleep(20)  # all restarts that are under way
    if world.chance.random() < 0.3 and len(world.brokers) > 2:
        kill(world, world.chance.choice(sorted(world.brokers)))
    await asyncio.gather(*work)
    await asyncio.gather(*(probe(world, partition, loop.now + HEALED_WITHIN_S) for partition in range(world.draw.partitions)))
    until = loop.now + 120
    await asyncio.gather(*(read(world, 200 + partition, until, partition=partition) for partition in range(world.draw.partitions)))
    await asyncio.gather(*(below(world, partition, loop.now + HEALED_WITHIN_S) for partition in range(world.draw.partitions)))
    await at_rest(world)
    await drained(world)
    if world.draw.settings.checkpoint_interval_ms:
        await checkpointed(world)
        await rebuilding.look(world, whole=True)
    for name, what in await world.run(look):
        world.violation(name, what)
    await verified(world)
    for row in await states(world):
        world.ends[row.partition], world.log_starts[row.partition] = row.next_offset, row.log_start_offset
    await rot(world)
    await rebuilding.lose_twice(world)


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
