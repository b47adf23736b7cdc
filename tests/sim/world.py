"""A whole cluster in one process: the real brokers on virtual time, over ports that fail in every way that a network can."""

import asyncio
import math
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from tidelog.broker.broker import Broker
from tidelog.broker.references import Answer, AnswerReceiver, CommittedExtents, FeedLink, FeedReceiver, Reference, ReferenceLink
from tidelog.clock import Clock, SystemClock
from tidelog.config import Settings
from tidelog.errors import MetadataOutcomeUnknown, MetadataUnavailable, StoreOutcomeUnknown, StoreUnavailable, TidelogError
from tidelog.executors import InlineExecutor
from tidelog.metadata.membership import Broker as Member
from tidelog.metadata.migrations import migrate
from tidelog.metadata.sqlite import IN_MEMORY, SqliteStore, _bring_up_to_date, _connect
from tidelog.metadata.topics import TopicConfig
from tidelog.metrics import Metrics
from tidelog.objects.memory import MemoryStore
from tidelog.objects.store import Bytes, ObjectInfo

from tests.sim.history import History
from tests.sim.loop import NODE, Node, SimLoop, State, context_of
from tests.sim.timeline import Timeline, Violation
from tests.sim.watcher import Watcher

T = TypeVar("T")


class SimClock:
    """A process's own clock: skewed, and counting pauses."""

    def __init__(self, loop: SimLoop, node: Node | None = None) -> None:
        self._loop = loop
        self._node = node

    def monotonic(self) -> float:
        node = self._node
        return self._loop.now if node is None else self._loop.now * node.rate + node.skew_s

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self.monotonic() * 1000)


@dataclass
class Draw:
    """What one seed draws: latencies in seconds, limits, load, and how often ports fail while they do."""

    brokers: int
    partitions: int
    store_s: float
    metadata_s: float
    network_s: float
    late_s: float
    settings: Settings
    mood: str
    faults: list[str]
    rates: tuple[float, ...]
    """Appends per second of a producer; quiet ones leave partitions idle, so that what is late comes upon nothing newer."""
    padding: tuple[int, ...]
    """Bytes beside its value that a record may have."""
    trims: bool
    """Whether somebody deletes old records."""
    fences: bool
    """Whether some set fencing tokens, and append under them."""
    keeps: TopicConfig
    """What the topic keeps."""
    dooms: bool
    """Whether somebody makes topics and deletes them."""


FAULTS = (
    "kill",
    "kill all",
    "last words",
    "struck at commit",
    "pause",
    "drain",
    "cut peer",
    "cut metadata",
    "cut store",
    "cut client",
    "metadata",
    "store",
    "bodies",
    "network",
    "store outage",
    "metadata outage",
    "skew",
)
"""What a nemesis may do; each seed draws some of them."""


REFUSED = 0.1
"""Of the objects that are to be deleted while the store fails, those that it refuses to delete."""

MOODS = ("calm", "ordinary", "ordinary", "hostile", "quiet")
"""Hostile: short leases and deadlines, and what makes effects late. Quiet: idle partitions, so that nothing newer covers what is late.
Contended, which is drawn only where it is asked for: leader epochs that change all the time, over links that are slow.
"""


