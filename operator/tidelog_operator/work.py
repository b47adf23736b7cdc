"""What is to be looked at, and when: each key once, never twice at a time, later and later while it fails."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tidelog.clock import Clock
from tidelog.randomness import Random

_BACK_OFF_BASE_S = 0.2
_BACK_OFF_MOST_S = 60.0


class Key(NamedTuple):
    """An object that is looked after."""

    kind: str
    namespace: str
    name: str


class Failed(Exception):
    """A look came to nothing; who looked has told why."""


class Work:
    """A queue of keys with times. Everything runs in one event loop."""

    def __init__(self, *, clock: Clock, chance: Random) -> None:
        self._clock = clock
        self._chance = chance
        self._due: dict[Key, float] = {}
        self._running: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    @property
    def length(self) -> int:
        """How many are to be looked at now."""
        now = self._clock.monotonic()
        return sum(at <= now for at in self._due.values())

    def add(self, key: Key, *, after_s: float = 0.0) -> None:
        """Look at this, not later than that. While it is looked at already, it is looked at again afterwards."""
        if self._failures.get(key):
            return  # its turn comes; were every event to hurry it, nothing would be gained by waiting
        at = self._clock.monotonic() + after_s
        self._due[key] = min(at, self._due.get(key, at))
        self._changed.set()

    async def run(self, workers: int, handle: Callable[[Key], Awaitable[float | None]]) -> None:
        """Hand out keys until cancelled. `handle` returns after how many seconds to look again (None: when something changes).

        After Failed the key waits, longer with each failure in a row.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(handle))

    async def _work(self, handle: Callable[[Key], Awaitable[float | None]]) -> None:
        while True:
            key = await self._next()
            self._running.add(key)
            try:
                again_s = await handle(key)
            except Failed:
                self._failures[key] = failures = self._failures.get(key, 0) + 1
                most_s = min(_BACK_OFF_BASE_S * 2**failures, _BACK_OFF_MOST_S)
                self._due[key] = self._clock.monotonic() + self._chance.uniform(most_s / 2, most_s)
            else:
                self._failures.pop(key, None)
                if again_s is not None:
                    self.add(key, after_s=again_s)
            finally:
                self._running.discard(key)
                self._changed.set()

    async def _next(self) -> Key:
        while True:
            self._changed.clear()
            now = self._clock.monotonic()
            waiting = {key: at for key, at in self._due.items() if key not in self._running}
            if waiting:
                key = min(waiting, key=lambda each: waiting[each])
                if waiting[key] <= now:
                    del self._due[key]
                    return key
            try:
                async with asyncio.timeout(min(waiting.values()) - now if waiting else None):
                    await self._changed.wait()
            except TimeoutError:
                continue
