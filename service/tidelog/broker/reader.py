"""Reading: from memory, else from the bucket by what SQL and the feeds say of extents.

Nothing is ever skipped: bytes that are not what was committed, objects that are missing after asking again, and gaps
between extents are errors. "Latest" and "out of range" are answered by SQL alone.
"""

import asyncio
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import ParamSpec, Self, TypeVar

from tidelog.broker.cache import BlockCache, ReadStats, RecordCache, Span
from tidelog.broker.catalog import PartitionRef
from tidelog.broker.feed import Feed, Followed
from tidelog.broker.flights import shared
from tidelog.broker.lookups import Lookups
from tidelog.broker.pace import Slots, keep_pace
from tidelog.broker.requests import AtTime, Bound, OffsetFound, Position, Run
from tidelog.broker.runs import IntakeSpan, MergedRun, StampedBatches, check_merged, first_batch_bytes, plan_merged, stamp_intake
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import (
    CorruptSegment,
    MetadataUnavailable,
    MetadataUnusable,
    ObjectNotFound,
    OffsetOutOfRange,
    UnknownPartition,
    UnknownTopic,
)
from tidelog.executors import Executor
from tidelog.metadata.extents import Extent, PartitionExtents, offset_for_time
from tidelog.metadata.store import MetadataStore
from tidelog.objects.store import ObjectStore
from tidelog.records.batch import HEADER_BYTES, BatchHeader, Buffer, scan
from tidelog.records.codec import decode
from tidelog.records.compression import DecompressionLimits
from tidelog.segments.format import MAX_FOOTER_BYTES, IndexEntry, decode_footer

P = ParamSpec("P")
T = TypeVar("T")
_KeyOf = Callable[[Extent], str]
"""Gives the name of an extent's object."""

_ATTEMPTS = 4
"""How often metadata are read again where an object is missing, and an object where its bytes are wrong."""
_LEAST_READ_BYTES = 64 * 1024
"""A read of the bucket is worth at least this much, where memory has room for several such."""
_LOADS = 2
"""Reads at the same time for each GET that may run: one waits for its blocks while another makes batches of them."""
_MOST_SPANS = 64
"""Extents in one answer."""
_OFF_LOOP_BYTES = 1024 * 1024
"""Checking this much or more is not the event loop's work."""
_FOOTER_BYTES = 64 * 1024
_MOST_KNOWN_EXTENTS = 100_000
_MOST_PLACES = 200_000


