"""Checks that rows, objects and their bytes fit each other: every reference, length, checksum, and that no offset is missing.

Runs beside brokers. Pages of rows come from one statement each, so that what is compared belongs together; whatever does not
fit the bucket is looked at again, from fresh rows, before it is called a fault. Holds one page of rows and one piece of each
object that is being read, however large the store is. Changes nothing, but for `repair`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

from tidelog.broker.findings import MOST_FINDINGS, Finding, Report
from tidelog.broker.lookups import object_key
from tidelog.broker.marker import check_epochs, newest_marker, verify
from tidelog.broker.pace import ByteBudget
from tidelog.clock import Clock
from tidelog.errors import (
    CorruptSegment,
    MetadataOutcomeUnknown,
    MetadataUnavailable,
    MetadataUnusable,
    ObjectNotFound,
    StoreUnavailable,
    TimeTravel,
    UnknownTopic,
)
from tidelog.executors import Executor
from tidelog.metadata import verification as rows
from tidelog.metadata.extents import Extent, ExtentsRead, PartitionExtents, Writer, read_extents
from tidelog.metadata.membership import ClusterState, cluster_state
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.verification import Place, StoredSegment
from tidelog.objects.store import ObjectInfo, ObjectStore
from tidelog.segments.audit import Claim, SegmentAudit
from tidelog.segments.format import HEADER_BYTES, Chunk, Footer, SegmentKind, decode_footer, footer_start, header_defects, kind_defects
from tidelog.segments.keys import IntakeKey, MergedKey, parse_key

T = TypeVar("T")

_PARTITIONS_AT_ONCE = 32
_EXTENTS_EACH = 500
_SEGMENTS_AT_ONCE = 32
_OBJECTS_AT_ONCE = 500
_PRODUCERS_AT_ONCE = 2000
_UNNOTED_AT_ONCE = 500
_TAIL_BYTES = 64 * 1024
"""Read for a footer at first: most are smaller."""
_PIECE_BYTES = 1024 * 1024
_LOOKS = 3
"""How often something is looked at before it is called a fault."""
_TRIES = 5
_MOST_TOLD = 3
_LONG_MS = 24 * 3600 * 1000
_PREFIXES = ("intake/", "merged/")


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at, and how fast."""

    full: bool = True
    """Every byte; else rows, objects' sizes and footers."""
    topics: tuple[str, ...] | None = None
    concurrency: int = 8
    bytes_per_second: int = 0
    """Read from the bucket; 0: no limit."""
    look_again_after_s: float = 1.0
    orphan_age_ms: int = 3_600_000
    """Younger ones are not told as a fault: the cleaner has not come by yet."""


Told = Callable[[str, int, int], None]
"""Hears the stage, how much of it is done, and of how much (0: not known)."""


async def verify_store(
    store: MetadataStore,
    bucket: ObjectStore,
    *,
    scope: Scope,
    clock: Clock,
    executor: Executor,
    told: Told = lambda _stage, _done, _all: None,
) -> Report:
    """Check everything in scope. Raises UnknownTopic, MetadataUnusable, MetadataUnavailable, StoreUnusable."""
    return await _Check(store, bucket, scope, clock, executor, told).run()


async def repair(store: MetadataStore, report: Report) -> None:
    """Repair what can lose nothing: note releases that nobody noted. Nothing is done under an older database (I11)."""
    if "time-travel" in report.found:
        return
    for broker_epoch, sequence, key in report.repairable:
        report.repaired += await store.run(rows.note_released, broker_epoch=broker_epoch, sequence=sequence, key=key)


