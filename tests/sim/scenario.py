"""One seed's run: brokers, producers, readers and a nemesis; then everything heals, and all that was promised must be there."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tidelog.broker.reader import PartitionCursor
from tidelog.broker.requests import Appended, AppendRequest, Bound
from tidelog.errors import (
    ConditionFailed,
    OutcomeUnknown,
    OutOfOrderSequence,
    TidelogError,
    UnknownProducer,
    UnknownTopic,
)
from tidelog.metadata.store import Transaction
from tidelog.metadata.topics import TopicConfig, create_topic, partitions
from tidelog.records.batch import scan
from tidelog.records.codec import Producer, decode_values, encode_many
from tidelog.segments.keys import IntakeKey

from tests.sim.history import Asked, Poll, Send, check
from tests.sim.loop import SimLoop, State, run
from tests.sim.world import Process, World, kill, open_world, restart

T = TypeVar("T")
TOPIC = "sim"
TOPIC_ID = "0102030405060708090a0b0c0d0e0f10"
FAULT_SECONDS = 30.0
HEALED_WITHIN_S = 30.0


class NoAnswer(Exception):
    """The connection broke, or nothing came in time: whatever was asked may have happened."""


@dataclass(eq=False)
class Connection:
    """A client's connection to one broker: calls arrive in the order in which they were made."""

    world: World
    process: Process
    arrives: float = 0.0
    lost: bool = False

    async def call(self, method: Callable[[Process], Awaitable[T]], *, timeout_s: float) -> T:
        world, target = self.world, self.process
        self.lost = self.lost or (target.name, "client") in world.cut
        if self.lost:  # for good: what follows on a stream must not overtake what went missing
            await asyncio.sleep(timeout_s)
            raise NoAnswer
        self.arrives = max(self.arrives + 1e-7, world.loop.now + world.latency(world.draw.network_s))
        answer: asyncio.Future[T] = world.loop.create_future()

        async def finish(work: Awaitable[T]) -> None:
            try:
                result = await work
            except TidelogError as error:
                self._back(answer, None, error)
            else:
                self._back(answer, result, None)

        def arrive() -> None:
            try:
                work = method(target)
            except TidelogError as error:
                self._back(answer, None, error)
                return
            world.loop.create_task(finish(work), context=target.context)

        world.loop.call_at(self.arrives, arrive, context=target.context)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise NoAnswer from None

    def _back(self, answer: "asyncio.Future[T]", result: Any, error: Exception | None) -> None:
        def settle() -> None:
            if not answer.done():
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)

        self.world.loop.outside(self.world.latency(self.world.draw.network_s), settle)


def connect(world: World) -> Connection:
    alive = [name for name in sorted(world.brokers) if world.brokers[name].node.state is not State.DEAD] or sorted(world.brokers)
    return Connection(world, world.brokers[world.chance.choice(alive)])


