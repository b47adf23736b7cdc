"""The producer: records in, acknowledgements out.

Records are gathered per partition (`appends`), and travel on one Produce stream to whichever broker is used now. When the
stream or the broker goes, another is taken, and each partition's unanswered appends go again in order before anything new.

With `idempotent=True` (the default) nothing is lost, doubled or reordered by that, and a record ends in one of three ways:
an `Ack`; an error that says it is not written; or `OutcomeUnknown`, where the delivery time-out passed without a word.
After an unknown outcome, or a refusal with other appends behind it, the partition goes on under a new producer id.
Without idempotence one append per partition is in flight, and what may have been written is not sent again but reported as
unknown at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from tidelog.client import wire
from tidelog.client.acks import Ack, AckRange, Acks
from tidelog.client.appends import Append, Batch, PartitionQueue
from tidelog.client.connection import GONE, Broker, Brokers
from tidelog.client.inputs import (
    RECORD_OVERHEAD_BYTES,
    Headers,
    as_bytes,
    checked_column,
    checked_headers,
    checked_name,
    checked_offset,
    checked_timestamps,
    largest,
    runs,
)
from tidelog.client.partitioner import partition_of
from tidelog.errors import (
    Draining,
    InvalidRequest,
    RecordTooLarge,
    Throttled,
    TidelogError,
    UnknownPartition,
)  # fmt: skip
from tidelog.proto.v1 import log_pb2 as pb
from tidelog.records.batch import COMPRESSIONS
from tidelog.records.codec import Producer as Identity

_MESSAGE_BYTES = 256 * 1024
_MAX_BATCH_BYTES = 960 * 1024
_METADATA_MAX_AGE_S = 60.0
_LATE_S = 5.0
_LEAVING_S = 5.0


@dataclass(slots=True)
class _Held:
    """A record of a topic whose partitions are not known yet."""

    value: bytes | None
    key: bytes | None
    headers: Headers
    timestamp_ms: int | None
    size: int
    future: "asyncio.Future[Ack]"


@dataclass(slots=True)
class _Topic:
    name: str
    partitions: int = 0
    """0: not known yet."""
    asked_at: float = 0.0
    asking: "asyncio.Task[None] | None" = None
    sticky: PartitionQueue | None = None
    """Where records without a key go now, for so many bytes more."""
    sticky_bytes: int = 0
    held: deque[_Held] = field(default_factory=deque)


class _Stream:
    """One Produce call."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.call: Any = broker.produce()
        self.out: dict[int, tuple[PartitionQueue, Append, float]] = {}
        """By request id: what is unanswered, and when its answer is overdue."""
        self.leaving_by: float | None = None
        """The broker is to be left: nothing new is written, and answers are waited for until then."""


