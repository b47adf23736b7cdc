"""Long-lived streams: how a client's messages are read, and how a leaving broker ends them all with a reason they understand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import grpc

from tidelog.errors import Draining, Throttled

T = TypeVar("T")


async def next_message(context: "grpc.aio.ServicerContext[T, Any]") -> T | None:
    """Return the client's next message; None once it has closed its side."""
    message: object = await context.read()
    return None if message is grpc.aio.EOF else cast("T", message)


def leaving() -> Draining:
    """Return what a stream ends with when its broker leaves."""
    return Draining("this broker is about to leave; open the stream on another one, and send again what was not answered")


class OpenStreams:
    """Every long-lived stream of this server, each with what ends it; so many and no more (I10)."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._ends: dict[object, Callable[[], None]] = {}
        self._ending = False

    def __len__(self) -> int:
        return len(self._ends)

    @contextmanager
    def opened(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `end` called, while the context is open, when the broker leaves.

        Raises Draining when it is leaving already, Throttled when too many are open.
        """
        if self._ending:
            raise leaving()
        if len(self._ends) >= self._most:
            raise Throttled(f"{self._most} streams (max_streams) are open here; close some, or open this one on another broker")
        key = object()
        self._ends[key] = end
        try:
            yield
        finally:
            del self._ends[key]

    def end_all(self) -> None:
        """End every stream, and let no other begin."""
        self._ending = True
        for end in list(self._ends.values()):
            end()
