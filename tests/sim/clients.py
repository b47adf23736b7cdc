"""Simulated clients: producers that retry as a client should, readers that hold streams open, somebody who deletes old records."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from tidelog.broker.reader import PartitionCursor
from tidelog.broker.requests import Appended, AppendRequest, Bound
from tidelog.errors import (
    ConditionFailed,
    CorruptSegment,
    OffsetOutOfRange,
    OutcomeUnknown,
    OutOfOrderSequence,
    TidelogError,
    UnknownProducer,
    UnknownTopic,
)
from tidelog.metadata.topics import PartitionState, TopicConfig, partitions
from tidelog.records.batch import scan
from tidelog.records.codec import Producer, decode_values, encode_many

from tests.sim.history import Asked, Poll, Send
from tests.sim.loop import State
from tests.sim.world import Process, World

T = TypeVar("T")
TOPIC = "sim"
TOPIC_ID = "0102030405060708090a0b0c0d0e0f10"
DAMAGE_S = 5.0
"""For so long after a body was damaged a read may fail for it."""


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
            world.counts["client cut off"] += 1
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
class Append:
    """One append of some values, each of which is one operation of the history."""

    sends: Sequence[Send]
    request: AppendRequest
    attempts: int = 0
    connection: Connection | None = None
    """Over which the latest attempt went."""
    settled: bool = False

    @property
    def partition(self) -> int:
        return self.sends[0].partition

    @property
    def kind(self) -> str:
        return self.sends[0].kind

    def settle(self, world: World, kind: str, base_offset: int | None = None) -> None:
        """Note what became of it, and judge that at once."""
        self.settled = True
        for index, send in enumerate(self.sends):
            send.kind, send.ended = kind, world.loop.now
            if base_offset is not None:
                send.offset = base_offset + index
                world.watcher.acknowledged(send)
            elif kind == "fail":
                world.watcher.refused(send)
        world.counts[f"send {kind}"] += 1
        values = [send.value for send in self.sends]
        world.tell(
            "client", "", "values {}: {}{}", values, kind, "" if base_offset is None else f" at {base_offset}", partition=self.partition
        )


def new_append(
    world: World, partition: int, count: int, *, session: tuple[int, int] | None = None, number: int = 0, condition: int | None = None,
    token: str | None = None,
) -> Append:  # fmt: skip
    """Make an append of `count` values that were never used, in one batch or in several."""
    values = range(world.values + 1, world.values + count + 1)
    world.values += count
    sends = [
        Send(session, number + index, partition, value, world.loop.now, expected=None if condition is None else condition + index)
        for index, value in enumerate(values)
    ]
    world.history.sends += sends
    if token is not None:
        world.tokens.update(dict.fromkeys(values, token))
    bodies = [b"%d" % value + b" " * world.chance.choice(world.draw.padding) for value in values]
    groups = [bodies] if world.chance.random() < 0.5 else [[body] for body in bodies]
    batches, at = b"", number
    for group in groups:
        batches += encode_many(group, producer=Producer() if session is None else Producer(session[1], 0, at))
        at += len(group)
    world.tell("client", "", "appends values {}{}", list(values), "" if condition is None else f" if at {condition}", partition=partition)
    return Append(sends, AppendRequest(TOPIC, partition, batches, expected_next_offset=condition, fencing_token=token))


@dataclass(frozen=True)
class Gap:
    """A gap that a broker found before an append, and what was on its way to the same broker before it, with the attempts of each."""

    append: Append
    ahead: Sequence[tuple[Append, int]]
    problem: str


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
    """An append of this session did not go well: the next one begins another."""
    expected: dict[int, int | None] = field(default_factory=dict)
    unanswered: dict[int, dict[int, Append]] = field(default_factory=lambda: defaultdict(dict))
    """Of each partition the appends of this session, by their first number, that are not acknowledged."""
    gaps: list[Gap] = field(default_factory=list)
    """Those that are false if all that was sent before is acknowledged at the first go."""
    in_flight: int = 1
    used: dict[int, float] = field(default_factory=dict)
    """When this session last heard of an append of a partition."""

    async def run(self, stop: float) -> None:
        world = self.world
        running: set[asyncio.Task[None]] = set()
        if self.kind != "conditional":
            self.in_flight = world.chance.choice((1, 1, 3, 5))
        rate = world.chance.choice(world.draw.rates)
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
            apart_s = world.chance.choice((0, 0, 1.2 * world.draw.settings.max_latency_ms / 1000))
            for index in range(world.chance.choice((1, 1, self.in_flight - len(running)))):
                if index and apart_s:  # in segments of their own; else they share one
                    await asyncio.sleep(apart_s)
                work = world.loop.create_task(self._send(partition, condition))
                running.add(work)
                work.add_done_callback(running.discard)
            if len(running) >= self.in_flight:
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
        self.unanswered.clear()
        self.used.clear()
        self.spoilt = False
        return True

    async def _end_of(self, partition: int) -> int | None:
        known = self.expected.get(partition)
        if known is not None:
            return known
        latest = await ask_latest(self.world, partition, self.connection)
        if latest is None:
            self.connection = connect(self.world)
        return latest

    async def _send(self, partition: int, condition: int | None) -> None:
        world = self.world
        count = world.chance.choice((1, 1, 1, 2, 3))
        session, number = None, 0
        if self.kind == "idempotent":
            number = self.sequences.get(partition, 0)
            self.sequences[partition] = number + count
            session = (self.number * 1000 + self.session, self.producer_id)
        append = new_append(world, partition, count, session=session, number=number, condition=condition)
        self.unanswered[partition][number] = append
        await self._until_answered(append, idempotent=session is not None)
        self._judge_gaps()
        if append.kind == "ok":
            self.unanswered[partition].pop(number, None)
        self.spoilt = self.spoilt or append.kind != "ok"
        self.used[partition] = world.loop.now
        if self.kind == "conditional":
            base = append.sends[0].offset
            self.expected[partition] = None if base is None else base + count

    async def _until_answered(self, append: Append, *, idempotent: bool) -> None:
        world = self.world
        patience_s = world.draw.settings.append_timeout_ms / 1000
        end = world.loop.now + 2 * patience_s
        ambiguous = False
        while True:
            connection = self.connection
            append.attempts, append.connection = append.attempts + 1, connection
            before = [each for number, each in self.unanswered[append.partition].items() if number < append.sends[0].number]
            ahead = [(each, each.attempts) for each in before]
            in_line = all(each.connection is connection for each in before)
            try:
                appended: Appended = await connection.call(
                    lambda process: process.broker.append(append.request), timeout_s=1.3 * patience_s
                )
            except NoAnswer:
                ambiguous = True
            except (ConditionFailed, OutOfOrderSequence, UnknownProducer) as error:
                if isinstance(error, OutOfOrderSequence | UnknownProducer) and in_line and not self._own_gap(append, ambiguous=ambiguous):
                    self.gaps.append(Gap(append, ahead, str(error)))
                append.settle(world, "info" if ambiguous else "fail")
                return
            except OutcomeUnknown:
                ambiguous = True
                world.counts["append OUTCOME_UNKNOWN"] += 1
            except TidelogError as error:
                world.counts[f"append {error.reason}"] += 1
            else:
                append.settle(world, "ok", appended.base_offset)
                return
            if (not idempotent and ambiguous) or world.loop.now > end:
                append.settle(world, "info" if ambiguous else "fail")
                return
            if connection is self.connection:
                self.connection = connect(world)
            await asyncio.sleep(0.1)

    def _judge_gaps(self) -> None:
        """Where all that went before an append, in order and over one connection, was acknowledged there, no gap was before it."""
        for gap in list(self.gaps):
            if all(each.settled for each, _ in gap.ahead):
                self.gaps.remove(gap)
                if all(each.kind == "ok" and each.attempts == attempt for each, attempt in gap.ahead):
                    self.world.violation("false gap", (gap.append.sends, gap.problem), partition=gap.append.partition)

    def _own_gap(self, append: Append, *, ambiguous: bool) -> bool:
        """Say whether a gap before an append may come of it being sent again while so many passed it that it is not remembered any
        more, or all that was remembered has expired.
        """
        unused_s = self.world.loop.now - self.used.get(append.partition, self.world.loop.now)
        expired = unused_s * 1000 > self.world.draw.settings.producer_expiry_ms / 2
        return expired or (self.in_flight > 1 and ambiguous)


async def _bound(process: Process, partition: int, bound: Bound) -> int:
    return (await process.broker.list_offset(TOPIC, partition, bound)).offset


async def ask_latest(world: World, partition: int, connection: Connection) -> int | None:
    """Ask where a partition ends; None where no answer came."""
    began = world.loop.now
    try:
        latest = await connection.call(partial(_bound, partition=partition, bound=Bound.LATEST), timeout_s=2)
    except (NoAnswer, TidelogError):
        return None
    world.history.asked.append(Asked(partition, began, world.loop.now, latest))
    return latest


async def _delete_before(process: Process, partition: int, offset: int) -> int:
    return await process.broker.delete_records(TOPIC, partition, offset)


async def trim(world: World, stop: float) -> None:
    """Delete old records now and then, and ask where logs begin."""
    while world.loop.now < stop:
        await asyncio.sleep(world.chance.expovariate(0.5))
        partition = world.chance.randrange(world.draw.partitions)
        connection = connect(world)
        began = world.loop.now
        try:
            if world.chance.random() < 0.3:
                before = max(0, (await states(world))[partition].next_offset - world.chance.randrange(20))
                earliest = await connection.call(partial(_delete_before, partition=partition, offset=before), timeout_s=2)
            else:
                earliest = await connection.call(partial(_bound, partition=partition, bound=Bound.EARLIEST), timeout_s=2)
        except (NoAnswer, TidelogError):
            continue
        world.history.asked.append(Asked(partition, began, world.loop.now, None, earliest))


async def fence(world: World, stop: float) -> None:
    """Take partitions over, as a new writer does: set a token of one's own, and append under it."""
    while world.loop.now < stop:
        await asyncio.sleep(world.chance.expovariate(0.4))
        partition = world.chance.randrange(world.draw.partitions)
        connection = connect(world)
        world.fences += 1
        token = f"writer-{world.fences}"
        set_token = partial(_set_token, partition=partition, token=token)
        try:
            await connection.call(set_token, timeout_s=1.3 * world.draw.settings.append_timeout_ms / 1000)
        except (NoAnswer, TidelogError):
            continue
        world.counts["fencing token set"] += 1
        for _ in range(world.chance.randrange(1, 8)):
            append = new_append(world, partition, 1, token=token)
            if not await _append_once(world, append, connection):
                break
            await asyncio.sleep(world.chance.expovariate(5))