class Producer:
    """Appends records; `async with log.producer() as producer`. Made by `Log.producer`, which describes the parameters."""

    def __init__(
        self, brokers: Brokers, *, linger_ms: float, compression: str, idempotent: bool, batch_bytes: int, max_in_flight: int,
        buffer_bytes: int, max_record_bytes: int, delivery_timeout_ms: int, request_timeout_ms: int, fencing_token: str | None = None,
    ) -> None:  # fmt: skip
        if compression not in COMPRESSIONS:
            raise InvalidRequest(f"compression {compression!r} was asked for; choose one of {', '.join(COMPRESSIONS)}")
        if not 1 <= max_in_flight <= 5:
            raise InvalidRequest(f"max_in_flight={max_in_flight} was asked for; brokers remember 5 appends of a producer: choose 1 to 5")
        if not linger_ms >= 0:
            raise InvalidRequest(f"linger_ms={linger_ms} was asked for; it must not be below 0")
        for name, number in (
            ("batch_bytes", batch_bytes), ("buffer_bytes", buffer_bytes), ("max_record_bytes", max_record_bytes),
            ("delivery_timeout_ms", delivery_timeout_ms), ("request_timeout_ms", request_timeout_ms),
        ):  # fmt: skip
            if number <= 0:
                raise InvalidRequest(f"{name}={number} was asked for; it must be above 0")
        self._brokers = brokers
        self._clock = brokers.clock
        self._linger_s = linger_ms / 1000
        self._compression = compression
        self._idempotent = idempotent
        self._batch_bytes = batch_bytes
        self._full_bytes = batch_bytes - batch_bytes // 8
        """From here on a batch may go, and records without a key go elsewhere."""
        self._max_batch_bytes = max(batch_bytes, _MAX_BATCH_BYTES)
        self._max_in_flight = max_in_flight
        self._buffer_bytes = buffer_bytes
        self._max_record_bytes = max_record_bytes
        self._delivery_timeout_s = delivery_timeout_ms / 1000
        self._request_timeout_s = request_timeout_ms / 1000
        self._fencing_token = fencing_token
        self._buffered = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._topics: dict[str, _Topic] = {}
        self._queues: dict[tuple[str, int], PartitionQueue] = {}
        self._ready: deque[PartitionQueue] = deque()
        self._wake = asyncio.Event()
        self._stream: _Stream | None = None
        self._next_request_id = 1
        self._identity: Identity | None = None
        self._is_open = False
        self.closed = False
        """Whether it has been open, and is not any more."""
        self._loop: asyncio.AbstractEventLoop
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if self._idempotent:
            self._identity = await self._new_identity()
        self._is_open = True
        self._spawn(self._run())
        self._spawn(self._keep_time())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Send what is buffered and wait for its end; a cancelled caller does not wait, and what is out is reported as unknown."""
        try:
            if kind is None or not issubclass(kind, asyncio.CancelledError):
                await self.flush()
        finally:
            self._is_open, self.closed = False, True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            closed = InvalidRequest("the producer was closed before this was sent; it was not written")
            for queue in self._queues.values():
                queue.fail_all(closed)
            for topic in self._topics.values():
                self._fail_held(topic, closed)

    def _spawn(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError("cancelled by nobody here") if task.cancelled() else task.exception()
        if error is not None and self._is_open:  # a fault of this module, or of gRPC: nobody may wait for ever
            broken = TidelogError(f"the producer has failed and takes nothing more: {error!r}")
            broken.__cause__ = error
            self._is_open, self.closed = False, True
            for queue in self._queues.values():
                queue.fail_all(broken)
            for topic in self._topics.values():
                self._fail_held(topic, broken)

    # ---- what users call

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Headers = (), timestamp_ms: int | None = None,
        partition: int | None = None, expected_next_offset: int | None = None,
    ) -> Ack:  # fmt: skip
        """Append one record, and return where it is once it is committed.

        Its partition is `partition`; else its key's, as Kafka's producers choose it; else one that is used for a while.
        Without `timestamp_ms` it gets the time at which its batch was begun. `expected_next_offset` (which needs a
        `partition`) appends only if the partition ends there.

        Raises InvalidRequest, RecordTooLarge, UnknownTopic, UnknownPartition, ConditionFailed, PermissionDenied, TimedOut (not
        written) and OutcomeUnknown (may be written).
        """
        while True:
            try:
                future = self.send_nowait(
                    topic, value, key=key, headers=headers, timestamp_ms=timestamp_ms, partition=partition,
                    expected_next_offset=expected_next_offset,
                )  # fmt: skip
            except Throttled:
                await self.ready()
            else:
                return await future

    def send_nowait(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Headers = (), timestamp_ms: int | None = None,
        partition: int | None = None, expected_next_offset: int | None = None,
    ) -> "asyncio.Future[Ack]":  # fmt: skip
        """Take one record, and return a future of what `send` returns or raises. Cancelling it cancels nothing.

        Raises Throttled when `buffer_bytes` are buffered: `await producer.ready()`, and call again.
        """
        if not self._is_open:
            raise _closed()
        if value.__class__ is not bytes and value is not None:
            value = as_bytes("value", value)
        size = RECORD_OVERHEAD_BYTES if value is None else RECORD_OVERHEAD_BYTES + len(value)
        if key is not None:
            key = key if key.__class__ is bytes else as_bytes("key", key)
            size += len(key)
        if headers:
            headers, header_bytes = checked_headers(headers)
            size += header_bytes
        if timestamp_ms is not None:
            (timestamp_ms,) = checked_timestamps((timestamp_ms,))
        if expected_next_offset is not None:
            expected_next_offset = checked_offset("expected_next_offset", expected_next_offset)
        if size > self._max_record_bytes:
            raise RecordTooLarge(f"a record of {size} bytes was to be sent, but max_record_bytes is {self._max_record_bytes}; send less")
        if self._buffered + size > self._buffer_bytes and self._buffered:
            raise Throttled(f"{self._buffered} bytes of at most buffer_bytes={self._buffer_bytes} are buffered; await producer.ready()")
        future: asyncio.Future[Ack] = self._loop.create_future()
        if partition is not None:
            queue = self._queue(topic, partition)
        else:
            if expected_next_offset is not None:
                raise InvalidRequest("expected_next_offset was given without a partition; name the partition that it is about")
            known = self._topics.get(topic) or self._topic(topic)
            if known.held or not known.partitions:
                self._hold(known, _Held(value, key, headers, timestamp_ms, size, future))
                return future
            queue = self._choose(known, size) if key is None else self._queue(topic, partition_of(key, known.partitions))
        self._buffered += size
        self._add(queue, value, key, headers, timestamp_ms, size, future, expected_next_offset)
        return future

    async def send_many(
        self, topic: str, values: Sequence[bytes | None], *, keys: Sequence[bytes | None] | None = None, partition: int | None = None,
        timestamps: Sequence[int] | None = None,
    ) -> Acks:  # fmt: skip
        """Append a whole list, and return where its records are once all are committed.

        The values of one partition keep their order. Raises what `send` raises, for the first part that failed; other parts
        may be committed.
        """
        if not self._is_open:
            raise _closed()
        for name, column in (("keys", keys), ("timestamps", timestamps)):
            if column is not None and len(column) != len(values):
                raise InvalidRequest(f"{len(values)} values came with {len(column)} {name}; give one for each value")
        if timestamps:
            timestamps = checked_timestamps(timestamps)
        values = checked_column("value", values)
        keys = None if keys is None else checked_column("key", keys)
        known = self._topic(topic)
        if partition is None:
            await self._partitions_known(known)
        self._check_largest(values, keys)
        futures: list[asyncio.Future[Ack]] = []
        places: list[Sequence[int]] = []
        for chosen, indices in self._split(known, len(values), keys, partition):
            whole = isinstance(indices, range)
            column = values if whole else [values[index] for index in indices]
            column_keys = keys if whole or keys is None else [keys[index] for index in indices]
            end = 0
            for run, run_keys, size in runs(column, column_keys, aim_bytes=self._batch_bytes):
                await self._room_for(size)
                queue = self._choose(known, size) if chosen is None else self._queue(topic, chosen)
                place = indices[end : (end := end + len(run))]
                times = None if timestamps is None else [timestamps[index] for index in place]
                future: asyncio.Future[Ack] = self._loop.create_future()
                self._buffered += size
                self._add_many(queue, run, run_keys, times, size, future)
                futures.append(future)
                places.append(place)
        first_acks = await _all(futures)
        ranges = [
            AckRange(ack.topic, ack.partition, ack.offset, ack.offset + len(place), place)
            for ack, place in zip(first_acks, places, strict=True)
        ]
        return Acks(ranges, len(values), first_acks, timestamps)

    async def ready(self) -> None:
        """Wait until there is room in the buffer."""
        while self._is_open and self._buffered * 2 > self._buffer_bytes:  # half empty, so that callers run in long strides
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room.append(waiter)
            await waiter

    async def flush(self) -> None:
        """Send all that is buffered now, without lingering, and wait until each record is acknowledged or has failed."""
        while asking := [topic.asking for topic in self._topics.values() if topic.held and topic.asking]:
            await asyncio.wait(asking)
        waiting = []
        for queue in self._queues.values():
            for batch in queue.batches():
                batch.due = True
                if batch.finished is None:
                    batch.finished = self._loop.create_future()
                waiting.append(batch.finished)
            self._list(queue)
        if waiting:
            await asyncio.wait(waiting)

    # ---- gathering

    def _queue(self, topic: str, partition: int) -> PartitionQueue:
        queue = self._queues.get((topic, partition))
        if queue is None:
            known = self._topic(topic)
            wire.partition(topic, partition)
            if known.partitions and partition >= known.partitions:
                raise UnknownPartition(
                    f"partition {partition} of {topic} was asked for, but it has {known.partitions}, counted from 0; choose another"
                )
            queue = self._queues[topic, partition] = PartitionQueue(
                topic, partition, compression=self._compression, idempotent=self._idempotent, max_in_flight=self._max_in_flight,
                chance=self._brokers.chance, released=self._released,
            )  # fmt: skip
            if self._identity is not None:
                queue.identify(self._identity)
        return queue

    def _choose(self, topic: _Topic, size: int) -> PartitionQueue:
        """Return the partition for so many bytes without a key: one for a batch's worth, then the emptier of two others."""
        sticky = topic.sticky
        topic.sticky_bytes -= size
        if sticky is None or topic.sticky_bytes < 0 or sticky.open is None:
            topic.sticky_bytes = self._full_bytes
            drawn = {int(self._brokers.chance.random() * topic.partitions) for _ in range(2)}
            sticky = topic.sticky = min(
                (self._queue(topic.name, partition) for partition in drawn),
                key=lambda queue: len(queue.window) + len(queue.closed) + (queue.open is not None),
            )
        return sticky

    def _add(
        self, queue: PartitionQueue, value: bytes | None, key: bytes | None, headers: Headers, timestamp_ms: int | None, size: int,
        future: "asyncio.Future[Ack]", expected_next_offset: int | None = None,
    ) -> None:  # fmt: skip
        batch = queue.open
        if batch is None or expected_next_offset is not None or batch.size + size > self._batch_bytes:
            batch = self._batch_for(queue, size, expected_next_offset)
        batch.indices.append(len(batch.values))
        batch.futures.append(future)
        if batch.is_plain and key is None and timestamp_ms is None and not headers:
            batch.values.append(value)
            batch.size += size
        else:
            batch.add(value, key, headers, timestamp_ms, size)
        if batch.size >= self._full_bytes or expected_next_offset is not None:
            self._fill(queue, batch)

    def _add_many(
        self, queue: PartitionQueue, values: list[bytes | None], keys: list[bytes | None] | None, timestamps: list[int] | None, size: int,
        future: "asyncio.Future[Ack]",
    ) -> None:  # fmt: skip
        batch = self._batch_for(queue, size, None)
        batch.indices.append(len(batch.values))
        batch.futures.append(future)
        batch.add_many(values, keys, timestamps, size)
        if batch.size >= self._full_bytes:
            self._fill(queue, batch)

    def _batch_for(self, queue: PartitionQueue, size: int, expected_next_offset: int | None) -> Batch:
        """Return the open batch, or a new one. While no batch could leave anyhow, the open one grows beyond its aim."""
        batch = queue.open
        if batch is not None:
            limit = self._batch_bytes if queue.has_room else self._max_batch_bytes
            if batch.size + size <= limit and expected_next_offset is None:
                return batch
            queue.close_open()
            self._list(queue)
        self._topic(queue.topic)  # which asks anew from time to time: partitions may have been added
        batch = queue.open = Batch(
            opened_at_ms=self._clock.wall_ms(),
            deadline=self._clock.monotonic() + self._delivery_timeout_s,
            expected_next_offset=expected_next_offset,
        )
        if expected_next_offset is None:
            if self._linger_s > 0:
                self._loop.call_later(self._linger_s, self._due, queue, batch)
            else:
                self._due(queue, batch)
        return batch

    def _fill(self, queue: PartitionQueue, batch: Batch) -> None:
        batch.due = True
        if batch.expected_next_offset is not None:
            queue.close_open()
        self._list(queue)

    def _due(self, queue: PartitionQueue, batch: Batch) -> None:
        if not batch.ended:
            batch.due = True
            self._list(queue)

    def _list(self, queue: PartitionQueue) -> None:
        """Have the writer look at a queue."""
        if not queue.listed:
            queue.listed = True
            self._ready.append(queue)
        self._wake.set()

    def _released(self, size: int) -> None:
        self._buffered -= size
        if self._room and self._buffered * 2 <= self._buffer_bytes:
            for waiter in self._room:
                if not waiter.done():
                    waiter.set_result(None)
            self._room.clear()

    async def _room_for(self, size: int) -> None:
        while self._buffered and self._buffered + size > self._buffer_bytes:
            await self.ready()
        if not self._is_open:
            raise _closed()

    def _split(
        self, topic: _Topic, count: int, keys: Sequence[bytes | None] | None, partition: int | None
    ) -> Iterator[tuple[int | None, Sequence[int]]]:
        """Yield (partition, or None: any; indices of the values that go there)."""
        if not count:
            return
        if partition is not None or keys is None:
            yield partition, range(count)
            return
        places: dict[int | None, list[int]] = {}
        for index, key in enumerate(keys):
            chosen = None if key is None else partition_of(key, topic.partitions)
            places.setdefault(chosen, []).append(index)
        yield from places.items()

    def _check_largest(self, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None) -> None:
        size = RECORD_OVERHEAD_BYTES + largest(values, keys)
        if size > self._max_record_bytes:
            raise RecordTooLarge(
                f"a record of {size} bytes was to be sent, but max_record_bytes is {self._max_record_bytes}; send less. Of this list"
                " nothing was sent"
            )

    # ---- topics

    def _topic(self, name: str) -> _Topic:
        topic = self._topics.get(name)
        if topic is None:
            checked_name("topic", name)
            topic = self._topics[name] = _Topic(name)
        old = self._clock.monotonic() - topic.asked_at > _METADATA_MAX_AGE_S
        if topic.asking is None and (not topic.partitions or old):
            topic.asking = self._spawn(self._ask(topic))
        return topic

    async def _partitions_known(self, topic: _Topic) -> None:
        while not topic.partitions or topic.held:
            topic = self._topic(topic.name)
            assert topic.asking is not None
            asking = topic.asking
            await asyncio.wait([asking])
            if not topic.partitions and not asking.cancelled():
                await self._ask(topic)  # once more, to raise why

    async def _ask(self, topic: _Topic) -> None:
        """Learn a topic's partitions, and send what was held until they are known."""
        give_up_at = self._clock.monotonic() + self._delivery_timeout_s
        try:
            while True:
                try:
                    answer = await self._brokers.metadata([topic.name], create_missing=True)
                    break
                except TidelogError as error:
                    if not error.retriable or not topic.held or self._clock.monotonic() > give_up_at:
                        raise
            told = next(found for found in answer.topics if found.name == topic.name)
            if told.HasField("error"):
                raise wire.error_of(told.error)
            topic.partitions = told.partitions
            topic.asked_at = self._clock.monotonic()
        except TidelogError as error:
            if not topic.partitions:
                self._fail_held(topic, error)
                if asyncio.current_task() is not topic.asking:
                    raise
        finally:
            if asyncio.current_task() is topic.asking:
                topic.asking = None
        held, topic.held = topic.held, deque()
        for record in held:
            queue = (
                self._choose(topic, record.size)
                if record.key is None
                else self._queue(topic.name, partition_of(record.key, topic.partitions))
            )
            self._add(queue, record.value, record.key, record.headers, record.timestamp_ms, record.size, record.future)

    def _hold(self, topic: _Topic, record: _Held) -> None:
        self._buffered += record.size
        topic.held.append(record)

    def _fail_held(self, topic: _Topic, error: TidelogError) -> None:
        held, topic.held = topic.held, deque()
        for record in held:
            self._released(record.size)
            if not record.future.done():
                record.future.set_exception(error)

    # ---- identities

    async def _new_identity(self) -> Identity:
        answer = await self._brokers.call(lambda broker: broker.log.InitProducer, pb.InitProducerRequest())
        return Identity(answer.producer_id, answer.producer_epoch, 0)

    async def _identify(self, queue: PartitionQueue) -> None:
        """Give a partition a new identity."""
        while True:
            try:
                identity = await self._new_identity()
            except TidelogError as error:
                if not error.retriable:
                    queue.fail_all(error)
                    return
            else:
                queue.identify(identity)
                self._list(queue)
                return

    # ---- the stream

    async def _run(self) -> None:
        while True:
            broker = await self._brokers.connected()
            stream = self._stream = _Stream(broker)
            for queue in self._queues.values():
                if queue.unfinished:
                    self._list(queue)
            error: TidelogError | None = None
            try:
                await self._converse(stream)
            except grpc.aio.AioRpcError as failure:
                error = wire.error_of_call(failure, address=broker.address)
            finally:
                stream.call.cancel()
                self._stream = None
                self._lost(stream)
            if error is not None and not error.retriable:
                for queue in self._queues.values():
                    queue.fail_all(error)
            if stream.leaving_by is not None or isinstance(error, Draining):
                self._brokers.leave(broker)
            else:
                self._brokers.failed(broker)

    async def _converse(self, stream: _Stream) -> None:
        """Write and read until the stream ends. Raises AioRpcError."""
        tasks = [self._loop.create_task(work) for work in (self._read(stream), self._write(stream))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stream.call.cancel()
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception) and not isinstance(error, GONE):
                raise error

    async def _write(self, stream: _Stream) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while stream.leaving_by is None and (message := self._message(stream)):
                await stream.call.write(message)

    def _message(self, stream: _Stream) -> bytes:
        """Return what can go now, up to a message's worth, one append of each partition in turn; nothing where nothing can."""
        appends = []
        size = 0
        now = self._clock.monotonic()
        while self._ready and size < _MESSAGE_BYTES:
            queue = self._ready.popleft()
            append = queue.take(now)
            if append is None:
                queue.listed = False
                self._attend(queue, now)
                continue
            self._ready.append(queue)
            append.request_id = self._next_request_id
            self._next_request_id += 1
            timeout_s = max(0.001, min(self._request_timeout_s, append.deadline - now))
            stream.out[append.request_id] = (queue, append, now + timeout_s + _LATE_S)
            message = pb.ProduceAppend(
                request_id=append.request_id,
                topic=queue.topic,
                partition=queue.partition,
                timeout_ms=max(1, int(timeout_s * 1000)),
                expected_next_offset=append.batch.expected_next_offset,
                fencing_token=self._fencing_token,
            )
            appends.append((message, append.data))
            size += len(append.data)
        return wire.produce_request(appends)

    def _attend(self, queue: PartitionQueue, now: float) -> None:
        """See to it that a queue with nothing to send now is looked at again in time."""
        if queue.wants_identity and not queue.identifying:
            queue.identifying = True
            self._spawn(self._identify(queue)).add_done_callback(lambda _: setattr(queue, "identifying", False))
        if queue.resend_at > now:
            self._loop.call_later(queue.resend_at - now, self._list, queue)

    async def _read(self, stream: _Stream) -> None:
        while True:
            response = await stream.call.read()
            if response is grpc.aio.EOF:
                status = await stream.call.code()
                if status is not grpc.StatusCode.OK:
                    await stream.call  # raises what it ended with
                return
            self._brokers.worked(stream.broker)
            now = self._clock.monotonic()
            for result in response.results:
                self._answer(stream, result, now)
            if stream.leaving_by is not None and not stream.out:
                return

    def _answer(self, stream: _Stream, result: "pb.ProduceResult", now: float) -> None:
        found = stream.out.pop(result.request_id, None)
        if found is None:
            return
        queue, append, _ = found
        if append.request_id == result.request_id:  # else its partition went on under a new identity meanwhile
            if not result.HasField("error"):
                queue.succeeded(append, result.base_offset)
            else:
                error = wire.error_of(result.error)
                if queue.refused(append, error, now) or isinstance(error, Draining):
                    stream.leaving_by = stream.leaving_by or now + _LEAVING_S
        self._list(queue)

    def _lost(self, stream: _Stream) -> None:
        stream.out.clear()
        for queue in self._queues.values():
            queue.lost()

    async def _keep_time(self) -> None:
        """End what has passed its deadline, and streams that do not answer."""
        interval = max(0.01, min(1.0, self._delivery_timeout_s / 20))
        while True:
            await asyncio.sleep(interval)
            now = self._clock.monotonic()
            for queue in self._queues.values():
                queue.expire(now)
                if queue.wants_identity:
                    self._list(queue)
            stream = self._stream
            if stream is not None:
                overdue = next(iter(stream.out.values()), None)
                late = overdue is not None and overdue[2] < now
                if late or (stream.leaving_by is not None and stream.leaving_by < now):
                    stream.call.cancel()


def _closed() -> InvalidRequest:
    return InvalidRequest("a record was sent with a producer that is not open; use it inside `async with log.producer() as producer`")


async def _all(futures: Sequence[Awaitable[Ack]]) -> list[Ack]:
    """Return all results, or raise the first error once all have ended, so that none is left unheard."""
    results = await asyncio.gather(*futures, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
