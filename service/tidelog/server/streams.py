"""Long-lived streams: how a client's messages are read, and how a leaving broker ends them all with a reason they understand."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import grpc

from tidelog.errors import Draining, Throttled

T = TypeVar("T")
Opener = Literal["client", "probe", "broker"]


async def next_message(context: "grpc.aio.ServicerContext[T, Any]") -> T | None:
    """Return the client's next message; None once it has closed its side."""
    message: object = await context.read()
    return None if message is grpc.aio.EOF else cast("T", message)


def leaving() -> Draining:
    """Return what a stream ends with when its broker leaves."""
    return Draining("this broker is about to leave; open the stream on another one, and send again what was not answered")


class OpenStreams:
    """Every long-lived stream of this server, each with what ends it.

    Of clients there are so many and no more (I10), and so of probes, which need no token: neither can take what the others
    need. Other brokers are not held up.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._ends: dict[object, Callable[[], None]] = {}
        self._counts: Counter[Opener] = Counter()
        self._ending = False

    def __len__(self) -> int:
        return self._counts["client"]

    @contextmanager
    def opened(self, end: Callable[[], None], *, by: Opener = "client") -> Iterator[None]:
        """Have `end` called, while the context is open, when the broker leaves.

        Raises Draining when it is leaving already, Throttled when there are too many.
        """
        if self._ending:
            raise leaving()
        if by != "broker" and self._counts[by] >= self._most:
            raise Throttled(f"{self._most} streams (max_streams) are open here; close some, or open this one on another broker")
        key = object()
        self._ends[key] = end
        self._counts[by] += 1
        try:
            yield
        finally:
            del self._ends[key]
            self._counts[by] -= 1

    def end_all(self) -> None:
        """End every stream, and let no other begin."""
        self._ending = True
        for end in list(self._ends.values()):
            end()