async def _set_token(process: Process, partition: int, token: str) -> int:
    return await process.broker.set_fencing_token(TOPIC, partition, token, expected=None)


async def _append_once(world: World, append: Append, connection: Connection) -> bool:
    """Append without trying again; return whether it was acknowledged."""
    try:
        appended = await connection.call(lambda process: process.broker.append(append.request), timeout_s=15)
    except (NoAnswer, OutcomeUnknown):
        append.settle(world, "info")
    except TidelogError as error:
        if isinstance(error, ConditionFailed):
            world.counts["append fenced off"] += 1
        append.settle(world, "fail")
    else:
        append.settle(world, "ok", appended.base_offset)
        return True
    return False


@dataclass(eq=False)
class Stream:
    """A reader's stream to one broker: it follows one partition there until the connection breaks, or the reader goes elsewhere."""

    world: World
    partition: int
    connection: Connection
    number: int
    cursor: PartitionCursor | None = None
    following: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def fetch(self, offset: int, *, max_bytes: int, timeout_s: float) -> tuple[list[tuple[int, int]], int]:
        """Read what there is from an offset on, and wait a little where there is nothing yet; return it with the high watermark."""
        return await self.connection.call(lambda process: self._fetch(process, offset, max_bytes), timeout_s=timeout_s)

    def close(self) -> None:
        """The connection is gone: the broker notices, and lets go."""
        loop, context = self.world.loop, self.connection.process.context
        loop.call_later(0.05, lambda: loop.create_task(self.following.aclose(), context=context), context=context)

    async def _fetch(self, process: Process, offset: int, max_bytes: int) -> tuple[list[tuple[int, int]], int]:
        if self.cursor is None:
            self.cursor = await self.following.enter_async_context(process.broker.follow(TOPIC, self.partition))
        cursor = self.cursor
        run = await cursor.read(offset, max_bytes=max_bytes)
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
    """Poll a partition until `stop`; with `partition` given from its beginning to its end, else wherever chance leads.

    Whoever reads to the end may take longer, as long as it gets on: small windows on a slow store take their time.
    """
    final = partition is not None
    patience_s = stop - world.loop.now
    generation = 0
    at = 0
    chosen = world.chance.randrange(world.draw.partitions) if partition is None else partition
    stream = Stream(world, chosen, connect(world), 0)
    while world.loop.now < stop:
        if not final and world.chance.random() < 0.01:
            chosen = world.chance.randrange(world.draw.partitions)
            generation += 1
            at = max(0, (await states(world))[chosen].next_offset - world.chance.randrange(30))
            stream.close()
            stream = Stream(world, chosen, connect(world), stream.number + 1)
        if not final and world.chance.random() < 0.2:
            await ask_latest(world, chosen, stream.connection)
        began = world.loop.now
        try:
            max_bytes = 100_000 if final else world.chance.choice((1, 1000, 100_000))
            pairs, mark = await stream.fetch(at, max_bytes=max_bytes, timeout_s=30 if final else 3)
        except (NoAnswer, TidelogError) as error:
            stream.close()
            stream = Stream(world, chosen, connect(world), stream.number + 1)
            if isinstance(error, OffsetOutOfRange) and at < error.log_start_offset:
                world.watcher.out_of_range(chosen, at, error.log_start_offset, error.high_watermark)
                at = error.log_start_offset
                generation += 1
            elif isinstance(error, TidelogError) and not _excused(world, error):
                world.violation(f"reading: {error.reason}", f"offset {at}: {error}", partition=chosen)
            await asyncio.sleep(0.1)
            continue
        world.history.polls.append(Poll(reader, generation, chosen, began, world.loop.now, pairs, mark, stream.number))
        world.watcher.read(chosen, pairs, mark)
        if pairs:
            world.tell("client", f"reader {reader}", "reads offsets {} to {}", at, pairs[-1][0] + 1, partition=chosen)
            at = pairs[-1][0] + 1
            stop = world.loop.now + patience_s if final else stop
        elif final and at >= (await states(world))[chosen].next_offset:
            return
        else:
            await asyncio.sleep(0.1)


