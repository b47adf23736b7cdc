"""An object store that misbehaves on purpose, as real ones do: a wrapper for simulators and tests.

Each call has one of four outcomes: done; failed before; failed after (it happened, the caller hears an error); late (it
happens after the caller gave up). Bodies come back truncated or altered, which readers must notice.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tidelog.errors import StoreError, StoreOutcomeUnknown, StoreUnavailable
from tidelog.objects.store import Bytes, ObjectInfo, ObjectStore
from tidelog.randomness import Random

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Probability of each fault, per call; those of one call are tried in this order."""

    failed_before: float = 0.0
    failed_after: float = 0.0
    """Writes and deletes only."""
    late: float = 0.0
    """Writes and deletes only."""
    truncated: float = 0.0
    """Reads only."""
    altered: float = 0.0
    """Reads only."""
    late_by_most_seconds: float = 5.0


class FaultyStore:
    """Wraps a store. `rates` may be exchanged at any time; `down` makes every call fail, as in an outage or a 503 storm."""

    def __init__(self, store: ObjectStore, *, chance: Random, rates: FaultRates) -> None:
        self.rates = rates
        self.down = False
        self.injected: Counter[str] = Counter()
        """How often each fault was injected, by its name in `FaultRates`, and `down`."""
        self._store = store
        self._chance = chance
        self._late: set[asyncio.Task[None]] = set()

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object, or not, or later. See `ObjectStore.put_new`."""
        content = b"".join(parts)
        await self._change(lambda: self._store.put_new(key, [content]), f"writing {key!r}")

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object, or some of it, or something else. See `ObjectStore.get_range`."""
        self._fail_before(f"reading {key!r}")
        content = await self._store.get_range(key, position, length)
        if content and self._drawn("truncated", self.rates.truncated):
            return content[: int(self._chance.random() * len(content))]
        if content and self._drawn("altered", self.rates.altered):
            altered = bytearray(content)
            altered[int(self._chance.random() * len(altered))] ^= 1 << (self._chance.getrandbits(3))
            return bytes(altered)
        return content

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object, or fail. See `ObjectStore.head`."""
        self._fail_before(f"looking at {key!r}")
        return await self._store.head(key)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects, or fail at any of them. See `ObjectStore.list`."""
        self._fail_before(f"listing {prefix!r}")
        async for found in self._store.list(prefix, start_after=start_after):
            yield found

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects, or not, or later. See `ObjectStore.delete_many`."""
        return await self._change(lambda: self._store.delete_many(keys), f"deleting {len(keys)} objects")

    async def close(self) -> None:
        """Wait for what is late, then close the wrapped store."""
        if self._late:
            await asyncio.wait(self._late)
        await self._store.close()

    async def _change(self, change: Callable[[], Awaitable[T]], what: str) -> T:
        self._fail_before(what)
        if self._drawn("late", self.rates.late):
            task = asyncio.ensure_future(self._later(change))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            raise StoreOutcomeUnknown(f"{what}: no answer came (an injected fault); it may have happened: ask again")
        answer = await change()
        if self._drawn("failed_after", self.rates.failed_after):
            raise StoreOutcomeUnknown(f"{what}: no answer came (an injected fault); it may have happened: ask again")
        return answer

    async def _later(self, change: Callable[[], Awaitable[object]]) -> None:
        await asyncio.sleep(self._chance.uniform(0, self.rates.late_by_most_seconds))
        try:
            await change()
        except StoreError:
            self.injected["late and failed"] += 1  # nobody listens any more: that, too, is a real outcome

    def _fail_before(self, what: str) -> None:
        if self.down:
            self.injected["down"] += 1
            raise StoreUnavailable(f"{what}: the store is down (an injected fault)")
        if self._drawn("failed_before", self.rates.failed_before):
            raise StoreUnavailable(f"{what}: the store refused (an injected fault)")

    def _drawn(self, fault: str, rate: float) -> bool:
        drawn = rate > 0 and self._chance.random() < rate
        self.injected[fault] += drawn
        return drawn