def draw(chance: random.Random, mood: str | None = None) -> Draw:
    """Draw a run; some moods draw what a fixed mixture hardly ever meets."""
    mood = mood or chance.choice(MOODS)
    hostile = mood == "hostile"
    lease_ms = 1200 if hostile else chance.choice((1200, 2500, 5000))
    faults = [kind for kind in FAULTS if chance.random() < 0.6]
    if mood in ("hostile", "quiet"):
        faults = [kind for kind in faults if "outage" not in kind] + ["last words", "struck at commit", "pause", "metadata"]
    merges = random.Random(chance.getrandbits(32))  # so that what is added here changes nothing else that a seed draws
    contended = mood == "contended"
    if contended:
        faults = ["network", "network", "drain", "pause"]
    return Draw(
        brokers=chance.choice((2, 3, 3, 4)),
        partitions=2 if contended else chance.choice((2, 4, 6)),
        store_s=chance.choice((0.005, 0.03, 0.2)),
        metadata_s=chance.choice((0.001, 0.004, 0.03)),
        network_s=chance.choice((0.0005, 0.003, 0.03)),
        late_s=3.0 if hostile else chance.choice((3.0, 15.0)),
        settings=Settings(
            lease_ms=lease_ms,
            catalog_poll_ms=chance.choice((200, 500)),
            max_latency_ms=chance.choice((10, 50, 200)),
            append_timeout_ms=chance.choice((500, 1000, 2000, 5000)) if hostile else chance.choice((2000, 5000, 12_000)),
            max_uploads=chance.choice((1, 3, 6)),
            max_open_sequences=chance.choice((4, 60)),
            segment_bytes=chance.choice((4096, 65536)),
            puts_per_second=chance.choice((5, 50, 1000)),
            peer_timeout_ms=chance.choice((300, 1000, 3000, 10_000)),
            take_over_batch_partitions=chance.choice((1, 1000)),
            commit_max_partitions=chance.choice((1, 2000)),
            max_pending_references=chance.choice((2, 100_000)),
            max_producers_per_partition=chance.choice((12, 10_000)),
            producer_expiry_ms=chance.choice((60_000, 7 * 24 * 3600 * 1000)),
            intake_budget_bytes=1 << 20,
            drain_timeout_ms=chance.choice((1000, 8000)),
            drain_propagation_ms=100,
            merging=merges.random() < 0.9,
            merge_target_bytes=merges.choice((4096, 20_000, 200_000)),
            merge_least_extents=merges.choice((2, 4)),
            merge_most_extents=merges.choice((3, 16, 100)),
            merge_max_age_ms=merges.choice((500, 5000, 60_000)),
            merge_settle_ms=merges.choice((1000, 10_000)),
            merge_bytes_per_second=merges.choice((20_000, 10_000_000)),
            merge_buffer_bytes=merges.choice((65536, 1 << 20)),
            max_merges=merges.choice((1, 4)),
            cache_bytes=chance.choice((0, 4096, 1 << 20)),
            block_cache_bytes=chance.choice((1 << 18, 1 << 20)),
            read_block_bytes=chance.choice((4096, 32768)),
            window_extents=chance.choice((4, 1000)),
            read_ahead_extents=chance.choice((2, 100)),
            follower_poll_ms=chance.choice((100, 500)),
            retention_interval_ms=chance.choice((300, 2000)),
            release_extents=chance.choice((3, 2000)),
            cleaner_interval_ms=chance.choice((300, 1000)),
            cleaner_round_segments=chance.choice((10, 10_000)),
            reader_grace_ms=chance.choice((1, 200)) if hostile else chance.choice((200, 1000, 4000)),
            orphan_age_seconds=chance.choice((0, 1)) if hostile else chance.choice((0, 3, 10)),
            orphan_scan_interval_ms=chance.choice((300, 2000)),
            cleaner_listed_objects=chance.choice((20, 10_000)),
            cleaner_retry_ms=3000,
            checkpoint_interval_ms=chance.choice((0, 200, 1000, 5000)),
            checkpoint_page_rows=chance.choice((10, 5000)),
            checkpoints_kept=chance.choice((1, 2)),
            scrub_interval_ms=5000,
            scrub_reads_per_second=5,
        ),
        mood=mood,
        faults=faults or ["pause"],
        rates=(0.3, 1) if mood == "quiet" else (2, 6),
        padding=chance.choice(((0,), (0, 0, 200), (0, 12_000))),
        trims=chance.random() < 0.3,
        fences=contended or chance.random() < 0.4,
        dooms=chance.random() < 0.3,
        keeps=TopicConfig(retention_ms=chance.choice((-1, -1, 3000, 15_000)), retention_bytes=chance.choice((-1, -1, 3000, 50_000))),
    )


class Bucket(MemoryStore):
    """The bucket itself, of which the simulator can see what brokers cannot."""

    def content(self, key: str) -> bytes | None:
        """Return an object's bytes at this moment; None where there is none of that key."""
        found = self._objects.get(key)
        return None if found is None else found[0]

    def names(self) -> list[str]:
        """Return the keys of all objects."""
        return sorted(self._objects)

    def turn_bit(self, key: str, position: int) -> None:
        """Damage an object where it lies."""
        content, info = self._objects[key]
        self._objects[key] = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :], info