@dataclass(eq=False)
class Client:
    """A producer: idempotent with several appends in flight, plain, or conditional."""

    world: World
    number: int
    kind: str
    connection: Connection
    session: int = 0
    producer_id: int = -1
    sequences: dict[int, int] = field(default_factory=dict)
    spoilt: bool = False
    expected: dict[int, int | None] = field(default_factory=dict)
    last_connection: dict[int, Connection] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    """Partitions whose appends of this session went over more than one connection, out of order perhaps: gaps are their own."""

    async def run(self, stop: float) -> None:
        world = self.world
        running: set[asyncio.Task[None]] = set()
        in_flight = world.chance.choice((1, 3, 5)) if self.kind == "idempotent" else 1
        rate = world.chance.choice((3, 10))
        while world.loop.now < stop:
            await asyncio.sleep(world.chance.expovariate(rate))
            partition = world.chance.randrange(world.draw.partitions)
            if not running and (self.connection.process.node.state is State.DEAD or world.chance.random() < 0.02):
                self.connection = connect(world)
            if self.kind == "idempotent" and (self.producer_id < 0 or self.spoilt):
                if running:
                    await asyncio.wait(running)
                if not await self._begin_session():
                    continue
            condition = None
            if self.kind == "conditional":
                condition = await self._end_of(partition)
                if condition is None:
                    continue
            work = world.loop.create_task(self._send(partition, condition))
            running.add(work)
            work.add_done_callback(running.discard)
            if len(running) >= in_flight:
                await asyncio.wait(running, return_when="FIRST_COMPLETED")
        if running:
            await asyncio.wait(running)

    async def _begin_session(self) -> bool:
        try:
            self.producer_id, _ = await self.connection.call(lambda process: process.broker.init_producer(), timeout_s=2)
        except (NoAnswer, TidelogError):
            self.connection = connect(self.world)
            return False
        self.session += 1
        self.sequences.clear()
        self.last_connection.clear()
        self.moved.clear()
        self.spoilt = False
        return True

    async def _end_of(self, partition: int) -> int | None:
        known = self.expected.get(partition)
        if known is not None:
            return known
        began = self.world.loop.now
        try:
            latest = await self.connection.call(lambda process: _bound(process, partition, Bound.LATEST), timeout_s=2)
        except (NoAnswer, TidelogError):
            self.connection = connect(self.world)
            return None
        self.world.history.asked.append(Asked(partition, began, self.world.loop.now, latest))
        return latest

    async def _send(self, partition: int, condition: int | None) -> None:
        world = self.world
        world.values += 1
        value = world.values
        session = None
        producer = Producer()
        number = 0
        if self.kind == "idempotent":
            number = self.sequences.get(partition, 0)
            self.sequences[partition] = number + 1
            session = (self.number * 1000 + self.session, self.producer_id)
            producer = Producer(self.producer_id, 0, number)
        send = Send(session, number, partition, value, world.loop.now, expected=condition)
        world.history.sends.append(send)
        batch = encode_many([b"%d" % value], producer=producer)
        request = AppendRequest(TOPIC, partition, batch, expected_next_offset=condition)
        if self.last_connection.setdefault(partition, self.connection) is not self.connection:
            self.moved.add(partition)
        await self._until_answered(send, request)
        send.ended = world.loop.now
        world.counts[f"send {send.kind}"] += 1
        if send.kind != "ok":
            self.spoilt = True
        if self.kind == "conditional":
            self.expected[partition] = send.offset + 1 if send.kind == "ok" and send.offset is not None else None

    async def _until_answered(self, send: Send, request: AppendRequest) -> None:
        world = self.world
        patience_s = world.draw.settings.append_timeout_ms / 1000
        end = world.loop.now + 2 * patience_s
        ambiguous = False
        while True:
            connection = self.connection
            try:
                appended: Appended = await connection.call(lambda process: process.broker.append(request), timeout_s=1.3 * patience_s)
            except NoAnswer:
                ambiguous = True
            except (ConditionFailed, OutOfOrderSequence, UnknownProducer) as error:
                send.kind = "info" if ambiguous else "fail"
                clean = not ambiguous and not self.spoilt and send.partition not in self.moved
                if clean and isinstance(error, OutOfOrderSequence | UnknownProducer):
                    world.violation("false gap", (send, str(error)))
                return
            except OutcomeUnknown:
                ambiguous = True
            except TidelogError as error:
                world.counts[f"append {error.reason}"] += 1
                if not isinstance(error, UnknownTopic):
                    self.spoilt = self.spoilt or send.session is not None
            else:
                send.kind, send.offset = "ok", appended.base_offset
                return
            self.moved.add(send.partition)
            if send.session is None and ambiguous:
                return
            if world.loop.now > end:
                send.kind = "info" if ambiguous else "fail"
                return
            if connection is self.connection:
                self.connection = connect(world)
            await asyncio.sleep(0.1)


async def _bound(process: Process, partition: int, bound: Bound) -> int:
    return (await process.broker.list_offset(TOPIC, partition, bound)).offset


