"""What waits to be written to one stream: filled by callbacks, emptied by the stream's one writer."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Outgoing(Generic[T]):
    """A queue that never blocks who fills it; who fills it keeps it bounded (I10)."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._closed = False
        self._writer: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item; after `close` it is dropped."""
        if not self._closed:
            self._items.append(item)
            self._wake()

    def extend(self, items: Iterable[T]) -> None:
        """Add items; after `close` they are dropped."""
        if not self._closed:
            self._items.extend(items)
            self._wake()

    def close(self) -> None:
        """No more comes: the writer gets what is there, and then nothing."""
        self._closed = True
        self._wake()

    async def take(self, most: int) -> list[T]:
        """Wait for items and return up to `most`; none once this is closed and empty. For one caller at a time."""
        while not self._items and not self._closed:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        items = self._items
        if len(items) <= most:
            taken = list(items)
            items.clear()
            return taken
        return [items.popleft() for _ in range(most)]

    def _wake(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
