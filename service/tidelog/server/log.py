"""The Log service: what producers and consumers call. Its streams are in `produce` and `consume`."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import grpc

from tidelog.broker import requests
from tidelog.broker.requests import OffsetFound, Run
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import (
    CorruptBatch,
    InvalidRequest,
    NotServed,
    PermissionDenied,
    TidelogError,
    UnknownPartition,
    UnknownTopic,
    UnreadableBatch,
)
from tidelog.executors import Executor
from tidelog.metadata.topics import Topic
from tidelog.metrics import Metrics
from tidelog.proto.v1 import log_pb2, log_pb2_grpc
from tidelog.records import codec
from tidelog.records.batch import BatchHeader, scan
from tidelog.records.codec import Record
from tidelog.records.compression import DecompressionLimits
from tidelog.server import wire
from tidelog.server.callers import Caller, caller, standing
from tidelog.server.consume import ConsumeContext, ConsumeStream
from tidelog.server.credit import Unsent
from tidelog.server.ports import Cursor, LogBroker
from tidelog.server.produce import ProduceContext, ProduceStream, found_out
from tidelog.server.streams import OpenStreams
from tidelog.server.zones import Zones

UnaryContext = grpc.aio.ServicerContext[Any, Any]
_QUERIES_AT_ONCE = 16
_MOST_TOKEN_CHARACTERS = 255


class LogServicer(log_pb2_grpc.LogServicer):
    """Answers the Log service's calls from a broker."""

    def __init__(
        self, broker: LogBroker, settings: Settings, *, streams: OpenStreams, clock: Clock, executor: Executor, metrics: Metrics
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._streams = streams
        self._clock = clock
        self._executor = executor
        self._reads = asyncio.Semaphore(settings.max_reads)
        self._consuming: set[ConsumeStream] = set()
        self._unsent = Unsent(most=settings.max_unsent_bytes)
        metrics.subscriptions.set_function(lambda: sum(stream.subscriptions for stream in self._consuming))
        metrics.credit_bytes.set_function(lambda: sum(stream.credit.free_bytes for stream in self._consuming))
        metrics.unsent_bytes.set_function(lambda: self._unsent.size)
        metrics.show_lags_of(lambda: (lag for stream in self._consuming for lag in stream.lags()))
        self._turn = itertools.count()
        self._zones = Zones(settings, metrics)

    async def Produce(self, _requests: object, context: ProduceContext) -> None:  # noqa: N802 - the contract's name
        """Take appends and answer each by its request id."""
        stream = ProduceStream(self._broker, self._settings, standing(), context, traffic=self._zones.of(context))
        with self._streams.opened(stream.end):
            await stream.run()

    async def Consume(self, _requests: object, context: ConsumeContext) -> None:  # noqa: N802
        """Push what commits, as far as the client's credit allows."""
        traffic = self._zones.of(context)
        stream = ConsumeStream(self._broker, self._settings, standing(), context, unsent=self._unsent, clock=self._clock, traffic=traffic)
        with self._streams.opened(stream.end):
            self._consuming.add(stream)
            try:
                await stream.run()
            finally:
                self._consuming.discard(stream)

    async def Append(self, request: log_pb2.AppendRequest, context: UnaryContext) -> log_pb2.AppendResponse:  # noqa: N802
        """Append plain records to one partition."""
        caller().check_write(request.topic)
        if not request.records:
            raise InvalidRequest("an append without records was sent; give at least one")
        self._zones.of(context).taken(request.ByteSize())
        records = wire.records(request.records, now_ms=self._clock.wall_ms())
        partition = request.partition if request.HasField("partition") else await self._partition(request.topic, records)
        asked = requests.AppendRequest(
            request.topic,
            partition,
            codec.encode(records),
            request.timeout_ms,
            request.max_latency_ms,
            request.expected_next_offset if request.HasField("expected_next_offset") else None,
            request.fencing_token if request.HasField("fencing_token") else None,
        )
        try:
            future = self._broker.append(asked)
        except (UnknownTopic, UnknownPartition):
            future = await found_out(self._broker, asked)
        appended = await asyncio.shield(future)  # a caller who leaves cancels nothing (I5)
        return log_pb2.AppendResponse(partition=partition, base_offset=appended.base_offset, next_offset=appended.next_offset)

    async def Read(self, request: log_pb2.ReadRequest, context: UnaryContext) -> log_pb2.ReadResponse:  # noqa: N802
        """Return records of one partition, decoded."""
        topic, partition = request.partition.topic, request.partition.partition
        caller().check_read(topic)
        start = wire.position(request.start)
        most_bytes = min(request.max_bytes or self._settings.response_bytes, self._settings.max_read_bytes)
        deadline = asyncio.get_running_loop().time() + min(request.max_wait_ms, self._settings.max_read_wait_ms) / 1000
        leaving = asyncio.Event()
        with self._streams.opened(leaving.set):
            async with self._broker.follow(topic, partition) as cursor:
                offset = await cursor.resolve(start)
                while True:
                    async with self._reads:
                        run = await cursor.read(offset, max_bytes=most_bytes)
                        records, offset = await self._decode(run, offset, most_records=request.max_records, most_bytes=most_bytes)
                    if records or (offset >= run.high_watermark and not await _more_comes(cursor, offset, deadline, leaving)):
                        break
        response = log_pb2.ReadResponse(
            records=map(wire.record_message, records),
            next_offset=offset,
            high_watermark=run.high_watermark,
            log_start_offset=run.log_start_offset,
        )
        self._zones.of(context).sent(response.ByteSize())
        return response

    async def InitProducer(self, _request: object, _context: object) -> log_pb2.InitProducerResponse:  # noqa: N802
        """Return an identity for idempotent produce."""
        if not caller().write:
            raise PermissionDenied(f"{caller().name} may not write to any topic; ask for a token with that scope")
        producer_id, epoch = await self._broker.init_producer()
        return log_pb2.InitProducerResponse(producer_id=producer_id, producer_epoch=epoch)

    async def ListOffsets(self, request: log_pb2.ListOffsetsRequest, _context: object) -> log_pb2.ListOffsetsResponse:  # noqa: N802
        """Return the offsets that positions stand for; what is wrong with one of them is that one's answer."""
        wire.check_count("offsets", len(request.queries), self._settings)
        who = caller()
        queries = iter(enumerate(request.queries))
        answers: dict[int, log_pb2.ListOffsetsResponse.Answer] = {}

        async def answer_some() -> None:
            for index, query in queries:
                answers[index] = await self._list_offset(who, query)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_QUERIES_AT_ONCE, len(request.queries))):
                group.create_task(answer_some())
        return log_pb2.ListOffsetsResponse(answers=[answers[index] for index in range(len(request.queries))])

    async def GetMetadata(self, request: log_pb2.GetMetadataRequest, _context: object) -> log_pb2.GetMetadataResponse:  # noqa: N802
        """Return the brokers, and the topics asked for or all that the caller may see."""
        who = caller()
        wire.check_count("topics", len(request.topics), self._settings)
        membership = await self._broker.membership()
        wanted = [name for name in dict.fromkeys(request.topics) if who.may_see(name)]
        found: dict[str, Topic | TidelogError] = {}
        if wanted or not request.topics:
            found = {topic.name: topic for topic in await self._broker.topics(wanted or None)}
        if request.create_missing:
            found |= await self._made([name for name in wanted if name not in found and who.may_write(name)])
        names = dict.fromkeys(request.topics) or sorted(filter(who.may_see, found))
        return log_pb2.GetMetadataResponse(
            cluster_id=self._broker.cluster_id(),
            brokers=map(wire.metadata_broker, membership.brokers),
            topics=[wire.metadata_topic(name, found[name] if name in found else _not_shown(who, name)) for name in names],
        )

    async def SetFencingToken(  # noqa: N802
        self, request: log_pb2.SetFencingTokenRequest, _context: object
    ) -> log_pb2.SetFencingTokenResponse:
        """Set the token that a partition's fenced appends must show."""
        topic, partition = request.partition.topic, request.partition.partition
        caller().check_write(topic)
        token = request.token if request.HasField("token") else None
        if token is not None and not 1 <= len(token) <= _MOST_TOKEN_CHARACTERS:
            raise InvalidRequest(
                f"a fencing token of {len(token)} characters was to be set; give 1 to {_MOST_TOKEN_CHARACTERS}, or leave it out for none"
            )
        expected = request.expected_token if request.HasField("expected_token") else None
        next_offset = await self._broker.set_fencing_token(topic, partition, token, expected=expected)
        return log_pb2.SetFencingTokenResponse(next_offset=next_offset)

    async def Group(self, _requests: object, _context: object) -> None:  # noqa: N802
        """Refuse: groups are not served yet."""
        raise NotServed("a group was to be joined, but this release serves no consumer groups; follow partitions with Consume")

    async def _made(self, names: Sequence[str]) -> dict[str, Topic | TidelogError]:
        """Make topics on first use, so that a producer knows their partitions before it gives a key its place."""
        made: dict[str, Topic | TidelogError] = {}
        for name in names:
            try:
                made[name] = await self._broker.ensure_topic(name)
            except (InvalidRequest, UnknownTopic) as error:  # what is wrong with one name is that one's answer
                made[name] = error
        return made

    async def _partition(self, topic: str, records: Sequence[Record]) -> int:
        from aiokafka.partitioner import murmur2

        known = self._broker.topic(topic) or await self._broker.ensure_topic(topic)
        count = known.partitions
        chosen = {(murmur2(record.key) & 0x7FFFFFFF) % count for record in records if record.key is not None}
        if len(chosen) > 1:
            raise InvalidRequest(
                f"the keys of these records belong to partitions {sorted(chosen)} of topic {topic!r}, but an append goes to one partition;"
                " name the partition, or append them apart"
            )
        return chosen.pop() if chosen else next(self._turn) % count

    async def _list_offset(self, who: Caller, query: log_pb2.ListOffsetsRequest.Query) -> log_pb2.ListOffsetsResponse.Answer:
        try:
            who.check_read(query.partition.topic)
            found = await self._broker.list_offset(query.partition.topic, query.partition.partition, wire.position(query.at))
        except TidelogError as error:
            return log_pb2.ListOffsetsResponse.Answer(
                partition=query.partition, offset=-1, timestamp_ms=-1, error=wire.error_message(error)
            )
        return _offset_answer(query, found)

    async def _decode(self, run: Run, offset: int, *, most_records: int, most_bytes: int) -> tuple[list[Record], int]:
        """Return the run's records from `offset` on, within the limits but at least one, and where the next read goes on."""
        if not run.batches:
            return [], max(offset, run.next_offset)
        limits = DecompressionLimits(max_bytes=self._settings.max_decompressed_bytes)
        return await self._executor.run(_decoded, run, offset, most_records=most_records, most_bytes=most_bytes, limits=limits)