class Reader:
    """The reading side of a broker."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        objects: ObjectStore,
        feed: Feed,
        lookups: Lookups,
        settings: Settings,
        clock: Clock,
        executor: Executor,
        stats: ReadStats,
    ) -> None:
        self.records = RecordCache(max_bytes=settings.cache_bytes)
        self.blocks = BlockCache(objects, block_bytes=settings.read_block_bytes, max_bytes=settings.block_cache_bytes, stats=stats)
        self.stats = stats
        self.feed = feed
        self.lookups = lookups
        self.cold, self.tail = Slots(settings.max_cold_reads), Slots(settings.max_tail_reads)
        self.least_read_bytes = min(_LEAST_READ_BYTES, settings.cache_bytes // 16)
        self.ahead = _Ahead()
        self.segments = _Segments(objects, self.blocks, cold=self.cold, tail=self.tail, executor=executor, settings=settings)
        self._metadata = metadata
        self._settings = settings
        self._limits = DecompressionLimits(max_bytes=settings.max_decompressed_bytes)
        self.clock = clock
        self._executor = executor
        self._cursors = 0
        self._pacing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._pacing = asyncio.ensure_future(keep_pace(self.cold, clock=self.clock, max_lag_seconds=self._settings.max_loop_lag_ms / 1000))
        return self

    async def __aexit__(self, *_: object) -> None:
        pacing, self._pacing = self._pacing, None
        assert pacing is not None
        pacing.cancel()
        await asyncio.wait([pacing])
        await self.lookups.close()
        await self.segments.close()
        await self.blocks.close()

    @asynccontextmanager
    async def follow(self, ref: PartitionRef) -> AsyncIterator["PartitionCursor"]:
        """Follow a partition while the context is open."""
        self._cursors += 1
        number = self._cursors
        with self.feed.follow(ref.partition_id) as followed:
            try:
                yield PartitionCursor(self, ref, followed, number)
            finally:
                self.ahead.drop(number)

    async def list_offset(self, ref: PartitionRef, position: Position) -> OffsetFound:
        """Return the offset that a position stands for; SQL is asked."""
        if isinstance(position, int):
            return OffsetFound(position)
        if isinstance(position, AtTime):
            return await self._at_time(ref, position.timestamp_ms)
        bounds = await self.lookups.extents(ref.partition_id, 0)
        return OffsetFound(bounds.log_start_offset if position is Bound.EARLIEST else bounds.high_watermark)

    async def _at_time(self, ref: PartitionRef, timestamp_ms: int) -> OffsetFound:
        extent = await self._metadata.run(offset_for_time, partition_id=ref.partition_id, timestamp_ms=timestamp_ms)
        bounds = await self.lookups.extents(ref.partition_id, 0 if extent is None else extent.base_offset)
        if extent is None:
            return OffsetFound(bounds.high_watermark)
        offset = max(extent.base_offset, bounds.log_start_offset)
        async with self.follow(ref) as cursor:
            while True:
                try:
                    run = await cursor.read(offset, max_bytes=self._settings.response_bytes)
                except OffsetOutOfRange as error:  # the log start has passed it meanwhile
                    if error.log_start_offset <= offset:
                        raise
                    offset = error.log_start_offset
                    continue
                for header in scan(run.batches):
                    if header.max_timestamp_ms < timestamp_ms:
                        continue
                    batch = memoryview(run.batches)[header.position : header.position + header.size]
                    # By the executor, for a batch may be small and become large.
                    for record in await self._executor.run(decode, batch, header=header, limits=self._limits):
                        if record.timestamp_ms >= timestamp_ms and record.offset >= offset:
                            return OffsetFound(record.offset, record.timestamp_ms)
                if run.next_offset == offset:  # the end: the record that SQL had in mind lies below the log start
                    return OffsetFound(offset)
                offset = run.next_offset

    def took_in(
        self, partition_id: int, base_offset: int, leader_epoch: int, parts: Sequence[Buffer], headers: Sequence[BatchHeader]
    ) -> None:
        """Keep what this broker took in itself, once it is committed at `base_offset`. Parts may not change any more."""
        next_offset = self.records.took_in(partition_id, base_offset, leader_epoch, parts, headers)
        self.feed.reached(partition_id, next_offset)

    def counts(self) -> dict[str, float]:
        """Return what reading did, and what it holds now, by name."""
        held = {"record_cache_bytes": self.records.used_bytes, "block_cache_bytes": self.blocks.used_bytes}
        return self.stats.as_dict() | held | {"cold_reads": self.cold.taken, "tail_reads": self.tail.taken}

    async def bounds_changed(self, partition_id: int) -> None:
        """Have who follows a partition here see its bounds as they are in SQL now."""
        self.feed.looked_up(await self.lookups.extents(partition_id, 0))


class PartitionCursor:
    """One partition as a reader follows it. See `server.ports.Cursor`."""

    def __init__(self, reader: Reader, ref: PartitionRef, followed: Followed, number: int) -> None:
        self._reader = reader
        self._ref = ref
        self._followed = followed
        self._number = number
        self._expected = -1
        """Where the last read ended: one that begins there goes on."""

    @property
    def high_watermark(self) -> int:
        """Where the committed log ends, as far as this broker knows."""
        return self._followed.high_watermark

    async def resolve(self, position: Position) -> int:
        """Return the offset that a position stands for now. Raises OffsetOutOfRange, MetadataUnavailable."""
        if not isinstance(position, int):
            return (await self._reader.list_offset(self._ref, position)).offset
        followed = self._followed
        if followed.known and followed.log_start_offset <= position <= followed.high_watermark:
            return position
        try:
            found = await self._look_up(position)
        except MetadataUnavailable:
            if self._reader.records.find(self._ref.partition_id, position) is None:
                raise
            return position  # what is in memory is committed: it can be read while SQL is away
        await self._check_range(found, position)
        return position

    async def read(self, offset: int, *, max_bytes: int) -> Run:
        """Return committed batches from `offset` on, about `max_bytes` of them but at least one; empty at the high watermark.

        Raises OffsetOutOfRange, UnknownTopic once it is deleted, StoreError, MetadataError, CorruptSegment.
        """
        sequential = offset == self._expected
        asked, misses = offset, 0
        missed: Extent | None = None
        while True:
            if self._followed.deleted:
                raise self._deleted()
            found = self._from_memory(offset, max_bytes)
            if found is not None:
                self._reader.stats.memory_hits += 1
                batches, base_offset, next_offset = found
                self._reader.stats.memory_bytes += len(batches)
                return self._answer(batches, min(asked, base_offset), next_offset)
            extents, tail = await self._extents(offset)
            if not extents:
                return self._answer(b"", asked, offset)
            if misses:
                extents = extents[:1]  # which of them was not there is not known: whatever comes before it is read
            self._reader.stats.memory_misses += 1
            began = self._reader.clock.monotonic()
            try:
                loaded = await self._load(extents, offset, max_bytes, tail=tail, sequential=sequential)
            except ObjectNotFound as error:
                # Merged or expired between looking up and reading: what is known of extents is of no use any more.
                self._reader.stats.missing_objects += 1
                if extents[0] == missed or misses == _ATTEMPTS:  # SQL has been asked again, and says the same
                    raise self._lost(offset) from error
                missed = extents[0] if misses else None
                misses += 1
                self._followed.forget()
                self._reader.ahead.drop(self._number)
                continue
            finally:
                self._reader.stats.bucket_seconds += self._reader.clock.monotonic() - began
            self._reader.records.keep(self._ref.partition_id, loaded, tail=tail)
            cut = loaded.cut(offset, max_bytes=max_bytes)
            if cut is not None:
                self._reader.stats.bucket_bytes += len(cut.batches)
                return self._answer(cut.batches, min(asked, cut.base_offset), cut.next_offset)
            offset = loaded.next_offset  # only a gap was left of it

    async def wait(self, offset: int) -> None:
        """Wait until the high watermark may lie beyond `offset`."""
        await self._followed.beyond(offset)

    # ---- what is known

    def _from_memory(self, offset: int, max_bytes: int) -> tuple[Buffer, int, int] | None:
        """Return batches from the one that holds `offset` on, where they begin, and where the next read goes on."""
        if offset < self._followed.log_start_offset:
            return None
        records = self._reader.records
        pieces: list[memoryview] = []
        base_offset, total = -1, 0
        while total < max_bytes:
            batches = records.find(self._ref.partition_id, offset)
            cut = None if batches is None else batches.cut(offset, max_bytes=max_bytes - total)
            if batches is None or (cut is not None and pieces and total + len(cut.batches) > max_bytes):
                break
            if cut is None:
                offset = batches.next_offset
                continue
            if not pieces:
                base_offset = cut.base_offset
            pieces.append(cut.batches)
            total += len(cut.batches)
            offset = cut.next_offset
        if not pieces:
            return None
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), base_offset, offset

    async def _extents(self, offset: int) -> tuple[Sequence[Extent], bool]:
        """Return the extent that holds `offset` and some that follow it; none at the high watermark. And whether they are the newest."""
        followed, ahead = self._followed, self._reader.ahead
        if offset >= followed.log_start_offset:
            if newest := followed.find(offset):
                return newest, newest[0].base_offset >= followed.tail_from
            if known := ahead.find(self._number, offset):
                return known, False
            if followed.known and offset == followed.high_watermark:
                return (), True
        found = await self._look_up(offset)
        await self._check_range(found, offset)
        if offset == found.high_watermark:
            return (), True
        extents = _contiguous(found.extents)
        if not extents or not extents[0].base_offset <= offset < extents[0].next_offset:
            found = await self._look_up(offset)
            await self._check_range(found, offset)
            extents = _contiguous(found.extents)
            if not extents or not extents[0].base_offset <= offset < extents[0].next_offset:
                raise MetadataUnusable(
                    f"partition {self._ref.partition} of topic {self._ref.topic!r} holds offsets {found.log_start_offset} to"
                    f" {found.high_watermark}, but no extent has offset {offset}; the metadata store has lost rows: restore it"
                )
        ahead.put(self._number, extents)
        return extents, False

    async def _look_up(self, offset: int) -> PartitionExtents:
        try:
            found = await self._reader.lookups.extents(self._ref.partition_id, offset)
        except MetadataUnavailable as error:
            raise MetadataUnavailable(
                f"offset {offset} of partition {self._ref.partition} of topic {self._ref.topic!r} is not in memory, and the metadata store"
                f" does not answer where it lies ({error}); try again"
            ) from error
        except UnknownPartition as error:
            raise self._deleted() from error
        self._reader.feed.looked_up(found)
        return found

    async def _check_range(self, found: PartitionExtents, offset: int) -> None:
        if not found.log_start_offset <= offset <= found.high_watermark:
            if not await self._reader.feed.exists(self._ref.partition_id):
                raise self._deleted()
            raise OffsetOutOfRange(
                f"offset {offset} of partition {self._ref.partition} of topic {self._ref.topic!r} was asked for, but it has offsets"
                f" {found.log_start_offset} to {found.high_watermark}; choose one of them, or begin at the earliest or latest",
                log_start_offset=found.log_start_offset,
                high_watermark=found.high_watermark,
            )

    # ---- from the bucket

    async def _load(self, extents: Sequence[Extent], offset: int, max_bytes: int, *, tail: bool, sequential: bool) -> StampedBatches:
        segments = self._reader.segments
        want = max(max_bytes, self._reader.least_read_bytes)
        extents = extents[: _MOST_SPANS + 1]
        await self._reader.lookups.learn_writers(extents)
        key = partial(self._reader.lookups.key, self._ref)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if extents[0].level:
                    return await segments.merged(extents[0], key(extents[0]), offset, want, tail=tail, sequential=sequential)
                return await segments.intake(extents, key, offset, want, tail=tail, sequential=sequential)
            except CorruptSegment:
                self._reader.stats.corrupt_reads += 1
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _deleted(self) -> UnknownTopic:
        return UnknownTopic(f"topic {self._ref.topic!r} was being read, but it has been deleted; create it again, or read another")

    def _lost(self, offset: int) -> CorruptSegment:
        return CorruptSegment(
            f"partition {self._ref.partition} of topic {self._ref.topic!r} has offset {offset} in an object that is not there, also after"
            " the metadata were read again; look whether something else deletes from the bucket",
            position=0,
        )

    def _answer(self, batches: Buffer, base_offset: int, next_offset: int) -> Run:
        self._expected = next_offset
        self._reader.feed.reached(self._ref.partition_id, next_offset)
        return Run(batches, base_offset, next_offset, self._followed.high_watermark, self._followed.log_start_offset)


class _Segments:
    """Reads extents of segments: bytes from the block cache, checked, stamped."""

    def __init__(
        self, objects: ObjectStore, blocks: BlockCache, *, cold: Slots, tail: Slots, executor: Executor, settings: Settings
    ) -> None:
        self._indexes = Indexes(objects)
        self._blocks = blocks
        self._slots = {False: cold, True: tail}
        self.turns = {False: Slots(_LOADS * cold.most), True: Slots(_LOADS * tail.most)}
        """Reads of the past, and of the tail, that may wait for blocks and hold them at the same time."""
        self._executor = executor
        self._ahead_bytes = settings.read_ahead_blocks * settings.read_block_bytes
        self._places = _Places()

    async def close(self) -> None:
        """Give up all that is on its way."""
        await self._indexes.close()

    @asynccontextmanager
    async def _turn(self, places: Sequence[Span], tail: bool) -> AsyncIterator[None]:
        """Wait for a turn; a small read of blocks that are here needs none: they would be gone by then, and be fetched again."""
        if sum(place.length for place in places) < _OFF_LOOP_BYTES and self._blocks.has(places):
            yield
        else:
            async with self.turns[tail].slot():
                yield

    async def _off_loop(self, size: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work on `size` bytes: here where they are few, by the executor where the event loop would wait for it."""
        if size < _OFF_LOOP_BYTES:
            return work(*args, **kwargs)
        return await self._executor.run(work, *args, **kwargs)

    async def intake(
        self, extents: Sequence[Extent], key: _KeyOf, offset: int, want: int, *, tail: bool, sequential: bool
    ) -> StampedBatches:
        """Return about `want` bytes of batches from the one that holds `offset` on, of intake segments' extents that follow one another."""
        least = HEADER_BYTES
        while True:
            spans = self._plan(extents, key, offset, max(want, least))
            places = [Span(span.key, span.position, span.length) for span in spans]
            async with self._turn(places, tail):
                parts = await self._blocks.read(places, slots=self._slots[tail])
                if sequential and not tail:
                    self._fetch_ahead(spans[-1], extents, key)
                try:
                    least = first_batch_bytes(spans[0], parts[0])
                    if least > spans[0].length:
                        continue
                    batches, end_position = await self._off_loop(sum(span.length for span in spans), stamp_intake, spans, parts)
                except CorruptSegment:
                    self._blocks.forget(places)
                    raise
            if not spans[-1].whole:
                self._places.note(spans[-1].extent, batches.next_offset, end_position)
            if batches.next_offset > offset:
                return batches

    def _plan(self, extents: Sequence[Extent], key: _KeyOf, offset: int, want: int) -> list[IntakeSpan]:
        spans: list[IntakeSpan] = []
        total = 0
        for extent in extents[:_MOST_SPANS]:
            if extent.level or total >= want:
                break
            at, position = self._places.before(extent, offset)
            length = min(extent.position + extent.length - position, max(want - total, HEADER_BYTES))
            spans.append(IntakeSpan(extent, key(extent), at, position, length))
            total += length
            if not spans[-1].whole:
                break
        return spans

    def _fetch_ahead(self, last: IntakeSpan, extents: Sequence[Extent], key: _KeyOf) -> None:
        room = self._ahead_bytes
        spans: list[Span] = []
        begun = False
        for extent in extents:
            if extent.level or room <= 0:
                break
            start = extent.position
            if extent is last.extent:
                begun, start = True, last.position + last.length
            length = min(extent.position + extent.length - start, room)
            if begun and length > 0:
                spans.append(Span(key(extent), start, length))
                room -= length
        self._blocks.fetch_ahead(spans, slots=self._slots[False])

    async def merged(self, extent: Extent, key: str, offset: int, want: int, *, tail: bool, sequential: bool) -> StampedBatches:
        """Return about `want` bytes of batches from the one that holds `offset` on, of a merged segment's extent."""
        index = await self._indexes.of(extent, key, slots=self._slots[tail])
        run = plan_merged(extent, key, index, offset, max_bytes=want)
        place = Span(key, run.position, run.length)
        async with self._turn([place], tail):
            [parts] = await self._blocks.read([place], slots=self._slots[tail])
            if sequential and not tail:
                self._merged_ahead(run)
            try:
                return await self._off_loop(run.length, check_merged, run, parts)
            except CorruptSegment:
                self._blocks.forget([place])
                raise

    def _merged_ahead(self, run: MergedRun) -> None:
        length = min(run.extent.position + run.extent.length - run.end, self._ahead_bytes)
        if length > 0:
            self._blocks.fetch_ahead([Span(run.key, run.end, length)], slots=self._slots[False])


