"""What is kept, added up now and then by one broker, for the bill."""

import asyncio
from collections.abc import Callable

from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import MetadataError
from tidelog.metadata.extents import stored_bytes
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics

_PARTITIONS_AT_ONCE = 100


class StorageCount:
    """Adds up the bytes that extents refer to, while it is this broker's turn; the store rests as long as each page took."""

    def __init__(
        self, *, store: MetadataStore, settings: Settings, clock: Clock, metrics: Metrics, is_mine: Callable[[], bool]
    ) -> None:  # fmt: skip
        self._store = store
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._is_mine = is_mine

    async def run(self) -> None:
        """Count for ever; where the store does not answer, the last sum stands until the next time."""
        while True:
            mine = self._is_mine()
            wait_ms = self._settings.storage_count_interval_ms
            if mine:
                try:
                    self._metrics.stored_bytes.set(await self._sum())
                except MetadataError:
                    wait_ms = min(wait_ms, self._settings.lease_ms)
            else:
                self._metrics.stored_bytes.set(0)
                wait_ms = min(wait_ms, self._settings.lease_ms)
            await asyncio.sleep(wait_ms / 1000)

    async def _sum(self) -> int:
        total, after = 0, 0
        while True:
            began = self._clock.monotonic()
            page = await self._store.run(stored_bytes, after=after, limit=_PARTITIONS_AT_ONCE)
            total += sum(each for _, each in page)
            if len(page) < _PARTITIONS_AT_ONCE:
                return total
            after = page[-1][0]
            await asyncio.sleep(self._clock.monotonic() - began)
