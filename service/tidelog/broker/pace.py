"""How many ranged GETs run at once, and how many bytes are read in the background in a second.

GETs for the newest records are limited by a fixed number, those for the past by the loop's lag too.

Whoever reads the past makes work for the event loop that the tail and the produce path share. When the loop lags, fewer
such reads run at once, down to one; when it does not, they become more again, one at a time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidelog.clock import Clock

_LOOK_EVERY_SECONDS = 0.025


class Slots:
    """A semaphore whose number can change; served in the order of asking."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._allowed = most
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.busy = asyncio.Event()
        """Set while somebody holds a slot."""

    @property
    def allowed(self) -> int:
        """How many may be held at once now."""
        return self._allowed

    @allowed.setter
    def allowed(self, number: int) -> None:
        self._allowed = min(max(1, number), self.most)
        self._grant()

    @property
    def taken(self) -> int:
        """How many are held now."""
        return self._taken

    @property
    def free(self) -> int:
        """How many could be taken now without waiting."""
        return 0 if self._waiting else max(0, self._allowed - self._taken)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot."""
        if self.free:
            self._taken += 1
        else:
            await self._queue()
        self.busy.set()
        try:
            yield
        finally:
            self._give_back()

    async def _queue(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the turn had come already
                self._give_back()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _give_back(self) -> None:
        self._taken -= 1
        self._grant()
        if not self._taken:
            self.busy.clear()

    def _grant(self) -> None:
        while self._waiting and self._taken < self._allowed:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


class ByteBudget:
    """Bytes a second (or whatever is spent), shared by all who spend. Each waits until those before have had their time."""

    def __init__(self, bytes_per_second: float, *, clock: Clock) -> None:
        """0: as much as there is."""
        self._rate = bytes_per_second
        self._clock = clock
        self._free_at = clock.monotonic()

    async def spend(self, size: int) -> None:
        """Wait for the turn of so many bytes."""
        if not self._rate:
            return
        now = self._clock.monotonic()
        wait_s = self._free_at - now
        self._free_at = max(now, self._free_at) + size / self._rate
        if wait_s > 0:
            await asyncio.sleep(wait_s)


async def keep_pace(slots: Slots, *, clock: Clock, max_lag_seconds: float) -> None:
    """Adapt `slots` to the event loop's lag for ever; sleeps while nobody holds one."""
    while True:
        await slots.busy.wait()
        before = clock.monotonic()
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
        lag = clock.monotonic() - before - _LOOK_EVERY_SECONDS
        slots.allowed = slots.allowed // 2 if lag > max_lag_seconds else slots.allowed + 1
