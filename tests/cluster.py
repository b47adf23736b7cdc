"""Brokers of one cluster in one process, joined by a network of function calls that a test can cut."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from tidelog.broker.broker import Broker
from tidelog.broker.references import (
    Answer,
    AnswerReceiver,
    FeedLink,
    FeedReceiver,
    Reference,
    ReferenceLink,
)
from tidelog.broker.requests import Appended, AppendRequest
from tidelog.clock import Clock, SystemClock
from tidelog.config import Settings
from tidelog.errors import TidelogError
from tidelog.executors import InlineExecutor
from tidelog.metadata.membership import Broker as Member
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.objects.memory import MemoryStore
from tidelog.objects.store import ObjectStore
from tidelog.records.batch import Buffer
from tidelog.records.codec import Producer, encode_many

from tests import virtual_time
from tests.virtual_time import VirtualClock

QUICK = Settings(lease_ms=1000, catalog_poll_ms=50, max_latency_ms=20, append_timeout_ms=10_000, drain_propagation_ms=0)


class SharedStore:
    """One metadata store for several brokers: as PostgreSQL, it proves nobody dead by being open."""

    exclusive = False

    def __init__(self, store: MetadataStore) -> None:
        self.run = store.run
        self.run_reserved = store.run_reserved
        self.close = store.close


@dataclass(eq=False)
class _Wire:
    """The intake's end of a link, as seen from both sides."""

    network: "Network"
    source: str
    target: str
    receiver: AnswerReceiver
    session: object = None
    closed: bool = False
    queue: list[Sequence[Reference]] = field(default_factory=list)

    def send(self, references: Sequence[Reference]) -> None:
        self.network.loop.call_soon(self._deliver, references)

    def _deliver(self, references: Sequence[Reference]) -> None:
        if self.closed or (self.source, self.target) in self.network.silent:
            return
        target = self.network.brokers.get(self.target)
        if target is None or (self.source, self.target) in self.network.cut:
            self.fail()
            return
        try:
            if self.session is None:
                self.session = target.references_from(references[0].broker_epoch, _Back(self))
            self.session.offer(references)  # type: ignore[attr-defined]
        except TidelogError:
            self.fail()

    def fail(self) -> None:
        if not self.closed:
            self.closed = True
            self.network.loop.call_soon(self.receiver.broken)

    def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class _Back:
    """The leader's view of a link."""

    wire: _Wire

    def answered(self, answers: Sequence[Answer]) -> None:
        wire = self.wire
        if (wire.target, wire.source) in wire.network.cut:
            wire.fail()
        elif not wire.closed:
            wire.network.loop.call_soon(wire.receiver.answered, answers)

    def broken(self) -> None:
        self.wire.fail()


class NoFeed:
    def follow(self, partition_ids: Sequence[int]) -> None: ...

    def unfollow(self, partition_ids: Sequence[int]) -> None: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class Network:
    """Who can reach whom."""

    brokers: dict[str, Broker] = field(default_factory=dict)
    cut: set[tuple[str, str]] = field(default_factory=set)
    silent: set[tuple[str, str]] = field(default_factory=set)
    """Between these references get lost, and nobody is told."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def port(self, source: str) -> "NetworkPeers":
        return NetworkPeers(self, source)


@dataclass(eq=False)
class NetworkPeers:
    network: Network
    source: str

    def references(self, broker: Member, receiver: AnswerReceiver) -> ReferenceLink:
        return _Wire(self.network, self.source, broker.broker_id, receiver)

    def feed(self, broker: Member, receiver: FeedReceiver) -> FeedLink:
        self.network.loop.call_soon(receiver.broken)
        return NoFeed()

    def nudge(self, broker: Member) -> None:
        target = self.network.brokers.get(broker.broker_id)
        if target is not None and (self.source, broker.broker_id) not in self.network.cut:
            self.network.loop.call_soon(target.nudge)


@dataclass(eq=False)
class Cluster:
    store: MetadataStore
    bucket: ObjectStore
    clock: Clock = field(default_factory=SystemClock)
    network: Network = field(default_factory=Network)
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    seed: int = 1

    async def start(self, name: str, settings: Settings = QUICK, wrap: Callable[[MetadataStore], MetadataStore] | None = None) -> Broker:
        broker = Broker(
            store=wrap(self.store) if wrap else self.store,
            bucket=self.bucket,
            peers=self.network.port(name),
            settings=settings,
            clock=self.clock,
            chance=random.Random(f"{self.seed}/{name}/{len(self.tasks)}"),
            executor=InlineExecutor(),
            metrics=Metrics(),
            broker_id=name,
        )
        await broker.start()
        self.network.brokers[name] = broker
        self.tasks[name] = asyncio.create_task(broker.run(address=f"{name}:1", peer_address=f"{name}:2"))
        await until(lambda: broker.ready() is None, task=self.tasks[name])
        return broker

    async def kill(self, name: str) -> None:
        """Take a broker away without a word: its lease stays until it expires."""
        self.network.brokers.pop(name)
        task = self.tasks.pop(name)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def close(self) -> None:
        for name in list(self.tasks):
            await self.kill(name)


async def until(condition: Callable[[], bool], *, task: "asyncio.Task[None] | None" = None, seconds: float = 10) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(seconds):
        while not condition():
            if task is not None and task.done():
                task.result()
            await asyncio.sleep(0.005)


@asynccontextmanager
async def open_cluster(clock: Clock | None = None) -> AsyncIterator[Cluster]:
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        store = await open_sqlite(IN_MEMORY, clock=clock, executor=InlineExecutor())
        stack.push_async_callback(store.close)
        cluster = Cluster(SharedStore(store), MemoryStore(clock=clock), clock)
        stack.push_async_callback(cluster.close)
        yield cluster


def on_virtual_time(test: Callable[[Cluster], Awaitable[None]]) -> Callable[[], None]:
    """Make a test of a coroutine that is given a cluster: hours pass in seconds."""

    def wrapped() -> None:
        async def main() -> None:
            async with open_cluster(VirtualClock()) as cluster:
                await test(cluster)

        virtual_time.run(main)

    wrapped.__doc__ = test.__doc__
    return wrapped


def batch(*values: bytes, producer: Producer | None = None) -> Buffer:
    return encode_many(values, producer=producer) if producer else encode_many(values)


async def append(
    broker: Broker, topic: str, *values: bytes, partition: int = 0, producer: Producer | None = None, **more: object
) -> Appended:
    return await broker.append(AppendRequest(topic, partition, batch(*values, producer=producer), **more))  # type: ignore[arg-type]
