"""One Produce stream: appends in, answers out as they come, neither waiting for the other.

No task and no lock per append: the broker's future calls back, the answer joins those that wait for the one writer, and
whatever has gathered while a message was being written goes out in the next one. When too much is unanswered, the
stream is not read, and HTTP/2 flow control pushes back on the client (I10); so it is when a client does not take its
answers. What the broker has taken goes on when the client goes away (I5).
"""

import asyncio
from functools import partial

import grpc

from tidelog.broker.requests import Appended, AppendRequest
from tidelog.config import Settings
from tidelog.errors import TidelogError, UnknownPartition, UnknownTopic
from tidelog.proto.v1 import log_pb2
from tidelog.records.batch import Buffer
from tidelog.server import wire
from tidelog.server.callers import Standing
from tidelog.server.outgoing import Outgoing
from tidelog.server.ports import LogBroker
from tidelog.server.streams import leaving, next_message
from tidelog.server.zones import Traffic
from tidelog.telemetry import get_logger

_MOST_RESULTS = 4096
_log = get_logger(__name__)

ProduceContext = grpc.aio.ServicerContext[list[tuple[log_pb2.ProduceAppend, Buffer]], log_pb2.ProduceResponse]


class ProduceStream:
    """Serves one stream."""

    def __init__(self, broker: LogBroker, settings: Settings, standing: Standing, context: ProduceContext, *, traffic: Traffic) -> None:
        self._broker = broker
        self._caller = standing
        self._context = context
        self._traffic = traffic
        self._most_appends = settings.max_stream_appends
        self._most_bytes = settings.max_stream_append_bytes
        self._answers: Outgoing[tuple[int, Appended | TidelogError]] = Outgoing()
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._reader_is_done = False
        self._draining = False

    async def run(self) -> None:
        """Serve until the client has closed its side, or the broker leaves, and all that was taken is answered."""
        self._reader = asyncio.create_task(self._read())
        try:
            while answers := await self._answers.take(_MOST_RESULTS):
                await self._context.write(wire.produce_response(answers))
                self._room.set()
            if self._draining:
                raise leaving()
            await self._reader
        finally:
            self._reader.cancel()
            await asyncio.wait([self._reader])

    def end(self) -> None:
        """Take no more appends; answer those that were taken."""
        self._draining = True
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        try:
            while (message := await next_message(self._context)) is not None:
                self._traffic.taken(sum(len(batches) for _, batches in message))
                for append, batches in message:
                    while self._is_full():
                        self._room.clear()
                        await self._room.wait()
                    await self._take(append, batches)
        finally:
            self._reader_is_done = True
            if not self._unanswered:
                self._answers.close()

    def _is_full(self) -> bool:
        return self._unanswered + len(self._answers) >= self._most_appends or self._unanswered_bytes >= self._most_bytes

    async def _take(self, append: log_pb2.ProduceAppend, batches: Buffer) -> None:
        request_id = append.request_id
        try:
            self._caller().check_write(append.topic)
            request = wire.append_request(append, batches)
            try:
                future = self._broker.append(request)
            except (UnknownTopic, UnknownPartition):
                future = await found_out(self._broker, request)  # which holds back what follows on this stream, and so keeps its order
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one append is that append's answer
            self._answers.put((request_id, self._failure(error)))
            return
        size = len(request.batches)
        self._unanswered += 1
        self._unanswered_bytes += size
        future.add_done_callback(partial(self._answered, request_id, size))

    def _answered(self, request_id: int, size: int, future: "asyncio.Future[Appended]") -> None:
        self._unanswered -= 1
        self._unanswered_bytes -= size
        error = future.exception()  # nobody cancels it: what was taken cannot be taken back (I5)
        self._answers.put((request_id, future.result() if error is None else self._failure(error)))
        self._room.set()
        if self._reader_is_done and not self._unanswered:
            self._answers.close()

    @staticmethod
    def _failure(error: BaseException) -> TidelogError:
        if not isinstance(error, TidelogError):
            _log.error("append_failed_unexpectedly", exc_info=error)
        return wire.known(error)


async def found_out(broker: LogBroker, request: AppendRequest) -> "asyncio.Future[Appended]":
    """Append to a topic or partition that the broker does not know yet: it asks SQL, or makes the topic where that is done."""
    await broker.ensure_topic(request.topic)
    return broker.append(request)
