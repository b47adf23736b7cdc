"""Scrub: the stored bytes of the partitions that are led here are read and checked, a little at a time, for ever.

Reads the bucket itself, never a cache. Keeps nothing: a pass begins with a partition, and within each with an offset, that
are drawn, so that a broker which never comes to the end of a pass still looks at everything in the long run, newest and
oldest alike. What it finds it looks at again, from fresh rows, before it calls it damage; then it says so, and goes on.
"""

import asyncio
from collections.abc import AsyncIterator

from tidelog.broker.catalog import Catalog, PartitionRef
from tidelog.broker.ledger import Ledger
from tidelog.broker.lookups import Lookups
from tidelog.broker.pace import ByteBudget
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import MetadataError, ObjectNotFound, StoreError, StoreUnavailable, UnknownPartition
from tidelog.executors import Executor
from tidelog.metadata.extents import Extent, PartitionExtents
from tidelog.metrics import Metrics, ScrubFinding
from tidelog.objects.store import ObjectStore
from tidelog.randomness import Random
from tidelog.segments.audit import Claim, ExtentAudit
from tidelog.telemetry import get_logger

_log = get_logger(__name__)
_PIECE_BYTES = 1024 * 1024
_LOOKS = 3
"""How often something is looked at before it is called damage."""
_PAUSE_S = 5.0
"""Before another look, and where a store does not answer."""
_FIRST_WITHIN_S = 60.0
_IDLE_S = 10.0


class Scrub:
    """The scrub of one broker epoch."""

    def __init__(
        self, *, bucket: ObjectStore, catalog: Catalog, ledger: Ledger, lookups: Lookups, settings: Settings, clock: Clock,
        chance: Random, executor: Executor, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._bucket = bucket
        self._catalog = catalog
        self._ledger = ledger
        self._lookups = lookups
        self._interval_s = settings.scrub_interval_ms / 1000
        self._bytes = ByteBudget(settings.scrub_bytes_per_second, clock=clock)
        self._reads = ByteBudget(settings.scrub_reads_per_second, clock=clock)
        self._clock = clock
        self._chance = chance
        self._executor = executor
        self._metrics = metrics

    async def run(self) -> None:
        """Make one pass in each interval, until cancelled; none where the interval is 0."""
        if not self._interval_s:
            return
        await asyncio.sleep(self._chance.uniform(0, min(self._interval_s, _FIRST_WITHIN_S)))
        while True:
            began = self._clock.monotonic()
            if partition_ids := sorted(self._ledger.led()):
                await self._pass(partition_ids)
                left_s = self._interval_s - (self._clock.monotonic() - began)
                await asyncio.sleep(max(left_s, 0) * self._chance.uniform(0.9, 1.1))
            await asyncio.sleep(min(self._interval_s, _IDLE_S) * self._chance.uniform(0.05, 0.1))

    async def _pass(self, partition_ids: list[int]) -> None:
        first = int(self._chance.random() * len(partition_ids))
        for partition_id in partition_ids[first:] + partition_ids[:first]:
            ref = self._catalog.partition_by_id(partition_id)
            if ref is None:
                continue
            async for extent in self._extents(partition_id):
                found = await self._found(ref, extent)
                self._metrics.scrubbed[found].inc()
        self._metrics.scrub_passes.inc()

    async def _extents(self, partition_id: int) -> AsyncIterator[Extent]:
        """Yield a partition's extents while it is led here: from an offset that is drawn to the end, then those before it."""
        bounds = await self._look_up(partition_id, 0)
        if bounds is None:
            return
        start, end = bounds.log_start_offset, bounds.high_watermark
        middle = start + int(self._chance.random() * (end - start))
        for begin, stop in ((middle, end), (start, middle)):
            at = begin
            while at < stop:
                found = await self._look_up(partition_id, at)
                ahead = [extent for extent in found.extents if at < extent.next_offset and extent.base_offset < stop] if found else []
                for extent in ahead:
                    yield extent
                if not ahead:
                    break
                at = ahead[-1].next_offset

    async def _look_up(self, partition_id: int, offset: int) -> PartitionExtents | None:
        """Return extents from an offset on, waiting while SQL is away; None where the partition is not led here any more."""
        while self._ledger.leads(partition_id):
            try:
                found = await self._lookups.extents(partition_id, offset)
                await self._lookups.learn_writers(found.extents)
            except UnknownPartition:
                return None
            except MetadataError:
                await self._pause()
            else:
                return found
        return None

    async def _found(self, ref: PartitionRef, extent: Extent) -> ScrubFinding:
        """Look at an extent, again where need be, and say what was found; damage goes to the log."""
        found: ScrubFinding = "sound"
        for look in range(_LOOKS):
            if look:
                self._metrics.scrub_looks_again.inc()
                await self._pause()
                fresh = await self._look_up(ref.partition_id, extent.base_offset)
                if fresh is None or extent not in fresh.extents or extent.next_offset <= fresh.log_start_offset:
                    return "moved"
            try:
                problem, found = await self._problem(ref, extent), "damaged"
            except ObjectNotFound as error:
                problem, found = str(error), "missing"
            except StoreUnavailable as error:
                problem, found = str(error), "unread"
            except (StoreError, MetadataError) as error:
                problem, found = f"{error} [{error.reason}]", "unread"
            if not problem:
                return "sound"
        if found == "unread":
            _log.warning(
                "scrub_could_not_read",
                topic=ref.topic,
                partition=ref.partition,
                base_offset=extent.base_offset,
                next_offset=extent.next_offset,
                problem=problem,
            )
        else:
            _log.error(
                "scrub_found_damage",
                topic=ref.topic,
                partition=ref.partition,
                base_offset=extent.base_offset,
                next_offset=extent.next_offset,
                key=self._lookups.key(ref, extent),
                found=found,
                problem=problem,
                advice="bring the object back from a version or a replica of the bucket; tidelog fsck checks everything",
            )
        return found

    async def _problem(self, ref: PartitionRef, extent: Extent) -> str:
        """Return what is wrong with an extent's stored bytes, or nothing."""
        key = self._lookups.key(ref, extent)
        claim = Claim(
            extent.position, extent.length, extent.record_count, extent.max_timestamp_ms, extent.base_offset, extent.next_offset,
            stamped=extent.level > 0,
        )  # fmt: skip
        audit = ExtentAudit(claim)
        for position in range(claim.position, claim.end, _PIECE_BYTES):
            length = min(_PIECE_BYTES, claim.end - position)
            await self._reads.spend(1)
            await self._bytes.spend(length)
            piece = await self._bucket.get_range(key, position, length)
            self._metrics.scrub_bytes.inc(len(piece))
            if len(piece) < length:
                return f"{length} bytes from {position} were asked for, and {len(piece)} came"
            if problem := await self._executor.run(audit.feed, piece):
                return problem
        return audit.finish()

    async def _pause(self) -> None:
        await asyncio.sleep(_PAUSE_S * self._chance.uniform(0.8, 1.2))