async def _more_comes(cursor: Cursor, offset: int, deadline: float, leaving: asyncio.Event) -> bool:
    """Wait until there may be records from `offset` on, and return True; False at the deadline, or when the broker leaves."""
    left_s = deadline - asyncio.get_running_loop().time()
    if left_s <= 0 or leaving.is_set():
        return False
    grown, told = asyncio.ensure_future(cursor.wait(offset)), asyncio.ensure_future(leaving.wait())
    try:
        await asyncio.wait([grown, told], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        if not grown.done():
            grown.cancel()
    if grown.cancelled() or not grown.done():
        return False
    grown.result()
    return True


def _decoded(run: Run, offset: int, *, most_records: int, most_bytes: int, limits: DecompressionLimits) -> tuple[list[Record], int]:
    view = memoryview(run.batches)
    found: list[Record] = []
    size = 0
    for header in scan(view):
        if header.next_offset <= offset:
            continue
        try:
            records = _records(view, header, limits)
        except UnreadableBatch:
            if found:
                return found, header.base_offset  # what comes before it is given; it is told of when it is read itself
            raise
        for record in records:
            if record.offset < offset:
                continue
            size += _size(record)
            if found and (size > most_bytes or len(found) == most_records):
                return found, found[-1].offset + 1
            found.append(record)
    return found, max(offset, run.next_offset)


def _records(view: memoryview, header: BatchHeader, limits: DecompressionLimits) -> Sequence[Record]:
    try:
        return codec.decode(view[header.position : header.position + header.size], limits=limits)
    except CorruptBatch as error:
        raise UnreadableBatch(
            f"{error.problem}. Its producer wrote offsets {header.base_offset} to {header.next_offset - 1} so, and they stay so;"
            f" what follows is read from offset {header.next_offset} on",
            position=header.position,
        ) from error


def _size(record: Record) -> int:
    headers = sum(len(key) + len(value or b"") + 8 for key, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers + 32


def _offset_answer(query: log_pb2.ListOffsetsRequest.Query, found: OffsetFound) -> log_pb2.ListOffsetsResponse.Answer:
    return log_pb2.ListOffsetsResponse.Answer(partition=query.partition, offset=found.offset, timestamp_ms=found.timestamp_ms)


def _not_shown(who: Caller, topic: str) -> TidelogError:
    try:
        who.check_see(topic)
    except PermissionDenied as denied:
        return denied
    return UnknownTopic(f"topic {topic!r} was asked for, but there is no such topic; create it, or list topics to see what there is")