@dataclass(eq=False)
class Stream:
    """A reader's stream to one broker: it follows one partition there until the connection breaks, or the reader goes elsewhere."""

    world: World
    partition: int
    connection: Connection
    number: int
    cursor: PartitionCursor | None = None
    following: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def fetch(self, offset: int) -> tuple[list[tuple[int, int]], int]:
        """Read what there is from an offset on, and wait a little where there is nothing yet; return it with the high watermark."""
        return await self.connection.call(lambda process: self._fetch(process, offset), timeout_s=3)

    def close(self) -> None:
        """The connection is gone: the broker notices, and lets go."""
        process = self.connection.process
        self.world.loop.call_later(
            0.05, lambda: self.world.loop.create_task(self.following.aclose(), context=process.context), context=process.context
        )

    async def _fetch(self, process: Process, offset: int) -> tuple[list[tuple[int, int]], int]:
        if self.cursor is None:
            self.cursor = await self.following.enter_async_context(process.broker.follow(TOPIC, self.partition))
        cursor = self.cursor
        run = await cursor.read(offset, max_bytes=process.world.chance.choice((1, 1000, 100_000)))
        if not run.batches:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await cursor.wait(offset)
            run = await cursor.read(offset, max_bytes=1000)
        pairs = []
        for header in scan(run.batches):
            values = decode_values(memoryview(run.batches)[header.position : header.position + header.size])
            for at, value in enumerate(values, header.base_offset):
                assert value is not None
                if at >= offset:
                    pairs.append((at, int(value)))
        return pairs, run.high_watermark


async def read(world: World, reader: int, stop: float, *, partition: int | None = None) -> None:
    """Poll a partition; with `partition` given from its beginning to its end, else wherever chance leads."""
    final = partition is not None
    generation = 0
    at = 0
    chosen = world.chance.randrange(world.draw.partitions) if partition is None else partition
    stream = Stream(world, chosen, connect(world), 0)
    while world.loop.now < stop:
        if not final and world.chance.random() < 0.01:
            chosen = world.chance.randrange(world.draw.partitions)
            generation += 1
            at = max(0, (await _ends(world))[chosen] - world.chance.randrange(30))
            stream.close()
            stream = Stream(world, chosen, connect(world), stream.number + 1)
        began = world.loop.now
        try:
            pairs, mark = await stream.fetch(at)
        except (NoAnswer, TidelogError) as error:
            if isinstance(error, TidelogError) and not error.retriable and not isinstance(error, UnknownTopic):
                world.violation(f"reading: {error.reason}", (chosen, at, str(error)))
            stream.close()
            stream = Stream(world, chosen, connect(world), stream.number + 1)
            await asyncio.sleep(0.1)
            continue
        world.history.polls.append(Poll(reader, generation, chosen, began, world.loop.now, pairs, mark, stream.number))
        if pairs:
            at = pairs[-1][0] + 1
        elif final and at >= (await _ends(world))[chosen]:
            return
        else:
            await asyncio.sleep(0.1)


async def _ends(world: World) -> list[int]:
    return [row.next_offset for row in await world.store.run(partitions, topic_id=TOPIC_ID)]


async def nemesis(world: World, stop: float) -> None:
    while world.loop.now < stop:
        await asyncio.sleep(world.chance.uniform(5, 15) if world.draw.calm else world.chance.uniform(0.5, 3))
        if world.loop.now >= stop:
            return
        strike(world)


def strike(world: World) -> None:
    chance = world.chance
    fault = chance.choice(world.draw.faults)
    world.counts[f"fault: {fault}"] += 1
    name = chance.choice(sorted(world.brokers))
    process = world.brokers[name]
    lasts = chance.choice((chance.uniform(0.2, 2), chance.uniform(1, 9)))
    later = world.loop.outside
    if fault in ("kill", "kill all"):
        for victim in [name] if fault == "kill" else sorted(world.brokers):
            kill(world, victim)
            later(chance.choice((0.01, lasts)), restart, world, victim)
    elif fault == "pause" and process.node.state is State.RUNNING:
        process.node.state = State.PAUSED
        later(lasts, world.loop.resume, process.node)
    elif fault == "cut peer":
        other = chance.choice(sorted(world.brokers))
        everyone = [(name, each) for each in sorted(world.brokers) if each != name]
        for link in chance.choice(([(name, other)], [(name, other), (other, name)], everyone)):
            if link[0] != link[1]:
                world.cut.add(link)
                later(lasts, world.cut.discard, link)
    elif fault.startswith("cut"):
        link = (name, fault.removeprefix("cut "))
        world.cut.add(link)
        later(lasts, world.cut.discard, link)
    elif fault in world.failing:
        world.failing[fault] = chance.choice((0.02, 0.1, 0.3))
        later(lasts, world.failing.__setitem__, fault, 0.0)
    elif fault.endswith("outage"):
        world.down_until[fault.removesuffix(" outage")] = world.loop.now + lasts
    elif fault == "skew":
        now = world.loop.now
        before = now * process.node.rate + process.node.skew_s
        process.node.rate = chance.uniform(0.8, 1.2)
        process.node.skew_s = before - now * process.node.rate


