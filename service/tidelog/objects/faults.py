"""An object store that misbehaves on purpose, as real ones do: a wrapper for simulators and tests.

Each call has one of four outcomes: done; failed before; failed after (it happened, the caller hears an error); late (it
happens after the caller gave up). Besides, everything may be refused for a while, or be slow, and what is read may come
truncated or altered, which readers must notice.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

from tidelog.clock import Clock
from tidelog.errors import StoreError, StoreOutcomeUnknown, StoreUnavailable
from tidelog.objects.store import Bytes, ObjectInfo, ObjectStore, check_key
from tidelog.randomness import Random

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Probability of each fault, per call; those of one call are tried in this order."""

    storm: float = 0.0
    """A storm of 503 begins: this call and all others are refused until it is over."""
    slow: float = 0.0
    failed_before: float = 0.0
    """Of a write or delete the caller hears "not done" or "unknown": either is true."""
    late: float = 0.0
    failed_after: float = 0.0
    cut_off: float = 0.0
    """Listings only, per object: what came before it was right."""
    truncated: float = 0.0
    """Reads only."""
    altered: float = 0.0
    """Reads only."""
    storm_most_seconds: float = 5.0
    slow_by_most_seconds: float = 2.0
    late_by_most_seconds: float = 5.0


class FaultyStore:
    """Wraps a store. `rates` may be exchanged at any time; `down` makes every call fail, as in an outage."""

    def __init__(self, store: ObjectStore, *, clock: Clock, chance: Random, rates: FaultRates) -> None:
        self.rates = rates
        self.down = False
        self.injected: Counter[str] = Counter()
        """How often each fault was injected, by its name in `FaultRates`; `down` and `refused` (by a storm) besides."""
        self._store = store
        self._clock = clock
        self._chance = chance
        self._storm_ends = clock.monotonic()
        self._late: set[asyncio.Task[None]] = set()

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object, or not, or later. See `ObjectStore.put_new`."""
        content = b"".join(parts)  # once the caller has heard an error it may change them, and a late write must not
        await self._call(lambda: self._store.put_new(key, [content]), f"writing {key!r}", StoreOutcomeUnknown)

    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        """Write an object, or not, or later, once all of it is there. See `ObjectStore.put_stream`."""
        check_key(key)
        content = bytearray()
        async for part in parts:
            content += part
        await self.put_new(key, [content])

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object, or some of it, or something else. See `ObjectStore.get_range`."""
        content = await self._call(lambda: self._store.get_range(key, position, length), f"reading {key!r}", StoreUnavailable)
        if content and self._drawn("truncated", self.rates.truncated):
            return content[: int(self._chance.random() * len(content))]
        if content and self._drawn("altered", self.rates.altered):
            altered = bytearray(content)
            altered[int(self._chance.random() * len(altered))] ^= 1 << (self._chance.getrandbits(3))
            return bytes(altered)
        return content

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object, or fail. See `ObjectStore.head`."""
        return await self._call(lambda: self._store.head(key), f"looking at {key!r}", StoreUnavailable)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects, or fail at any of them. See `ObjectStore.list`."""
        asked = f"listing {prefix!r}"

        async def begin() -> None: ...

        await self._call(begin, asked, StoreUnavailable)
        async for found in self._store.list(prefix, start_after=start_after):
            self._refuse(asked)
            if self._drawn("cut_off", self.rates.cut_off):
                raise StoreUnavailable(f"{asked}: a page did not come (an injected fault); list again")
            yield found

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects, or not, or later. See `ObjectStore.delete_many`."""
        some = list(keys)
        return await self._call(lambda: self._store.delete_many(some), f"deleting {len(some)} objects", StoreOutcomeUnknown)

    async def drain(self) -> None:
        """Wait for what is late."""
        while self._late:
            await asyncio.wait(self._late)

    async def close(self) -> None:
        """Wait for what is late, then close the wrapped store."""
        await self.drain()
        await self._store.close()

    async def _call(self, call: Callable[[], Coroutine[Any, Any, T]], asked: str, unanswered: type[StoreError]) -> T:
        """Make one call with one of the outcomes; `unanswered` is what its caller hears where no answer comes."""
        lost = unanswered(f"{asked}: no answer came (an injected fault); ask again")
        if self._drawn("storm", self.rates.storm):
            self._storm_ends = self._clock.monotonic() + self._chance.uniform(0, self.rates.storm_most_seconds)
        self._refuse(asked)
        if self._drawn("slow", self.rates.slow):
            await asyncio.sleep(self._chance.uniform(0, self.rates.slow_by_most_seconds))
        if self._drawn("failed_before", self.rates.failed_before):
            raise lost if self._chance.random() < 0.5 else StoreUnavailable(f"{asked}: the store refused (an injected fault); ask again")
        if self._drawn("late", self.rates.late):
            delay = self._chance.uniform(0, self.rates.late_by_most_seconds)
            # An empty context: what happens late belongs to the store, not to the caller, who may have been killed by then.
            task = asyncio.get_running_loop().create_task(self._later(call, delay), context=Context())
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            raise lost
        answer = await call()
        if self._drawn("failed_after", self.rates.failed_after):
            raise lost
        return answer

    async def _later(self, call: Callable[[], Coroutine[Any, Any, object]], delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await call()
        except StoreError:
            self.injected["late and failed"] += 1  # nobody listens any more: that, too, is a real outcome

    def _refuse(self, asked: str) -> None:
        if self.down:
            self.injected["down"] += 1
            raise StoreUnavailable(f"{asked}: the store is down (an injected fault); ask again")
        if self._clock.monotonic() < self._storm_ends:
            self.injected["refused"] += 1
            raise StoreUnavailable(f"{asked}: SlowDown (HTTP 503, an injected fault); ask again later")

    def _drawn(self, fault: str, rate: float) -> bool:
        drawn = rate > 0 and self._chance.random() < rate
        self.injected[fault] += drawn
        return drawn