@dataclass
class World:
    loop: SimLoop
    draw: Draw
    store: SqliteStore
    bucket: Bucket
    clock: SimClock
    history: History = field(default_factory=History)
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    brokers: dict[str, "Process"] = field(default_factory=dict)
    lives: list["Process"] = field(default_factory=list)
    """All processes that ever were."""
    failing: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("metadata", "store", "bodies", "network"), 0.0))
    outages: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"metadata": [], "store": []})
    """From when to when a port answers nobody, the latest one last."""
    cut: set[tuple[str, str]] = field(default_factory=set)
    silenced: set[str] = field(default_factory=set)
    """Brokers whose calls of the stores take effect only when their lease has passed."""
    at_commit: dict[str, Callable[[], None]] = field(default_factory=dict)
    """What befalls a broker when its next commit is done, and before it hears of that."""
    damaged_at: float = -1e9
    """When a body was last damaged on its way."""
    to_first: bool = False
    """Whether the run is over with the first violation."""
    values: int = 0
    fences: int = 0
    """Fencing tokens that were made."""
    dooms: int = 0
    """Topics that were made to be deleted."""
    tokens: dict[int, str] = field(default_factory=dict)
    """Of each value that was appended under a token."""
    lost: dict[str, Any] | None = None
    """What was in the bucket when the database was lost on paper the last time."""
    ends: dict[int, int] = field(default_factory=dict)
    log_starts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watcher = Watcher(self)

    @property
    def chance(self) -> random.Random:
        return self.loop.chance

    def violation(self, name: str, what: object, *, partition: int | None = None) -> None:
        self.violations.append(Violation(self.loop.now, name, str(what), partition))
        if self.to_first:
            self.loop.halt()

    def tell(self, kind: str, who: str, what: str, *values: object, partition: int | None = None) -> None:
        """Note something for the timeline; `what` is a format string for the values."""
        self.timeline.tell(self.loop.now, kind, who, what, *values, partition=partition)

    async def run(self, verb: Callable[..., T], /, *args: Any, who: str = "world", **kwargs: Any) -> T:
        """Run a verb on the metadata store, where no network is between. Nobody could cancel it: it is done at once."""
        return self.store._transact(self.watcher.wrap(verb, who), *args, **kwargs)

    def latency(self, median_s: float) -> float:
        return self.chance.lognormvariate(math.log(median_s), 0.6)

    def down(self, port: str) -> bool:
        outages = self.outages.get(port, [])
        return bool(outages) and self.loop.now < outages[-1][1]

    def take_down(self, port: str, lasts: float) -> None:
        """Begin an outage, or make the present one longer."""
        outages = self.outages[port]
        until = self.loop.now + lasts
        if self.down(port):
            began, before = outages.pop()
            outages.append((began, max(before, until)))
        else:
            outages.append((self.loop.now, until))

    def fault(self, port: str) -> str | None:
        """Draw one of the outcomes: None (done), before, after, late."""
        node = NODE.get()
        if node is not None and node.name in self.silenced:
            outcome: str | None = "late"
        elif node is not None and (node.name, port) in self.cut:
            outcome = "before" if self.chance.random() < 0.6 else "late"
        elif self.down(port):
            outcome = "before"
        elif self.failing[port] and self.chance.random() < self.failing[port]:
            outcome = self.chance.choice(("before", "after", "late"))
        else:
            return None
        self.counts[f"{port} {outcome}"] += 1
        self.tell(port, who(), "a call is {}", {"before": "not done", "after": "done, unheard", "late": "to be late"}[outcome or ""])
        return outcome

    def delay(self) -> float:
        """Draw after how long a late effect comes."""
        node = NODE.get()
        if node is not None and node.name in self.silenced:
            return self.chance.uniform(0.8, 2.5) * self.draw.settings.lease_ms / 1000
        return self.chance.uniform(0.1, self.draw.late_s)


