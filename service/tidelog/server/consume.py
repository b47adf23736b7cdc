"""One Consume stream: a task for each subscription reads as the client's credit allows, one writer sends.

Nothing is read from the broker without credit, nor while enough waits to be sent: a client that does not take what it
asked for costs a few responses, however much credit it gave. A response of a subscription that was moved or dropped is
not sent any more, and its credit is not lost.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace

import grpc

from tidelog.broker.requests import Run
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import InvalidRequest, TidelogError
from tidelog.metrics import ReaderLag
from tidelog.proto.v1 import log_pb2
from tidelog.records.batch import scan
from tidelog.server import wire
from tidelog.server.callers import Standing
from tidelog.server.credit import Credit, Unsent
from tidelog.server.ports import Cursor, LogBroker
from tidelog.server.streams import leaving, next_message
from tidelog.server.zones import Traffic
from tidelog.telemetry import get_logger

_QUEUED = 4
_UNSENT_RESPONSES = 2
"""Of full size. One is being sent while the next is made; more would only wait."""
_ADDS_AT_ONCE = 100
_log = get_logger(__name__)

ConsumeContext = grpc.aio.ServicerContext[log_pb2.ConsumeRequest, log_pb2.ConsumeResponse | bytes]


@dataclass(slots=True, eq=False)
class _Subscription:
    subscription_id: int
    topic: str = ""
    task: "asyncio.Task[None] | None" = None
    next_offset: int = -1
    cursor: Cursor | None = None
    stop: int | None = None
    at_end_s: float = 0.0
    """When it was last seen at the end of what it follows; at first, when it began."""
    told: tuple[int, int, int] | None = None
    """Where the client knows that it stands, and the bounds it knows."""

    @property
    def records_behind(self) -> int:
        """How many offsets are committed, and asked for, that it has not passed on."""
        assert self.cursor is not None
        end = self.cursor.high_watermark if self.stop is None else min(self.cursor.high_watermark, self.stop)
        return max(0, end - self.next_offset)

    def tell(self, run: Run, offset: int) -> tuple[log_pb2.ConsumeResponse | bytes, ...]:
        """Return what is to be said of a run read from `offset` on; bounds alone where they are news, and at the beginning."""
        responses: list[log_pb2.ConsumeResponse | bytes] = []
        position = offset if run.batches else max(offset, run.next_offset)
        if (self.told is None or not run.batches) and self.told != (position, run.high_watermark, run.log_start_offset):
            responses.append(wire.progress_response(self.subscription_id, position, run))
        if run.batches:
            responses.append(wire.batches_response(self.subscription_id, run))
            position = run.next_offset
        self.told = (position, run.high_watermark, run.log_start_offset)
        return tuple(responses)


@dataclass(frozen=True, slots=True)
class _Queued:
    subscription: _Subscription
    responses: tuple[log_pb2.ConsumeResponse | bytes, ...]
    credit_bytes: int = 0
    """What they take of the client's credit."""
    is_end: bool = False


