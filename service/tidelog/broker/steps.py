"""How much of a long work is done at once: what happens behind the scenes goes in steps that nobody has to wait for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidelog.clock import Clock

_FIRST = 128
_LEAST = 32
"""Slowness does not make steps smaller than this: then it is the way to the database that takes long, whatever is done there."""
_AIM_S = 0.04
"""A transaction that takes longer keeps commits waiting: they need the same rows, or the same disk."""


class Steps:
    """Sizes the steps by how long they take, and rests after each as long as it took."""

    def __init__(self, *, most: int, clock: Clock) -> None:
        self.size = min(_FIRST, most)
        """How many items the next step takes."""
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
        if took > 2 * _AIM_S and self.size > _LEAST:
            self.size = max(_LEAST, self.size // 2)
        elif items >= self.size and (took < _AIM_S or self.size < _LEAST):
            self.size = min(self._most, self.size * 2)
        await asyncio.sleep(took)