def who() -> str:
    """Name the process that is running."""
    node = NODE.get()
    return "outside" if node is None else node.label


class SimMetadata:
    """One metadata store for several brokers, behind a network."""

    exclusive = False

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, verb: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        world = self._world
        await asyncio.sleep(world.latency(world.draw.metadata_s))
        outcome = world.fault("metadata")
        if outcome == "before":
            await asyncio.sleep(world.latency(world.draw.metadata_s) * 5)
            raise MetadataUnavailable("simulated: not done") if world.chance.random() < 0.5 else MetadataOutcomeUnknown("simulated")
        if outcome == "late":
            world.loop.outside(world.delay(), self._late, verb, args, kwargs, f"{who()}, late")
            await asyncio.sleep(world.latency(world.draw.metadata_s) * 10)
            raise MetadataOutcomeUnknown("simulated: late")
        result = await world.run(verb, *args, who=who(), **kwargs)
        node = NODE.get()
        if verb.__name__ == "commit" and node is not None and node.name in world.at_commit:
            world.at_commit.pop(node.name)()
        await asyncio.sleep(world.latency(world.draw.metadata_s) / 2)
        if outcome == "after":
            raise MetadataOutcomeUnknown("simulated: done, but not heard of")
        return result

    run_reserved = run

    async def close(self) -> None: ...

    def _late(self, verb: Callable[..., Any], args: Any, kwargs: Any, who: str) -> None:
        async def apply() -> None:
            with suppress(TidelogError):
                await self._world.run(verb, *args, who=who, **kwargs)

        if not self._world.down("metadata"):
            task = self._world.loop.create_task(apply())
            task.add_done_callback(lambda _: None)


class SimBucket:
    """The bucket, behind a network."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def _fault(self, late: Callable[[], object] | None = None) -> str | None:
        world = self._world
        await asyncio.sleep(world.latency(world.draw.store_s))
        outcome = world.fault("store")
        if outcome == "before" or (outcome == "late" and late is None):
            await asyncio.sleep(0.05)
            raise (
                StoreUnavailable("simulated: not done") if late is None or world.chance.random() < 0.5 else StoreOutcomeUnknown("simulated")
            )
        if outcome == "late" and late is not None:
            world.loop.outside(world.delay(), late)
            await asyncio.sleep(0.5)
            raise StoreOutcomeUnknown("simulated: late")
        return outcome

    def _later(self, work: Callable[[], Any]) -> Callable[[], object]:
        async def apply() -> None:
            with suppress(TidelogError):
                await work()

        return lambda: self._world.loop.create_task(apply())

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        copy = [bytes(part) for part in parts]
        outcome = await self._fault(self._later(lambda: self._world.bucket.put_new(key, copy)))
        await self._world.bucket.put_new(key, copy)
        if outcome == "after":
            raise StoreOutcomeUnknown("simulated: done, but not heard of")

    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        await self.put_new(key, [bytes(part) async for part in parts])

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        if await self._fault():
            raise StoreUnavailable("simulated: the answer was lost")
        body = await self._world.bucket.get_range(key, position, length)
        whole = position == 0 and len(body) == (await self._world.bucket.head(key)).size
        return body if whole else self._on_its_way(body)

    def _on_its_way(self, body: bytes) -> bytes:
        """Cut or damage part of an object: a store's checksum covers whole ones only."""
        world = self._world
        if not body or not world.failing["bodies"] or world.chance.random() >= world.failing["bodies"]:
            return body
        world.damaged_at = world.loop.now
        at = world.chance.randrange(len(body))
        if world.chance.random() < 0.3:
            world.counts["body cut"] += 1
            return body[:at]
        world.counts["body damaged"] += 1
        return body[:at] + bytes([body[at] ^ (1 << world.chance.randrange(8))]) + body[at + 1 :]

    async def head(self, key: str) -> ObjectInfo:
        if await self._fault():
            raise StoreUnavailable("simulated: the answer was lost")
        return await self._world.bucket.head(key)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        if await self._fault():
            raise StoreUnavailable("simulated: the answer was lost")
        async for found in self._world.bucket.list(prefix, start_after=start_after):
            yield found

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        some = list(keys)
        outcome = await self._fault(self._later(lambda: self._delete(some)))
        refused = [key for key in some if self._world.failing["store"] and self._world.chance.random() < REFUSED]
        await self._delete([key for key in some if key not in refused])
        if outcome == "after":
            raise StoreOutcomeUnknown("simulated: done, but not heard of")
        self._world.counts["deletion refused"] += len(refused)
        return dict.fromkeys(refused, "simulated: refused")

    async def _delete(self, keys: Sequence[str]) -> None:
        self._world.watcher.deleting(keys)
        await self._world.bucket.delete_many(keys)

    async def close(self) -> None: ...


