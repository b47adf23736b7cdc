"""The bytes that a Consume stream's client is ready to take."""

import asyncio
from collections import deque

from tidelog.errors import InvalidRequest


class Unsent:
    """What was read and is not sent yet, of all streams together.

    At its limit a stream has one response at a time: those whose clients do not take theirs cannot fill the memory (I10),
    and do not stop the others.
    """

    def __init__(self, *, most: int) -> None:
        self.most = most
        self.size = 0


class Credit:
    """Granted by the client, taken before each read, and given back as far as the read found less.

    May fall below zero, for a response holds at least one batch; then nothing is read until it is above zero again.
    Nor is anything while `most_unsent` bytes have been read and not sent, or what all streams have not sent is too much.
    Who waits is served in turn.
    """

    def __init__(self, *, most: int, most_unsent: int, of_all: Unsent) -> None:
        self._most = most
        self._most_unsent = most_unsent
        self._of_all = of_all
        self._free = 0
        self._taken = 0
        self._unsent = 0
        self._closed = False
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    @property
    def free_bytes(self) -> int:
        """What may be taken, or is being used by reads; below zero where a response took more than there was."""
        return self._free + self._taken

    def grant(self, size: int) -> None:
        """Add credit. Raises InvalidRequest beyond the limit: what is held for one client stays bounded (I10)."""
        if self.free_bytes + size > self._most:
            raise InvalidRequest(
                f"{size} bytes of credit were granted on top of {self.free_bytes},"
                f" but max_credit_bytes is {self._most}; grant as you consume"
            )
        self._free += size
        self._serve()

    def close(self) -> None:
        """No more will be granted: whoever waits in vain is told."""
        self._closed = True
        self._serve()

    async def take(self, most: int) -> int:
        """Take up to `most` bytes of credit, once there is some. Raises InvalidRequest when none can come any more."""
        if self._can_take and not self._waiting:
            return self._take(most)
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
        """Say how much of what was taken waits to be sent now; the rest is free again."""
        self._taken -= taken
        self._free += taken - used
        self._unsent += used
        self._of_all.size += used
        self._serve()

    def sent(self, used: int) -> None:
        """Say that a response has been sent."""
        self._unsent -= used
        self._of_all.size -= used
        self._serve()

    def give_back(self, used: int) -> None:
        """Return what was used for a response that is not sent after all."""
        self._free += used
        self.sent(used)

    def abandon(self) -> None:
        """The stream is over: what it has not sent never will be, and it counts for the others no more."""
        self._of_all.size -= self._unsent
        self._of_all = Unsent(most=0)

    @property
    def _can_take(self) -> bool:
        # Who may not because of all the others has something under way itself, and asks again when that is sent.
        has_room = self._of_all.size < self._of_all.most or not (self._unsent or self._taken)
        return has_room and self._free > 0 and self._unsent < self._most_unsent

    def _take(self, most: int) -> int:
        size = min(most, self._free)
        self._free -= size
        self._taken += size
        return size

    def _serve(self) -> None:
        """Give the first who waits its turn. The next has its own after that: what is read from memory is settled by then."""
        while self._waiting and self._waiting[0][1].done():  # has left
            self._waiting.popleft()
        if not self._waiting:
            return
        most, future = self._waiting[0]
        if self._can_take:
            future.set_result(self._take(most))
        elif self._closed and not self._taken and not self._unsent:  # nothing comes from the client, nor back from under way
            future.set_exception(
                InvalidRequest("the credit is used up, and the client has closed its side of the stream; grant more before closing it")
            )
        else:
            return
        self._waiting.popleft()
        asyncio.get_running_loop().call_soon(self._serve)
