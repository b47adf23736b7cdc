"""A cluster in memory behind real gRPC sockets, whose brokers misbehave as a script says. For tests of the client.

It keeps the contract where the script lets it: sequences with a window of five, conditions, offsets, credit.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from tidelog.errors import (
    ConditionFailed,
    Draining,
    NotReady,
    OffsetOutOfRange,
    OutcomeUnknown,
    OutOfOrderSequence,
    RecordTooLarge,
    Throttled,
    TidelogError,
    UnknownPartition,
    UnknownProducer,
    UnknownTopic,
)
from tidelog.proto.v1 import admin_pb2_grpc, log_pb2, log_pb2_grpc
from tidelog.records.batch import scan, stamp
from tidelog.records.codec import Record, decode

WINDOW = 5
Place = tuple[str, int]


def message_of(error: TidelogError) -> log_pb2.Error:
    metadata = {"retriable": str(error.retriable).lower()}
    if isinstance(error, OffsetOutOfRange):
        metadata |= {"log_start_offset": str(error.log_start_offset), "high_watermark": str(error.high_watermark)}
    code = grpc.StatusCode[error.status].value[0]
    return log_pb2.Error(code=code, reason=error.reason, message=str(error), metadata=metadata, retriable=error.retriable)


async def abort(context: Any, error: TidelogError) -> None:
    told = message_of(error)
    details = AnyMessage()
    details.Pack(ErrorInfo(reason=told.reason, domain="tidelog", metadata=told.metadata))
    status = Status(code=told.code, message=told.message, details=[details]).SerializeToString()
    await context.abort(grpc.StatusCode[error.status], told.message, (("grpc-status-details-bin", status),))


class Cluster:
    """What all brokers share."""

    def __init__(self) -> None:
        self.topics: dict[str, int] = {}
        self.creates_topics = False
        self.batches: dict[Place, list[bytes]] = defaultdict(list)
        self.next_offset: dict[Place, int] = defaultdict(int)
        self.log_start: dict[Place, int] = defaultdict(int)
        self.producers: dict[tuple[Place, int], deque[tuple[int, int, int]]] = {}
        self.next_producer_id = 1
        self.grown = asyncio.Condition()
        self.brokers: list[Broker] = []

    def records(self, topic: str, partition: int) -> list[Record]:
        return [record for batch in self.batches[topic, partition] for record in decode(batch)]

    def values(self, topic: str, partition: int = 0) -> list[bytes | None]:
        return [record.value for record in self.records(topic, partition)]

    def append(self, topic: str, partition: int, data: bytes, expected: int | None) -> tuple[int, int, bool]:
        if topic not in self.topics:
            if not self.creates_topics:
                raise UnknownTopic(f"topic {topic} is not known")
            self.topics[topic] = 4
        if partition >= self.topics[topic]:
            raise UnknownPartition(f"{topic} has no partition {partition}")
        place = (topic, partition)
        (header,) = scan(data)
        count = header.record_count
        if header.producer_id >= 0:
            window = self.producers.get((place, header.producer_id))
            for sequence, length, offset in window or ():
                if sequence == header.base_sequence:
                    return offset, offset + length, True
            if window is None and header.base_sequence != 0:
                raise UnknownProducer(f"producer {header.producer_id} is not known in {place}")
            if window is not None and header.base_sequence != (window[-1][0] + window[-1][1]) % (1 << 31):
                raise OutOfOrderSequence(f"{header.base_sequence} follows {window[-1]}")
        base = self.next_offset[place]
        if expected is not None and expected != base:
            raise ConditionFailed(f"{place} ends at {base}, not {expected}")
        if header.producer_id >= 0:
            self.producers.setdefault((place, header.producer_id), deque(maxlen=WINDOW)).append((header.base_sequence, count, base))
        stored = bytearray(data)
        stamp(stored, [header], base_offset=base, leader_epoch=1)
        self.batches[place].append(bytes(stored))
        self.next_offset[place] = base + count
        return base, base + count, False


class Fate:
    """What becomes of one append. `hold`: answered only when the event is set."""

    def __init__(
        self, error: TidelogError | None = None, *, commits: bool = True, drops_stream: bool = False, hold: asyncio.Event | None = None
    ) -> None:
        self.error = error
        self.commits = commits
        self.drops_stream = drops_stream
        self.hold = hold


OK = Fate()


def committed_but_unheard() -> Fate:
    return Fate(drops_stream=True)


def lost_before() -> Fate:
    return Fate(commits=False, drops_stream=True)


def unknown(*, committed: bool) -> Fate:
    return Fate(OutcomeUnknown("no word from the leader"), commits=committed)


def refused(error: TidelogError) -> Fate:
    return Fate(error, commits=False)


def throttled() -> Fate:
    return refused(Throttled("slow down"))


def not_ready() -> Fate:
    return refused(NotReady("no leader yet"))


def draining() -> Fate:
    return refused(Draining("about to leave"))


def too_large() -> Fate:
    return refused(RecordTooLarge("beyond max_batch_bytes"))


class Broker(log_pb2_grpc.LogServicer, admin_pb2_grpc.AdminServicer):
    def __init__(self, cluster: Cluster, broker_id: str, zone: str) -> None:
        self.cluster = cluster
        self.broker_id = broker_id
        self.zone = zone
        self.address = ""
        self.advertises = ""
        """What clients are told; empty: the address."""
        self.fate: Callable[[log_pb2.ProduceAppend], Fate] = lambda append: OK
        self.appends: list[tuple[str, int, bytes]] = []
        self.produce_streams = 0
        self.consume_streams = 0
        self.calls: list[str] = []
        self.tokens: set[str] = set()
        self.adds: list[log_pb2.AddPartition] = []
        self.cut_consume_after: deque[int] = deque()
        """For each Consume stream to come: it breaks after so many responses."""
        self.end_subscription: deque[TidelogError] = deque()
        """For each subscription to come: it ends with this error at once."""
        self.metadata_fails: TidelogError | None = None
        self.metadata_hangs = False
        self.list_offsets_fails: deque[TidelogError | None] = deque()
        """None: the question is not answered at all, though the call is."""
        """For each query of offsets to come: this is its answer."""
        self.tamper: Callable[[log_pb2.Batches], None] = lambda batches: None
        self.granted = 0
        self.pushed = 0
        self.most_unacknowledged = 0
        self.server: grpc.aio.Server

    async def start(self, port: int = 0) -> None:
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)])
        log_pb2_grpc.add_LogServicer_to_server(self, self.server)
        admin_pb2_grpc.add_AdminServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(None)

    # ---- unary

    async def GetMetadata(self, request: log_pb2.GetMetadataRequest, context: Any) -> log_pb2.GetMetadataResponse:
        self.calls.append("GetMetadata")
        if self.metadata_hangs:
            await asyncio.Event().wait()
        if self.metadata_fails is not None:
            await abort(context, self.metadata_fails)
        self.tokens.update(value for name, value in context.invocation_metadata() if name == "authorization")
        brokers = [
            log_pb2.GetMetadataResponse.Broker(broker_id=broker.broker_id, address=broker.advertises or broker.address, zone=broker.zone)
            for broker in self.cluster.brokers
        ]
        topics = []
        for name in request.topics or self.cluster.topics:
            if request.create_missing and self.cluster.creates_topics:
                self.cluster.topics.setdefault(name, 4)
            if name in self.cluster.topics:
                topics.append(log_pb2.GetMetadataResponse.Topic(name=name, partitions=self.cluster.topics[name]))
            else:
                error = message_of(UnknownTopic(f"topic {name} is not known"))
                topics.append(log_pb2.GetMetadataResponse.Topic(name=name, error=error))
        return log_pb2.GetMetadataResponse(cluster_id="c", brokers=brokers, topics=topics)

    async def InitProducer(self, request: log_pb2.InitProducerRequest, context: Any) -> log_pb2.InitProducerResponse:
        self.calls.append("InitProducer")
        self.cluster.next_producer_id += 1
        return log_pb2.InitProducerResponse(producer_id=self.cluster.next_producer_id, producer_epoch=0)

    async def ListOffsets(self, request: log_pb2.ListOffsetsRequest, context: Any) -> log_pb2.ListOffsetsResponse:
        self.calls.append("ListOffsets")
        answers = []
        for query in request.queries:
            place = (query.partition.topic, query.partition.partition)
            if self.list_offsets_fails:
                failure = self.list_offsets_fails.popleft()
                if failure is None:
                    continue
                error = message_of(failure)
                answers.append(log_pb2.ListOffsetsResponse.Answer(partition=query.partition, offset=-1, error=error))
                continue
            kind = query.at.WhichOneof("at")
            offset = self.cluster.log_start[place] if kind == "earliest" else self.cluster.next_offset[place]
            if kind == "timestamp_ms":
                records = self.cluster.records(*place)
                offset = next((record.offset for record in records if record.timestamp_ms >= query.at.timestamp_ms), offset)
            answers.append(log_pb2.ListOffsetsResponse.Answer(partition=query.partition, offset=offset))
        return log_pb2.ListOffsetsResponse(answers=answers)

    # ---- streams

    async def Produce(self, requests: object, context: Any) -> None:
        self.produce_streams += 1
        held: set[asyncio.Task[None]] = set()
        while (message := await context.read()) is not grpc.aio.EOF:
            results = []
            for append in message.appends:
                self.appends.append((append.topic, append.partition, append.batches))
                fate = self.fate(append)
                result = log_pb2.ProduceResult(request_id=append.request_id)
                if fate.commits:
                    try:
                        expected = append.expected_next_offset if append.HasField("expected_next_offset") else None
                        found = self.cluster.append(append.topic, append.partition, append.batches, expected)
                    except TidelogError as error:
                        result.error.CopyFrom(message_of(error))
                    else:
                        result.base_offset, result.next_offset, result.duplicate = found
                        async with self.cluster.grown:
                            self.cluster.grown.notify_all()
                if fate.error is not None:
                    result = log_pb2.ProduceResult(request_id=append.request_id, error=message_of(fate.error))
                if fate.drops_stream:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream broke")
                if fate.hold is not None:
                    held.add(asyncio.create_task(self._later(context, result, fate.hold)))
                else:
                    results.append(result)
            if results:
                await context.write(log_pb2.ProduceResponse(results=results))

    async def _later(self, context: Any, result: log_pb2.ProduceResult, hold: asyncio.Event) -> None:
        await hold.wait()
        await context.write(log_pb2.ProduceResponse(results=[result]))

    async def Consume(self, requests: object, context: Any) -> None:
        self.consume_streams += 1
        left = self.cut_consume_after.popleft() if self.cut_consume_after else -1
        credit = 0
        unacknowledged = 0
        positions: dict[int, tuple[Place, int, int | None]] = {}
        read = asyncio.ensure_future(context.read())
        try:
            while True:
                if read.done():
                    request = read.result()
                    if request is grpc.aio.EOF:
                        return
                    credit += request.credit_bytes
                    unacknowledged = max(0, unacknowledged - request.credit_bytes)
                    self.granted += request.credit_bytes
                    for add in request.add:
                        self.adds.append(add)
                        if self.end_subscription:
                            error = message_of(self.end_subscription.popleft())
                            end = log_pb2.SubscriptionEnd(subscription_id=add.subscription_id, next_offset=add.start.offset, error=error)
                            await context.write(log_pb2.ConsumeResponse(end=end))
                            continue
                        place = (add.partition.topic, add.partition.partition)
                        stop = add.stop_offset if add.HasField("stop_offset") else None
                        positions[add.subscription_id] = (place, add.start.offset, stop)
                    read = asyncio.ensure_future(context.read())
                wrote = False
                for subscription_id, (place, offset, stop) in list(positions.items()):
                    if stop is not None and offset >= stop:
                        end = log_pb2.SubscriptionEnd(subscription_id=subscription_id, next_offset=offset)
                        await context.write(log_pb2.ConsumeResponse(end=end))
                        del positions[subscription_id]
                        continue
                    batch = next((b for b in self.cluster.batches[place] if scan(b)[0].next_offset > offset), None)
                    if batch is None or credit <= 0:
                        continue
                    if left == 0:
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream broke")
                    left -= 1
                    header = scan(batch)[0]
                    batches = log_pb2.Batches(
                        subscription_id=subscription_id, base_offset=header.base_offset, next_offset=header.next_offset,
                        high_watermark=self.cluster.next_offset[place], log_start_offset=self.cluster.log_start[place], batches=batch,
                    )  # fmt: skip
                    self.tamper(batches)
                    await context.write(log_pb2.ConsumeResponse(batches=batches))
                    credit -= len(batch)
                    unacknowledged += len(batch)
                    self.most_unacknowledged = max(self.most_unacknowledged, unacknowledged)
                    positions[subscription_id] = (place, header.next_offset, stop)
                    wrote = True
                if not wrote:
                    grown = asyncio.ensure_future(self._grown())
                    await asyncio.wait((read, grown), return_when=asyncio.FIRST_COMPLETED, timeout=0.02)
                    grown.cancel()
        finally:
            read.cancel()

    async def _grown(self) -> None:
        async with self.cluster.grown:
            await self.cluster.grown.wait()


@asynccontextmanager
async def running_cluster(*zones: str) -> AsyncIterator[Cluster]:
    """A cluster of one broker per zone named."""
    cluster = Cluster()
    for number, zone in enumerate(zones or ("",)):
        broker = Broker(cluster, f"b{number}", zone)
        cluster.brokers.append(broker)
        await broker.start()
    try:
        yield cluster
    finally:
        for broker in cluster.brokers:
            await broker.stop()


class CuttingProxy:
    """A TCP proxy that cuts a connection after so many bytes of one direction, in the midst of whatever they are."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.cuts: deque[int] = deque()
        """For each connection to come, after how many bytes; without one it is not cut."""
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "CuttingProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        left = self.cuts.popleft() if self.cuts else -1
        host, port = self._target.rsplit(":", 1)
        up_reader, up_writer = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, limit: int) -> None:
            while data := await source.read(65536):
                sink.write(data if limit < 0 else data[:limit])
                await sink.drain()
                if limit >= 0 and (limit := limit - len(data)) <= 0:
                    return

        try:
            copies = [asyncio.create_task(copy(reader, up_writer, left)), asyncio.create_task(copy(up_reader, writer, left))]
            try:
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in copies:
                    one.cancel()
                await asyncio.gather(*copies, return_exceptions=True)
        except asyncio.CancelledError:
            pass
        finally:
            for end in (writer, up_writer):
                end.transport.abort()
            self._tasks.discard(task)
