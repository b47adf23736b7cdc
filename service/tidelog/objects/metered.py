"""An object store whose calls are counted and timed: a wrapper."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from tidelog.clock import Clock
from tidelog.errors import ObjectExists, ObjectNotFound, StoreError, StoreOutcomeUnknown, StoreUnavailable, StoreUnusable
from tidelog.metrics import Metrics, StoreOperation, StoreOutcome
from tidelog.objects.store import Bytes, ObjectInfo, ObjectStore

T = TypeVar("T")

_OUTCOMES: dict[type[StoreError], StoreOutcome] = {
    ObjectNotFound: "not_found",
    ObjectExists: "exists",
    StoreUnavailable: "unavailable",
    StoreOutcomeUnknown: "unknown",
    StoreUnusable: "unusable",
}


class MeteredObjectStore:
    """Wraps a store. Calls that are cancelled, or asked wrongly, are not counted."""

    def __init__(self, store: ObjectStore, *, metrics: Metrics, clock: Clock) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object once. See `ObjectStore.put_new`."""
        size = sum(memoryview(part).nbytes for part in parts)
        await self._counted("put", self._store.put_new(key, parts))
        self._metrics.store_bytes["put"].inc(size)

    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        """Write an object once; not timed: it takes as long as its parts take to come. See `ObjectStore.put_stream`."""
        size = 0

        async def measured() -> AsyncIterator[Bytes]:
            nonlocal size
            async for part in parts:
                size += memoryview(part).nbytes
                yield part

        calls = self._metrics.store_calls["put"]
        try:
            await self._store.put_stream(key, measured())
        except StoreError as error:
            calls[_outcome(error)].inc()
            raise
        calls["done"].inc()
        self._metrics.store_bytes["put"].inc(size)

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object. See `ObjectStore.get_range`."""
        content = await self._counted("get", self._store.get_range(key, position, length))
        self._metrics.store_bytes["get"].inc(len(content))
        return content

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object. See `ObjectStore.head`."""
        return await self._counted("head", self._store.head(key))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects; a whole listing is one call, and is not timed. See `ObjectStore.list`."""
        calls = self._metrics.store_calls["list"]
        try:
            async for found in self._store.list(prefix, start_after=start_after):
                yield found
        except StoreError as error:
            calls[_outcome(error)].inc()
            raise
        calls["done"].inc()

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects. See `ObjectStore.delete_many`."""
        return await self._counted("delete", self._store.delete_many(keys))

    async def close(self) -> None:
        """Close the wrapped store."""
        await self._store.close()

    async def _counted(self, operation: StoreOperation, call: Awaitable[T]) -> T:
        began = self._clock.monotonic()
        calls = self._metrics.store_calls[operation]
        try:
            answer = await call
        except StoreError as error:
            calls[_outcome(error)].inc()
            raise
        calls["done"].inc()
        self._metrics.store_seconds[operation].observe(self._clock.monotonic() - began)
        return answer


def _outcome(error: StoreError) -> StoreOutcome:
    return _OUTCOMES.get(type(error), "unusable")
