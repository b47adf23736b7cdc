"""The bytes that merging reads: paced, in pieces, each checked and stamped before it becomes part of a merged segment.

Knows extents and objects, not what is merged or why.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from tidelog.broker.pace import ByteBudget, Slots
from tidelog.broker.reader import Indexes
from tidelog.broker.runs import IntakeSpan, MergedRun, StampedBatches, check_merged, first_batch_bytes, plan_merged, stamp_intake
from tidelog.config import Settings
from tidelog.errors import CorruptSegment
from tidelog.executors import Executor
from tidelog.metadata.extents import Extent
from tidelog.metrics import Metrics
from tidelog.objects.store import Bytes, ObjectStore
from tidelog.records.batch import HEADER_BYTES, scan
from tidelog.segments.format import IndexEntry, MergedEncoder

P = ParamSpec("P")
T = TypeVar("T")

_PIECE_BYTES = 1024 * 1024
_PIECE_SHARE = 16
"""Of the memory for merging: a piece is in memory as it came, as it is stamped, and on its way."""
_OFF_LOOP_BYTES = 128 * 1024
"""Checking this much or more is not the event loop's work."""
_WORTH_READING_BYTES = 256 * 1024
"""Bytes between two extents of an object that are read for nothing rather than asked for by one more request."""
_ATTEMPTS = 3


@dataclass(slots=True)
class _Range:
    """Bytes of one object that hold extents of several partitions."""

    key: str
    position: int
    end: int
    extents: list[Extent]


class MergeSources:
    """Reads extents that are to be merged."""

    def __init__(
        self, bucket: ObjectStore, *, slots: Slots, budget: ByteBudget, executor: Executor, settings: Settings, metrics: Metrics
    ) -> None:
        self._bucket = bucket
        self._slots = slots
        self._budget = budget
        self._executor = executor
        self._metrics = metrics
        self._piece_bytes = max(HEADER_BYTES, min(_PIECE_BYTES, settings.merge_buffer_bytes // _PIECE_SHARE))
        self._indexes = Indexes(bucket)
        self._index_slots = Slots(settings.max_merges)

    async def prefetch(self, wanted: Iterable[tuple[Extent, str]]) -> dict[Extent, Bytes]:
        """Return the bytes of extents of intake segments, not checked, in as few requests as is sensible. Raises StoreError."""
        found: dict[Extent, Bytes] = {}

        async def fetch(some: _Range) -> None:
            async with self._slots.slot():
                content = memoryview(await self._get(some.key, some.position, some.end - some.position))
            for extent in some.extents:  # copies, so that what lies between is not kept
                start = extent.position - some.position
                found[extent] = bytes(content[start : start + extent.length])

        tasks = [asyncio.ensure_future(fetch(some)) for some in _ranges(wanted, self._piece_bytes)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    async def stamped(self, extent: Extent, key: str, encoder: MergedEncoder, content: Bytes | None) -> AsyncGenerator[Bytes]:
        """Yield an extent's batches, checked, stamped and taken by the encoder; `content`: all of it, where it is here.

        Raises CorruptSegment where it stays wrong when it is read again, StoreError.
        """
        pieces = self._merged(extent, key) if extent.level else self._intake(extent, key, content)
        end = extent.base_offset
        async with aclosing(pieces):
            async for batches in pieces:
                end = batches.next_offset
                cut = batches.cut(batches.base_offset, max_bytes=1 << 62)
                if cut is not None:
                    await self._off_loop(len(cut.batches), _take, cut.batches, encoder)
                    yield cut.batches
        if end != extent.next_offset:
            raise CorruptSegment(
                f"{key}: offsets {extent.base_offset} to {extent.next_offset} were committed, but its batches end with {end}",
                position=extent.position,
            )

    async def _intake(self, extent: Extent, key: str, content: Bytes | None) -> AsyncGenerator[StampedBatches]:
        if content is not None and len(content) == extent.length:
            span = IntakeSpan(extent, key, extent.base_offset, extent.position, extent.length)
            try:
                batches = (await self._off_loop(extent.length, stamp_intake, [span], [[content]]))[0]
            except CorruptSegment:
                batches = None  # perhaps on its way here
            if batches is not None:
                yield batches
                return
        offset, position, least = extent.base_offset, extent.position, self._piece_bytes
        end = extent.position + extent.length
        while position < end:
            span = IntakeSpan(extent, key, offset, position, min(least, end - position))
            claimed, found = await self._checked(key, position, span.length, partial(_stamp, span))
            if found is None:
                least = claimed
                continue
            batches, position = found
            offset, least = batches.next_offset, self._piece_bytes
            yield batches

    async def _merged(self, extent: Extent, key: str) -> AsyncGenerator[StampedBatches]:
        index = await self._index(extent, key)
        offset = extent.base_offset
        while offset < extent.next_offset:
            run = plan_merged(extent, key, index, offset, max_bytes=self._piece_bytes)
            batches = await self._checked(key, run.position, run.length, partial(_check, run))
            offset = run.next_offset
            yield batches

    async def _index(self, extent: Extent, key: str) -> Sequence[IndexEntry]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._indexes.of(extent, key, slots=self._index_slots)
            except CorruptSegment:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _checked(self, key: str, position: int, length: int, check: Callable[[Bytes], T]) -> T:
        """Read some bytes, and again where they are not what they should be."""
        for attempt in range(1, _ATTEMPTS + 1):
            content = await self._get(key, position, length)
            try:
                return await self._off_loop(length, check, content)
            except CorruptSegment:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _get(self, key: str, position: int, length: int) -> bytes:
        await self._budget.spend(length)
        content = await self._bucket.get_range(key, position, length)
        self._metrics.merge_read_bytes.inc(len(content))
        return content

    async def _off_loop(self, size: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if size < _OFF_LOOP_BYTES:
            return work(*args, **kwargs)
        return await self._executor.run(work, *args, **kwargs)


def _stamp(span: IntakeSpan, part: Bytes) -> tuple[int, tuple[StampedBatches, int] | None]:
    """Return the batches that lie whole in a span, and where the next begins; or only how long the first claims to be, if longer."""
    claimed = first_batch_bytes(span, [part])
    return claimed, stamp_intake([span], [[part]]) if claimed <= span.length else None


def _check(run: MergedRun, part: Bytes) -> StampedBatches:
    return check_merged(run, [part])


def _take(batches: memoryview, encoder: MergedEncoder) -> None:
    encoder.add(batches, scan(batches))


def _ranges(wanted: Iterable[tuple[Extent, str]], most_bytes: int) -> list[_Range]:
    """Put together what lies close to each other in an object, up to `most_bytes` or one extent, in the order of writers and sequences."""
    ranges: list[_Range] = []
    for extent, key in sorted(wanted, key=lambda each: (each[0].broker_epoch, each[0].sequence, each[0].position)):
        last = ranges[-1] if ranges else None
        end = extent.position + extent.length
        if (
            last is not None
            and last.key == key
            and extent.position - last.end <= _WORTH_READING_BYTES
            and end - last.position <= most_bytes
        ):
            last.end = max(last.end, end)
            last.extents.append(extent)
        else:
            ranges.append(_Range(key, extent.position, end, [extent]))
    return ranges
