"""How much of a long work is done at once: what happens behind the scenes goes in steps that nobody has to wait for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidelog.clock import Clock

_AIM_S = 0.04
"""A transaction that takes longer keeps commits waiting: they need the same rows, or the same disk."""
_LONGEST_REST_S = 0.05
"""What takes longer than this is slow for the load of the machine, and would fall behind for good if it rested as long."""


class Steps:
    """Sizes the steps by how long they take, and rests a little after each."""

    def __init__(self, *, least: int, most: int, clock: Clock) -> None:
        """Slowness makes steps no smaller than `least`: then it is the way to the database, or the load, that takes long."""
        self.size = min(least, most)
        """How many items the next step takes."""
        self._least = self.size
        self._most = most
        self._clock = clock

    @asynccontextmanager
    async def step(self, items: int) -> AsyncIterator[None]:
        """Do a step of so many items. One that fails makes the next ones smaller: it may have been too much at once."""
        began = self._clock.monotonic()
        try:
            yield
        except Exception:
            self.size = max(1, self.size // 2)
            raise
        took = self._clock.monotonic() - began
        if took > 2 * _AIM_S and self.size > self._least:
            self.size = max(self._least, self.size // 2)
        elif items >= self.size and (took < _AIM_S or self.size < self._least):
            self.size = min(self._most, self.size * 2)
        await asyncio.sleep(min(took, _LONGEST_REST_S))
