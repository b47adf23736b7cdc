"""One end of a stream between two brokers: what comes in goes to a callback, what goes out is gathered into messages.

Nothing is flushed at the end and nothing is waited for: whoever uses such a stream asks again on another one.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import grpc

from tidelog.errors import Throttled, TidelogError
from tidelog.server.outgoing import Outgoing
from tidelog.server.streams import leaving

Item = TypeVar("Item")

_MOST_ITEMS = 1000
_MOST_WEIGHT = 20_000


class Stream(Protocol):
    """What gRPC's two ends have in common."""

    async def read(self) -> Any:
        """Return the next message, or EOF."""
        ...

    async def write(self, message: Any, /) -> None:
        """Send a message; waits for flow control."""
        ...


class Duplex(Generic[Item]):
    """A stream whose sender never blocks. Beyond its limit it is broken on purpose: what waits is bounded (I10)."""

    def __init__(self, *, most_queued: int, message: Callable[[Sequence[Item]], Any], weight: Callable[[Item], int]) -> None:
        self._most_queued = most_queued
        self._message = message
        self._weight = weight
        self._queue: Outgoing[Item] = Outgoing()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, items: Sequence[Item]) -> None:
        """Queue items; nothing happens once the stream is over."""
        if len(self._queue) + len(items) > self._most_queued:
            self.end(
                Throttled(
                    f"{len(self._queue)} items wait to be sent, but the limit is {self._most_queued}; the stream is broken on purpose"
                )
            )
        elif not self._over.done():
            self._queue.extend(items)

    def end(self, error: TidelogError | None = None) -> None:
        """End the stream from this side, for a reason; without one, because this broker leaves."""
        if not self._over.done():
            self._over.set_exception(error or leaving())
            self._over.exception()  # nobody may be there to look at it

    async def run(self, stream: Stream, take: Callable[[Any], None]) -> None:
        """Serve until the other side closes the stream; raises whatever ends it otherwise."""
        tasks = [asyncio.create_task(self._read(stream, take)), asyncio.create_task(self._write(stream))]
        try:
            done, _ = await asyncio.wait([*tasks, self._over], return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            self._queue.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, stream: Stream, take: Callable[[Any], None]) -> None:
        while (message := await stream.read()) is not grpc.aio.EOF:
            take(message)

    async def _write(self, stream: Stream) -> None:
        while items := await self._queue.take(_MOST_ITEMS):
            for part in self._parts(items):
                await stream.write(self._message(part))

    def _parts(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Split items so that no message grows too large, in order."""
        begin, weight = 0, 0
        for index, item in enumerate(items):
            more = self._weight(item)
            if index > begin and weight + more > _MOST_WEIGHT:
                yield items[begin:index]
                begin, weight = index, 0
            weight += more
        yield items[begin:]