class Indexes:
    """Sparse indexes of merged segments, bounded by entries; each is read once however many want it."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._known: OrderedDict[str, Sequence[IndexEntry]] = OrderedDict()
        self._entries = 0
        self._flights: dict[str, asyncio.Task[Sequence[IndexEntry]]] = {}

    async def of(self, extent: Extent, key: str, *, slots: Slots) -> Sequence[IndexEntry]:
        """Return the index of the merged segment that holds `extent`."""
        if (index := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return index
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(self._fetch(extent, key, slots))
            flight.add_done_callback(lambda done: self._landed(key, done))
        return await shared(flight)

    async def close(self) -> None:
        """Give up all that is on its way."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights)

    def _landed(self, key: str, flight: asyncio.Task[Sequence[IndexEntry]]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # whoever waited has it

    async def _fetch(self, extent: Extent, key: str, slots: Slots) -> Sequence[IndexEntry]:
        """Read the footer: it follows the extent, which is the only one of its object, and goes to the object's end."""
        end = extent.position + extent.length
        tail = bytearray()
        async with slots.slot():
            while len(tail) <= MAX_FOOTER_BYTES:
                more = await self._objects.get_range(key, end + len(tail), _FOOTER_BYTES)
                tail += more
                if len(more) < _FOOTER_BYTES:
                    break
        try:
            footer = decode_footer(tail, size=end + len(tail))
        except CorruptSegment as error:
            raise CorruptSegment(f"{key}: {error.problem}", position=error.position) from error
        merged, chunk = footer.merged, footer.chunks[0]
        found = (chunk.position, chunk.length, merged and (merged.base_offset, merged.next_offset))
        if merged is None or found != (extent.position, extent.length, (extent.base_offset, extent.next_offset)):
            raise CorruptSegment(
                f"{key}: its footer says (position, length, offsets) {found}, but it was committed as {extent}", position=end
            )
        self._known[key] = merged.index
        self._entries += len(merged.index)
        while self._entries > _MOST_PLACES and len(self._known) > 1:
            self._entries -= len(self._known.popitem(last=False)[1])
        return merged.index


class _Places:
    """Where batches begin within extents of intake segments, as earlier reads found; bounded."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[int, int, int], list[tuple[int, int]]] = OrderedDict()
        self._count = 0

    def before(self, extent: Extent, offset: int) -> tuple[int, int]:
        """Return the offset and the position of a batch at or before `offset`, the nearest that is known."""
        places = self._of.get((extent.broker_epoch, extent.sequence, extent.position))
        if places is not None and (place := bisect_right(places, (offset, extent.position + extent.length))):
            return places[place - 1]
        return extent.base_offset, extent.position

    def note(self, extent: Extent, offset: int, position: int) -> None:
        """Note that a batch begins with `offset` at `position`."""
        key = (extent.broker_epoch, extent.sequence, extent.position)
        places = self._of.setdefault(key, [])
        self._of.move_to_end(key)
        if (offset, position) not in places[max(0, (at := bisect_right(places, (offset, position))) - 1) : at]:
            insort(places, (offset, position))
            self._count += 1
        while self._count > _MOST_PLACES:
            self._count -= len(self._of.popitem(last=False)[1])


class _Ahead:
    """Extents that readers of the past will come to; bounded: who has not read for longest asks SQL again."""

    def __init__(self) -> None:
        self._of: OrderedDict[int, Sequence[Extent]] = OrderedDict()
        self._count = 0

    def find(self, reader: int, offset: int) -> Sequence[Extent]:
        """Return what is known from the extent that holds `offset` on."""
        extents = self._of.get(reader, ())
        place = bisect_right(extents, offset, key=lambda extent: extent.base_offset) - 1
        if place < 0 or extents[place].next_offset <= offset:
            return ()
        self._of.move_to_end(reader)
        return extents[place:]

    def put(self, reader: int, extents: Sequence[Extent]) -> None:
        """Keep what a reader has looked up."""
        self.drop(reader)
        self._of[reader] = extents
        self._count += len(extents)
        while self._count > _MOST_KNOWN_EXTENTS:
            self.drop(next(iter(self._of)))

    def drop(self, reader: int) -> None:
        """Forget what a reader has looked up."""
        self._count -= len(self._of.pop(reader, ()))


def _contiguous(extents: Sequence[Extent]) -> Sequence[Extent]:
    """Return the extents up to the first gap; a reader that gets there asks again."""
    for number, (one, following) in enumerate(pairwise(extents)):
        if one.next_offset != following.base_offset:
            return extents[: number + 1]
    return extents