def heal(world: World) -> None:
    world.failing = dict.fromkeys(world.failing, 0.0)
    world.down_until = dict.fromkeys(world.down_until, 0.0)
    world.cut.clear()
    for process in world.brokers.values():
        if process.node.state is State.PAUSED:
            world.loop.resume(process.node)


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


async def invariants(world: World) -> None:
    for name, what in await world.store.run(look):
        world.violation(name, what)
    rows = await world.store.run(
        lambda tx: tx.rows(
            "SELECT DISTINCT w.broker_id, w.broker_epoch, e.sequence, w.incarnation FROM extents e JOIN writers w"
            " ON w.broker_epoch = e.broker_epoch"
        )
    )
    stored = {found.key async for found in world.bucket.list("intake/")}
    for row in rows:
        if str(IntakeKey(*row)) not in stored:
            world.violation("dangling", tuple(row))


async def watch(world: World) -> None:
    while True:
        await asyncio.sleep(1)
        await invariants(world)


async def probe(world: World, partition: int, until: float) -> None:
    """After the faults, every partition takes appends again, through every broker that is alive."""
    for name in sorted(world.brokers):
        if world.brokers[name].node.state is State.DEAD:
            continue
        done = False
        while not done and world.loop.now < until:
            world.values += 1
            send = Send(None, 0, partition, world.values, world.loop.now)
            world.history.sends.append(send)
            request = AppendRequest(TOPIC, partition, encode_many([b"%d" % send.value]))
            try:
                connection = Connection(world, world.brokers[name])
                appended = await connection.call(lambda process, request=request: process.broker.append(request), timeout_s=15)  # type: ignore[misc]
            except (NoAnswer, OutcomeUnknown):
                pass
            except TidelogError:
                send.kind = "fail"
            else:
                send.kind, send.offset, done = "ok", appended.base_offset, True
            send.ended = world.loop.now
            if not done:
                await asyncio.sleep(0.3)
        if not done:
            world.violation("no appends after healing", (partition, name, world.brokers[name].broker.ready()))


async def scenario(loop: SimLoop) -> World:
    world = await open_world(loop)
    # The first to come names the cluster and the topic; then the faults begin.
    for index in range(world.draw.brokers):
        world.brokers[f"b{index}"] = Process(world, f"b{index}", 0)
    await asyncio.sleep(2)
    await world.store.run(create_topic, topic_id=TOPIC_ID, name=TOPIC, partitions=world.draw.partitions, config=TopicConfig())
    for process in world.brokers.values():
        loop.call_soon(process.broker.nudge, context=process.context)
    await asyncio.sleep(1)
    watching = loop.create_task(watch(world))
    stop = loop.now + FAULT_SECONDS
    kinds = ("idempotent", "idempotent", "idempotent", "plain", "plain", "conditional")
    clients = [loop.create_task(Client(world, number, kind, connect(world)).run(stop)) for number, kind in enumerate(kinds)]
    readers = [loop.create_task(read(world, 100 + number, stop)) for number in range(3)]
    await nemesis(world, stop)
    heal(world)
    await asyncio.sleep(10.5)  # all restarts that are under way
    stay_dead = world.chance.random() < 0.3 and len(world.brokers) > 2
    if stay_dead:
        kill(world, world.chance.choice(sorted(world.brokers)))
    await asyncio.gather(*clients, *readers)
    await asyncio.gather(*(probe(world, partition, loop.now + HEALED_WITHIN_S) for partition in range(world.draw.partitions)))
    until = loop.now + 60
    await asyncio.gather(*(read(world, 200 + partition, until, partition=partition) for partition in range(world.draw.partitions)))
    await invariants(world)
    watching.cancel()
    world.ends = dict(enumerate(await _ends(world)))
    return world


def simulate(seed: int) -> tuple[dict[str, int], World, SimLoop]:
    """Run one seed; return the anomalies with their counts."""
    world, loop = run(seed, scenario)
    found = {name: len(items) for name, items in check(world.history, ends=world.ends).items()}
    for _, name, _ in world.violations:
        found[name] = found.get(name, 0) + 1
    return found, world, loop