class Process:
    """One incarnation of a broker."""

    def __init__(self, world: World, name: str, life: int) -> None:
        self.world = world
        self.name = name
        self.life = life
        self.label = f"{name}.{life}"
        self.node = Node(name, self.label)
        self.leaving = False
        """Asked to drain."""
        self.metrics = Metrics()
        self.context = context_of(self.node)
        self.broker: Broker = self.context.run(self._make)
        self.task = world.loop.create_task(self._run(), context=self.context)
        self.task.add_done_callback(self._ended)

    def _make(self) -> Broker:
        return Broker(
            store=SimMetadata(self.world),
            bucket=SimBucket(self.world),
            peers=SimPeers(self.world, self),
            settings=self.world.draw.settings,
            clock=SimClock(self.world.loop, self.node),
            chance=random.Random(self.world.chance.getrandbits(64)),
            executor=InlineExecutor(),
            metrics=self.metrics,
            broker_id=self.name,
        )

    async def _run(self) -> None:
        while not self.leaving:
            try:
                await self.broker.start()
                await self.broker.run(address=f"{self.name}:1", peer_address=f"{self.name}:2")
            except TidelogError as error:
                self.world.counts[f"restart: {error.reason}"] += 1
                await asyncio.sleep(0.3)

    async def drain(self) -> None:
        """Leave as SIGTERM asks; whoever does not get it done in time is killed."""
        self.leaving = True
        await self.broker.drain_and_end()
        self.world.tell("fault", self.label, "has drained")
        kill(self.world, self.name)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self.world.violation("a broker ended", repr(task.exception()))


class SimPeers:
    """Links between brokers: ordered, but they may break, be slow, and be cut one way."""

    def __init__(self, world: World, source: Process) -> None:
        self._world = world
        self._source = source

    def references(self, broker: Member, receiver: AnswerReceiver) -> ReferenceLink:
        return _Link(self._world, self._source, broker.broker_id, receiver)

    def feed(self, broker: Member, receiver: FeedReceiver) -> FeedLink:
        return _Feed(self._world, self._source, broker.broker_id, receiver)

    def nudge(self, broker: Member) -> None:
        target = self._world.brokers[broker.broker_id]
        if (self._source.name, broker.broker_id) not in self._world.cut:
            self._world.loop.call_later(self._world.latency(self._world.draw.network_s), target.broker.nudge, context=target.context)


class _Wire:
    """Both directions of a stream between two processes: each in order, until it breaks for good."""

    def __init__(self, world: World, source: Process, target: str, broken: Callable[[], None]) -> None:
        self.world = world
        self.source = source
        self.target = world.brokers[target]
        self.closed = False
        self._broken = broken
        self._arrived = {True: 0.0, False: 0.0}

    def carry(self, *, there: bool, work: Callable[..., object], argument: object) -> None:
        """Run `work` at the other end, after all that was sent before."""
        if self.closed:
            return
        ends = (self.source, self.target) if there else (self.target, self.source)
        if self._breaks(ends[0].name, ends[1].name):
            self.fail()
            return
        world = self.world
        delay = world.latency(world.draw.network_s)
        if world.failing["network"] and world.chance.random() < world.failing["network"]:
            world.counts["network slow"] += 1
            delay += world.chance.uniform(0.1, world.draw.late_s)
        self._arrived[there] = max(self._arrived[there] + 1e-7, world.loop.now + delay)
        world.loop.call_at(self._arrived[there], work, argument, context=ends[1].context)

    def fail(self) -> None:
        if not self.closed:
            self.closed = True
            self.world.loop.call_later(self.world.latency(self.world.draw.network_s), self._broken, context=self.source.context)

    def close(self) -> None:
        self.closed = True

    def _breaks(self, source: str, target: str) -> bool:
        world = self.world
        if (source, target) in world.cut:
            world.counts["network cut"] += 1
            return True
        if world.failing["network"] and world.chance.random() < world.failing["network"] * 0.3:
            world.counts["network broken"] += 1
            return True
        return False