class ConsumeStream:
    """Serves one stream."""

    def __init__(
        self,
        broker: LogBroker,
        settings: Settings,
        standing: Standing,
        context: ConsumeContext,
        *,
        unsent: Unsent,
        clock: Clock,
        traffic: Traffic,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._caller = standing
        self._context = context
        self._traffic = traffic
        self._response_bytes = settings.response_bytes
        self._most_subscriptions = settings.max_subscriptions_per_stream
        self.credit = Credit(most=settings.max_credit_bytes, most_unsent=_UNSENT_RESPONSES * settings.response_bytes, of_all=unsent)
        self._subscriptions: dict[int, _Subscription] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: asyncio.Queue[_Queued | None] = asyncio.Queue(_QUEUED)
        self._client_is_done = False
        self._over = False
        self._error: BaseException | None = None

    async def run(self) -> None:
        """Serve until the client leaves; or has closed its side and every subscription has ended; or the broker leaves."""
        self._start(self._read())
        try:
            while not self._over:
                await self._send(await self._queue.get())  # and not kept while the next one is waited for
            if self._error is not None:
                raise self._error
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            self.credit.abandon()  # before waiting: gRPC may cancel this once more
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def subscriptions(self) -> int:
        """How many partitions are followed."""
        return len(self._subscriptions)

    def lags(self) -> Iterator[ReaderLag]:
        """Yield how far each partition's reader is behind."""
        now_s = self._clock.monotonic()
        for each in self._subscriptions.values():
            if each.cursor is not None:  # a name that was only asked for may be any text
                records = each.records_behind
                yield ReaderLag(each.topic, records, now_s - each.at_end_s if records else 0.0)

    def end(self) -> None:
        """End the stream because the broker leaves."""
        self._finish(leaving())

    async def _read(self) -> None:
        try:
            while (message := await next_message(self._context)) is not None:
                await self._take(message)
        except Exception as error:  # noqa: BLE001 - passed on to the writer, which ends the stream with it
            self._finish(error)
            return
        self._client_is_done = True
        self.credit.close()
        if not self._subscriptions:
            self._finish(None)

    async def _take(self, message: log_pb2.ConsumeRequest) -> None:
        for subscription_id in message.drop:
            self._drop(subscription_id)
        for number, add in enumerate(message.add):
            if number and number % _ADDS_AT_ONCE == 0:
                await asyncio.sleep(0)  # what one id replaces is gone before there is more of it
            self._drop(add.subscription_id)
            subscription = _Subscription(add.subscription_id, add.partition.topic)
            if len(self._subscriptions) >= self._most_subscriptions:
                await self._refuse(subscription)
                continue
            self._subscriptions[add.subscription_id] = subscription
            subscription.task = self._start(self._follow(subscription, add))
        if message.credit_bytes:
            self.credit.grant(message.credit_bytes)

    def _start(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _drop(self, subscription_id: int) -> None:
        subscription = self._subscriptions.pop(subscription_id, None)
        if subscription is not None and subscription.task is not None:
            subscription.task.cancel()

    async def _refuse(self, subscription: _Subscription) -> None:
        error = InvalidRequest(
            f"subscription {subscription.subscription_id} was asked for, but max_subscriptions_per_stream is {self._most_subscriptions};"
            " drop some, or open another stream"
        )
        await self._queue.put(_Queued(subscription, (wire.end_response(subscription.subscription_id, -1, error),), is_end=True))

    def _finish(self, error: BaseException | None) -> None:
        if not self._over:
            self._over = True
            self._error = error
            if not self._queue.full():  # a full queue wakes the writer by itself
                self._queue.put_nowait(None)

    async def _send(self, queued: _Queued | None) -> None:
        if queued is None or self._over:
            return
        subscription = queued.subscription
        current = self._subscriptions.get(subscription.subscription_id)
        if current is not subscription and not (current is None and subscription.task is None):
            self.credit.give_back(queued.credit_bytes)
            return
        for response in queued.responses:
            await self._context.write(response)
        self.credit.sent(queued.credit_bytes)
        self._traffic.sent(queued.credit_bytes)
        if queued.is_end and self._subscriptions.get(subscription.subscription_id) is subscription:
            del self._subscriptions[subscription.subscription_id]
            if self._client_is_done and not self._subscriptions:
                self._finish(None)

    # ---- one subscription

    async def _follow(self, subscription: _Subscription, add: log_pb2.AddPartition) -> None:
        topic, partition = add.partition.topic, add.partition.partition
        stop = add.stop_offset if add.HasField("stop_offset") else None
        error: TidelogError | None = None
        try:
            self._caller().check_read(topic)
            start = wire.position(add.start)
            async with self._broker.follow(topic, partition) as cursor:
                subscription.next_offset = await cursor.resolve(start)
                subscription.cursor, subscription.stop, subscription.at_end_s = cursor, stop, self._clock.monotonic()
                await self._push(subscription, cursor, topic, stop)
        except Exception as caught:  # noqa: BLE001 - whatever is wrong with one partition ends that subscription only
            if not isinstance(caught, TidelogError):
                _log.error("subscription_failed_unexpectedly", topic=topic, partition=partition, exc_info=caught)
            error = wire.known(caught)
        response = wire.end_response(subscription.subscription_id, subscription.next_offset, error)
        await self._queue.put(_Queued(subscription, (response,), is_end=True))

    async def _push(self, subscription: _Subscription, cursor: Cursor, topic: str, stop: int | None) -> None:
        offset = subscription.next_offset
        while stop is None or offset < stop:
            offset, high_watermark = await self._pass_on(subscription, cursor, topic, offset, stop)
            subscription.next_offset = offset if stop is None else min(offset, stop)
            if offset >= high_watermark and (stop is None or offset < stop):
                await cursor.wait(offset)
                subscription.at_end_s = self._clock.monotonic()

    async def _pass_on(self, subscription: _Subscription, cursor: Cursor, topic: str, offset: int, stop: int | None) -> tuple[int, int]:
        """Read a run and queue what tells of it; return where the next one begins, and the high watermark.

        When this is done, nothing here keeps any of it: a client that waits, or is waited for, costs no more than what is queued.
        """
        run = await self._read_run(cursor, topic, offset, stop)
        following, high_watermark = max(offset, run.next_offset), run.high_watermark
        queued = _Queued(subscription, subscription.tell(run, offset), len(run.batches))
        del run  # its bytes are the cache's
        if queued.responses:
            await self._put(queued)
        return following, high_watermark

    async def _read_run(self, cursor: Cursor, topic: str, offset: int, stop: int | None) -> Run:
        """Read as much as there is credit for. What is left of the run is what is sent, and takes its bytes of the credit."""
        room = await self.credit.take(self._response_bytes)
        used = 0
        try:
            self._caller().check_read(topic)  # the token may have been taken back while there was nothing to push
            run = await cursor.read(offset, max_bytes=room)
            if stop is not None and run.next_offset > stop:
                run = _before(run, stop)
            used = len(run.batches)
        finally:
            self.credit.settle(room, used=used)
        return run

    async def _put(self, queued: _Queued) -> None:
        try:
            await self._queue.put(queued)
        except asyncio.CancelledError:
            self.credit.give_back(queued.credit_bytes)
            raise


def _before(run: Run, stop: int) -> Run:
    """Return the run without batches that lie wholly at or beyond `stop`."""
    kept = [header for header in scan(run.batches) if header.base_offset < stop]
    end = kept[-1].position + kept[-1].size if kept else 0
    next_offset = max(stop, kept[-1].next_offset) if kept else stop
    return replace(run, batches=memoryview(run.batches)[:end], next_offset=min(run.next_offset, next_offset))
