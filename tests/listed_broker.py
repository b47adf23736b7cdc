"""A broker that keeps its log in lists, for tests of the server: a `LogBroker` without bucket, database or leader."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tidelog.broker.cleaning_plan import CleaningPlan, PlannedObject
from tidelog.broker.references import AnswerReceiver, Reference
from tidelog.broker.requests import Appended, AppendRequest, AtTime, Bound, OffsetFound, Position, Run
from tidelog.errors import (
    ConditionFailed,
    InvalidRequest,
    OffsetOutOfRange,
    OutcomeUnknown,
    TidelogError,
    TopicExists,
    UnknownPartition,
    UnknownTopic,
)
from tidelog.metadata.membership import Broker, Membership
from tidelog.metadata.topics import PartitionState, Topic, TopicConfig
from tidelog.records.batch import BatchLimits, check_append, stamp
from tidelog.server.ports import NewsReceiver


@dataclass
class ListedPartition:
    number: int
    batches: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    """(base offset, next offset, largest timestamp, stamped bytes)"""
    log_start: int = 0
    next_offset: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    reads: int = 0

    def append(self, data: bytes) -> tuple[int, int]:
        headers = check_append(data, limits=BatchLimits(), now_ms=1 << 50)
        base = self.next_offset
        stamped = bytearray(data)
        self.next_offset = stamp(stamped, headers, base_offset=base, leader_epoch=1)
        self.batches.append((base, self.next_offset, headers[-1].max_timestamp_ms, bytes(stamped)))
        self.grow()
        return base, self.next_offset

    def grow(self) -> None:
        grown, self.grown = self.grown, asyncio.Event()
        grown.set()


class ListedCursor:
    def __init__(self, partition: ListedPartition) -> None:
        self._partition = partition

    @property
    def high_watermark(self) -> int:
        return self._partition.next_offset

    async def resolve(self, position: Position) -> int:
        partition = self._partition
        match position:
            case Bound.EARLIEST:
                return partition.log_start
            case Bound.LATEST:
                return partition.next_offset
            case AtTime(timestamp_ms):
                return next((base for base, _, newest, _ in partition.batches if newest >= timestamp_ms), partition.next_offset)
            case int():
                self._check(position)
                return position
        raise AssertionError(position)

    async def read(self, offset: int, *, max_bytes: int) -> Run:
        self._check(offset)
        partition = self._partition
        partition.reads += 1
        found: list[tuple[int, int, int, bytes]] = []
        size = 0
        for batch in partition.batches:
            if batch[1] > offset and (not found or size + len(batch[3]) <= max_bytes):
                found.append(batch)
                size += len(batch[3])
            elif found:
                break
        base, following = (found[0][0], found[-1][1]) if found else (offset, offset)
        return Run(b"".join(batch[3] for batch in found), base, following, partition.next_offset, partition.log_start)

    async def wait(self, offset: int) -> None:
        if self._partition.next_offset <= offset:
            await self._partition.grown.wait()

    def _check(self, offset: int) -> None:
        partition = self._partition
        if not partition.log_start <= offset <= partition.next_offset:
            raise OffsetOutOfRange(
                f"offset {offset} was asked for, but there are {partition.log_start} to {partition.next_offset}",
                log_start_offset=partition.log_start,
                high_watermark=partition.next_offset,
            )


class ListedSession:
    """Keeps what a link or a feed was told, and lets a test answer."""

    def __init__(self, receiver: AnswerReceiver | NewsReceiver, writer_epoch: int = 0) -> None:
        self.receiver = receiver
        self.writer_epoch = writer_epoch
        self.references: list[Reference] = []
        self.followed: set[int] = set()
        self.told = asyncio.Event()
        self.closed = asyncio.Event()

    def offer(self, references: Sequence[Reference]) -> None:
        self.references += references
        self.told.set()

    def follow(self, partition_ids: Sequence[int]) -> None:
        self.followed |= set(partition_ids)
        self.told.set()

    def unfollow(self, partition_ids: Sequence[int]) -> None:
        self.followed -= set(partition_ids)
        self.told.set()

    def close(self) -> None:
        self.closed.set()


class ListedBroker:
    """Answers at once, unless `hold` is set: then `release` answers."""

    def __init__(self, *, broker_epoch: int = 7) -> None:
        self.known: dict[str, Topic] = {}
        self.logs: dict[str, list[ListedPartition]] = defaultdict(list)
        self.hold = False
        self.held: list[tuple[asyncio.Future[Appended], AppendRequest]] = []
        self.fails: BaseException | None = None
        self.creates_topics = False
        self.problem: str | None = None
        self.broker_epoch = broker_epoch
        self.address = "127.0.0.1:1"
        self.sessions: list[ListedSession] = []
        self.opened = asyncio.Event()
        self.nudged = asyncio.Event()
        self.requests: list[AppendRequest] = []
        self.asked = 0
        self.tokens: dict[tuple[str, int], str | None] = {}

    def partition(self, topic: str, partition: int) -> ListedPartition:
        if topic not in self.known:
            raise UnknownTopic(f"topic {topic!r} was asked for, but there is no such topic")
        if partition >= len(self.logs[topic]):
            raise UnknownPartition(f"partition {partition} was asked for, but there are {len(self.logs[topic])}")
        return self.logs[topic][partition]

    # ---- produce
    def append(self, request: AppendRequest) -> "asyncio.Future[Appended]":
        self.asked += 1
        if self.fails is not None:
            raise self.fails
        self.partition(request.topic, request.partition)
        self.requests.append(request)
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self.held.append((future, request))
        if not self.hold:
            self.release()
        return future

    def release(self) -> None:
        for future, request in self.held:
            partition = self.partition(request.topic, request.partition)
            expected = request.expected_next_offset
            if expected is not None and expected != partition.next_offset:
                future.set_exception(ConditionFailed(f"the partition ends at {partition.next_offset}, not at {expected}"))
                continue
            try:
                future.set_result(Appended(*partition.append(bytes(request.batches))))
            except TidelogError as error:
                future.set_exception(error)
        self.held.clear()

    def lose(self) -> None:
        for future, _ in self.held:
            future.set_exception(OutcomeUnknown("nobody can say whether the append was committed"))
        self.held.clear()

    async def ensure_topic(self, topic: str) -> Topic:
        if topic not in self.known:
            if not self.creates_topics:
                raise UnknownTopic(f"topic {topic!r} was asked for, but there is no such topic")
            await self.create_topic(topic, partitions=1, config=TopicConfig())
        return self.known[topic]

    def topic(self, name: str) -> Topic | None:
        return self.known.get(name)

    async def set_fencing_token(self, topic: str, partition: int, token: str | None, *, expected: str | None) -> int:
        log = self.partition(topic, partition)
        if expected is not None and (self.tokens.get((topic, partition)) or "") != expected:
            raise ConditionFailed("the token is another")
        self.tokens[topic, partition] = token
        return log.next_offset

    async def init_producer(self) -> tuple[int, int]:
        return 42, 0

    # ---- consume
    @asynccontextmanager
    async def follow(self, topic: str, partition: int) -> AsyncIterator[ListedCursor]:
        yield ListedCursor(self.partition(topic, partition))

    async def list_offset(self, topic: str, partition: int, position: Position) -> OffsetFound:
        return OffsetFound(await ListedCursor(self.partition(topic, partition)).resolve(position))

    # ---- administration
    async def create_topic(self, name: str, *, partitions: int, config: TopicConfig) -> Topic:
        if name in self.known:
            raise TopicExists(f"topic {name!r} exists")
        count = partitions or 1
        self.known[name] = Topic(uuid.uuid4().hex, name, count, config, 0, deleted=False)
        self.logs[name] = [ListedPartition(number) for number in range(count)]
        return self.known[name]

    async def delete_topic(self, name: str) -> None:
        if self.known.pop(name, None) is None:
            raise UnknownTopic(f"topic {name!r} was to be deleted, but there is no such topic")

    async def alter_topic(self, name: str, *, config: TopicConfig) -> Topic:
        return self._changed(name, config=config)

    async def create_partitions(self, name: str, *, partitions: int) -> Topic:
        if partitions < len(self.logs[name]):
            raise InvalidRequest(f"{partitions} partitions were asked for, but there are {len(self.logs[name])}")
        self.logs[name] += [ListedPartition(number) for number in range(len(self.logs[name]), partitions)]
        return self._changed(name, config=self.known[name].config)

    async def topics(self, names: Sequence[str] | None) -> Sequence[Topic]:
        return [topic for name, topic in sorted(self.known.items()) if names is None or name in names]

    async def partitions(self, topic_id: str) -> Sequence[PartitionState]:
        (name,) = (topic.name for topic in self.known.values() if topic.topic_id == topic_id)
        return [PartitionState(log.number + 1, log.number, self.broker_epoch, 1, log.log_start, log.next_offset) for log in self.logs[name]]

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        log = self.partition(topic, partition)
        log.log_start = log.next_offset if before_offset < 0 else before_offset
        log.batches = [batch for batch in log.batches if batch[1] > log.log_start]
        log.grow()
        return log.log_start

    async def membership(self) -> Membership:
        return Membership(3, 1000, (self.member(),))

    async def led_partitions(self) -> dict[int, int]:
        return {self.broker_epoch: sum(map(len, self.logs.values()))}

    async def drain(self, broker_id: str, *, undo: bool) -> tuple[bool, int]:
        return False, 1

    async def plan_cleaning(self, most: int) -> CleaningPlan:
        return CleaningPlan((PlannedObject("intake/listed", "orphan", "young", most, 1),), 1, complete=True)

    def member(self) -> Broker:
        return Broker("listed", self.broker_epoch, "zone-a", self.address, self.address, draining=False, lease_expires_at_ms=11_000)

    def cluster_id(self) -> str:
        return "listed-cluster"

    # ---- other brokers
    def references_from(self, writer_epoch: int, receiver: AnswerReceiver) -> ListedSession:
        return self._open(ListedSession(receiver, writer_epoch))

    def feed_to(self, receiver: NewsReceiver) -> ListedSession:
        return self._open(ListedSession(receiver))

    def nudge(self) -> None:
        self.nudged.set()

    # ---- health
    def ready(self) -> str | None:
        return self.problem

    def _open(self, session: ListedSession) -> ListedSession:
        self.sessions.append(session)
        self.opened.set()
        return session

    def _changed(self, name: str, *, config: TopicConfig) -> Topic:
        topic = self.known[name]
        self.known[name] = Topic(topic.topic_id, name, len(self.logs[name]), config, 0, deleted=False)
        return self.known[name]
