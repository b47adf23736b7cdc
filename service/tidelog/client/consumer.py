"""The consumer: committed records of partitions, in order, each once.

One Consume stream at a time carries all partitions. For each, the next offset wanted is kept here; when the stream or its
broker goes, another takes up from there. What a response brings before that offset is skipped, and a response that would
leave something out is an error, never a hole.

Credit is granted as batches are handed out, so at most `credit_bytes` (and one message) are under way.
"""

import asyncio
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from math import inf
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio

from tidelog.client import wire
from tidelog.client.backoff import pause_s
from tidelog.client.connection import GONE, Broker, Brokers
from tidelog.errors import CorruptBatch, Draining, InvalidRequest, NotReady, OffsetOutOfRange, TidelogError, UnknownPartition
from tidelog.proto.v1 import log_pb2 as pb
from tidelog.records import codec
from tidelog.records.batch import BatchHeader, Buffer, scan

_REFRESH_S = 15.0


class ConsumedRecord(NamedTuple):
    """A record, and where it stands. A named tuple, because one is made for every record."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class ConsumedBatch:
    """The records of one record batch from `base_offset` on, up to before `next_offset`; decoded when asked, checked before."""

    __slots__ = ("_data", "_dense", "_first", "_header", "_size", "base_offset", "next_offset", "partition", "topic")

    def __init__(self, topic: str, partition: int, data: Buffer, header: BatchHeader, *, start: int, stop: int | None) -> None:
        self.topic = topic
        self.partition = partition
        self.base_offset = max(header.base_offset, start)
        self.next_offset = header.next_offset if stop is None else min(header.next_offset, stop)
        self._data = data
        self._header = header
        self._dense = header.record_count == header.next_offset - header.base_offset
        self._first = self.base_offset - header.base_offset
        self._size = self.next_offset - self.base_offset

    @property
    def data(self) -> bytes:
        """The whole record batch, as stored; may hold records before and behind."""
        return bytes(self._data)

    @property
    def max_timestamp_ms(self) -> int:
        """The latest timestamp in the record batch."""
        return self._header.max_timestamp_ms

    def records(self) -> list[ConsumedRecord]:
        """Return the records, each an object. Raises CorruptBatch."""
        topic, partition, first, end = self.topic, self.partition, self.base_offset, self.next_offset
        return [
            ConsumedRecord(topic, partition, offset, timestamp_ms, key, value, headers)
            for value, key, timestamp_ms, headers, offset in codec.decode(self._data, header=self._header)
            if first <= offset < end
        ]

    @property
    def values(self) -> list[bytes | None]:
        """The values, None for tombstones. Raises CorruptBatch."""
        if not self._dense:
            return [record.value for record in self.records()]
        values = codec.decode_values(self._data, header=self._header)
        return values if len(values) == self._size else values[self._first : self._first + self._size]

    def buffers(self) -> codec.ValueBuffers:
        """Return the values without an object each, in the layout of Arrow's binary array. Raises CorruptBatch."""
        if not self._dense:
            return codec.value_buffers(self.values)
        buffers = codec.decode_buffers(self._data, header=self._header)
        first, end = self._first, self._first + self._size
        if first == 0 and len(buffers.offsets) == end + 1:
            return buffers
        at = buffers.offsets[first]
        offsets = array("i", [offset - at for offset in buffers.offsets[first : end + 1]])
        validity = buffers.validity
        if validity is not None:
            bits = int.from_bytes(validity, "little") >> first & (1 << self._size) - 1
            validity = bits.to_bytes((self._size + 7) // 8, "little") if bits != (1 << self._size) - 1 else None
        return codec.ValueBuffers(offsets, buffers.values[at : buffers.offsets[end]], validity)

    def limited(self, records: int) -> "ConsumedBatch":
        """Return this batch, or its first so many records where it has more."""
        if self._dense:
            stop = self.base_offset + records
        else:
            kept = self.records()
            stop = kept[records].offset if len(kept) > records else self.next_offset
        if stop >= self.next_offset:
            return self
        return ConsumedBatch(self.topic, self.partition, self._data, self._header, start=self.base_offset, stop=stop)

    def __len__(self) -> int:
        return self._size if self._dense else len(self.records())


class Subscription:
    """One partition: where it goes on, and where it ends."""

    __slots__ = ("failures", "from_earliest", "next_offset", "partition", "stop_offset", "subscription_id", "topic")

    def __init__(self, topic: str, partition: int, next_offset: int, stop_offset: int | None) -> None:
        self.topic = topic
        self.partition = partition
        self.next_offset = next_offset
        self.stop_offset = stop_offset
        self.from_earliest = False
        """Whether it begins at the earliest record, and none has come yet."""
        self.subscription_id = 0
        self.failures = 0

    @property
    def ended(self) -> bool:
        """Whether all that was asked for has come."""
        return self.stop_offset is not None and self.next_offset >= self.stop_offset

    def take(self, batches: pb.Batches, data: Buffer) -> list[ConsumedBatch]:
        """Return what of a response's `data` is wanted. Raises CorruptBatch where it is not whole or leaves something out."""
        expected = self.next_offset
        if not batches.base_offset <= expected < batches.next_offset:
            raise CorruptBatch(
                f"{self.topic}/{self.partition} was to go on at offset {expected}, but a broker sent [{batches.base_offset},"
                f" {batches.next_offset}); nothing was skipped: read again from {expected}",
                position=0,
            )
        found = []
        at = batches.base_offset
        for header in scan(data):
            if header.base_offset < at or header.next_offset > batches.next_offset:
                raise CorruptBatch(
                    f"{self.topic}/{self.partition}: a batch of offsets [{header.base_offset}, {header.next_offset}) came where"
                    f" [{at}, {batches.next_offset}) was to go on; nothing was skipped: read again from {expected}",
                    position=header.position,
                )
            at = header.next_offset
            if at <= expected or (self.stop_offset is not None and header.base_offset >= self.stop_offset):
                continue
            batch = data[header.position : header.position + header.size]
            found.append(ConsumedBatch(self.topic, self.partition, batch, header, start=expected, stop=self.stop_offset))
        self.next_offset = batches.next_offset
        self.from_earliest = False
        self.failures = 0
        return found


class Consumption:
    """Records as they are read. Made by `Log.consume`, which describes it; `async with` (or `aclose`) ends it early."""

    def __init__(
        self, brokers: Brokers, topics: Sequence[str], *, partitions: Sequence[int] | None, start: str | int | datetime,
        stop: str | int | datetime | None, max_records: int | None, credit_bytes: int,
    ) -> None:  # fmt: skip
        if not topics or not all(topics):
            raise InvalidRequest(f"the topics {list(topics)!r} were to be read; name at least one")
        if partitions is not None and not partitions:
            raise InvalidRequest("no partitions were to be read; name some, or leave `partitions` out for all")
        if credit_bytes <= 0:
            raise InvalidRequest(f"credit_bytes={credit_bytes} was asked for; it must be above 0")
        if max_records is not None and max_records < 0:
            raise InvalidRequest(f"max_records={max_records} was asked for; it must not be below 0")
        self._brokers = brokers
        self._topics = list(dict.fromkeys(topics))
        self._partitions = None if partitions is None else sorted(set(partitions))
        self._start = position(start, name="start")
        self._stop = None if stop is None else position(stop, name="stop")
        self._left = max_records
        self._credit_bytes = credit_bytes
        self._subscriptions: dict[tuple[str, int], Subscription] = {}
        self._unended: set[Subscription] = set()
        self._open: dict[int, Subscription] = {}
        """Those that the broker is reading for, by their ids on the stream."""
        self._due: dict[Subscription, float] = {}
        """Those that it is to be asked for, and when: at once, or some time after an error."""
        self._ids = count(1)
        self._refresh_at = 0.0
        self._iterator: AsyncGenerator[ConsumedBatch, None] | None = None
        self.ended = False

    # ---- what users call

    async def __aiter__(self) -> AsyncIterator[ConsumedRecord]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for record in batch.records():
                    yield record

    def batches(self) -> AsyncGenerator[ConsumedBatch, None]:
        """Return the record batches instead of the records, for those who want columns. A consumption is iterated once.

        Whoever cancels the wait for the next one, by a time-out for example, ends it: go on with another from `next_offsets`.
        """
        if self._iterator is not None:
            raise InvalidRequest("a consumption was iterated twice; call log.consume again, with start=")
        self._iterator = self._limited()
        return self._iterator

    async def aclose(self) -> None:
        """End it, and its stream."""
        self.ended = True
        if self._iterator is not None:
            with suppress(RuntimeError):  # another task is inside: it ends with the connection
                await self._iterator.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    @property
    def next_offsets(self) -> dict[tuple[str, int], int]:
        """Where each (topic, partition) goes on after what has been received."""
        return {place: subscription.next_offset for place, subscription in self._subscriptions.items()}

    # ---- where to begin

    async def _begin(self) -> None:
        await self._find_partitions(self._start)
        self._refresh_at = self._brokers.clock.monotonic() + _REFRESH_S

    async def _find_partitions(self, start: pb.Position, *, told: pb.GetMetadataResponse | None = None) -> None:
        """Begin with all partitions that are not known yet."""
        told = told or await self._brokers.metadata(self._topics)
        found = []
        for topic in told.topics:
            if topic.HasField("error"):
                raise wire.error_of(topic.error)
            if self._partitions is not None and (wrong := [number for number in self._partitions if not 0 <= number < topic.partitions]):
                raise UnknownPartition(
                    f"partition {wrong[0]} of {topic.name} was to be read, but it has {topic.partitions}; choose another"
                )
            found += [(topic.name, number) for number in self._partitions or range(topic.partitions)]
        new = [place for place in found if place not in self._subscriptions]
        starts = await resolve(self._brokers, new, start)
        stops = [None] * len(new) if self._stop is None else await resolve(self._brokers, new, self._stop)
        for (topic_name, partition), first, stop in zip(new, starts, stops, strict=True):
            if self._stop is not None and self._stop.latest and stop is not None and first > stop:
                raise OffsetOutOfRange(
                    f"{topic_name}/{partition} was to be read from offset {first}, but it ends before {stop}; begin at {stop} or lower",
                    high_watermark=stop,
                )
            subscription = Subscription(topic_name, partition, first, stop)
            subscription.from_earliest = start.HasField("earliest")
            self._subscriptions[topic_name, partition] = subscription
            if not subscription.ended:
                self._unended.add(subscription)
                self._due[subscription] = 0.0

    # ---- reading

    async def _limited(self) -> AsyncGenerator[ConsumedBatch, None]:
        reading = self._batches()
        try:
            if self._left == 0:
                return
            async for batch in reading:
                if self._left is None:
                    yield batch
                    continue
                wanted = batch.limited(self._left)
                self._left -= len(wanted)
                yield wanted
                if self._left == 0:
                    return
        finally:
            self.ended = True
            await reading.aclose()

    async def _batches(self) -> AsyncGenerator[ConsumedBatch, None]:
        await self._begin()
        while self._goes_on:
            broker = await self._brokers.connected()
            try:
                async with aclosing(self._stream(broker)) as batches:
                    async for batch in batches:
                        yield batch
            except grpc.aio.AioRpcError as failure:
                error = wire.error_of_call(failure, address=broker.address)
                if not error.retriable:
                    raise error from failure
                if isinstance(error, Draining):
                    self._brokers.leave(broker)
                else:
                    self._brokers.failed(broker)
            except GONE:
                self._brokers.failed(broker)

    @property
    def _goes_on(self) -> bool:
        """Whether there is anything to wait for; a consumption without a stop waits for partitions, too."""
        return self._stop is None or bool(self._unended)

    async def _stream(self, broker: Broker) -> AsyncGenerator[ConsumedBatch, None]:
        """Yield batches from one stream until all has ended, or the broker wants to be left. Raises AioRpcError."""
        call = broker.consume()
        self._open.clear()
        self._due = dict.fromkeys(self._unended, 0.0)
        read: asyncio.Task[Any] | None = None
        refreshing: asyncio.Task[None] | None = None
        credit = self._credit_bytes
        try:
            while self._goes_on:
                now = self._brokers.clock.monotonic()
                if refreshing is None and now >= self._refresh_at:
                    self._refresh_at = now + _REFRESH_S
                    refreshing = asyncio.ensure_future(self._refresh(broker))
                adds = self._take_due(now)
                if adds or credit * 2 >= self._credit_bytes:
                    await call.write(pb.ConsumeRequest(add=adds, credit_bytes=credit))
                    credit = 0
                if read is None:
                    read = asyncio.ensure_future(call.read())
                waiting = (read,) if refreshing is None else (read, refreshing)
                wake_at = min((*self._due.values(), self._refresh_at if refreshing is None else inf))
                timeout = None if wake_at == inf else max(0.0, wake_at - now)
                await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if refreshing is not None and refreshing.done():
                    refreshing.result()
                    refreshing = None
                if not read.done():
                    continue
                found, read = read.result(), None
                if found is grpc.aio.EOF:
                    if await call.code() is not grpc.StatusCode.OK:
                        await call  # raises what it ended with
                    self._brokers.failed(broker)
                    return
                read = asyncio.ensure_future(call.read())  # the next one comes while this one is used
                self._brokers.worked(broker)
                response, data = found
                event = response.WhichOneof("event")
                if event == "batches":
                    credit += len(data)
                    for batch in self._take(response.batches, data):
                        yield batch
                elif event == "progress":
                    self._progress(response.progress)
                elif event == "end" and self._end(response.end):
                    self._brokers.leave(broker)
                    return
        finally:
            call.cancel()
            left = [task for task in (read, refreshing) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _take_due(self, now: float) -> list[pb.AddPartition]:
        """Return what is to be asked for now: each time under a new id, so that nothing late is taken for it."""
        adds = []
        for subscription in [due for due, at in self._due.items() if at <= now]:
            del self._due[subscription]
            subscription.subscription_id = next(self._ids)
            self._open[subscription.subscription_id] = subscription
            adds.append(
                pb.AddPartition(
                    subscription_id=subscription.subscription_id,
                    partition=pb.TopicPartition(topic=subscription.topic, partition=subscription.partition),
                    start=pb.Position(offset=subscription.next_offset),
                    stop_offset=subscription.stop_offset,
                )
            )
        return adds

    def _take(self, batches: pb.Batches, data: Buffer) -> list[ConsumedBatch]:
        subscription = self._open.get(batches.subscription_id)
        if subscription is None:
            return []
        found = subscription.take(batches, data)
        self._note_end(subscription)
        return found

    def _progress(self, progress: pb.Progress) -> None:
        subscription = self._open.get(progress.subscription_id)
        if subscription is not None:
            subscription.next_offset = max(subscription.next_offset, progress.next_offset)
            self._note_end(subscription)

    def _end(self, end: pb.SubscriptionEnd) -> bool:
        """Take the end of a subscription; return whether the broker is to be left. Raises its error unless it can be tried again."""
        subscription = self._open.pop(end.subscription_id, None)
        if subscription is None:
            return False
        error = wire.error_of(end.error) if end.HasField("error") else None
        if error is None:
            subscription.next_offset = max(subscription.next_offset, end.next_offset)
            self._note_end(subscription)
        elif isinstance(error, OffsetOutOfRange) and subscription.from_earliest and error.log_start_offset > subscription.next_offset:
            subscription.next_offset = error.log_start_offset  # what was the earliest has expired before it was read
            self._note_end(subscription)
        elif not error.retriable:
            raise error
        if subscription in self._unended:
            subscription.failures += 1
            self._due[subscription] = self._brokers.clock.monotonic() + pause_s(subscription.failures, self._brokers.chance)
        return isinstance(error, Draining)

    def _note_end(self, subscription: Subscription) -> None:
        if subscription.ended:
            self._unended.discard(subscription)

    async def _refresh(self, broker: Broker) -> None:
        """Look for partitions that were added. Raises AioRpcError where the broker does not answer: the connection is gone.

        What a broker cannot tell now is asked another time: reading goes on without it.
        """
        try:
            told = await self._brokers.metadata(self._topics, broker=broker)
            if self._partitions is None and self._stop is None:
                await self._find_partitions(pb.Position(earliest=True), told=told)
        except grpc.aio.AioRpcError as failure:
            if not wire.has_spoken(failure):
                raise
            error = wire.error_of_call(failure, address=broker.address)
            if not error.retriable:
                raise error from failure
        except TidelogError as error:
            if not error.retriable:
                raise


def position(where: str | int | datetime, *, name: str) -> pb.Position:
    """Return a position for the wire. Raises InvalidRequest."""
    if where == "earliest":
        return pb.Position(earliest=True)
    if where == "latest":
        return pb.Position(latest=True)
    if isinstance(where, int) and not isinstance(where, bool) and 0 <= where < 1 << 63:
        return pb.Position(offset=where)
    if isinstance(where, datetime) and where.tzinfo is not None:
        since = where - datetime.fromtimestamp(0, UTC)
        return pb.Position(timestamp_ms=max(0, -(-since // timedelta(milliseconds=1))))  # exactly; rounded up, for none is earlier
    raise InvalidRequest(f'{name}={where!r} was asked for; give "earliest", "latest", an offset from 0, or a datetime with a time zone')


async def resolve(brokers: Brokers, places: Sequence[tuple[str, int]], where: pb.Position) -> list[int]:
    """Return the offset that a position stands for, now, in each (topic, partition). Raises the first error."""
    if where.HasField("offset"):
        return [where.offset] * len(places)
    if not places:
        return []
    queries = [
        pb.ListOffsetsRequest.Query(partition=pb.TopicPartition(topic=topic, partition=partition), at=where) for topic, partition in places
    ]
    deadline = brokers.clock.monotonic() + brokers.call_timeout_s
    for failures in count(1):
        answer: pb.ListOffsetsResponse = await brokers.call(lambda broker: broker.log.ListOffsets, pb.ListOffsetsRequest(queries=queries))
        found = {(told.partition.topic, told.partition.partition): told for told in answer.answers}
        error: TidelogError | None = next((wire.error_of(told.error) for told in answer.answers if told.HasField("error")), None)
        if error is None and (missing := [place for place in places if place not in found]):
            error = NotReady(
                f"the offsets of {len(places)} partitions were asked for, but {missing[0]} is not among the answers; try again"
            )
        if error is None:
            return [found[place].offset for place in places]
        pause = pause_s(failures, brokers.chance)
        if not error.retriable or brokers.clock.monotonic() + pause >= deadline:
            raise error
        await asyncio.sleep(pause)
    raise AssertionError("counting does not end")