def _excused(world: World, error: TidelogError) -> bool:
    damaged = isinstance(error, CorruptSegment) and world.loop.now < world.damaged_at + DAMAGE_S
    return error.retriable or damaged or isinstance(error, UnknownTopic)


async def doomed(world: World, stop: float) -> None:
    """Make topics, append to them, and delete them."""
    while world.loop.now < stop:
        await asyncio.sleep(world.chance.uniform(1, 5))
        world.dooms += 1
        name, connection = f"doomed-{world.dooms}", connect(world)
        count = world.chance.choice((1, 3))
        try:
            await connection.call(partial(_create, name=name, count=count), timeout_s=3)
            for number in range(world.chance.randrange(1, 6)):
                await connection.call(partial(_append, request=AppendRequest(name, number % count, encode_many([b"-1"]))), timeout_s=3)
        except (NoAnswer, TidelogError):
            world.counts["doomed topic not filled"] += 1
        await asyncio.sleep(world.chance.uniform(0, 3))
        try:
            await connect(world).call(partial(_delete, name=name), timeout_s=3)
        except (NoAnswer, TidelogError):
            continue
        world.counts["doomed topic deleted"] += 1


async def _create(process: Process, name: str, count: int) -> None:
    await process.broker.create_topic(name, partitions=count, config=TopicConfig())