class _Link:
    """A link for references: the intake's end, and what the leader answers to."""

    def __init__(self, world: World, source: Process, target: str, receiver: AnswerReceiver) -> None:
        self._world = world
        self._wire = _Wire(world, source, target, receiver.broken)
        self._receiver = receiver
        self._session: Any = None

    def send(self, references: Sequence[Reference]) -> None:
        for reference in references:
            self._world.watcher.sent(reference.broker_epoch, reference.sequence)
        self._wire.carry(there=True, work=self._deliver, argument=references)

    def close(self) -> None:
        self._wire.close()

    def _deliver(self, references: Sequence[Reference]) -> None:
        try:
            if self._session is None:
                self._session = self._wire.target.broker.references_from(references[0].broker_epoch, self)
            self._session.offer(references)
        except TidelogError:
            self._wire.fail()

    def answered(self, answers: Sequence[Answer]) -> None:
        self._wire.carry(there=False, work=self._hear, argument=answers)

    def _hear(self, answers: Sequence[Answer]) -> None:
        if not self._wire.closed:
            self._receiver.answered(answers)

    def broken(self) -> None:
        self._wire.fail()


class _Feed:
    """A feed of a leader's commits."""

    def __init__(self, world: World, source: Process, target: str, receiver: FeedReceiver) -> None:
        self._wire = _Wire(world, source, target, receiver.broken)
        self._receiver = receiver
        self._session: Any = None

    def follow(self, partition_ids: Sequence[int]) -> None:
        self._wire.carry(there=True, work=self._follow, argument=partition_ids)

    def unfollow(self, partition_ids: Sequence[int]) -> None:
        self._wire.carry(there=True, work=self._unfollow, argument=partition_ids)

    def close(self) -> None:
        self._wire.close()

    def _follow(self, partition_ids: Sequence[int]) -> None:
        if self._session is None:
            self._session = self._wire.target.broker.feed_to(self)
        self._session.follow(partition_ids)

    def _unfollow(self, partition_ids: Sequence[int]) -> None:
        if self._session is not None:
            self._session.unfollow(partition_ids)

    def committed(self, news: CommittedExtents) -> None:
        self._wire.carry(there=False, work=self._hear, argument=news)

    def _hear(self, news: CommittedExtents) -> None:
        if not self._wire.closed:
            self._receiver.committed(news)


@cache
def _new_database() -> sqlite3.Connection:
    """Return an empty one, to be copied: to bring a schema up takes longer than many a thing that is to be simulated."""
    connection = _connect(IN_MEMORY, SystemClock())
    _bring_up_to_date(connection, migrate)
    return connection


def open_metadata(clock: Clock) -> SqliteStore:
    """Open a new metadata store in memory."""
    connection = _connect(IN_MEMORY, clock)
    _new_database().backup(connection)
    return SqliteStore(IN_MEMORY, connection, executor=InlineExecutor(), lock=None)


async def open_world(loop: SimLoop, mood: str | None = None) -> World:
    clock = SimClock(loop)
    store = open_metadata(clock)
    return World(loop, draw(loop.chance, mood), store, Bucket(clock=clock), clock)


def begin(world: World, name: str) -> None:
    """Start a process under a broker id: its first, or the next after one that is dead."""
    before = world.brokers.get(name)
    if before is None or before.node.state is State.DEAD:
        process = world.brokers[name] = Process(world, name, 0 if before is None else before.life + 1)
        world.lives.append(process)
        world.tell("fault", process.label, "begins")


def kill(world: World, name: str) -> None:
    process = world.brokers[name]
    if process.node.state is not State.DEAD:
        process.node.state = State.DEAD
        world.tell("fault", process.label, "is dead")