class _Check:
    def __init__(self, store: MetadataStore, bucket: ObjectStore, scope: Scope, clock: Clock, executor: Executor, told: Told) -> None:
        self._store = store
        self._bucket = bucket
        self._scope = scope
        self._clock = clock
        self._executor = executor
        self._told = told
        self._budget = ByteBudget(scope.bytes_per_second, clock=clock)
        self._partition_ids: list[int] | None = None
        """Those in scope; None: all."""
        self.report = Report(scope.full)

    async def run(self) -> Report:
        cluster = await self._ask(partial(self._store.run, rows.cluster_if_any))
        if cluster is None:
            raise MetadataUnusable("the metadata store was to be checked, but no broker has ever used it; name the right one")
        self.report.cluster_id = cluster.cluster_id
        await self._look_for_time_travel(cluster)
        await self._check_rows(await self._ask(partial(self._store.run, rows.extent_count)))
        await self._check_segments()
        if self._scope.topics is None:
            await self._check_state()
            await self._check_releases()
            await self._check_objects()
        return self.report

    # ---- is it the right database

    async def _look_for_time_travel(self, cluster: ClusterState) -> None:
        async def ask() -> ClusterState:
            return await self._store.run(cluster_state)

        self._told("marker", 0, 0)
        try:
            # The bucket first: else a marker that a broker writes meanwhile would seem to be ahead (as in `marker.renew`).
            marker = await self._ask(lambda: newest_marker(self._bucket))
            verify(marker, await self._ask(ask))
            await self._ask(lambda: check_epochs(self._bucket, ask))
        except TimeTravel as error:
            self.report.add(Finding("time-travel", f"cluster {cluster.cluster_id}", str(error)))

    # ---- rows

    async def _check_rows(self, extents: int) -> None:
        topics = self._scope.topics
        after = 0
        ids = []
        seen: set[str] = set()
        while page := await self._ask(partial(self._store.run, rows.places, after=after, limit=_PARTITIONS_AT_ONCE, topics=topics)):
            await self._check_partitions({place.partition_id: (place, epoch) for place, epoch in page})
            after = page[-1][0].partition_id
            self.report.partitions += len(page)
            if topics is not None:
                ids += [place.partition_id for place, _ in page]
                seen |= {place.topic for place, _ in page}
            self._told("rows", self.report.extents, max(extents, self.report.extents))
        if topics is not None:
            self._partition_ids = ids
            if missing := sorted(set(topics) - seen):
                raise UnknownTopic(
                    f"topic {missing[0]!r} was to be checked, but there is no such topic; tidelog topics list shows what there is"
                )

    async def _check_partitions(self, page: dict[int, tuple[Place, int]]) -> None:
        """Walk through the extents of some partitions, each page beginning with the last extent of the page before."""
        at = dict.fromkeys(page, 0)
        last: dict[int, Extent] = {}
        while at:
            positions = sorted(at.items())
            read = await self._ask(partial(self._read_extents, positions))
            at = {}
            for found in read.partitions:
                place, epoch = page[found.partition_id]
                before = last.get(found.partition_id)
                more = len(found.extents) >= _EXTENTS_EACH
                for finding in _row_faults(place, found, before, more=more):
                    self.report.add(finding)
                fresh = [each for each in found.extents if before is None or each.base_offset > before.base_offset]
                self.report.extents += len(fresh)
                self.report.records += sum(each.record_count for each in fresh)
                self.report.referenced_bytes += sum(each.length for each in fresh)
                newest = max((each.leader_epoch for each in fresh), default=0)
                if newest > epoch:
                    await self._check_leader_epoch(place, newest)
                if more:
                    last[found.partition_id] = found.extents[-1]
                    at[found.partition_id] = found.extents[-1].base_offset

    async def _read_extents(self, positions: Sequence[tuple[int, int]]) -> ExtentsRead:
        most = len(positions) * (_EXTENTS_EACH + 1)
        return await self._store.run(read_extents, positions=positions, max_extents=most, max_extents_each=_EXTENTS_EACH)

    async def _check_leader_epoch(self, place: Place, newest: int) -> None:
        """The partition's row was read before its extents: so it is read again."""
        epoch = await self._ask(partial(self._store.run, rows.leader_epoch, partition_id=place.partition_id))
        if epoch is not None and newest > epoch:
            what = f"an extent was committed in leader epoch {newest}, but the partition has only come to {epoch}"
            self.report.add(Finding("wrong-row", _named(place), what))

    async def _check_state(self) -> None:
        """Rows that do not fit each other; each kind comes from one statement."""
        self._told("state", 0, 0)
        for oddity in await self._ask(partial(self._store.run, rows.oddities)):
            self.report.add(Finding("wrong-state", oddity.subject, oddity.found))
        after: tuple[int, int] | None = (-1, -1)
        while after is not None:
            after, odd = await self._ask(partial(self._store.run, rows.producers_beyond, after=after, limit=_PRODUCERS_AT_ONCE))
            for oddity in odd:
                self.report.add(Finding("wrong-state", oddity.subject, f"it remembers {oddity.found}"))

    # ---- objects that rows refer to

    async def _check_segments(self) -> None:
        slots = asyncio.Semaphore(self._scope.concurrency)
        after = (-1, -1)
        done = 0

        async def one(segment: StoredSegment) -> None:
            nonlocal done
            async with slots:
                for finding in await self._check_segment(segment):
                    self.report.add(finding)
            done += len(segment.extents)
            self._told("segments", done, max(done, self.report.extents))

        while page := await self._ask(
            partial(self._store.run, rows.live_segments, after=after, limit=_SEGMENTS_AT_ONCE, partition_ids=self._partition_ids)
        ):
            async with asyncio.TaskGroup() as checks:
                for segment in page:
                    checks.create_task(one(segment))
            self.report.segments += len(page)
            after = page[-1].broker_epoch, page[-1].sequence

    async def _check_segment(self, segment: StoredSegment) -> list[Finding]:
        """Return what is wrong with a segment, as often as it is looked at; nothing where it is not referred to any more."""
        for look in range(_LOOKS):
            counts = _Counts()
            try:
                found = await self._look(segment, counts)
            except StoreUnavailable as error:
                found = [Finding("not-looked-at", f"segment {segment.sequence} of broker epoch {segment.broker_epoch}", str(error))]
            if not found or look == _LOOKS - 1:
                self.report.batches_checked += counts.batches
                return found
            self.report.looked_at_again += 1
            await asyncio.sleep(self._scope.look_again_after_s)
            wanted = [(segment.broker_epoch, segment.sequence)]
            fresh = await self._ask(partial(self._store.run, rows.segments, wanted=wanted, partition_ids=self._partition_ids))
            if not fresh:
                return []
            (segment,) = fresh
        return []

    async def _look(self, segment: StoredSegment, counts: "_Counts") -> list[Finding]:
        name = f"segment {segment.sequence} of broker epoch {segment.broker_epoch}"
        if segment.writer is None:
            return [Finding("missing-row", name, f"{_refers(segment)}, but its writer is not known")]
        if any(place is None for _, place in segment.extents):
            return [Finding("missing-row", name, "extents refer to it whose partition is not known")]
        keys = {object_key(e, segment.writer, topic_id=p.topic_id, partition=p.partition) for e, p in segment.extents if p is not None}
        if len(keys) > 1:
            return [Finding("wrong-row", name, f"{_refers(segment)}, by {len(keys)} names of objects")]
        (key,) = keys
        try:
            size = (await self._bucket.head(key)).size
            end = max(extent.position + extent.length for extent, _ in segment.extents)
            if size < end:
                return [Finding("cut-object", key, f"it has {size} bytes, but rows refer to bytes up to {end}: {_refers(segment)}")]
            try:
                footer = await self._footer(key, size)
            except CorruptSegment as error:
                return [Finding("damaged-footer", key, f"{error}; {_refers(segment)}")]
            found = list(self._footer_faults(key, segment, footer))
            if not found and self._scope.full:
                found = await self._read(key, segment, footer, counts)
        except ObjectNotFound:
            return [Finding("missing-object", key, _refers(segment))]
        return found

    async def _footer(self, key: str, size: int) -> Footer:
        length = min(size, _TAIL_BYTES)
        tail = await self._get(key, size - length, length)
        start = footer_start(tail, size=size)
        if size - start > len(tail):
            tail = await self._get(key, start, size - start)
        return decode_footer(tail, size=size)

    def _footer_faults(self, key: str, segment: StoredSegment, footer: Footer) -> Iterator[Finding]:
        assert segment.writer is not None
        origin = footer.origin
        says = (origin.cluster_id, origin.broker_id, origin.broker_epoch, origin.sequence)
        wanted = (self.report.cluster_id, segment.writer.broker_id, segment.broker_epoch, segment.sequence)
        merged = segment.extents[0][0].level > 0
        if says != wanted or (footer.kind is SegmentKind.MERGED) != merged:
            kind = "a merged" if footer.kind is SegmentKind.MERGED else "an intake"
            yield Finding(
                "wrong-object", key,
                f"it says that it is {kind} segment of (cluster, broker, epoch, sequence) {says}, but must be of {wanted};"
                f" {_refers(segment)}",
            )  # fmt: skip
            return
        chunks = {(chunk.topic_id.hex(), chunk.partition): chunk for chunk in footer.chunks}
        before: tuple[Extent, Place] | None = None
        for extent, place in segment.extents:
            assert place is not None
            yield from _reference_faults(key, extent, place, chunks.get((place.topic_id, place.partition)), footer)
            if before is not None and before[1] == place and extent.position < before[0].position + before[0].length:
                what = f"offsets {before[0].base_offset} to {before[0].next_offset}, too: these bytes were committed twice"
                yield Finding("wrong-reference", _offsets(place, extent), f"its bytes in {key} are those of {what}")
            before = extent, place

    async def _read(self, key: str, segment: StoredSegment, footer: Footer, counts: "_Counts") -> list[Finding]:
        """Read all bytes of an object, and compare them with its footer and with the rows."""
        claims = [
            Claim(e.position, e.length, e.record_count, e.max_timestamp_ms, e.base_offset, e.next_offset, stamped=e.level > 0)
            for e, _ in segment.extents
        ]
        start = await self._get(key, 0, HEADER_BYTES)
        if len(start) < HEADER_BYTES:
            return [Finding("damaged-footer", key, f"its first {HEADER_BYTES} bytes were asked for, and {len(start)} came")]
        if defects := [*header_defects(start), *kind_defects(start, footer)]:
            return [Finding("damaged-footer", key, f"{defects[0]}; {_refers(segment)}")]
        audit = SegmentAudit(footer, claims)
        end = footer.chunks[-1].end
        for position in range(HEADER_BYTES, end, _PIECE_BYTES):
            length = min(_PIECE_BYTES, end - position)
            piece = await self._get(key, position, length)
            if len(piece) < length:
                return [
                    Finding("cut-object", key, f"{length} bytes from {position} were asked for, and {len(piece)} came; {_refers(segment)}")
                ]
            await self._executor.run(audit.feed, piece)
        counts.batches += audit.batches
        found = []
        for defect in audit.defects:
            hit = [
                (e, p) for e, p in segment.extents if p is not None and e.position < defect.end and defect.position < e.position + e.length
            ]
            where = "; ".join(_offsets(place, extent) for extent, place in hit[:_MOST_TOLD])
            more = f" and {len(hit) - _MOST_TOLD} more extents" if len(hit) > _MOST_TOLD else ""
            code = "damaged-bytes" if hit else "damaged-remains"
            found.append(
                Finding(code, f"{where}{more}" if hit else key, f"bytes {defect.position} to {defect.end} of {key}: {defect.problem}")
            )
        return found

    async def _get(self, key: str, position: int, length: int) -> bytes:
        await self._budget.spend(length)
        content = await self._bucket.get_range(key, position, length)
        self.report.bytes_read += len(content)
        return content

    # ---- what waits for the cleaner

    async def _check_releases(self) -> None:
        self._told("releases", 0, 0)
        after = (-1, -1)
        doubted: list[rows.Unnoted] = []
        while page := await self._ask(partial(self._store.run, rows.unnoted_segments, after=after, limit=_UNNOTED_AT_ONCE)):
            after = page[-1].broker_epoch, page[-1].sequence
            doubted = [*doubted, *page][:MOST_FINDINGS]
        for each in doubted:
            key = None
            if each.writer is not None and (each.extent.level == 0 or each.place is not None):
                topic_id, partition = (each.place.topic_id, each.place.partition) if each.place is not None else ("", 0)
                key = object_key(each.extent, each.writer, topic_id=topic_id, partition=partition)
                self.report.repairable.append((each.broker_epoch, each.sequence, key))
            name = key or f"segment {each.sequence} of broker epoch {each.broker_epoch}"
            self.report.add(Finding("unnoted-release", name, "all of its extents are released, and nothing notes it"))
        oldest_ms, waiting = await self._ask(partial(self._store.run, rows.oldest_release))
        if oldest_ms > _LONG_MS:
            what = f"{waiting:,} segments wait, the oldest for {oldest_ms // 3_600_000:,} hours"
            self.report.add(Finding("stuck-release", "released segments", what))

    # ---- objects

    async def _check_objects(self) -> None:
        """Walk through the bucket, and ask the rows of each page of objects: afterwards, for what is written later is not on it."""
        overdue: list[ObjectInfo] = []
        count = size = 0
        for prefix in _PREFIXES:
            after = prefix
            while page := await self._listed(prefix, after):
                after = page[-1].key
                orphans = await self._sort(page)
                if orphans:
                    # Those that the cleaner has deleted since they were listed are none.
                    still = {found.key for found in await self._listed(prefix, orphans[0].key[:-1], last=orphans[-1].key)}
                    orphans = [each for each in orphans if each.key in still]
                self.report.orphans += len(orphans)
                self.report.orphan_bytes += sum(each.size for each in orphans)
                old = [each for each in orphans if self._clock.wall_ms() - each.modified_ms > 2 * self._scope.orphan_age_ms]
                count, size = count + len(old), size + sum(each.size for each in old)
                overdue = [*overdue, *old][:_MOST_TOLD]
                self._told("objects", self.report.objects, 0)
        if count:
            names = ", ".join(each.key for each in overdue)
            self.report.add(Finding("orphans", "the bucket", f"{count:,} orphans of {size:,} bytes should be gone by now: {names}, …"))

    async def _sort(self, page: Sequence[ObjectInfo]) -> list[ObjectInfo]:
        """Count a page of objects by what rows say of them; return the orphans."""
        report = self.report
        named = [(found, parse_key(found.key)) for found in page]
        wanted = [(name.broker_epoch, name.sequence) for _, name in named if name is not None]
        states, next_epoch = await self._ask(partial(self._store.run, rows.segment_states, wanted=wanted))
        orphans = []
        for found, name in named:
            report.objects += 1
            report.object_bytes += found.size
            if name is None:
                report.add(Finding("strange-object", found.key, "this is no name of a segment"))
                continue
            state = states[name.broker_epoch, name.sequence]
            if name.broker_epoch >= next_epoch:
                what = f"it is of broker epoch {name.broker_epoch}, but the metadata store has only given out epochs below {next_epoch}"
                report.add(Finding("time-travel", found.key, what))
            elif state.writer is not None and not _wrote(state.writer, name):
                report.add(Finding("strange-object", found.key, f"broker epoch {name.broker_epoch} was not this broker's or process's"))
            elif state.live:
                pass
            elif state.released:
                report.released_objects += 1
                report.released_bytes += found.size
            elif not state.final:
                report.unsettled_objects += 1
                report.unsettled_bytes += found.size
            else:
                orphans.append(found)
        return orphans

    async def _listed(self, prefix: str, after: str, last: str = "~") -> list[ObjectInfo]:
        async def some() -> list[ObjectInfo]:
            page: list[ObjectInfo] = []
            async for found in self._bucket.list(prefix, start_after=after):
                if found.key > last:
                    break
                page.append(found)
                if len(page) == _OBJECTS_AT_ONCE:
                    break
            return page

        return await self._ask(some)

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask a store that may be away for a moment."""
        for attempt in range(_TRIES):
            try:
                return await question()
            except (MetadataUnavailable, MetadataOutcomeUnknown, StoreUnavailable):
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(self._scope.look_again_after_s)
        raise AssertionError("unreachable")


@dataclass(slots=True)
class _Counts:
    batches: int = 0


def _row_faults(place: Place, found: PartitionExtents, before: Extent | None, *, more: bool) -> Iterator[Finding]:
    """Yield what is wrong with a page of rows. `before`: the extent that the page was asked to begin with; `more`: others follow.

    Below the log start extents may be gone or not: retention moves it first, and releases them later.
    """
    start, end = found.log_start_offset, found.high_watermark
    extents = found.extents
    covered = extents[0].base_offset if extents else end
    expected = start if before is None else before.base_offset
    if covered > max(expected, start) and start < end:
        yield _missing(place, max(expected, start), min(covered, end))
    for extent in extents:
        if extent.next_offset <= extent.base_offset or extent.length <= 0 or extent.position < HEADER_BYTES:
            yield Finding("wrong-row", _offsets(place, extent), f"it refers to {extent.length} bytes at {extent.position}")
        elif (
            not (extent.next_offset - extent.base_offset if extent.level == 0 else 1)
            <= extent.record_count
            <= (extent.next_offset - extent.base_offset)
        ):
            yield Finding("wrong-row", _offsets(place, extent), f"it holds {extent.record_count} records")
    for one, other in pairwise(extents):
        if other.base_offset < one.next_offset:
            what = f"they overlap with offsets {other.base_offset} to {other.next_offset}"
            yield Finding("overlapping-offsets", _offsets(place, one), what)
        elif other.base_offset > max(one.next_offset, start):
            yield _missing(place, max(one.next_offset, start), other.base_offset)
        if other.leader_epoch < one.leader_epoch:
            what = f"they were committed in leader epoch {other.leader_epoch}, after offsets of epoch {one.leader_epoch}"
            yield Finding("wrong-row", _offsets(place, other), what)
    if extents and not more and (last := extents[-1].next_offset) != end and not last < end <= start:
        if last < end:
            yield _missing(place, max(last, start), end)
        else:
            yield Finding("wrong-end", _named(place), f"its high watermark is {end}, but its rows end at {last}")


def _missing(place: Place, begin: int, end: int) -> Finding:
    return Finding("missing-offsets", f"{_named(place)}, offsets {begin} to {end}", "no extent holds them")


def _reference_faults(key: str, extent: Extent, place: Place, chunk: Chunk | None, footer: Footer) -> Iterator[Finding]:
    """Yield where a row and the footer of its object say different things."""
    where = _offsets(place, extent)
    end = extent.position + extent.length
    if chunk is None:
        yield Finding("wrong-reference", where, f"{key} has no chunk of this partition")
    elif extent.position < chunk.position or end > chunk.end:
        what = f"the row refers to bytes {extent.position} to {end} of {key}, but the partition's chunk is"
        yield Finding("wrong-reference", where, f"{what} bytes {chunk.position} to {chunk.end}")
    elif extent.record_count > chunk.record_count or extent.max_timestamp_ms > chunk.max_timestamp_ms:
        what = f"the row says {extent.record_count} records up to time {extent.max_timestamp_ms}, but the chunk in {key} holds"
        yield Finding("wrong-reference", where, f"{what} {chunk.record_count} up to {chunk.max_timestamp_ms}")
    elif footer.merged is not None and (footer.merged.base_offset, footer.merged.next_offset) != (extent.base_offset, extent.next_offset):
        yield Finding("wrong-reference", where, f"{key} holds offsets {footer.merged.base_offset} to {footer.merged.next_offset}")
    elif footer.merged is None and (extent.position, end) == (chunk.position, chunk.end) and extent.record_count != chunk.record_count:
        yield Finding(
            "wrong-reference", where, f"the row says {extent.record_count} records, but the chunk in {key} holds {chunk.record_count}"
        )


def _wrote(writer: Writer, name: IntakeKey | MergedKey) -> bool:
    if writer.broker_id != name.broker_id:
        return False
    return isinstance(name, MergedKey) or writer.incarnation == name.incarnation


def _named(place: Place) -> str:
    return f"topic {place.topic} partition {place.partition}"


def _offsets(place: Place, extent: Extent) -> str:
    return f"{_named(place)}, offsets {extent.base_offset} to {extent.next_offset}"


def _refers(segment: StoredSegment) -> str:
    """Say which records rows look for in a segment."""
    known = [_offsets(place, extent) for extent, place in segment.extents if place is not None]
    more = f" and {len(known) - _MOST_TOLD} more extents" if len(known) > _MOST_TOLD else ""
    return f"it holds {'; '.join(known[:_MOST_TOLD])}{more}"
