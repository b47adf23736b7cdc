"""An object store as slow as S3, for benchmarks and simulators: a wrapper that waits before it calls.

Latencies are lognormal, drawn from a seed. A writer's p50 of 40 ms and p99 of 200 ms are what S3 Standard shows for
objects of a few MiB within one region.
"""

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from tidelog.executors import Effects
from tidelog.objects.store import Bytes, ObjectInfo, ObjectStore
from tidelog.randomness import Random

_P99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, slots=True)
class Latency:
    """A lognormal distribution, by two of its points, in milliseconds."""

    p50_ms: float
    p99_ms: float

    def draw_seconds(self, chance: Random) -> float:
        """Return one latency."""
        sigma = math.log(self.p99_ms / self.p50_ms) / _P99
        uniform = min(max(chance.random(), 1e-9), 1 - 1e-9)
        return self.p50_ms / 1000 * math.exp(sigma * NormalDist().inv_cdf(uniform))


@dataclass(frozen=True, slots=True)
class Latencies:
    """What each verb takes, beside the time its bytes take at `bytes_per_second`."""

    put: Latency = Latency(40, 200)
    get: Latency = Latency(15, 100)
    head: Latency = Latency(10, 60)
    list_page: Latency = Latency(30, 150)
    delete: Latency = Latency(30, 150)
    bytes_per_second: float = 100e6


class SlowStore:
    """Wraps a store."""

    def __init__(self, store: ObjectStore, *, chance: Random, latencies: Latencies | None = None) -> None:
        self._store = store
        self._chance = chance
        self._latencies = latencies or Latencies()
        self._writes = Effects()

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object after a while. See `ObjectStore.put_new`."""
        await self._writes.run(self._put(key, parts))  # I5: a cancelled caller does not stop the write

    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        """Write an object, each part as slowly as its bytes take, after a while. See `ObjectStore.put_stream`."""

        async def slowly() -> AsyncIterator[Bytes]:
            async for part in parts:
                await asyncio.sleep(memoryview(part).nbytes / self._latencies.bytes_per_second)
                yield part
            await self._wait(self._latencies.put)

        await self._store.put_stream(key, slowly())

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object after a while. See `ObjectStore.get_range`."""
        content = await self._store.get_range(key, position, length)
        await self._wait(self._latencies.get, len(content))
        return content

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object after a while. See `ObjectStore.head`."""
        await self._wait(self._latencies.head)
        return await self._store.head(key)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects, waiting before every thousand. See `ObjectStore.list`."""
        number = 0
        await self._wait(self._latencies.list_page)
        async for found in self._store.list(prefix, start_after=start_after):
            yield found
            number += 1
            if number % 1000 == 0:
                await self._wait(self._latencies.list_page)

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects after a while. See `ObjectStore.delete_many`."""
        await self._wait(self._latencies.delete)
        return await self._store.delete_many(keys)

    async def close(self) -> None:
        """Wait for writes that have begun, then close the wrapped store."""
        await self._writes.settled()
        await self._store.close()

    async def _put(self, key: str, parts: Sequence[Bytes]) -> None:
        await self._wait(self._latencies.put, sum(memoryview(part).nbytes for part in parts))
        await self._store.put_new(key, parts)

    async def _wait(self, latency: Latency, size: int = 0) -> None:
        await asyncio.sleep(latency.draw_seconds(self._chance) + size / self._latencies.bytes_per_second)
