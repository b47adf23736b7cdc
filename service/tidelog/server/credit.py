"""The bytes that a Consume stream's client is ready to take."""

import asyncio
from collections import deque

from tidelog.errors import InvalidRequest


class Credit:
    """Granted by the client, taken before each read, and given back as far as the read found less.

    May fall below zero, for a response holds at least one batch; then nothing is read until it is above zero again.
    Who waits is served in turn.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._free = 0
        self._taken = 0
        self._closed = False
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    def grant(self, size: int) -> None:
        """Add credit. Raises InvalidRequest beyond the limit: what is held for one client stays bounded (I10)."""
        if self._free + self._taken + size > self._most:
            raise InvalidRequest(
                f"{size} bytes of credit were granted on top of {self._free + self._taken},"
                f" but max_credit_bytes is {self._most}; grant as you consume"
            )
        self._free += size
        self._serve()

    def close(self) -> None:
        """No more will be granted: whoever waits in vain is told."""
        self._closed = True
        self._serve()

    async def take(self, most: int) -> int:
        """Wait for credit and take up to `most` bytes of it. Raises InvalidRequest when none can come any more."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((most, future))
        self._serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.settle(future.result(), used=0)
            raise

    def settle(self, taken: int, *, used: int) -> None:
        """Say how much of what was taken has been used."""
        self._taken -= taken
        self._free += taken - used
        self._serve()

    def give_back(self, used: int) -> None:
        """Return what was used for a response that is not sent after all."""
        self._free += used
        self._serve()

    def _serve(self) -> None:
        while self._waiting and (self._free > 0 or (self._closed and not self._taken)):
            most, future = self._waiting.popleft()
            if future.done():
                continue
            if self._free <= 0:
                future.set_exception(
                    InvalidRequest("the credit is used up, and the client has closed its side of the stream; grant more before closing it")
                )
                continue
            size = min(most, self._free)
            self._free -= size
            self._taken += size
            future.set_result(size)
