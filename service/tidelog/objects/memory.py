"""An object store in memory: for tests, for simulators, and for services that may die with their process."""

from bisect import bisect_right
from collections.abc import AsyncIterable, AsyncIterator, Sequence

from crc32c import crc32c

from tidelog.clock import Clock
from tidelog.errors import ObjectExists, ObjectNotFound
from tidelog.objects.store import Bytes, ObjectInfo, check_key, check_range


class MemoryStore:
    """Keeps objects in a dictionary. Every call takes effect at once, at the moment of the call."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._objects: dict[str, tuple[bytes, ObjectInfo]] = {}

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object once. See `ObjectStore.put_new`."""
        content = b"".join(parts)
        stored = self._objects.get(check_key(key))
        if stored is None:
            self._objects[key] = content, ObjectInfo(key, len(content), self._clock.wall_ms(), crc32c(content))
        elif stored[0] != content:
            raise ObjectExists(f"object {key!r} was to be written, but it holds other bytes already; choose another key")

    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        """Write an object once, when all of it is there. See `ObjectStore.put_stream`."""
        check_key(key)
        content = bytearray()
        async for part in parts:
            content += part
        await self.put_new(key, [content])

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object. See `ObjectStore.get_range`."""
        check_range(position, length)
        return self._stored(key)[0][position : position + length]

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object. See `ObjectStore.head`."""
        return self._stored(key)[1]

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects in order. See `ObjectStore.list`."""
        keys = sorted(self._objects)
        for key in keys[bisect_right(keys, start_after) :]:
            if key.startswith(prefix) and key in self._objects:
                yield self._objects[key][1]

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects. See `ObjectStore.delete_many`."""
        for key in keys:
            self._objects.pop(check_key(key), None)
        return {}

    async def close(self) -> None:
        """Do nothing: there is nothing to give back."""

    def _stored(self, key: str) -> tuple[bytes, ObjectInfo]:
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise ObjectNotFound(f"object {key!r} was asked for, but there is none of that key") from None