async def _append(process: Process, request: AppendRequest) -> None:
    await process.broker.append(request)


async def _delete(process: Process, name: str) -> None:
    await process.broker.delete_topic(name)


async def below(world: World, partition: int, until: float) -> None:
    """Whoever asks for what is not kept any more is told what is, by every broker that is alive."""
    for name in sorted(world.brokers):
        if world.brokers[name].node.state is State.DEAD:
            continue
        while True:
            log_start = (await states(world))[partition].log_start_offset
            if log_start == 0:
                return
            connection = Connection(world, world.brokers[name])
            try:
                await connection.call(partial(_begin_at, partition=partition, offset=log_start - 1), timeout_s=30)
            except OffsetOutOfRange as error:
                world.watcher.out_of_range(partition, log_start - 1, error.log_start_offset, error.high_watermark)
                break
            except (NoAnswer, TidelogError) as error:
                world.counts[f"read below the log start: {type(error).__name__}"] += 1
            if world.loop.now > until:
                world.violation("read below the log start", f"offset {log_start - 1} through {name}", partition=partition)
                break
            await asyncio.sleep(0.5)


async def _begin_at(process: Process, partition: int, offset: int) -> None:
    async with process.broker.follow(TOPIC, partition) as cursor:
        await cursor.read(await cursor.resolve(offset), max_bytes=1000)


async def states(world: World) -> Sequence[PartitionState]:
    """Return the partitions as they are in SQL, without a network between."""
    return await world.run(partitions, topic_id=TOPIC_ID)


async def probe(world: World, partition: int, until: float) -> None:
    """After the faults, every partition takes appends again, through every broker that is alive."""
    for name in sorted(world.brokers):
        if world.brokers[name].node.state is State.DEAD:
            continue
        done = False
        while not done and world.loop.now < until:
            done = await _append_once(world, new_append(world, partition, 1), Connection(world, world.brokers[name]))
            if not done:
                await asyncio.sleep(0.3)
        if not done:
            world.violation("no appends after healing", f"through {name}: {world.brokers[name].broker.ready()}", partition=partition)
